"""Kernels of Winograd's transforms, made from their statements.

One tile and one vector of channels at a time, both axes at once, so that nothing but source and result goes through
memory.  Channels beyond whole vectors are done by a last vector that overlaps the one before.  Tiles that stick out of
the image, and fewer channels than a vector has, go through a patch: a grid of vectors, zeros filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import absolute, load, rectified, store
from vdnn.kernels.numpy.compiled.multiply import VECTORS
from vdnn.kernels.numpy.compiled.vectors import VECTOR, clear, move, transform, transpose
from vdnn.layers.base import Array

Kernel = Callable[..., None]


@compiled
def copy_channels(source: Array, at: int, target: Array, to: int, count: int) -> None:
    """Copy a vector, of which `count` elements are there."""
    if count * source.itemsize == VECTOR:
        move(source, at, target, to)
    else:
        for i in range(count):
            target[to + i] = source[at + i]


@compiled
def read_patch(x: Array, H: int, W: int, C: int, corner: int, top: int, left: int, size: int, patch: Array) -> None:
    """Copy a square of pixels from row `top` and column `left` on, of which `corner` is the place, and zeros around."""
    lanes = VECTOR // x.itemsize
    count = min(C, lanes)
    for i in range(size):
        for j in range(size):
            to = (i * size + j) * lanes
            clear(patch, to)
            if 0 <= top + i < H and 0 <= left + j < W:
                copy_channels(x, corner + (i * W + j) * C, patch, to, count)


@cache
def into_tiles(code: str, a: int) -> Kernel:
    """A kernel that transforms squares of pixels into tiles of a x a elements."""

    @compiled
    def kernel(
        x: Array,
        H: int,
        W: int,
        C: int,
        out: Array,
        plane: int,
        start: int,
        n0: int,
        n1: int,
        h0: int,
        h1: int,
        w0: int,
        w1: int,
        m: int,
        size: int,
        down: int,
        right: int,
    ) -> None:
        # x: (N, H, W, C); out: a * a planes of `plane` elements, from tile `start` on; padding by down and right
        lanes = VECTOR // x.itemsize
        count = min(C, lanes)
        patch = numpy.empty(size * size * lanes, x.dtype)
        spare = numpy.empty(a * a * lanes, x.dtype)
        tile = start
        for n in range(n0, n1):
            for h in range(h0, h1):
                for w in range(w0, w1):
                    top, left = h * m - down, w * m - right
                    corner = ((n * H + top) * W + left) * C
                    inside = top >= 0 and left >= 0 and top + size <= H and left + size <= W
                    for first in range(0, C, lanes):
                        c = max(0, min(first, C - lanes))
                        to = tile * C + c
                        if inside and count == lanes:
                            transform(code, x, corner + c, W * C, C, out, to, a * plane, plane, None, 0)
                            continue
                        read_patch(x, H, W, C, corner + c, top, left, size, patch)
                        transform(code, patch, 0, size * lanes, lanes, spare, 0, a * lanes, lanes, None, 0)
                        for e in range(a * a):
                            copy_channels(spare, e * lanes, out, to + e * plane, count)
                    tile += 1

    return kernel


@compiled
def rectify_grid(y: Array, at: int, row: int, column: int, m: int) -> None:
    """max(y, 0) in place of m x m vectors."""
    for i in range(m):
        for j in range(m):
            place = at + i * row + j * column
            store(absolute(rectified(load(y, place))), y, place)


@cache
def from_tiles(code: str, a: int) -> Kernel:
    """A kernel that transforms tiles of a x a elements into squares of m x m pixels."""

    @compiled
    def kernel(
        tiles: Array,
        plane: int,
        start: int,
        bias: Array,
        y: Array,
        H: int,
        W: int,
        K: int,
        n0: int,
        n1: int,
        h0: int,
        h1: int,
        w0: int,
        w1: int,
        m: int,
        rectify: bool,
    ) -> None:
        # tiles: a * a planes of `plane` elements, from tile `start` on; y: (N, H, W, K)
        lanes = VECTOR // y.itemsize
        count = min(K, lanes)
        patch = numpy.zeros(a * a * lanes, y.dtype)
        spare = numpy.empty(m * m * lanes, y.dtype)
        padded = numpy.zeros(max(K, lanes), y.dtype)
        for i in range(K):
            padded[i] = bias[i]
        tile = start
        for n in range(n0, n1):
            for h in range(h0, h1):
                for w in range(w0, w1):
                    corner = ((n * H + h * m) * W + w * m) * K
                    inside = (h + 1) * m <= H and (w + 1) * m <= W
                    for first in range(0, K, lanes):
                        c = max(0, min(first, K - lanes))
                        at = tile * K + c
                        if inside and count == lanes:
                            transform(code, tiles, at, a * plane, plane, y, corner + c, W * K, K, padded, c)
                            if rectify:
                                rectify_grid(y, corner + c, W * K, K, m)
                            continue
                        for e in range(a * a):
                            copy_channels(tiles, at + e * plane, patch, e * lanes, count)
                        transform(code, patch, 0, a * lanes, lanes, spare, 0, m * lanes, lanes, padded, c)
                        if rectify:
                            rectify_grid(spare, 0, m * lanes, lanes, m)
                        for i in range(min(m, H - h * m)):
                            for j in range(min(m, W - w * m)):
                                to = corner + c + (i * W + j) * K
                                copy_channels(spare, (i * m + j) * lanes, y, to, count)
                    tile += 1

    return kernel


@cache
def from_filter(code: str, a: int, r: int) -> Kernel:
    """A kernel that transforms r x r taps into a x a elements."""
    taps = r * r

    @compiled
    def kernel(w: Array, C: int, k0: int, k1: int, flip: bool, across: bool, out: Array, plane: int, K: int) -> None:
        # w: (K, r, r, C); out: a * a planes, each (C, K) if `across`, else (K, C); vectors go along their rows
        lanes = VECTOR // w.itemsize
        length, rows = (k1 - k0, C) if across else (C, k1 - k0)
        count = min(length, lanes)
        patch = numpy.zeros(taps * lanes, w.dtype)
        spare = numpy.empty(a * a * lanes, w.dtype)
        for row in range(rows):
            for first in range(0, length, lanes):
                place = max(0, min(first, length - lanes))
                k, c = (k0 + place, row) if across else (k0 + row, place)
                for tap in range(taps):
                    at = (k * taps + (taps - 1 - tap if flip else tap)) * C + c
                    step = taps * C if across else 1
                    for i in range(count):
                        patch[tap * lanes + i] = w[at + i * step]
                to = c * K + k if across else k * C + c
                if count == lanes:
                    transform(code, patch, 0, r * lanes, lanes, out, to, a * plane, plane, None, 0)
                    continue
                transform(code, patch, 0, r * lanes, lanes, spare, 0, a * lanes, lanes, None, 0)
                for e in range(a * a):
                    copy_channels(spare, e * lanes, out, to + e * plane, count)

    return kernel


@cache
def into_panels(code: str, a: int, r: int) -> Kernel:
    """A kernel that transforms r x r taps into a x a elements, laid out as `pointwise.product` takes a filter."""
    taps = r * r

    @compiled
    def kernel(w: Array, C: int, A: int, first: int, last: int, turned: bool, out: Array, plane: int) -> None:
        # w: (K, r, r, C); out: a * a planes of panels (A, wide), from result channel `first` on
        # the source's A channels and the result's are C and K, or, turned round, K and C
        lanes = VECTOR // w.itemsize
        wide, square = VECTORS * lanes, lanes * lanes
        patch = numpy.empty(taps * square, w.dtype)
        for v in range(first, last, wide):
            panel = (v - first) * A
            for k in range(A if turned else 0):
                for i in range(0, wide, lanes):
                    at, to = (k * taps + taps - 1) * C + v + i, panel + k * wide + i
                    transform(code, w, at, -r * C, -C, out, to, a * plane, plane, None, 0)
            for i in range(0, 0 if turned else wide, lanes):
                for start in range(0, A, lanes):
                    c = min(start, A - lanes)
                    for tap in range(taps):
                        transpose(w, ((v + i) * taps + tap) * C + c, taps * C, patch, tap * square, lanes)
                    for p in range(lanes):
                        to = panel + (c + p) * wide + i
                        transform(code, patch, p * lanes, r * square, square, out, to, a * plane, plane, None, 0)

    return kernel


@cache
def into_taps(code: str, a: int, r: int) -> Kernel:
    """A kernel that transforms a x a elements into r x r taps."""
    taps = r * r

    @compiled
    def kernel(sums: Array, plane: int, C: int, k0: int, k1: int, dw: Array) -> None:
        # sums: a * a planes (K, C); dw: (K, r, r, C)
        lanes = VECTOR // dw.itemsize
        count = min(C, lanes)
        patch = numpy.zeros(a * a * lanes, dw.dtype)
        spare = numpy.empty(taps * lanes, dw.dtype)
        for k in range(k0, k1):
            for first in range(0, C, lanes):
                c = max(0, min(first, C - lanes))
                at, to = k * C + c, k * taps * C + c
                if count == lanes:
                    transform(code, sums, at, a * plane, plane, dw, to, r * C, C, None, 0)
                    continue
                for e in range(a * a):
                    copy_channels(sums, at + e * plane, patch, e * lanes, count)
                transform(code, patch, 0, a * lanes, lanes, spare, 0, r * lanes, lanes, None, 0)
                for tap in range(taps):
                    copy_channels(spare, tap * lanes, dw, to + tap * C, count)

    return kernel
