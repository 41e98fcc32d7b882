// Pooling.  N images of C channels; x has H rows and W columns, y has P and Q; a window has R and S.
//
// Two sizes that belong together (hw, pq, size, stride, padding, dilation) come as one number, rows * 2^32 + columns.
// `last`: channels are innermost.  `inner`, `middle`: reciprocals of the two innermost sizes of what a thread counts,
// `down`, `across` those of the strides.  A thread works out once where an element is, and its windows, then goes over
// images.  No array lies over another, and kernels say so: the next image's elements are read before one is written.

struct Pool {
    int H, W, P, Q, R, S, sh, sw, ph, pw, dh, dw;
};

static __device__ inline int pool_high(long long two) { return (int)(two >> 32); }
static __device__ inline int pool_low(long long two) { return (int)two; }

static __device__ inline Pool pool_of(long long hw, long long pq, long long size, long long stride, long long padding,
                                      long long dilation) {
    return {pool_high(hw),      pool_low(hw),      pool_high(pq),       pool_low(pq),
            pool_high(size),    pool_low(size),    pool_high(stride),   pool_low(stride),
            pool_high(padding), pool_low(padding), pool_high(dilation), pool_low(dilation)};
}

struct PoolPlace {
    int c, h, w;
};

// Channel, row and column of the e-th stored element of an image.
static __device__ inline PoolPlace pool_place(unsigned e, int C, int rows, int columns, bool last, long long inner,
                                              long long middle) {
    const unsigned outside = quotient(e, inner), outermost = quotient(outside, middle);
    const int inside = e - outside * (last ? C : columns), between = outside - outermost * (last ? columns : rows);
    if (last) return {inside, (int)outermost, between};
    return {(int)outermost, between, inside};
}

// A channel's plane in an image: where it begins, and from one row and column to the next.
struct PoolPlane {
    int start, row, column;
};

static __device__ inline PoolPlane pool_plane(int c, int C, int rows, int columns, bool last) {
    if (last) return {c, columns * C, C};
    return {c * rows * columns, columns, 1};
}

// The images of a thread, every gridDim.y-th from its first one on: how many, and from one to the next in the arrays of
// a kernel's inputs and outputs.
struct PoolImages {
    int count;
    long long from, to;
};

static __device__ inline PoolImages pool_images(long long N, long long from, long long to) {
    const int others = (int)N - 1 - (int)blockIdx.y;
    return {others < 0 ? 0 : others / (int)gridDim.y + 1, gridDim.y * from, gridDim.y * to};
}

// ---- forward

// take(is inside, element, k) for all elements of a window of y, whose size is `SIZE` squared; 0: any.  An element
// outside is read too, from another place: without branches a window of known size is read all at once.
template <int SIZE, class F>
static __device__ inline void pool_window(const real* x, const Pool& g, PoolPlane plane, int p, int q, F take) {
    const int R = SIZE ? SIZE : g.R, S = SIZE ? SIZE : g.S, h = p * g.sh - g.ph, w = q * g.sw - g.pw;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int s = 0; s < S; s++) {
            const int i = h + r * g.dh, j = w + s * g.dw;
            const bool inside = (unsigned)i < (unsigned)g.H && (unsigned)j < (unsigned)g.W;
            take(inside, x[inside ? i * plane.row + j * plane.column : 0], r * S + s);
        }
}

// ---- backward: an element of dx gathers from the windows that hold it, rows first, so nobody else writes it

// The outputs first .. end - 1 along one axis whose windows span x at `place`, counted from the padding's edge.
struct PoolReach {
    int first, end;
};

static __device__ inline PoolReach pool_reach(int place, int span, long long stride, int outputs) {
    const int end = quotient(place, stride) + 1;
    return {place < span ? 0 : (int)quotient(place - span, stride) + 1, end < outputs ? end : outputs};
}

