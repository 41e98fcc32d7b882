// Elementwise kernels on dense arrays of n elements, all stored alike; and copies between any strides.

// y = max(x, 0), never -0.0, NaN where x is NaN; y may be x.
KERNEL relu(const real* x, real* y, long long n) {
    const real* from[] = {x};
    map(from, y, n, [](const real* v) { return v[0] <= 0 ? (real)0 : v[0]; });
}

// dx = dy where y > 0, or is NaN, +0.0 elsewhere; dx may be dy.
KERNEL relu_backward(const real* y, const real* dy, real* dx, long long n) {
    const real* from[] = {y, dy};
    map(from, dx, n, [](const real* v) { return v[0] <= 0 ? (real)0 : v[1]; });
}

// average = (average * ratio + value) * momentum
KERNEL move_average(const real* value, real* average, double ratio, double momentum, long long n) {
    const real* from[] = {average, value};
    const real a = (real)ratio, b = (real)momentum;
    map(from, average, n, [=](const real* v) { return (v[0] * a + v[1]) * b; });
}

KERNEL copy_flat(const real* x, real* y, long long n) {
    const real* from[] = {x};
    map(from, y, n, [](const real* v) { return v[0]; });
}

// Rows of contiguous columns, so many elements apart.
KERNEL copy_rows(const real* __restrict__ x, real* __restrict__ y, long long rows, long long columns, long long width,
                 long long x_row, long long y_row) {
    EACH_COLUMN(c, columns, width) {
        EACH_ROW(r, rows, width) y[r * y_row + c] = x[r * x_row + c];
    }
}

#define COPY_TILE 32

// N matrices of A x B, contiguous along A in x and along B in y.  A tile is read along A, turned in shared memory and
// written along B, so that both sides move whole lines.
KERNEL copy_turned(const real* __restrict__ x, real* __restrict__ y, long long N, long long A, long long B,
                   long long x_n, long long x_b, long long y_n, long long y_a) {
    __shared__ real tile[COPY_TILE][COPY_TILE + 1];  // one more, so that a column lies in different banks
    const long long across = (A + COPY_TILE - 1) / COPY_TILE, tiles = across * ((B + COPY_TILE - 1) / COPY_TILE);
    const int side = threadIdx.x % COPY_TILE, start = threadIdx.x / COPY_TILE, step = THREADS / COPY_TILE;
    for (long long n = blockIdx.y; n < N; n += gridDim.y) {
        for (long long t = blockIdx.x; t < tiles; t += gridDim.x) {
            const long long a = t % across * COPY_TILE, b = t / across * COPY_TILE;
            __syncthreads();
#pragma unroll
            for (int k = start; k < COPY_TILE; k += step)
                if (a + side < A && b + k < B) tile[k][side] = x[n * x_n + (b + k) * x_b + a + side];
            __syncthreads();
#pragma unroll
            for (int k = start; k < COPY_TILE; k += step)
                if (b + side < B && a + k < A) y[n * y_n + (a + k) * y_a + b + side] = tile[side][k];
        }
    }
}

// Arrays of (A, B, C, D) with any strides: slow, for what the others do not do.
KERNEL copy_strided(const real* __restrict__ x, real* __restrict__ y, long long A, long long B, long long C,
                    long long D, long long x_a, long long x_b, long long x_c, long long x_d, long long y_a,
                    long long y_b, long long y_c, long long y_d) {
    EACH(i, A * B * C * D) {
        const long long d = i % D, c = i / D % C, b = i / (D * C) % B, a = i / (D * C * B);
        y[a * y_a + b * y_b + c * y_c + d * y_d] = x[a * x_a + b * x_b + c * x_c + d * x_d];
    }
}
