// Losses: means over the batch, added up in double in an order that depends on shapes alone.

// The sum, or the maximum, over each group of so many neighbouring threads (a power of two), for all of them.
static __device__ double block_group(double value, int group, bool is_sum) {
    __shared__ double part[THREADS];
    const int lane = threadIdx.x & (group - 1);
    __syncthreads();
    part[threadIdx.x] = value;
    __syncthreads();
    for (int half = group / 2; half > 0; half /= 2) {
        if (lane < half) {
            const double a = part[threadIdx.x], b = part[threadIdx.x + half];
            part[threadIdx.x] = is_sum ? a + b : a > b ? a : b;
        }
        __syncthreads();
    }
    return part[threadIdx.x - lane];
}

// The largest of K scores, and the sum of exp(x - largest); K = 0 for a group of threads that has no row.
static __device__ void block_softmax(const real* x, long long K, int group, real* largest, double* sum) {
    const int lane = threadIdx.x & (group - 1);
    double most = lane < K ? x[lane] : -1e308, total = 0;
    for (long long k = lane; k < K; k += group) most = x[k] > most ? x[k] : most;
    const real top = (real)block_group(most, group, false);
    for (long long k = lane; k < K; k += group) total += (real)exp(x[k] - top);
    *largest = top;
    *sum = block_group(total, group, true);
}

// p: (N, K) = softmax of x by rows; partial: (parts,) = sums of -log(p[n, labels[n]]), NaN if a label is outside
// 0 .. K - 1.  `group` threads, a power of two, share a row.  p may be x: the loss is taken from x by the thread that
// writes over it.
KERNEL softmax(const real* x, const long long* __restrict__ labels, real* p, double* __restrict__ partial, long long N,
               long long K, long long group, long long parts) {
    const int rows = THREADS / (int)group, lane = threadIdx.x & ((int)group - 1);
    for (long long part = blockIdx.x; part < parts; part += gridDim.x) {
        double total = 0;
        for (long long first = part * rows; first < N; first += parts * rows) {
            const long long n = first + threadIdx.x / (int)group, count = n < N ? K : 0;
            real largest;
            double sum;
            block_softmax(x + n * K, count, (int)group, &largest, &sum);
            const long long label = n < N ? labels[n] : -1;
            if (n < N && (label & (group - 1)) == lane)
                total += label >= 0 && label < K ? log(sum) - (double)(x[n * K + label] - largest) : nan("");
            const real share = 1 / (real)sum;
            for (long long k = lane; k < count; k += group) p[n * K + k] = (real)exp(x[n * K + k] - largest) * share;
        }
        total = block_sum(total);
        if (threadIdx.x == 0) partial[part] = total;
    }
}

// dx = (p - one_hot(labels)) / samples; dx may be p.
KERNEL softmax_cross_entropy_backward(const real* p, const long long* __restrict__ labels, real* dx, long long samples,
                                      long long N, long long K, long long width) {
    EACH_COLUMN(k, K, width) {
        map_column(p, dx, k, N, K, width, [=](real v, long long n) {
            return (v - (labels[n] == k ? (real)1 : (real)0)) / (real)samples;
        });
    }
}

// partial: (parts,) sums of (x - labels) ** 2 over n elements.
KERNEL squared_error(const real* x, const real* labels, double* partial, long long parts, long long n) {
    for (long long part = blockIdx.x; part < parts; part += gridDim.x) {
        double total = 0;
        for (long long i = part * THREADS + threadIdx.x; i < n; i += parts * THREADS) {
            const real difference = x[i] - labels[i];
            total += difference * difference;
        }
        total = block_sum(total);
        if (threadIdx.x == 0) partial[part] = total;
    }
}

// y[0] = sum of partial / n
KERNEL mean_of_parts(const double* partial, real* y, long long parts, long long n) {
    if (blockIdx.x + blockIdx.y > 0) return;
    double total = 0;
    for (long long part = threadIdx.x; part < parts; part += THREADS) total += partial[part];
    total = block_sum(total);
    if (threadIdx.x == 0) y[0] = (real)(total / n);
}

// dx = (x - labels) * factor; dx may be x.
KERNEL mean_squared_error_backward(const real* x, const real* labels, real* dx, double factor, long long n) {
    const real* from[] = {x, labels};
    const real by = (real)factor;
    map(from, dx, n, [=](const real* v) { return (v[0] - v[1]) * by; });
}
