// Max pooling, with the windows of pool.cu and its names.

#define NOWHERE 255  // the index of a window that lies outside of x

// Infinity, as a constant for every compiler: 1 / 0 is not one.
static __device__ inline real max_pool_infinity() {
    union {
        u64 bits;
        double value;
    } infinity = {0x7FF0000000000000ull};
    return (real)infinity.value;
}

// The largest element of a window, NaN if it holds one, -inf if it is empty; and the first k that is not below it.
template <int SIZE>
static __device__ inline real pool_largest(const real* x, const Pool& g, PoolPlane plane, int p, int q, int& winner) {
    real best = -max_pool_infinity();
    int first = NOWHERE;
    winner = NOWHERE;
    pool_window<SIZE>(x, g, plane, p, q, [&](bool inside, real v, int k) {
        const bool wins = inside & (best == best) & !(v <= best);
        best = wins ? v : best;
        winner = wins ? k : winner;
        first = inside & (first == NOWHERE) ? k : first;
    });
    if (winner == NOWHERE || best != best) winner = first;  // all are -inf, or nothing is below NaN
    return best;
}

// One element of y in all images of a thread, from x at its plane.  indices: null, or where its winners go.
template <int SIZE>
static __device__ inline void max_pool_images(const real* __restrict__ x, real* __restrict__ y, u8* __restrict__ indices,
                                              PoolImages images, const Pool& g, PoolPlane plane, PoolPlace at) {
#pragma unroll(SIZE == 2 ? 2 : 1)
    for (int m = 0; m < images.count; m++, x += images.from, y += images.to) {
        int k;
        *y = pool_largest<SIZE>(x, g, plane, at.h, at.w, k);
        if (!indices) continue;
        *indices = (u8)k;
        indices += images.to;
    }
}

// y = the largest of each window, -inf if it is empty; indices: the winner's k, or null.
KERNEL max_pool(const real* __restrict__ x, real* __restrict__ y, u8* __restrict__ indices, long long N, long long C,
                long long hw, long long pq, long long size, long long stride, long long padding, long long dilation,
                long long last, long long inner, long long middle) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const long long from = C * g.H * g.W, to = C * g.P * g.Q;
    const PoolImages images = pool_images(N, from, to);
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.P, g.Q, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.H, g.W, last);
        const real* source = x + blockIdx.y * from + plane.start;
        real* target = y + blockIdx.y * to + e;
        u8* winners = indices ? indices + blockIdx.y * to + e : indices;
        if (g.R == 2 && g.S == 2) max_pool_images<2>(source, target, winners, images, g, plane, at);
        else if (g.R == 3 && g.S == 3) max_pool_images<3>(source, target, winners, images, g, plane, at);
        else max_pool_images<0>(source, target, winners, images, g, plane, at);
    }
}

// ---- backward, see pool_gather

struct MaxPoolWinner {
    real gradient;
    int k;
};

// An element gets dy of the windows whose winner it is, its k.
struct MaxPoolIndices {
    const u8* indices;
    const real* dy;
    int S;

    __device__ void move(long long from, long long) { indices += from, dy += from; }
    __device__ MaxPoolWinner read(int o) const { return {dy[o], indices[o]}; }
    __device__ int key(int, int, int r, int s) const { return r * S + s; }
    __device__ int none() const { return -1; }
    __device__ real term(MaxPoolWinner v, int k, PoolPlace) const { return v.k == k ? v.gradient : (real)0; }
};

// dx = dy at each window's winner.
KERNEL max_pool_backward(const u8* __restrict__ indices, const real* __restrict__ dy, real* __restrict__ dx,
                         long long N, long long C, long long hw, long long pq, long long size, long long stride,
                         long long padding, long long dilation, long long last, long long inner, long long middle,
                         long long down, long long across) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    pool_backward(MaxPoolIndices{indices, dy, g.S}, dx, g, N, C, last, inner, middle, down, across);
}

struct MaxPoolMaximum {
    real gradient, largest;
};

// The same from x and y: the winner is not below y, and all before it in the window are.
struct MaxPoolInput {
    const real *x, *y, *dy;  // x at the element itself
    const Pool& g;
    PoolPlane plane;  // of x

    __device__ void move(long long from, long long to) { x += to, y += from, dy += from; }
    __device__ MaxPoolMaximum read(int o) const { return {dy[o], y[o]}; }
    __device__ int key(int, int, int r, int s) const { return r << 8 | s; }
    __device__ int none() const { return -1; }
    __device__ real term(MaxPoolMaximum v, int key, PoolPlace at) const {
        if (key < 0 || *x < v.largest) return (real)0;
        const int r = key >> 8, s = key & 255;
        for (int i = 0; i <= r; i++)
            for (int j = 0; j < (i < r ? g.S : s); j++) {
                const int down = (i - r) * g.dh, across = (j - s) * g.dw;
                if ((unsigned)(at.h + down) >= (unsigned)g.H || (unsigned)(at.w + across) >= (unsigned)g.W) continue;
                if (!(x[down * plane.row + across * plane.column] < v.largest)) return (real)0;
            }
        return v.gradient;
    }
};

KERNEL max_pool_backward_input(const real* __restrict__ x, const real* __restrict__ y, const real* __restrict__ dy,
                               real* __restrict__ dx, long long N, long long C, long long hw, long long pq,
                               long long size, long long stride, long long padding, long long dilation, long long last,
                               long long inner, long long middle, long long down, long long across) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const PoolPlane plane = pool_plane(0, C, g.H, g.W, last);
    pool_backward(MaxPoolInput{x, y, dy, g, plane}, dx, g, N, C, last, inner, middle, down, across);
}