// dx at (h, w) = the sum of term(read(o), key(p, q, r, s), place) over the windows (p, q), at o in a plane of dy, that
// have x at (h, w) as their (r, s); of each image.  At most MOST of them lie along each axis: where they are, and their
// keys, are worked out once, and those of an image are read at once.  MOST is 0 for any number, and dilated ones.
template <int MOST, class SOURCE>
static __device__ inline void pool_gather(SOURCE source, real* __restrict__ dx, PoolImages images, const Pool& g,
                                          PoolPlane plane, PoolPlace place, PoolReach rows, PoolReach columns) {
    const int h = place.h + g.ph, w = place.w + g.pw;
    if constexpr (MOST == 0) {
        for (int m = 0; m < images.count; m++, source.move(images.from, images.to), dx += images.to) {
            real sum = 0;
            for (int p = rows.first; p < rows.end; p++)
                for (int q = columns.first; q < columns.end; q++) {
                    const int i = h - p * g.sh, j = w - q * g.sw;
                    if (i % g.dh || j % g.dw) continue;
                    const auto value = source.read(p * plane.row + q * plane.column);
                    sum += source.term(value, source.key(p, q, i / g.dh, j / g.dw), place);
                }
            *dx = sum;
        }
    } else {
        int at[MOST * MOST];
        decltype(source.none()) keys[MOST * MOST];
#pragma unroll
        for (int k = 0; k < MOST * MOST; k++) {  // without branches: what is not there is read elsewhere
            const int p = rows.first + k / MOST, q = columns.first + k % MOST;
            const bool exists = p < rows.end && q < columns.end;
            at[k] = exists ? p * plane.row + q * plane.column : 0;
            keys[k] = exists ? source.key(p, q, h - p * g.sh, w - q * g.sw) : source.none();
        }
#pragma unroll(MOST < 2 ? 16 / sizeof(real) : 1)
        for (int m = 0; m < images.count; m++, source.move(images.from, images.to), dx += images.to) {
            real sum = 0;
#pragma unroll
            for (int row = 0; row < MOST * MOST; row += MOST) {
                decltype(source.read(0)) values[MOST];
#pragma unroll
                for (int k = 0; k < MOST; k++) values[k] = source.read(at[row + k]);
#pragma unroll
                for (int k = 0; k < MOST; k++) sum += source.term(values[k], keys[row + k], place);
            }
            *dx = sum;
        }
    }
}

// dx = what pool_gather says, for all elements of N images.
template <class SOURCE>
static __device__ inline void pool_backward(SOURCE source, real* __restrict__ dx, const Pool& g, long long N, int C,
                                            bool last, long long inner, long long middle, long long down,
                                            long long across) {
    const long long from = (long long)C * g.P * g.Q, to = (long long)C * g.H * g.W;
    const int spanh = g.dh * (g.R - 1) + 1, spanw = g.dw * (g.S - 1) + 1;
    const int windows = quotient(spanh - 1, down) + 1, beside = quotient(spanw - 1, across) + 1;
    const int most = g.dh > 1 || g.dw > 1 ? 0 : windows > beside ? windows : beside;
    const PoolImages images = pool_images(N, from, to);
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.H, g.W, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.P, g.Q, last);
        const PoolReach rows = pool_reach(at.h + g.ph, spanh, down, g.P);
        const PoolReach columns = pool_reach(at.w + g.pw, spanw, across, g.Q);
        SOURCE start = source;
        start.move(blockIdx.y * from + plane.start, blockIdx.y * to + e);
        real* target = dx + blockIdx.y * to + e;
        if (most == 1) pool_gather<1>(start, target, images, g, plane, at, rows, columns);
        else if (most == 2) pool_gather<2>(start, target, images, g, plane, at, rows, columns);
        else if (most == 3) pool_gather<3>(start, target, images, g, plane, at, rows, columns);
        else pool_gather<0>(start, target, images, g, plane, at, rows, columns);
    }
}
