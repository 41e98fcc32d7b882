// Pooling.  N images of C channels; x has H rows and W columns, y has P and Q; a window has R and S.
//
// Two sizes that belong together (hw, pq, size, stride, padding, dilation) come as one number, rows * 2^32 + columns.
// `last`: channels are innermost.  `inner`, `middle`: reciprocals of the two innermost sizes of what a thread counts,
// `down`, `across` those of the strides.  A thread works out once where an element is, then goes over images.

#define NOWHERE 255  // the index of a window that lies outside of x

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

// The largest element of a window, NaN if it holds one; and the first k that is not below it.
template <int SIZE>
static __device__ inline real pool_largest(const real* x, const Pool& g, PoolPlane plane, int p, int q, int& winner) {
    real best = 0;
    int first = NOWHERE;
    winner = NOWHERE;
    pool_window<SIZE>(x, g, plane, p, q, [&](bool inside, real v, int k) {
        const bool wins = inside & ((first == NOWHERE) | ((best == best) & !(v <= best)));
        best = wins ? v : best;
        winner = wins ? k : winner;
        first = inside & (first == NOWHERE) ? k : first;
    });
    if (best != best) winner = first;  // nothing is below NaN
    const real zero = 0;
    return winner == NOWHERE ? -1 / zero : best;
}

// y = the largest of each window, -inf if it is empty; indices: the winner's k, or null.
KERNEL max_pool(const real* x, real* y, u8* indices, long long N, long long C, long long hw, long long pq,
                long long size, long long stride, long long padding, long long dilation, long long last,
                long long inner, long long middle) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const long long from = C * g.H * g.W, to = C * g.P * g.Q;
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.P, g.Q, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.H, g.W, last);
        for (long long n = blockIdx.y; n < N; n += gridDim.y) {
            const real* base = x + n * from + plane.start;
            int k;
            if (g.R == 2 && g.S == 2) y[n * to + e] = pool_largest<2>(base, g, plane, at.h, at.w, k);
            else if (g.R == 3 && g.S == 3) y[n * to + e] = pool_largest<3>(base, g, plane, at.h, at.w, k);
            else y[n * to + e] = pool_largest<0>(base, g, plane, at.h, at.w, k);
            if (indices) indices[n * to + e] = (u8)k;
        }
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

// The sum of take(read(o), p, q, r, s) over the windows (p, q), at o in dy's plane, that have x at (h, w) as their
// (r, s).  At most MOST of them lie along each axis, and those of a row are read at once; 0: any number, or dilated.
template <int MOST, class READ, class TAKE>
static __device__ inline real pool_gather(const Pool& g, PoolPlane plane, PoolReach rows, PoolReach columns, int h,
                                          int w, READ read, TAKE take) {
    real sum = 0;
    if constexpr (MOST == 0) {
        for (int p = rows.first; p < rows.end; p++)
            for (int q = columns.first; q < columns.end; q++) {
                const int i = h + g.ph - p * g.sh, j = w + g.pw - q * g.sw;
                if (i % g.dh || j % g.dw) continue;
                sum += take(read(p * plane.row + q * plane.column), p, q, i / g.dh, j / g.dw);
            }
    } else {
#pragma unroll(MOST == 3 ? 1 : 2)  // of 3 x 3 windows only a row at a time, or too few threads fit
        for (int i = 0; i < MOST; i++) {
            decltype(read(0)) values[MOST];
            const int p = rows.first + i;
#pragma unroll
            for (int j = 0; j < MOST; j++) {  // without branches: what is not there is read elsewhere
                const int q = columns.first + j;
                values[j] = read(p < rows.end && q < columns.end ? p * plane.row + q * plane.column : 0);
            }
#pragma unroll
            for (int j = 0; j < MOST; j++) {
                const int q = columns.first + j;
                const real term = take(values[j], p, q, h + g.ph - p * g.sh, w + g.pw - q * g.sw);
                sum += p < rows.end && q < columns.end ? term : (real)0;
            }
        }
    }
    return sum;
}

