// Sums of arrays.

// y = x0 + x1; y may be either.
KERNEL add(const real* x0, const real* x1, real* y, long long n) {
    const real* from[] = {x0, x1};
    map(from, y, n, [](const real* v) { return v[0] + v[1]; });
}
