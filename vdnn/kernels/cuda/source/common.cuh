// What all kernels share.  A kernel's parameters are pointers, long long and double, nothing else: the launcher passes
// Python's integers and floats as they are.  Kernels use no warp instructions and no dynamic shared memory, so that the
// same source also runs on a CPU, thread by thread, in tests.

typedef REAL real;
typedef unsigned char u8;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__ void
#define THREADS 256  // of a block, where a kernel reduces over its block

// The elements of 0 .. n - 1 that are this thread's.
#define EACH(i, n) \
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < (n); i += (long long)gridDim.x * blockDim.x)

// A grid over rows and columns, see Launching.spread: `width` threads of a block, a power of two, lie side by side in a
// row.  With EACH_COLUMN outside and EACH_ROW inside, what depends on the column alone is worked out once.
#define EACH_COLUMN(c, columns, width) \
    for (long long c = blockIdx.x * (width) + (threadIdx.x & ((width)-1)); c < (columns); c += gridDim.x * (width))
#define EACH_ROW(r, rows, width)                                                                                     \
    _Pragma("unroll 4") for (long long r = (blockIdx.y * THREADS + threadIdx.x) / (unsigned)(width); r < (rows); \
                             r += gridDim.y * (THREADS / (unsigned)(width)))

#define AT_ONCE 4  // elements that a thread reads before it writes any: so many reads are under way together

// y[i] = f(x[0][i], x[1][i], ...) for n elements; f takes their array.  y may be any x.
template <int INPUTS, class F>
static __device__ void map(const real* const (&x)[INPUTS], real* y, long long n, F f) {
    const long long step = gridDim.x * (long long)blockDim.x;
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    real v[AT_ONCE][INPUTS];
    for (; i + (AT_ONCE - 1) * step < n; i += AT_ONCE * step) {
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int j = 0; j < INPUTS; j++) v[k][j] = x[j][i + k * step];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) y[i + k * step] = f(v[k]);
    }
    for (; i < n; i += step) {
#pragma unroll
        for (int j = 0; j < INPUTS; j++) v[0][j] = x[j][i];
        y[i] = f(v[0]);
    }
}

// y[r, c] = f(x[r, c], r) for this thread's rows, as EACH_ROW has them, inside EACH_COLUMN; y may be x.
template <class F>
static __device__ void map_column(const real* x, real* y, long long c, long long rows, long long columns,
                                  long long width, F f) {
    const long long step = gridDim.y * (THREADS / (unsigned)width), jump = step * columns;
    long long r = (blockIdx.y * THREADS + threadIdx.x) / (unsigned)width, at = r * columns + c;
    for (; r + (AT_ONCE - 1) * step < rows; r += AT_ONCE * step, at += AT_ONCE * jump) {
        real v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) v[k] = x[at + k * jump];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) y[at + k * jump] = f(v[k], r + k * step);
    }
#pragma unroll 1
    for (; r < rows; r += step, at += jump) y[at] = f(x[at], r);
}

// Where the clock, vdnn/clock.py, has what.
#define CLOCK_STEP 0
#define CLOCK_SAMPLE 1
#define CLOCK_SEED 2
#define CLOCK_LEARNING_RATE 3
#define CLOCK_BIAS_1 4
#define CLOCK_BIAS_2 5

// For the threads below `columns`, a power of two: the sum of `value` over all threads of a block of THREADS whose
// `place` is theirs modulo `columns`, in one fixed order.  Places are a permutation of the threads.
static __device__ double block_sums(double value, int place, int columns) {
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

// For the first thread: the sum of `value` over the block.
static __device__ double block_sum(double value) { return block_sums(value, threadIdx.x, 1); }

// n / d for n < 2^31, from what `reciprocal` of base.py gives for d: a true division costs five times as much.
static __device__ inline unsigned quotient(unsigned n, long long reciprocal) {
    return ((unsigned)((u64)n * (unsigned)reciprocal >> 32) + n) >> (int)(reciprocal >> 32);
}
