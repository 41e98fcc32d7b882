"""1x1 convolutions and other matrix products, compiled: the filter is laid out in panels before it meets the pixels.

Read in place, the columns of a matrix whose rows are a power of two long fall into a few sets of the L1 cache.  All
arrays are flat; a pixel of x has L channels.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.direct import lay_rows, multiply_block
from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import load, load_first, store
from vdnn.kernels.numpy.compiled.multiply import ROWS, VECTORS
from vdnn.kernels.numpy.compiled.vectors import VECTOR
from vdnn.layers.base import Array

Pair = tuple[int, int]
Triple = tuple[int, int, int]
ONE = (1, 1, 1, 0, 1, 1, 1, 0)  # a window of one tap
BOX = 96  # tiles that meet a block of the filter
AT_ONCE = 16  # rows that are laid out together


@compiled
def lay_lines(w: Array, row: int, L: int, first: int, count: int, wide: int, out: Array) -> None:
    """As `lay_filters`, of neighbours in rows of w.

    A few rows at a time, so that w is read in long lines, and out is written so.
    """
    step = VECTOR // w.itemsize
    for above in range(0, L, AT_ONCE):
        below = min(above + AT_ONCE, L)
        for v in range(0, count, wide):
            width = min(wide, (count - v + step - 1) // step * step)
            to = v * L + above * width
            for i in range(above, below):
                for o in range(v, v + width, step):
                    at, rest = i * row + first + o, count - o
                    if rest >= step:
                        store(load(w, at), out, to)
                    else:
                        store(load_first(rest, w, at), out, to)
                    to += step


@compiled
def lay_filters(w: Array, inner: int, outer: int, L: int, first: int, count: int, out: Array) -> None:
    """Panels of result channels, (L, width) each, of w[i * inner + o * outer], from channel o = first on.

    A panel is VECTORS vectors wide, the last as many as its channels need, 0 beyond them.
    """
    lanes = VECTOR // w.itemsize
    wide = VECTORS * lanes
    if outer == 1:
        lay_lines(w, inner, L, first, count, wide, out)
        return
    for v in range(0, count, wide):
        own = min(wide, count - v)
        lay_rows(w, (first + v) * outer, outer, L, own, (own + lanes - 1) // lanes * lanes, out[v * L :])


@compiled
def find(places: Array, begin: int, pixels: int, grid: Pair, strides: Triple, first: int) -> None:
    """Where some pixels of images of a grid of pixels begin, and the last of them again and again.

    strides: how far images, rows and columns lie apart.
    """
    rows, columns = grid
    image, row, column = strides
    for i in range(pixels + ROWS - 1):
        line, w = divmod(begin + min(i, pixels - 1), columns)
        n, h = divmod(line, rows)
        places[i] = n * image + h * row + w * column + first


@compiled
def product(x: Array, source: Triple, L: int, grid: Pair, begin: int, end: int, box: int, filters: Array, first: int,
            count: int, bias: Array, y: Array, target: Triple, rectify: bool) -> None:  # fmt: skip
    """y, of pixels begin .. end - 1 of a grid the channels first .. first + count - 1 = bias + x times the filters.

    source, target: strides of x, which has L channels, and of y; filters: of lay_filters; bias: of these channels and
    a vector more; box: pixels at a time.
    """
    lanes = VECTOR // x.itemsize
    wide = VECTORS * lanes
    places, targets = numpy.empty(box + ROWS, numpy.int64), numpy.empty(box + ROWS, numpy.int64)
    line = numpy.empty(ROWS * wide, x.dtype)
    for p in range(begin, end, box):
        pixels = min(box, end - p)
        find(places, p, pixels, grid, source, 0)
        find(targets, p, pixels, grid, target, first)
        for v in range(0, count, wide):
            own, panel, seen = min(wide, count - v), filters[v * L :], bias[v:]
            width = (own + lanes - 1) // lanes * lanes
            multiply_block(x, places, pixels, ONE, L, 0, L, panel, own, width, y[v:], targets, seen, line, rectify)


@compiled
def multiply_planes(x: Array, filters: Array, y: Array, n: int, T: int, A: int, B: int, plane: int, first: int,
                    count: int, bias: Array) -> None:  # fmt: skip
    """y: (n, T, B), its channels first .. first + count - 1 = bias + x: (n, T, A) times n filters, `plane` apart."""
    boxes = (T + BOX - 1) // BOX
    box = ((T + boxes - 1) // boxes + ROWS - 1) // ROWS * ROWS
    grid, source, target = (1, T), (0, 0, A), (0, 0, B)
    for i in range(n):
        own, out = x[i * T * A :], y[i * T * B :]
        product(own, source, A, grid, 0, T, box, filters[i * plane :], first, count, bias, out, target, False)
