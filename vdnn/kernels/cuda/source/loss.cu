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

// y[0] = mean of -log(softmax(x)[n, labels[n]]); NaN if a label is outside 0 .. K - 1.  One block does it all, so that
// the losses of rows need no memory: there are few, and x is read before softmax writes p over it.
KERNEL softmax_loss(const real* x, const long long* labels, real* y, long long N, long long K, long long group) {
    if (blockIdx.x + blockIdx.y > 0) return;
    const int rows = THREADS / (int)group, lane = threadIdx.x & ((int)group - 1);
    double total = 0;
    for (long long first = 0; first < N; first += rows) {
        const long long n = first + threadIdx.x / (int)group;
        real largest;
        double sum;
        block_softmax(x + n * K, n < N ? K : 0, (int)group, &largest, &sum);
        if (n < N && lane == 0) {
            const long long label = labels[n];
            const bool fits = label >= 0 && label < K;
            total += fits ? log(sum) - (double)(x[n * K + label] - largest) : nan("");
        }
    }
    total = block_sum(total);
    if (threadIdx.x == 0) y[0] = (real)(total / N);
}

// p: (N, K) = softmax of x by rows; p may be x.
KERNEL softmax(const real* x, real* p, long long N, long long K, long long group) {
    const int rows = THREADS / (int)group, lane = threadIdx.x & ((int)group - 1);
    for (long long first = blockIdx.x * (long long)rows; first < N; first += gridDim.x * (long long)rows) {
        const long long n = first + threadIdx.x / (int)group;
        real largest;
        double sum;
        block_softmax(x + n * K, n < N ? K : 0, (int)group, &largest, &sum);
        if (n < N)
            for (long long k = lane; k < K; k += group) p[n * K + k] = (real)exp(x[n * K + k] - largest) / (real)sum;
    }
}

// dx = (p - one_hot(labels)) / N; dx may be p.
KERNEL softmax_cross_entropy_backward(const real* p, const long long* labels, real* dx, long long N, long long K,
                                      long long width) {
    EACH_COLUMN(k, K, width) {
        EACH_ROW(n, N, width) dx[n * K + k] = (p[n * K + k] - (labels[n] == k ? (real)1 : (real)0)) / (real)N;
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
