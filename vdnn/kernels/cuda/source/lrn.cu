// Local response normalisation along channels.  N planes of HW positions, C channels each; `rows`, `columns`: how far
// one channel and one position are from the next in an image (channels-last storage is one image of N * H * W).  The
// window of channel c goes from c - before to c + after.
//
// A block owns some positions for all channels, so that dx may lie over dy: it reads ahead of what it writes.  It walks
// along the channels LRN_STEP at a time and keeps the last LRN_RING of them in shared memory, zero before the first:
// each element is read from memory once, in the order of the storage.

#define LRN_STEP 32
#define LRN_RING 64                       // at least LRN_STEP + before + after
#define LRN_WIDE (128 / (int)sizeof(real))  // positions of a block
#define LRN_PITCH (LRN_WIDE + 1)
#define LRN_EACH (LRN_STEP * LRN_WIDE / THREADS)

// Which part of an array a block works on, and which elements of LRN_STEP channels a thread: neighbours in a warp are
// neighbours in memory.
struct LrnPart {
    const long long start, rows, columns, positions;  // where it begins; strides; how many positions there are
    const int C;
    const bool last;

    __device__ int row(int k) const {
        return last ? threadIdx.x % LRN_STEP : threadIdx.x / LRN_WIDE + k * (THREADS / LRN_WIDE);
    }
    __device__ int column(int k) const {
        return last ? threadIdx.x / LRN_STEP + k * (THREADS / LRN_STEP) : threadIdx.x % LRN_WIDE;
    }
    __device__ bool holds(int c, int column) const { return c >= 0 && c < C && column < positions; }
    __device__ long long at(int c, int column) const { return start + c * rows + column * columns; }
};

static __device__ inline LrnPart lrn_part(long long index, long long parts, long long C, long long HW,
                                          long long rows, long long columns) {
    const long long n = index / parts, first = (index - n * parts) * LRN_WIDE;
    return {n * C * HW + first * columns, rows, columns, HW - first, (int)C, columns > 1};
}

static __device__ inline real& lrn_cell(real* ring, int c, int column) {
    return ring[(c & (LRN_RING - 1)) * LRN_PITCH + column];
}

// The sum over channels first .. first + count - 1 of the ring's values, or of their squares; COUNT 0: any number.
template <int COUNT, bool SQUARES>
static __device__ inline real lrn_sum(real* ring, int first, int count, int column) {
    real sum = 0;
#pragma unroll
    for (int j = 0; j < (COUNT ? COUNT : count); j++) {
        const real v = lrn_cell(ring, first + j, column);
        sum += SQUARES ? v * v : v;
    }
    return sum;
}

template <bool SQUARES>
static __device__ inline real lrn_window(real* ring, int first, int count, int column) {
    if (count == 5) return lrn_sum<5, SQUARES>(ring, first, count, column);  // AlexNet's
    return lrn_sum<0, SQUARES>(ring, first, count, column);
}

// s ** -beta
static __device__ inline real lrn_power(real s, double beta) {
    if (beta != 0.75) return pow(s, (real)-beta);
    const real root = sqrt(s);
    return 1 / (root * (real)sqrt(root));
}

static __device__ inline void block_lrn_clear(real* ring) {
    __syncthreads();
    for (int i = threadIdx.x; i < LRN_RING * LRN_PITCH; i += THREADS) ring[i] = 0;
}

// y = x * s ** -beta, s = k + scale * sum of x ** 2.  y may be x.
KERNEL lrn(const real* x, real* y, long long N, long long C, long long HW, long long rows, long long columns,
           long long before, long long after, double scale, double beta, double k) {
    __shared__ real ring[LRN_RING * LRN_PITCH];
    const long long parts = (HW + LRN_WIDE - 1) / LRN_WIDE;
    for (long long index = blockIdx.x; index < N * parts; index += gridDim.x) {
        const LrnPart part = lrn_part(index, parts, C, HW, rows, columns);
        block_lrn_clear(ring);
        for (int head = 0; head - after < C; head += LRN_STEP) {
            real v[LRN_EACH];
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) {
                const int c = head + part.row(i), column = part.column(i);
                v[i] = part.holds(c, column) ? x[part.at(c, column)] : (real)0;
            }
            __syncthreads();  // the step before has read what is overwritten here
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) lrn_cell(ring, head + part.row(i), part.column(i)) = v[i];
            __syncthreads();
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) {
                const int c = head + part.row(i) - (int)after, column = part.column(i);
                if (!part.holds(c, column)) continue;
                const real sum = lrn_window<true>(ring, c - (int)before, (int)(before + after + 1), column);
                y[part.at(c, column)] = lrn_cell(ring, c, column) * lrn_power(sum * (real)scale + (real)k, beta);
            }
        }
    }
}

// dx = dy * s ** -beta - factor * x * sum of t, where t = dy * x * s ** (-beta - 1), over the channels whose window
// holds this one.  A step reads x of LRN_STEP channels, works out t of those that lie `after` behind, and writes dx of
// those that lie `before` behind these: no dy is read after its dx was written.
KERNEL lrn_backward(const real* x, const real* dy, real* dx, long long N, long long C, long long HW, long long rows,
                    long long columns, long long before, long long after, double scale, double beta, double k,
                    double factor) {
    __shared__ real ring[LRN_RING * LRN_PITCH], terms[LRN_RING * LRN_PITCH], direct[LRN_RING * LRN_PITCH];
    const long long parts = (HW + LRN_WIDE - 1) / LRN_WIDE;
    const int size = (int)(before + after + 1);
    for (long long index = blockIdx.x; index < N * parts; index += gridDim.x) {
        const LrnPart part = lrn_part(index, parts, C, HW, rows, columns);
        block_lrn_clear(ring);
        block_lrn_clear(terms);
        for (int head = 0; head - before - after < C; head += LRN_STEP) {
            real v[LRN_EACH], g[LRN_EACH];
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) {
                const int c = head + part.row(i), column = part.column(i);
                v[i] = part.holds(c, column) ? x[part.at(c, column)] : (real)0;
                g[i] = part.holds(c - (int)after, column) ? dy[part.at(c - (int)after, column)] : (real)0;
            }
            __syncthreads();  // the step before has read what is overwritten here
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) lrn_cell(ring, head + part.row(i), part.column(i)) = v[i];
            __syncthreads();
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) {
                const int c = head + part.row(i) - (int)after, column = part.column(i);
                const bool holds = part.holds(c, column);
                const real s = lrn_window<true>(ring, c - (int)before, size, column) * (real)scale + (real)k;
                const real power = lrn_power(s, beta);
                lrn_cell(direct, c, column) = power * g[i];
                lrn_cell(terms, c, column) = holds ? power / s * lrn_cell(ring, c, column) * g[i] : (real)0;
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < LRN_EACH; i++) {
                const int c = head + part.row(i) - (int)(before + after), column = part.column(i);
                if (!part.holds(c, column)) continue;
                const real sum = lrn_window<false>(terms, c - (int)after, size, column);
                dx[part.at(c, column)] = lrn_cell(direct, c, column) - sum * (real)factor * lrn_cell(ring, c, column);
            }
        }
    }
}
