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

#define BITS 8  // of a byte of a mask; element i is bit i % 8, from the least, of byte i / 8

// y as relu has it, and a bit for each element, set where it passed.  A block takes eight elements for each thread, side
// by side among threads; a byte for each, 0 or 1, goes to shared memory, and then every thread gathers eight of them.
KERNEL relu_mask(const real* x, real* y, u8* mask, long long n) {
    __shared__ u64 passed[THREADS];
    u8* flags = (u8*)passed;
    const long long size = BITS * THREADS;
    for (long long start = blockIdx.x * size; start < n; start += gridDim.x * size) {
        real v[BITS];
#pragma unroll
        for (int k = 0; k < BITS; k++) {
            const long long i = start + k * THREADS + threadIdx.x;
            v[k] = i < n ? x[i] : (real)0;
        }
        __syncthreads();  // the flags of the elements before have been gathered
#pragma unroll
        for (int k = 0; k < BITS; k++) {
            const long long i = start + k * THREADS + threadIdx.x;
            if (i < n) y[i] = v[k] <= 0 ? (real)0 : v[k];
            flags[k * THREADS + threadIdx.x] = !(v[k] <= 0);
        }
        __syncthreads();
        // the product's highest byte has the lowest bits of the eight bytes
        const long long i = start / BITS + threadIdx.x;
        if (i * BITS < n) mask[i] = (u8)(passed[threadIdx.x] * 0x0102040810204080ull >> 56);
    }
}

// dx = dy where the mask's bit is set, +0.0 elsewhere; dx may be dy.
KERNEL relu_mask_backward(const u8* __restrict__ mask, const real* dy, real* dx, long long n) {
    const long long step = gridDim.x * (long long)blockDim.x;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    for (; i + (AT_ONCE - 1) * step < n; i += AT_ONCE * step) {
        real v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const long long at = i + k * step;
            v[k] = mask[at / BITS] >> (at % BITS) & 1 ? dy[at] : (real)0;
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) dx[i + k * step] = v[k];
    }
    for (; i < n; i += step) dx[i] = mask[i / BITS] >> (i % BITS) & 1 ? dy[i] : (real)0;
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
