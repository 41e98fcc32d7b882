// Batch normalisation.  N images, C channels, M values of each channel, in rows of `row` contiguous values: H * W in
// contiguous storage.  Channels-last storage is the same with rows of one value, of which there are M.
//
// Sums take two kernels.  A block of the first adds up a slice of the values of `lanes` channels, side by side in
// memory where rows hold one value; the second adds up the slices, and leaves what the last one needs to know of each
// channel.  Sums are kept in double, but a thread adds up NORM_RUN values before it touches one: on most GPUs double
// is slow.

#define NORM_RUN 8
#define NORM_AT_ONCE 4

// Where a thread is among the values of its channel: every `threads`-th of a slice, each an offset into an array.
struct NormWalk {
    long long left, offset, jump, wrap;  // values left; to the next one, and more where a row is crossed
    unsigned at, step, row, threads;

    __device__ void next() {
        left -= threads;
        offset += jump;
        at += step;
        if (at >= row) {
            at -= row;
            offset += wrap;
        }
    }
};

static __device__ inline NormWalk norm_walk(long long c, long long C, long long row, long long M, long long slice,
                                            long long slices, unsigned thread, unsigned threads) {
    const long long length = (M + slices - 1) / slices, first = slice * length + thread;
    const long long end = (slice + 1) * length < M ? (slice + 1) * length : M;
    const long long n = first / row, over = threads / row, at = first - n * row;
    const unsigned step = threads - over * row;
    return {c < C ? end - first : 0, (n * C + c) * row + at, over * C * row + step, (C - 1) * row,
            (unsigned)at,            step,                   (unsigned)row,         threads};
}

// For the threads below `columns`, a power of two: the sums of a and of b over all threads of the block whose `place`
// is theirs modulo `columns`, in one fixed order.  Places are a permutation of the threads.
static __device__ void block_norm_sums(double& a, double& b, int place, int columns) {
    __shared__ double first[THREADS], second[THREADS];
    const int t = threadIdx.x;
    __syncthreads();
    first[place] = a;
    second[place] = b;
    __syncthreads();
    for (int half = THREADS / 2; half >= columns; half /= 2) {
        if (t < half) {
            first[t] += first[t + half];
            second[t] += second[t + half];
        }
        __syncthreads();
    }
    a = first[t];
    b = second[t];
}

// partial: (C, slices, 2) = the block's two sums.
static __device__ inline void block_norm_partial(double first, double second, double* partial, long long c,
                                                 long long C, long long slice, long long slices, int lanes) {
    block_norm_sums(first, second, threadIdx.x, lanes);
    if (threadIdx.x >= lanes || c >= C) return;
    partial[(c * slices + slice) * 2] = first;
    partial[(c * slices + slice) * 2 + 1] = second;
}

// partial: (C, slices, 2) = sums of x - x0 and of its square, x0 being the channel's first value.  A thread first takes
// its own first value off: squares drown in neither, and a channel that begins with an outlier is no worse off.
KERNEL norm_moments(const real* x, double* partial, long long C, long long row, long long M, long long slices,
                    long long lanes) {
    const int width = (int)lanes;
    for (long long s = blockIdx.y; s < slices; s += gridDim.y)
        for (long long from = blockIdx.x * lanes; from < C; from += gridDim.x * lanes) {
            const long long c = from + threadIdx.x % width;
            NormWalk at = norm_walk(c, C, row, M, s, slices, threadIdx.x / width, THREADS / width);
            const real mine = at.left > 0 ? x[at.offset] : (real)0;
            double sum = 0, square = 0;
            int count = 0;
            while (at.left > 0) {
                real v[NORM_RUN], a = 0, b = 0;
#pragma unroll
                for (int k = 0; k < NORM_RUN; k++) {
                    v[k] = at.left > 0 ? x[at.offset] : mine;
                    count += at.left > 0;
                    at.next();
                }
#pragma unroll
                for (int k = 0; k < NORM_RUN; k++) {
                    const real d = v[k] - mine;
                    a += d;
                    b += d * d;
                }
                sum += a;
                square += b;
            }
            const double shift = count ? (double)mine - (double)x[c * row] : 0;
            square += shift * (2 * sum + count * shift);
            block_norm_partial(sum + count * shift, square, partial, c, C, s, slices, width);
        }
}

// partial: (C, slices, 2) = sums of dy and of dy * (x - mean).
KERNEL norm_moments_backward(const real* x, const real* dy, const real* mean, double* partial, long long C,
                             long long row, long long M, long long slices, long long lanes) {
    const int width = (int)lanes;
    for (long long s = blockIdx.y; s < slices; s += gridDim.y)
        for (long long from = blockIdx.x * lanes; from < C; from += gridDim.x * lanes) {
            const long long c = from + threadIdx.x % width;
            NormWalk at = norm_walk(c, C, row, M, s, slices, threadIdx.x / width, THREADS / width);
            const real middle = c < C ? mean[c] : (real)0;
            double sum = 0, moment = 0;
            while (at.left > 0) {
                real v[NORM_RUN], g[NORM_RUN], a = 0, b = 0;
#pragma unroll
                for (int k = 0; k < NORM_RUN; k++) {
                    const bool there = at.left > 0;
                    v[k] = there ? x[at.offset] : middle;
                    g[k] = there ? dy[at.offset] : (real)0;
                    at.next();
                }
#pragma unroll
                for (int k = 0; k < NORM_RUN; k++) {
                    a += g[k];
                    b += g[k] * (v[k] - middle);
                }
                sum += a;
                moment += b;
            }
            block_norm_partial(sum, moment, partial, c, C, s, slices, width);
        }
}

