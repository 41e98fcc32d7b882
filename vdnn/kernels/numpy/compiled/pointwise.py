"""1x1 convolutions, compiled: matrix products whose factors are laid side by side before they meet in registers.

Read in place, a column of a matrix whose rows are a power of two long falls into a few sets of the L1 cache.  All
arrays are flat; a pixel of x has L or C channels, one of y or dy M or K.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.direct import TERMS, copy, lay_rows, many, one
from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import load, load_first, store
from vdnn.kernels.numpy.compiled.multiply import FEWER_ROWS, ROWS, VECTORS, over_rows
from vdnn.kernels.numpy.compiled.vectors import VECTOR
from vdnn.layers.base import Array

Pair = tuple[int, int]
BOX = 96  # tiles that meet a block of the filter
AT_ONCE = 16  # rows that are laid out together
across = over_rows(FEWER_ROWS, VECTORS)


@compiled
def lay_panels(x: Array, C: int, begin: int, rows: int, first: int, count: int, wide: int, out: Array) -> None:
    """Panels of `wide` columns, (rows, wide) each, of x: (any, C) from a row and a column on; 0 beyond `count` columns.

    A few rows at a time, so that x is read in long lines, and out is written so.
    """
    step = VECTOR // x.itemsize
    for above in range(0, rows, AT_ONCE):
        below = min(above + AT_ONCE, rows)
        for v in range(0, count, wide):
            to = v * rows + above * wide
            for row in range(begin + above, begin + below):
                for i in range(v, v + wide, step):
                    at, rest = row * C + first + i, count - i
                    if rest >= step:
                        store(load(x, at), out, to)
                    else:
                        store(load_first(max(rest, 0), x, at), out, to)
                    to += step


@compiled
def lay_filters(w: Array, inner: int, outer: int, L: int, first: int, count: int, out: Array) -> None:
    """Blocks of result channels, each (L, vectors) of w[i * inner + o * outer], from channel o = first on."""
    wide = VECTORS * (VECTOR // w.itemsize)
    if outer == 1:
        lay_panels(w, inner, 0, L, first, count, wide, out)
        return
    for v in range(0, count, wide):
        lay_rows(w, (first + v) * outer, outer, L, min(wide, count - v), wide, out[v * L :])


@compiled
def multiply_box(x: Array, places: Array, pixels: int, L: int, filters: Array, v: int, own: int, y: Array,
                 targets: Array, bias: Array) -> None:  # fmt: skip
    """One block of result channels, from v on, of a box of pixels: as many terms at a time as the L1 cache holds."""
    lanes = VECTOR // x.itemsize
    width, base, vectors = VECTORS * lanes, v * L, own // lanes
    pieces = (L + TERMS - 1) // TERMS
    step = (L + pieces - 1) // pieces
    for term in range(0, L if vectors else 0, step):
        start, terms, begins = base + term * width, min(step, L - term), 1 if term == 0 else 0
        for p in range(0, pixels, ROWS):
            if vectors == VECTORS:
                many(x, places, p, term, filters, start, width, y, targets, p, v, begins, bias, terms)
            else:
                one(x, places, p, term, filters, start, width, y, targets, p, v, begins, bias, terms)


@compiled
def multiply_rest(x: Array, places: Array, pixels: int, L: int, filters: Array, v: int, own: int, y: Array,
                  targets: Array, bias: Array, line: Array, in_line: Array) -> None:  # fmt: skip
    """The result channels of a block that are no whole vector."""
    lanes = VECTOR // x.itemsize
    width, whole = VECTORS * lanes, own // lanes * lanes
    for p in range(0, pixels, ROWS):
        one(x, places, p, 0, filters, v * L + whole, width, line, in_line, 0, 0, 1, bias[v + whole :], L)
        for i in range(min(ROWS, pixels - p)):
            copy(line, i * lanes, own - whole, own - whole, y, targets[p + i] + v + whole)


@compiled
def product(x: Array, L: int, begin: int, end: int, box: int, filters: Array, first: int, count: int, M: int,
            bias: Array, y: Array) -> None:  # fmt: skip
    """y: (any, M), of pixels begin .. end - 1 the channels first .. first + count - 1 = bias + x times the filters.

    filters: of lay_filters; bias: of these channels, and a vector more; box: pixels at a time.
    """
    lanes = VECTOR // x.itemsize
    places, targets = numpy.empty(box + ROWS, numpy.int64), numpy.empty(box + ROWS, numpy.int64)
    line, in_line = numpy.empty(ROWS * lanes, x.dtype), numpy.arange(ROWS) * lanes
    for p in range(begin, end, box):
        pixels = min(box, end - p)
        for i in range(pixels + ROWS - 1):
            pixel = p + min(i, pixels - 1)
            places[i], targets[i] = pixel * L, pixel * M + first
        for v in range(0, count, VECTORS * lanes):
            own = min(VECTORS * lanes, count - v)
            multiply_box(x, places, pixels, L, filters, v, own, y, targets, bias)
            if own % lanes:
                multiply_rest(x, places, pixels, L, filters, v, own, y, targets, bias, line, in_line)


@compiled
def multiply_planes(x: Array, filters: Array, y: Array, n: int, T: int, A: int, B: int, plane: int,
                    bias: Array) -> None:  # fmt: skip
    """y: (n, T, B) = x: (n, T, A) times n filters, `plane` numbers apart, + bias: (B,); B: whole vectors."""
    boxes = (T + BOX - 1) // BOX
    box = ((T + boxes - 1) // boxes + ROWS - 1) // ROWS * ROWS
    for i in range(n):
        product(x[i * T * A :], A, 0, T, box, filters[i * plane :], 0, B, B, bias, y[i * T * B :])


@compiled
def weigh_panels(dy: Array, count: int, x: Array, length: int, pixels: int, dw: Array, start: int, C: int,
                 sums: Array) -> None:  # fmt: skip
    """dw[start + k * C + c] += dy^T x, for k < count, c < length, from panels; those of dy are a vector wide.

    sums: a block of dw.
    """
    lanes = VECTOR // x.itemsize
    wide = VECTORS * lanes
    places, seen = numpy.arange(pixels) * lanes, numpy.arange(pixels) * wide
    zero = x.dtype.type(0)
    for v in range(0, length, wide):
        for k in range(0, count, FEWER_ROWS):
            row, to = k // lanes * lanes * pixels + k % lanes, start + k * C + v
            if v + wide <= length and k + FEWER_ROWS <= count:
                across(dy, places, row, x, seen, v * pixels, dw, to, C, pixels)
                continue
            for i in range(sums.size):
                sums[i] = zero
            across(dy, places, row, x, seen, v * pixels, sums, 0, wide, pixels)
            for i in range(min(FEWER_ROWS, count - k)):
                for j in range(min(wide, length - v)):
                    dw[to + i * C + j] += sums[i * wide + j]


@compiled
def weigh(x: Array, dy: Array, dw: Array, begin: int, end: int, chunk: int, rows: Pair, columns: Pair, C: int, K: int,
          seen: Array, given: Array) -> None:  # fmt: skip
    """A block of dw: (K, C) = dy^T x over pixels begin .. end - 1; seen, given: panels of x and of dy."""
    lanes = VECTOR // x.itemsize
    sums = numpy.empty(FEWER_ROWS * VECTORS * lanes, x.dtype)
    count, length, start = rows[1] - rows[0], columns[1] - columns[0], rows[0] * C + columns[0]
    for k in range(count):
        dw[start + k * C : start + k * C + length] = 0
    for p in range(begin, end, chunk):
        pixels = min(chunk, end - p)
        lay_panels(x, C, p, pixels, columns[0], length, VECTORS * lanes, seen)
        lay_panels(dy, K, p, pixels, rows[0], count, lanes, given)
        weigh_panels(given, count, seen, length, pixels, dw, start, C, sums)
