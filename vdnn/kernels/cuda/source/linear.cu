// The bias of fully connected layers; rows are samples, K columns.

#define COLUMNS 32  // a block takes so many columns, THREADS / COLUMNS rows of them at a time

// y[n, k] += b[k], for y of `size` elements.
KERNEL linear_add_rows(real* y, const real* b, long long K, long long size) {
    EACH(i, size) y[i] += b[i % K];
}

// db[k] = sum over n of dy[n, k]; one block for each COLUMNS columns; sums in double, in one fixed order.
KERNEL linear_column_sums(const real* dy, real* db, long long N, long long K) {
    __shared__ double part[THREADS];
    long long k = blockIdx.x * (long long)COLUMNS + threadIdx.x % COLUMNS;
    double sum = 0;
    if (k < K) {
        for (long long n = threadIdx.x / COLUMNS; n < N; n += THREADS / COLUMNS) sum += dy[n * K + k];
    }
    part[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < COLUMNS && k < K) {
        for (int row = 1; row < THREADS / COLUMNS; row++) sum += part[row * COLUMNS + threadIdx.x];
        db[k] = (real)sum;
    }
}