// dx = sums of take(read(o), n, place, p, q, r, s) for the elements of all images n; o: offset in dy.
template <class READ, class TAKE>
static __device__ inline void pool_backward(const Pool& g, real* dx, long long N, int C, bool last, long long inner,
                                            long long middle, long long down, long long across, READ read, TAKE take) {
    const long long from = (long long)C * g.P * g.Q, to = (long long)C * g.H * g.W;
    const int spanh = g.dh * (g.R - 1) + 1, spanw = g.dw * (g.S - 1) + 1;
    const int windows = quotient(spanh - 1, down) + 1, beside = quotient(spanw - 1, across) + 1;
    const int most = g.dh > 1 || g.dw > 1 ? 0 : windows > beside ? windows : beside;
    EACH(e, to) {
        const PoolPlace at = pool_place((unsigned)e, C, g.H, g.W, last, inner, middle);
        const PoolPlane plane = pool_plane(at.c, C, g.P, g.Q, last);
        const PoolReach rows = pool_reach(at.h + g.ph, spanh, down, g.P);
        const PoolReach columns = pool_reach(at.w + g.pw, spanw, across, g.Q);
        for (long long n = blockIdx.y; n < N; n += gridDim.y) {
            const long long start = n * from + plane.start;
            const auto reads = [&](int o) { return read(start + o); };
            const auto takes = [&](decltype(read(0)) v, int p, int q, int r, int s) {
                return take(v, n, at, p, q, r, s);
            };
            real& target = dx[n * to + e];
            if (most == 1) target = pool_gather<1>(g, plane, rows, columns, at.h, at.w, reads, takes);
            else if (most == 2) target = pool_gather<2>(g, plane, rows, columns, at.h, at.w, reads, takes);
            else if (most == 3) target = pool_gather<3>(g, plane, rows, columns, at.h, at.w, reads, takes);
            else target = pool_gather<0>(g, plane, rows, columns, at.h, at.w, reads, takes);
        }
    }
}

struct PoolWinner {
    real gradient;
    int k;
};

// dx = dy at each window's winner.
KERNEL max_pool_backward(const u8* indices, const real* dy, real* dx, long long N, long long C, long long hw,
                         long long pq, long long size, long long stride, long long padding, long long dilation,
                         long long last, long long inner, long long middle, long long down, long long across) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const auto read = [&](long long o) { return PoolWinner{dy[o], indices[o]}; };
    const auto take = [&](PoolWinner v, long long, PoolPlace, int, int, int r, int s) {
        return v.k == r * g.S + s ? v.gradient : (real)0;
    };
    pool_backward(g, dx, N, C, last, inner, middle, down, across, read, take);
}

struct PoolMaximum {
    real gradient, largest;
};

// The same from x and y: the winner is not below y, and all before it in the window are.
KERNEL max_pool_backward_input(const real* x, const real* y, const real* dy, real* dx, long long N, long long C,
                               long long hw, long long pq, long long size, long long stride, long long padding,
                               long long dilation, long long last, long long inner, long long middle, long long down,
                               long long across) {
    const Pool g = pool_of(hw, pq, size, stride, padding, dilation);
    const auto read = [&](long long o) { return PoolMaximum{dy[o], y[o]}; };
    const auto take = [&](PoolMaximum v, long long n, PoolPlace at, int, int, int r, int s) {
        const PoolPlane plane = pool_plane(at.c, C, g.H, g.W, last);
        const real* base = x + n * C * g.H * g.W + plane.start;
        if (r < 0 || s < 0) return (real)0;  // a window beyond x, whose term is not counted: save the work
        if (base[at.h * plane.row + at.w * plane.column] < v.largest) return (real)0;
        const int h = at.h - r * g.dh, w = at.w - s * g.dw;
        for (int i = 0; i <= r; i++)
            for (int j = 0; j < (i < r ? g.S : s); j++) {
                const int a = h + i * g.dh, b = w + j * g.dw;
                if ((unsigned)a >= (unsigned)g.H || (unsigned)b >= (unsigned)g.W) continue;
                if (!(base[a * plane.row + b * plane.column] < v.largest)) return (real)0;
            }
        return v.gradient;
    };
    pool_backward(g, dx, N, C, last, inner, middle, down, across, read, take);
}
