// The bias of fully connected layers; rows are samples, K columns.

// y[n, k] += b[k]
KERNEL linear_add_rows(real* y, const real* b, long long N, long long K, long long width) {
    EACH_COLUMN(k, K, width) {
        const real bias = b[k];
        map_column(y, y, k, N, K, width, [=](real v, long long) { return v + bias; });
    }
}

// db[k] = sum over n of dy[n, k]; a block takes `columns` of them, a power of two, and as many rows at a time as it has
// threads for; sums in double, in one fixed order.
KERNEL linear_column_sums(const real* __restrict__ dy, real* __restrict__ db, long long N, long long K,
                          long long columns) {
    const int width = (int)columns;
    for (long long first = blockIdx.x * columns; first < K; first += gridDim.x * columns) {
        const long long k = first + threadIdx.x % width;
        double sum = 0;
        if (k < K) {
#pragma unroll 8
            for (long long n = threadIdx.x / width; n < N; n += THREADS / width) sum += dy[n * K + k];
        }
        sum = block_sums(sum, threadIdx.x, width);
        if (threadIdx.x < width && k < K) db[k] = (real)sum;
    }
}
