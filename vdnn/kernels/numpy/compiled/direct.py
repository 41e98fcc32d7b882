"""Direct convolution, compiled: no matrix is packed, the filter meets the image in registers.

A task computes a block of up to BLOCK result channels for some boxes of pixels.  What a box sees of the source is
copied first, zeros around it and its channels side by side, unless it lies so already; then every pixel is like every
other.  x and y are flat; N, H, W and channels are strides.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import absolute, load, rectified, store
from vdnn.kernels.numpy.compiled.multiply import ROWS, VECTORS, over_terms
from vdnn.kernels.numpy.compiled.vectors import VECTOR, transpose
from vdnn.layers.base import Array

many, one = over_terms(ROWS, VECTORS), over_terms(ROWS, 1)
Numbers = tuple[int, ...]
Cuts = tuple[Array, Array, Array]
TERMS = 192  # rows of the filter's block


@compiled
def copy(source: Array, at: int, count: int, width: int, target: Array, to: int) -> None:
    """Copy `count` neighbours, zeros behind them up to `width`."""
    given, taken = source[at : at + count], target[to : to + count]
    for i in range(count):
        taken[i] = given[i]
    for i in range(to + count, to + width):
        target[i] = source.dtype.type(0)


@compiled
def lay_columns(w: Array, start: int, taps: Array, inner: int, step: int, count: int, width: int, out: Array) -> None:
    """out[tap, i, o] = w[start + taps[tap] + i * step + o]: (taps, inner, width), 0 from o = count on."""
    to = 0
    for tap in taps:
        for i in range(inner):
            copy(w, start + tap + i * step, count, width, out, to)
            to += width


@compiled
def lay_rows(w: Array, start: int, step: int, length: int, count: int, width: int, out: Array) -> None:
    """out[i, o] = w[start + i + o * step]: (length, width), 0 from o = count on."""
    lanes = VECTOR // w.itemsize
    zero = w.dtype.type(0)
    even, high = length // lanes * lanes, count // lanes * lanes
    for o in range(0, high, lanes):
        for i in range(0, even, lanes):
            transpose(w, start + o * step + i, step, out, i * width + o, width)
    for i in range(length):
        for o in range(0 if i >= even else high, count):
            out[i * width + o] = w[start + o * step + i]
        for o in range(count, width):
            out[i * width + o] = zero


@compiled
def copy_box(x: Array, source: Numbers, top: int, left: int, n: int, rows: int, columns: int, to: int,
             piece: Array) -> None:  # fmt: skip
    """piece, from `to` on: (rows, columns, C) of image n from (top, left) on, zeros outside.

    source: H, W, channels of a pixel, the first of these, C.
    """
    H, W, channels, first, C = source
    zero = x.dtype.type(0)
    begin = min(max(0, -left), columns)
    end = max(begin, min(columns, W - left))
    for h in range(top, top + rows):
        if h < 0 or h >= H or begin == end:
            for i in range(to, to + columns * C):
                piece[i] = zero
            to += columns * C
            continue
        for i in range(to, to + begin * C):
            piece[i] = zero
        at = ((n * H + h) * W + left + begin) * channels + first
        if channels == C:
            length = (end - begin) * C
            target, given = piece[to + begin * C : to + begin * C + length], x[at : at + length]
            for i in range(length):
                target[i] = given[i]
        else:
            for w in range(end - begin):
                target, given = piece[to + (begin + w) * C :][:C], x[at + w * channels :][:C]
                for i in range(C):
                    target[i] = given[i]
        for i in range(to + end * C, to + columns * C):
            piece[i] = zero
        to += columns * C


@compiled
def box_of(index: int, images: Array, rows: Array, columns: Array) -> Numbers:
    """The box of that number, as window.Tile has it; images, rows, columns: where they begin and end."""
    above, w = index // len(columns), index % len(columns)
    n, h = above // len(rows), above % len(rows)
    return images[n, 0], images[n, 1], rows[h, 0], rows[h, 1], columns[w, 0], columns[w, 1]


@compiled
def see(x: Array, source: Numbers, window: Numbers, box: Numbers, copies: bool, piece: Array, places: Array) -> int:
    """Copy what a box of pixels sees, if it `copies`, and note where each pixel's first tap is: in piece, or in x.

    window: taps, step, dilation and offset of rows, the same of columns.  Gives the elements of a row of the source.
    """
    H, W, channels, first, C = source
    R, row_step, row_dilation, row_offset, S, step, dilation, offset = window
    n0, n1, h0, h1, w0, w1 = box
    rows, columns = (h1 - h0 - 1) * row_step + (R - 1) * row_dilation + 1, (w1 - w0 - 1) * step + (S - 1) * dilation + 1
    top, left = h0 * row_step + row_offset, w0 * step + offset
    index = 0
    for n in range(n0, n1):
        begin = (n - n0) * rows * columns * C
        if copies:
            copy_box(x, source, top, left, n, rows, columns, begin, piece)
        for h in range(h1 - h0):
            for w in range(w1 - w0):
                if copies:
                    places[index] = begin + (h * row_step * columns + w * step) * C
                else:
                    places[index] = ((n * H + top + h * row_step) * W + left + w * step) * channels + first
                index += 1
    for spare in range(index, index + ROWS - 1):
        places[spare] = places[index - 1]
    return columns * C if copies else W * channels


@compiled
def find(target: Numbers, box: Numbers, places: Array) -> int:
    """Where the pixels of a box lie; target: start, and strides of images, rows and columns.  Gives their number."""
    start, image, row, column = target
    n0, n1, h0, h1, w0, w1 = box
    index = 0
    for n in range(n0, n1):
        for h in range(h0, h1):
            for w in range(w0, w1):
                places[index] = start + n * image + h * row + w * column
                index += 1
    for spare in range(index, index + ROWS - 1):
        places[spare] = places[index - 1]
    return index


@compiled
def multiply_pixels(x: Array, places: Array, first: int, last: int, window: Numbers, pixel: int, row: int, C: int,
                    filters: Array, width: int, sums: Array, targets: Array, bias: Array,
                    rectify: bool) -> None:  # fmt: skip
    """Sums of pixels first .. last - 1, at targets from the first on, = bias + what they see of x times the filters.

    filters: (taps * C, width); so many rows of it are taken at a time as the L1 cache holds beside the sums.
    rectify: max(sum, 0) in place of each sum.
    """
    R, _, row_dilation, _, S, _, dilation, _ = window
    lanes = VECTOR // x.itemsize
    parts, length = (1, S * C) if dilation == 1 and pixel == C else (S, C)
    pieces = (length + TERMS - 1) // TERMS
    step = (length + pieces - 1) // pieces
    at_once = max(1, TERMS // length) if parts == 1 else 1  # short rows of taps
    across = row_dilation * row
    for v in range(0, width, VECTORS * lanes):
        is_one, begins = v + lanes >= width, 1
        for part in range(0, R * parts, at_once):
            lines = min(at_once, R * parts - part)
            shift = part // parts * across + part % parts * dilation * pixel
            for term in range(0, length, step):
                at, start, terms = shift + term, (part * length + term) * width + v, min(step, length - term)
                for p in range(first, last, ROWS):
                    q = p - first
                    if is_one:
                        one(x, places, p, at, filters, start, width, sums, targets, q, v, begins, bias,
                            lines, terms, across)  # fmt: skip
                    else:
                        many(x, places, p, at, filters, start, width, sums, targets, q, v, begins, bias,
                             lines, terms, across)  # fmt: skip
                begins = 0
        for p in range(last - first if rectify else 0):
            for at in range(targets[p] + v, targets[p] + min(width, v + VECTORS * lanes), lanes):
                store(absolute(rectified(load(sums, at))), sums, at)


@compiled
def multiply_block(x: Array, places: Array, pixels: int, window: Numbers, pixel: int, row: int, C: int, filters: Array,
                   count: int, width: int, y: Array, targets: Array, bias: Array, line: Array,
                   rectify: bool) -> None:  # fmt: skip
    """`count` channels of all pixels, at targets, as multiply_pixels has them; in a line first if they are no vectors.

    line: room for ROWS rows of `width` elements; bias has `width` elements.
    """
    if count == width:
        multiply_pixels(x, places, 0, pixels, window, pixel, row, C, filters, width, y, targets, bias, rectify)
        return
    in_line = numpy.arange(ROWS) * width
    for first in range(0, pixels, ROWS):
        last = min(first + ROWS, pixels)
        about = window, pixel, row, C, filters, width, line, in_line, bias
        multiply_pixels(x, places, first, last, *about, rectify)
        for p in range(first, last):
            copy(line, (p - first) * width, count, count, y, targets[p])


@compiled
def gather(x: Array, source: Numbers, window: Numbers, span: Numbers, cuts: Cuts, copies: bool, filters: Array,
           count: int, width: int, bias: Array, y: Array, target: Numbers, piece: Array,
           most: int, rectify: bool) -> None:  # fmt: skip
    """y of some boxes and of `count` channels = bias + the windows over x times the filters: (taps * C, width).

    bias has `width` elements.  most: pixels of the largest box.
    """
    places, targets = numpy.empty(most + ROWS, numpy.int64), numpy.empty(most + ROWS, numpy.int64)
    line = numpy.empty(ROWS * width, x.dtype)
    seen, pixel = (piece, source[4]) if copies else (x, source[2])
    C = source[4]
    for index in range(*span):
        box = box_of(index, *cuts)
        row = see(x, source, window, box, copies, piece, places)
        pixels = find(target, box, targets)
        about = window, pixel, row, C, filters, count, width, y, targets, bias, line
        multiply_block(seen, places, pixels, *about, rectify)
