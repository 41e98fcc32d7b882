// Dropout by SplitMix64, as vdnn/kernels/numpy/dropout.py explains it.

#define DROPOUT_GOLDEN 0x9E3779B97F4A7C15ull

static __device__ u64 dropout_mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// Where the sequence of this seed, step and layer starts.
static __device__ u64 dropout_key(const double* clock, long long layer) {
    u64 state = dropout_mix((u64)clock[CLOCK_SEED] + DROPOUT_GOLDEN);
    state = dropout_mix(state + (u64)clock[CLOCK_STEP] + DROPOUT_GOLDEN);
    return dropout_mix(state + (u64)layer + DROPOUT_GOLDEN);
}

// y = x * scale where the element is kept, +0.0 elsewhere; y may be x.  N samples of `size` elements, with `channels`
// side by side (1 where storage is the logical order).
KERNEL dropout(const double* clock, const real* x, real* y, long long N, long long size, long long channels,
               long long width, long long layer, long long threshold, double scale) {
    const u64 start = dropout_key(clock, layer) + DROPOUT_GOLDEN * (u64)size * (u64)clock[CLOCK_SAMPLE];
    const u64 least = (u64)threshold, sample = DROPOUT_GOLDEN * (u64)size;
    const real factor = (real)scale;
    EACH_COLUMN(e, size, width) {
        const long long logical = channels == 1 ? e : e % channels * (size / channels) + e / channels;
        const u64 first = start + DROPOUT_GOLDEN * (u64)logical;
        map_column(x, y, e, N, size, width, [=](real v, long long n) {
            return dropout_mix(first + sample * (u64)n) >= least ? v * factor : (real)0;
        });
    }
}
