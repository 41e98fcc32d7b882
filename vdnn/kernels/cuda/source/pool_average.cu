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

// One element of y in all images of a thread, from x at its plane.
template <int SIZE>
static __device__ inline void avg_pool_images(const real* __restrict__ x, real* __restrict__ y, PoolImages images,
                                              const Pool& g, PoolPlane plane, PoolPlace at, real divisor) {
#pragma unroll(SIZE == 2 ? 2 : 1)
    for (int m = 0; m < images.count; m++, x += images.from, y += images.to)
        *y = pool_sum<SIZE>(x, g, plane, at.h, at.w) / divisor;
}

// y = the mean of each window.
KERNEL avg_pool(const real* __restrict__ x, real* __restrict__ y, long long N, long long C, long long hw, long long pq,
                long long size, long long stride, long long padding, long long dilation, long long last,
                long long inner, long long middle, long long padded) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const long long from = C * g.H * g.W, to = C * g.P * g.Q;
    const PoolImages images = pool_images(N, from, to);
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.P, g.Q, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.H, g.W, last);
        const real divisor = pool_divisor(g, at.h, at.w, padded);
        const real* source = x + blockIdx.y * from + plane.start;
        real* target = y + blockIdx.y * to + e;
        if (g.R == 2 && g.S == 2) avg_pool_images<2>(source, target, images, g, plane, at, divisor);
        else if (g.R == 3 && g.S == 3) avg_pool_images<3>(source, target, images, g, plane, at, divisor);
        else avg_pool_images<0>(source, target, images, g, plane, at, divisor);
    }
}

// An element gets dy of its windows, each times 1 / its divisor, which is 0 for none.
struct AvgPoolShares {
    const real* dy;
    const Pool& g;
    bool padded;
    real share;  // of every window, 0 if they differ

    __device__ void move(long long from, long long) { dy += from; }
    __device__ real read(int o) const { return dy[o]; }
    __device__ real key(int p, int q, int, int) const { return share != 0 ? share : 1 / pool_divisor(g, p, q, padded); }
    __device__ real none() const { return 0; }
    __device__ real term(real v, real key, PoolPlace) const { return key != 0 ? v * key : (real)0; }
};

// dx = the sum over windows of dy / divisor.  common: the divisor of all windows, 0 if they differ.
KERNEL avg_pool_backward(const real* __restrict__ dy, real* __restrict__ dx, long long N, long long C, long long hw,
                         long long pq, long long size, long long stride, long long padding, long long dilation,
                         long long last, long long inner, long long middle, long long down, long long across,
                         long long padded, long long common) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const real share = common ? 1 / (real)common : (real)0;
    pool_backward(AvgPoolShares{dy, g, padded != 0, share}, dx, g, N, C, last, inner, middle, down, across);
}

// ---- whole planes

#define POOL_RUN 8  // elements that are read at once and added up before they join a sum in double

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
        total = block_sums(total, row * width + column, width);
        if (t < width && first + t < planes) y[first + t] = (real)(total / HW);
    }
}

// dx = dy / HW all over a plane.  inner: C where channels are innermost, else HW; `over` its reciprocal.
KERNEL global_avg_pool_backward(const real* __restrict__ dy, real* __restrict__ dx, long long N, long long C,
                                long long HW, long long last, long long inner, long long over) {
    const real share = 1 / (real)HW;
    const long long size = C * HW;
    EACH(e, size) {
        const unsigned outside = quotient((unsigned)e, over);
        const unsigned c = last ? (unsigned)e - outside * (unsigned)inner : outside;
#pragma unroll 4
        for (long long n = blockIdx.y; n < N; n += gridDim.y) dx[n * size + e] = dy[n * C + c] * share;
    }
}
