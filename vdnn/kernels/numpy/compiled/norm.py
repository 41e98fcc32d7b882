"""Batch normalisation's passes over rows of channels, compiled: each reads and writes what it must, once."""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import absolute, load, load_first, rectified, size, store, store_first
from vdnn.layers.base import Array

FEW = 64  # long rows (rows of C values, repeated) that are summed in the network's precision, before float64 takes over
FIRST = 16  # rows whose mean is subtracted before squaring
AT_ONCE = 4  # of them, of which one sum is made before it is added


@compiled
def centre(x: Array, C: int, shift: Array) -> None:
    """shift: the mean of the first rows of C values, again and again."""
    rows = min(x.size // C, FIRST)
    shift[:C] = 0
    for r in range(rows):
        for c in range(C):
            shift[c] += x[r * C + c] / rows
    for i in range(C, shift.size):
        shift[i] = shift[i - C]


@compiled
def fold(sums: Array, C: int, total: Array) -> None:
    """Add sums: (repeat * C,) to total: (C,), and clear them."""
    zero = sums.dtype.type(0)
    for start in range(0, sums.size, C):
        for c in range(C):
            total[c] += sums[start + c]
    for i in range(sums.size):
        sums[i] = zero


@compiled
def moments(x: Array, shift: Array, C: int, index: int, parts: int, partial: Array) -> None:
    """partial[index]: (2, C) = the sums of x - shift and of its square over one of `parts` equal parts."""
    step, rows = size(x), x.size // C
    width = shift.size
    first, last = index * rows // parts * C, (index + 1) * rows // parts * C
    s, q = numpy.zeros(width, x.dtype), numpy.zeros(width, x.dtype)
    total, square = partial[index, 0], partial[index, 1]
    total[:] = 0
    square[:] = 0
    many = width * AT_ONCE
    for start in range(first, last, width * FEW):
        stop = min(start + width * FEW, last)
        whole = start + (stop - start) // many * many
        for row in range(start, whole, many):
            for i in range(0, width, step):
                c, at = load(shift, i), row + i
                t0, t1 = load(x, at) - c, load(x, at + width) - c
                t2, t3 = load(x, at + 2 * width) - c, load(x, at + 3 * width) - c
                store(load(s, i) + ((t0 + t1) + (t2 + t3)), s, i)
                store(load(q, i) + ((t0 * t0 + t1 * t1) + (t2 * t2 + t3 * t3)), q, i)
        for row in range(whole, stop, width):
            for i in range(0, min(width, stop - row), step):
                rest = min(step, stop - row - i)
                t = load_first(rest, x, row + i) - load_first(rest, shift, i)
                store(load(s, i) + t, s, i)
                store(load(q, i) + t * t, q, i)
        fold(s, C, total)
        fold(q, C, square)


@compiled
def gradient_sums(x: Array, g: Array, shift: Array, C: int, index: int, parts: int, partial: Array) -> None:
    """partial[index]: (2, C) = the sums of g and of g * (x - shift) over one of `parts` equal parts."""
    step, rows = size(x), x.size // C
    width = shift.size
    first, last = index * rows // parts * C, (index + 1) * rows // parts * C
    s, q = numpy.zeros(width, x.dtype), numpy.zeros(width, x.dtype)
    total, moment = partial[index, 0], partial[index, 1]
    total[:] = 0
    moment[:] = 0
    many = width * AT_ONCE
    for start in range(first, last, width * FEW):
        stop = min(start + width * FEW, last)
        whole = start + (stop - start) // many * many
        for row in range(start, whole, many):
            for i in range(0, width, step):
                c, at = load(shift, i), row + i
                g0, g1, g2, g3 = load(g, at), load(g, at + width), load(g, at + 2 * width), load(g, at + 3 * width)
                t0, t1 = (load(x, at) - c) * g0, (load(x, at + width) - c) * g1
                t2, t3 = (load(x, at + 2 * width) - c) * g2, (load(x, at + 3 * width) - c) * g3
                store(load(s, i) + ((g0 + g1) + (g2 + g3)), s, i)
                store(load(q, i) + ((t0 + t1) + (t2 + t3)), q, i)
        for row in range(whole, stop, width):
            for i in range(0, min(width, stop - row), step):
                rest = min(step, stop - row - i)
                t = load_first(rest, g, row + i)
                store(load(s, i) + t, s, i)
                store(load(q, i) + (load_first(rest, x, row + i) - load_first(rest, shift, i)) * t, q, i)
        fold(s, C, total)
        fold(q, C, moment)


@compiled
def settle_moments(
    partial: Array,
    wide: Array,
    M: int,
    eps: float,
    w: Array,
    b: Array,
    mean: Array,
    inverse_deviation: Array,
    variance: Array,
) -> None:
    """Statistics from partial sums; wide: the shift before, scale and offset after."""
    slices, _, C = partial.shape
    for c in range(C):
        total, square = 0.0, 0.0
        for i in range(slices):
            total += partial[i, 0, c]
            square += partial[i, 1, c]
        total /= M
        square -= total * total * M
        if square < 0:
            square = 0.0
        average = total + wide[0, c]
        inverse = 1 / numpy.sqrt(square / M + eps)
        mean[c], inverse_deviation[c], variance[c] = average, inverse, square / max(M - 1, 1)
        for i in range(c, wide.shape[1], C):
            wide[0, i] = inverse * w[c]
            wide[1, i] = b[c] - average * (inverse * w[c])


@compiled
def settle_gradients(
    partial: Array,
    wide: Array,
    M: int,
    w: Array,
    mean: Array,
    inverse_deviation: Array,
    dw: Array,
    db: Array,
) -> None:
    """Gradients from partial sums; wide: the three factors of dx = a * dy + p * x + c after."""
    slices, _, C = partial.shape
    for c in range(C):
        total, moment = 0.0, 0.0
        for i in range(slices):
            total += partial[i, 0, c]
            moment += partial[i, 1, c]
        moment *= inverse_deviation[c]
        db[c], dw[c] = total, moment
        a = numpy.float64(w[c]) * inverse_deviation[c]
        p = moment * inverse_deviation[c] * a / -M
        offset = total * a / -M - p * mean[c]
        for i in range(c, wide.shape[1], C):
            wide[0, i], wide[1, i], wide[2, i] = a, p, offset


@compiled
def scale_rows(x: Array, y: Array, wide: Array, C: int, index: int, parts: int, rectify: bool) -> None:
    """y = x * scale + offset in one of `parts` equal parts; wide: scale and offset.  rectify: max(y, 0) instead."""
    step, rows = size(x), x.size // C
    width = wide.shape[1]
    first, last = index * rows // parts * C, (index + 1) * rows // parts * C
    scale, offset = wide[0], wide[1]
    whole = first + (last - first) // width * width
    for row in range(first, whole, width):
        for i in range(0, width, step):
            t = load(x, row + i) * load(scale, i) + load(offset, i)
            store(absolute(rectified(t)) if rectify else t, y, row + i)
    for i in range(0, last - whole, step):
        rest = min(step, last - whole - i)
        t = load_first(rest, x, whole + i) * load(scale, i) + load(offset, i)
        store_first(rest, absolute(rectified(t)) if rectify else t, y, whole + i)


@compiled
def gradient_rows(x: Array, g: Array, dx: Array, wide: Array, C: int, index: int, parts: int) -> None:
    """dx = g * a + (x * p + c) in one of `parts` equal parts; wide: a, p, c.  dx may be g."""
    step, rows = size(x), x.size // C
    width = wide.shape[1]
    first, last = index * rows // parts * C, (index + 1) * rows // parts * C
    a, p, c = wide[0], wide[1], wide[2]
    whole = first + (last - first) // width * width
    for row in range(first, whole, width):
        for i in range(0, width, step):
            store(load(g, row + i) * load(a, i) + (load(x, row + i) * load(p, i) + load(c, i)), dx, row + i)
    for i in range(0, last - whole, step):
        rest, at = min(step, last - whole - i), whole + i
        t = load_first(rest, x, at) * load(p, i) + load(c, i)
        store_first(rest, load_first(rest, g, at) * load(a, i) + t, dx, at)
