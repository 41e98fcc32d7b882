// Average pooling, with the windows of pool.cu and its names; and means of whole planes of HW elements.

// PyTorch's divisor along one axis: window positions inside x, or inside x and its padding.
static __device__ inline int pool_count(int output, int stride, int size, int inputs, int pad, bool padded) {
    const int start = output * stride - pad, most = padded ? inputs + pad : inputs;
    const int end = start + size < most ? start + size : most;
    return end - (padded || start > 0 ? start : 0);
}

static __device__ inline real pool_divisor(const Pool& g, int p, int q, bool padded) {
    return (real)pool_count(p, g.sh, g.R, g.H, g.ph, padded) * (real)pool_count(q, g.sw, g.S, g.W, g.pw, padded);
}

template <int SIZE>
static __device__ inline real pool_sum(const real* x, const Pool& g, PoolPlane plane, int p, int q) {
    real sum = 0;
    pool_window<SIZE>(x, g, plane, p, q, [&](bool inside, real v, int) { sum += inside ? v : (real)0; });
    return sum;
}

// y = the mean of each window.
KERNEL avg_pool(const real* x, real* y, long long N, long long C, long long hw, long long pq, long long size,
                long long stride, long long padding, long long dilation, long long last, long long inner,
                long long middle, long long padded) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const long long from = C * g.H * g.W, to = C * g.P * g.Q;
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.P, g.Q, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.H, g.W, last);
        const real divisor = pool_divisor(g, at.h, at.w, padded);
        for (long long n = blockIdx.y; n < N; n += gridDim.y) {
            const real* base = x + n * from + plane.start;
            real sum;
            if (g.R == 2 && g.S == 2) sum = pool_sum<2>(base, g, plane, at.h, at.w);
            else if (g.R == 3 && g.S == 3) sum = pool_sum<3>(base, g, plane, at.h, at.w);
            else sum = pool_sum<0>(base, g, plane, at.h, at.w);
            y[n * to + e] = sum / divisor;
        }
    }
}

// dx = the sum over windows of dy / divisor.  common: the divisor of all windows, 0 if they differ.
KERNEL avg_pool_backward(const real* dy, real* dx, long long N, long long C, long long hw, long long pq,
                         long long size, long long stride, long long padding, long long dilation, long long last,
                         long long inner, long long middle, long long down, long long across, long long padded,
                         long long common) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const real scale = common ? 1 / (real)common : (real)0;
    const auto read = [&](long long o) { return dy[o]; };
    const auto take = [&](real v, long long, PoolPlace, int p, int q, int, int) {
        return common ? v * scale : v / pool_divisor(g, p, q, padded);
    };
    pool_backward(g, dx, N, C, last, inner, middle, down, across, read, take);
}

// ---- whole planes

#define POOL_RUN 8  // elements that are read at once and added up before they join a sum in double

// For the threads below `columns`, a power of two: the sum of `value` over all threads of the block whose `place` is
// theirs modulo `columns`, in one fixed order.  Places are a permutation of the threads.
static __device__ double block_pool_sum(double value, int place, int columns) {
    __shared__ double part[THREADS];
    __syncthreads();
    part[place] = value;
    __syncthreads();
    for (int half = THREADS / 2; half >= columns; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    return part[threadIdx.x];
}

// y: (planes) = the mean of HW elements of x each; `columns` planes to a block.
KERNEL global_avg_pool(const real* x, real* y, long long planes, long long C, long long HW, long long last,
                       long long columns) {
    const int width = (int)columns, step = THREADS / width, t = threadIdx.x;
    // neighbours share a plane that is contiguous, and take one each where channels are innermost
    const int column = last ? t % width : t / step, row = last ? t / width : t % step;
    for (long long first = blockIdx.x * columns; first < planes; first += gridDim.x * columns) {
        const long long plane = first + column, n = plane / C, stride = last ? C : 1;
        const real* base = x + (last ? n * C * HW + plane % C : plane * HW);
        const long long count = plane < planes ? HW : 0;
        double total = 0;
        for (long long i = row; i < count; i += POOL_RUN * step) {
            real run = 0;
#pragma unroll
            for (int k = 0; k < POOL_RUN; k++) run += i + k * step < count ? base[(i + k * step) * stride] : (real)0;
            total += run;
        }
        total = block_pool_sum(total, row * width + column, width);
        if (t < width && first + t < planes) y[first + t] = (real)(total / HW);
    }
}

// dx = dy / HW all over a plane.  inner: C where channels are innermost, else HW; `over` its reciprocal.
KERNEL global_avg_pool_backward(const real* dy, real* dx, long long N, long long C, long long HW, long long last,
                                long long inner, long long over) {
    EACH(e, C * HW) {
        const unsigned outside = quotient((unsigned)e, over);
        const unsigned c = last ? (unsigned)e - outside * (unsigned)inner : outside;
        for (long long n = blockIdx.y; n < N; n += gridDim.y) dx[n * C * HW + e] = dy[n * C + c] / HW;
    }
}
