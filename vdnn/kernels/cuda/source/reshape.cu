// Upsampling.  Arrays are planes one after the other: N * C of H x W with inner = 1, or N of H x W with inner = C
// channels side by side in each place.  A thread belongs to one element of a plane, works out where it comes from, and
// does this element in plane after plane.

// y[h, w] = x[h / down, w / along]
KERNEL upsample_nearest(const real* __restrict__ x, real* __restrict__ y, long long planes, long long inner,
                        long long H, long long W, long long down, long long along, long long width) {
    const long long size = H * W * inner, line = W * along * inner, outputs = H * down * line;
    EACH_COLUMN(e, outputs, width) {
        const long long h = e / line, w = e % line / inner, c = e % inner;
        const long long source = (h / down * W + w / along) * inner + c;
        EACH_ROW(r, planes, width) y[r * outputs + e] = x[r * size + source];
    }
}

// dx[h, w] = the sum of dy over the element's block, row by row.
KERNEL upsample_nearest_backward(const real* __restrict__ dy, real* __restrict__ dx, long long planes,
                                 long long inner, long long H, long long W, long long down, long long along,
                                 long long width) {
    const long long size = H * W * inner, line = W * along * inner, outputs = H * down * line;
    EACH_COLUMN(e, size, width) {
        const long long h = e / (W * inner), w = e % (W * inner) / inner, c = e % inner;
        const long long source = h * down * line + w * along * inner + c;
        EACH_ROW(r, planes, width) {
            const real* from = dy + r * outputs + source;
            real sum = from[0];
            for (int k = 1; k < down * along; k++) sum += from[k / (int)along * line + k % (int)along * inner];
            dx[r * size + e] = sum;
        }
    }
}

// One axis of bilinear interpolation: output o lies at (o * step + shift) / unit between the inputs, in whole numbers.
struct ReshapeAxis {
    long long inputs, outputs, step, shift, unit;
    real share;  // 1 / unit

    __device__ ReshapeAxis(long long inputs, long long outputs, bool align_corners) : inputs(inputs), outputs(outputs) {
        if (align_corners) {
            step = outputs > 1 ? inputs - 1 : 0, shift = 0, unit = outputs > 1 ? outputs - 1 : 1;
        } else {
            step = 2 * inputs, shift = inputs - outputs, unit = 2 * outputs;
        }
        share = (real)1 / (real)unit;
    }

    // o's place in `unit`ths, from the first input to the last
    __device__ long long place(long long o) const {
        const long long at = o * step + shift, last = (inputs - 1) * unit;
        return at < 0 ? 0 : at > last ? last : at;
    }

    // outputs less than one input before or after input i: from `first` up to, not with, `end`
    __device__ long long first(long long i) const {
        const long long before = (i - 1) * unit - shift;
        if (i == 0 || before < 0) return 0;
        return step ? before / step + 1 : outputs;
    }
    __device__ long long end(long long i) const {
        if (i == inputs - 1 || step == 0) return outputs;
        const long long last = ((i + 1) * unit - shift + step - 1) / step;
        return last < outputs ? last : outputs;
    }

    // what input i gives to such an output
    __device__ real weight(long long o, long long i) const {
        const long long apart = place(o) - i * unit;
        return (real)(int)(unit - (apart < 0 ? -apart : apart)) * share;
    }
};

// a * x + b * y, where y counts only if b does: it may be infinite.
static __device__ real reshape_blend(real a, real x, real b, real y) { return b != 0 ? a * x + b * y : a * x; }

// x: H x W, y: P x Q
KERNEL upsample_bilinear(const real* __restrict__ x, real* __restrict__ y, long long planes, long long inner,
                         long long H, long long W, long long P, long long Q, long long align_corners,
                         long long width) {
    const ReshapeAxis down(H, P, align_corners), along(W, Q, align_corners);
    const long long size = H * W * inner, line = Q * inner, outputs = P * line;
    EACH_COLUMN(e, outputs, width) {
        const long long v = down.place(e / line), u = along.place(e % line / inner), c = e % inner;
        const long long h = v / down.unit, w = u / along.unit;
        const double below = (double)(v % down.unit) / down.unit, right = (double)(u % along.unit) / along.unit;
        const real v0 = (real)(1 - below), v1 = (real)below, u0 = (real)(1 - right), u1 = (real)right;
        const long long corner = (h * W + w) * inner + c;
        const long long next = v1 != 0 ? W * inner : 0, beside = u1 != 0 ? inner : 0;
        EACH_ROW(r, planes, width) {
            const real* at = x + r * size + corner;
            const real upper = reshape_blend(u0, at[0], u1, at[beside]);
            const real lower = reshape_blend(u0, at[next], u1, at[next + beside]);
            y[r * outputs + e] = reshape_blend(v0, upper, v1, lower);
        }
    }
}

// Every element of dx adds up what it gave, in one fixed order; four planes share the weights.
KERNEL upsample_bilinear_backward(const real* __restrict__ dy, real* __restrict__ dx, long long planes,
                                  long long inner, long long H, long long W, long long P, long long Q,
                                  long long align_corners, long long width) {
    const ReshapeAxis down(H, P, align_corners), along(W, Q, align_corners);
    const long long size = H * W * inner, line = Q * inner, outputs = P * line;
    const long long row = (blockIdx.y * THREADS + threadIdx.x) / (unsigned)width;
    const long long step = gridDim.y * (THREADS / (unsigned)width);
    EACH_COLUMN(e, size, width) {
        const long long h = e / (W * inner), w = e % (W * inner) / inner, c = e % inner;
        const long long p0 = down.first(h), p1 = down.end(h), q0 = along.first(w), q1 = along.end(w);
        for (long long r = row; r < planes; r += 4 * step) {
            real sum[4] = {0, 0, 0, 0};
            for (long long p = p0; p < p1; p++) {
                const real v = down.weight(p, h);
                for (long long q = q0; q < q1; q++) {
                    const real factor = v * along.weight(q, w);
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        if (r + k * step < planes)
                            sum[k] += factor * dy[(r + k * step) * outputs + p * line + q * inner + c];
                }
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (r + k * step < planes) dx[(r + k * step) * size + e] = sum[k];
        }
    }
}
