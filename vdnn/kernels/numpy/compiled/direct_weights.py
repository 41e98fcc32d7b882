"""The filter's gradient of a direct convolution, compiled.

A task computes a block of result channels' gradients over some boxes of pixels: rows of sums are channels of dy, their
vectors run along what is contiguous in x, a row of taps and its channels.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.direct import Cuts, Numbers, box_of, find, see
from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.multiply import FEWER_ROWS, ROWS, VECTORS, over_rows
from vdnn.kernels.numpy.compiled.vectors import VECTOR
from vdnn.layers.base import Array

many, single = over_rows(FEWER_ROWS, VECTORS), over_rows(1, VECTORS)
many_narrow, single_narrow = over_rows(FEWER_ROWS, 1), over_rows(1, 1)


@compiled
def multiply_channels(dy: Array, dy_places: Array, first: int, count: int, x: Array, places: Array, shift: int,
                      length: int, sums: Array, to: int, across: int, pixels: int) -> None:  # fmt: skip
    """Add to sums: (count, across), from `to` on: dy's channels from `first` on times `length` elements from x."""
    lanes = VECTOR // x.itemsize
    v = 0
    while v < length:
        is_narrow = v + lanes >= length or VECTORS == 1
        k = 0
        while k < count:
            at, place = to + k * across + v, first + k
            if k + FEWER_ROWS <= count:
                if is_narrow:
                    many_narrow(dy, dy_places, place, x, places, shift + v, sums, at, across, pixels)
                else:
                    many(dy, dy_places, place, x, places, shift + v, sums, at, across, pixels)
                k += FEWER_ROWS
            else:
                if is_narrow:
                    single_narrow(dy, dy_places, place, x, places, shift + v, sums, at, across, pixels)
                else:
                    single(dy, dy_places, place, x, places, shift + v, sums, at, across, pixels)
                k += 1
        v += lanes if is_narrow else VECTORS * lanes


@compiled
def weigh(x: Array, source: Numbers, window: Numbers, span: Numbers, cuts: Cuts, copies: bool, dy: Array,
          target: Numbers, first: int, count: int, dw: Array, sums: Array, is_apart: bool, piece: Array,
          most: int) -> None:  # fmt: skip
    """dw: (count, taps * C) of dy's channels from `first` on, summed over some boxes.

    With `is_apart` sums are kept in `sums`, rows of which are whole vectors, else in dw itself.  most: pixels of the
    largest box.
    """
    places, targets = numpy.empty(most + ROWS, numpy.int64), numpy.empty(most + ROWS, numpy.int64)
    R, _, row_dilation, _, S, _, dilation, _ = window
    C = source[4]
    seen, pixel = (piece, C) if copies else (x, source[2])
    parts, length = (1, S * C) if dilation == 1 and pixel == C else (S, C)
    lanes = VECTOR // x.itemsize
    width = (length + lanes - 1) // lanes * lanes if is_apart else length
    kept, across = (sums, R * parts * width) if is_apart else (dw, R * S * C)
    zero = x.dtype.type(0)
    for i in range(count * across):
        kept[i] = zero
    for index in range(*span):
        box = box_of(index, *cuts)
        row = see(x, source, window, box, copies, piece, places)
        pixels = find(target, box, targets)
        for r in range(R):
            for s in range(parts):
                shift, to = r * row_dilation * row + s * dilation * pixel, (r * parts + s) * width
                multiply_channels(dy, targets, first, count, seen, places, shift, length, kept, to, across, pixels)
    if is_apart:
        for k in range(count):
            for part in range(R * parts):
                for i in range(length):
                    dw[(k * R * parts + part) * length + i] = sums[k * across + part * width + i]
