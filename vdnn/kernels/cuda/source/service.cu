// What runs beside the layers: delays that provoke races, and poison for memory that nobody may read any more.

// Keep the stream busy for so long.
KERNEL spin(long long nanoseconds) {
#ifdef __CUDA_ARCH__
    u64 start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - start < (u64)nanoseconds);
#endif
}

// Take one off left[index]; flag[flag_index] tells whether that was the last one.
KERNEL poison_last(int* left, long long index, int* flag, long long flag_index) {
    if (blockIdx.x + blockIdx.y + threadIdx.x > 0) return;
    flag[flag_index] = atomicSub(&left[index], 1) == 1;
}

struct alignas(16) ServiceWord {
    u64 low, high;
};

// All n bytes 0xFF if the flag is set: floats become NaN.
KERNEL poison_fill(const int* flag, long long flag_index, u8* bytes, long long n) {
    if (!flag[flag_index]) return;
    const long long gap = -(long long)(u64)bytes & 15, head = gap < n ? gap : n;  // up to the first whole word
    const long long words = (n - head) / 16, tail = head + 16 * words;
    ServiceWord* aligned = (ServiceWord*)(bytes + head);
    EACH(i, words) aligned[i] = {~0ull, ~0ull};
    EACH(i, head) bytes[i] = 0xFF;
    EACH(i, n - tail) bytes[tail + i] = 0xFF;
}
