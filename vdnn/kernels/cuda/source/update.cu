// Optimizer updates of n elements, in place.  What the NumPy kernels work out in Python's floats is worked out in
// double here and rounded once; all that changes from step to step is read from the clock.

// velocity null: no momentum.  `share` is 1 - dampening.
KERNEL sgd(const double* clock, real* w, const real* dw, real* velocity, double momentum, double share,
           double weight_decay, long long is_nesterov, long long n) {
    const real rate = (real)clock[CLOCK_LEARNING_RATE], mu = (real)momentum, part = (real)share;
    const real decay = (real)weight_decay;
    const bool is_first = clock[CLOCK_STEP] == 0;
    EACH(i, n) {
        const real old = w[i];
        real g = dw[i];
        real v = velocity && !is_first ? velocity[i] : (real)0;
        if (weight_decay != 0) g = old * decay + g;
        if (velocity) {
            v = is_first ? g : v * mu + g * part;
            velocity[i] = v;
            g = is_nesterov ? g + v * mu : v;
        }
        w[i] = old - g * rate;
    }
}

KERNEL adam(const double* clock, real* w, const real* dw, real* m, real* v, double beta1, double beta2, double eps,
            double weight_decay, long long is_decoupled, long long n) {
    const double rate = clock[CLOCK_LEARNING_RATE];
    const real step = (real)(rate / clock[CLOCK_BIAS_1]), root = (real)sqrt(clock[CLOCK_BIAS_2]);
    const real share1 = (real)(1 - beta1), share2 = (real)(1 - beta2), keep2 = (real)beta2, least = (real)eps;
    const real decay = (real)weight_decay, shrink = (real)(1 - rate * weight_decay);
    EACH(i, n) {
        real old = w[i], g = dw[i], mean = m[i], square = v[i];
        if (weight_decay != 0) {
            if (is_decoupled) old = old * shrink;
            else g = old * decay + g;
        }
        mean = mean + (g - mean) * share1;
        square = square * keep2 + g * g * share2;
        m[i] = mean;
        v[i] = square;
        w[i] = old - mean / ((real)sqrt(square) / root + least) * step;
    }
}