// The sums over all slices of the `columns` channels from `first` on, for the threads below `columns`.
static __device__ inline void block_norm_total(const double* partial, long long first, long long C, long long slices,
                                               int columns, double& sum, double& other) {
    const int group = THREADS / columns, column = threadIdx.x / group, row = threadIdx.x % group;
    const long long c = first + column;
    sum = other = 0;
    for (long long s = row; c < C && s < slices; s += group) {
        sum += partial[(c * slices + s) * 2];
        other += partial[(c * slices + s) * 2 + 1];
    }
    block_norm_sums(sum, other, row * columns + column, columns);
}

// y = (x - near) * scale + offset: near is the mean as a real, offset makes up for what that rounds off.
static __device__ inline void norm_coefficients(real* coefficients, long long c, long long C, double mean,
                                                double inverse, real w, real b) {
    const real near = (real)mean;
    const double scale = inverse * w;
    coefficients[c] = near;
    coefficients[C + c] = (real)scale;
    coefficients[2 * C + c] = (real)(b - (mean - near) * scale);
}

// Mean, inverse deviation, unbiased variance and coefficients of each channel.
KERNEL norm_finish(const real* x, const double* partial, const real* w, const real* b, real* mean, real* inverse,
                   real* variance, real* coefficients, long long C, long long row, long long M, long long slices,
                   long long columns, double eps) {
    for (long long first = blockIdx.x * columns; first < C; first += gridDim.x * columns) {
        double sum, square;
        block_norm_total(partial, first, C, slices, (int)columns, sum, square);
        const long long c = first + threadIdx.x;
        if (threadIdx.x >= columns || c >= C) continue;
        square -= sum * (sum / M);
        if (square < 0) square = 0;
        const double middle = x[c * row] + sum / M, deviation = 1 / sqrt(square / M + eps);
        mean[c] = (real)middle;
        inverse[c] = (real)deviation;
        variance[c] = (real)(square / (M > 1 ? M - 1 : 1));
        norm_coefficients(coefficients, c, C, middle, deviation, w[c], b[c]);
    }
}

// The same coefficients from a given mean and variance.
KERNEL norm_evaluate(const real* w, const real* b, const real* mean, const real* variance, real* coefficients,
                     long long C, double eps) {
    EACH(c, C) norm_coefficients(coefficients, c, C, mean[c], 1 / sqrt(variance[c] + eps), w[c], b[c]);
}

// dw, db, and the coefficients of dx = (x - mean) * p + dy * a + q.
KERNEL norm_finish_backward(const double* partial, const real* w, const real* mean, const real* inverse, real* dw,
                            real* db, real* coefficients, long long C, long long M, long long slices,
                            long long columns) {
    for (long long first = blockIdx.x * columns; first < C; first += gridDim.x * columns) {
        double sum, moment;
        block_norm_total(partial, first, C, slices, (int)columns, sum, moment);
        const long long c = first + threadIdx.x;
        if (threadIdx.x >= columns || c >= C) continue;
        const double deviation = inverse[c], a = w[c] * deviation;
        moment *= deviation;
        dw[c] = (real)moment;
        db[c] = (real)sum;
        coefficients[c] = mean[c];
        coefficients[C + c] = (real)(-a * deviation * moment / M);
        coefficients[2 * C + c] = (real)(-a * sum / M);
        coefficients[3 * C + c] = (real)a;
    }
}

// Threads take NORM_AT_ONCE elements of an image of `size`, a block's width apart, and the same of other images.  A
// channel is a row's number, modulo C; `by_row` and `by_channels` are reciprocals.
static __device__ inline unsigned norm_channel(unsigned e, unsigned C, long long by_row, long long by_channels) {
    const unsigned row = quotient(e, by_row);
    return row - quotient(row, by_channels) * C;
}

// y = (x - near) * scale + offset, or with dy: y += dy * a.  y may be x or dy.
KERNEL norm_apply(const real* x, const real* dy, const real* coefficients, real* y, long long N, long long C,
                  long long size, long long by_row, long long by_channels) {
    const long long tile = NORM_AT_ONCE * THREADS;
    for (long long first = blockIdx.x * tile + threadIdx.x; first < size; first += gridDim.x * tile) {
        real near[NORM_AT_ONCE], scale[NORM_AT_ONCE], offset[NORM_AT_ONCE], a[NORM_AT_ONCE];
#pragma unroll
        for (int k = 0; k < NORM_AT_ONCE; k++) {
            const long long e = first + k * THREADS;
            const unsigned c = e < size ? norm_channel((unsigned)e, (unsigned)C, by_row, by_channels) : 0;
            near[k] = coefficients[c];
            scale[k] = coefficients[C + c];
            offset[k] = coefficients[2 * C + c];
            a[k] = dy ? coefficients[3 * C + c] : (real)0;
        }
        for (long long n = blockIdx.y; n < N; n += gridDim.y) {
            const long long at = n * size + first;
            real v[NORM_AT_ONCE], g[NORM_AT_ONCE];
#pragma unroll
            for (int k = 0; k < NORM_AT_ONCE; k++) {
                const bool there = first + k * THREADS < size;
                v[k] = there ? x[at + k * THREADS] : (real)0;
                g[k] = there && dy ? dy[at + k * THREADS] : (real)0;
            }
#pragma unroll
            for (int k = 0; k < NORM_AT_ONCE; k++) {
                const real value = (v[k] - near[k]) * scale[k] + offset[k];
                if (first + k * THREADS < size) y[at + k * THREADS] = dy ? value + g[k] * a[k] : value;
            }
        }
    }
}
