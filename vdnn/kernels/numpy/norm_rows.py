"""Rows of channels in blocks that stay in cache, and batch normalisation's four passes over them.

N batch, C channels, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, is_channels_last, view

Array = Any
WIDE = 1024  # a row of C values is repeated to at least so many, as broadcasting short rows is slow


class Rows:
    """Arrays (N, C, H, W) of one shape as groups of rows of C channels, in blocks that stay in cache.

    Channels-last arrays are one group of M rows; otherwise every image is a group.
    """

    def __init__(self, *arrays: Array) -> None:
        N, C, H, W = arrays[0].shape
        one = all(is_channels_last(a) for a in arrays)
        groups = (1, N * H * W, C) if one else (N, H * W, C)
        self.arrays = [view(a.transpose(0, 2, 3, 1), groups) for a in arrays]
        self.channels = C
        self.repeat = repeat(C)
        self.step = block_rows(C)
        self.rows = groups[1]
        self.per_group = -(-self.rows // self.step)
        self.count = groups[0] * self.per_group
        self.is_flat = one and all(a.flags.c_contiguous for a in self.arrays)

    def block(self, index: int) -> list[Array]:
        """Each array's rows of one block: (rows, C), or (rows / repeat, repeat * C) where that is a view."""
        group, place = divmod(index, self.per_group)
        first = place * self.step
        parts = [a[group, first : first + self.step] for a in self.arrays]
        if len(parts[0]) % self.repeat == 0 and all(p.flags.c_contiguous for p in parts):
            return [p.reshape(-1, self.repeat * self.channels) for p in parts]
        return parts

    def blocks(self, index: int, parts: int) -> Iterator[list[Array]]:
        """The blocks of one of `parts` equal parts."""
        for i in range(index * self.count // parts, (index + 1) * self.count // parts):
            yield self.block(i)

    def flat(self, index: int, parts: int) -> list[Array]:
        """Each array's elements of one of `parts` equal parts, 1-D, if `is_flat`."""
        first, last = (min(i * self.count // parts * self.step, self.rows) for i in (index, index + 1))
        return [a.reshape(-1)[first * self.channels : last * self.channels] for a in self.arrays]


def repeat(C: int) -> int:
    """How often a row of C channels is repeated: a power of two, so that it divides a block's rows."""
    times = 1
    while times * C < WIDE:
        times *= 2
    return times


def block_rows(C: int) -> int:
    """Rows of C channels in a block: a multiple of repeat(C)."""
    times = repeat(C)
    return max(1, CHUNK // (times * C)) * times


def sum_rows(t: Array, C: int, wide: Array, narrow: Array, total: Array) -> None:
    """total: (C,) float64 += the sum over all rows of t, a block as Rows gives it."""
    width = t.shape[1]
    np.add.reduce(t, axis=0, out=wide[:width])
    np.add.reduce(wide[:width].reshape(-1, C), axis=0, dtype=np.float64, out=narrow)
    np.add(total, narrow, out=total)


def sum_moments(rows: Rows, index: int, parts: int, shift: Array, sums: Array, scratch: list[Array]) -> None:
    """Add the sums of x - shift and of its square over a part of the rows to sums: (2, C)."""
    block, wide, narrow = scratch
    for xb, *_ in rows.blocks(index, parts):
        t = block[: xb.size].reshape(xb.shape)
        np.subtract(xb, shift[: xb.shape[1]], out=t)
        sum_rows(t, rows.channels, wide, narrow, sums[0])
        np.multiply(t, t, out=t)
        sum_rows(t, rows.channels, wide, narrow, sums[1])


def sum_gradients(rows: Rows, index: int, parts: int, shift: Array, sums: Array, scratch: list[Array]) -> None:
    """Add the sums of dy and of dy * (x - shift) over a part of the rows to sums: (2, C)."""
    block, wide, narrow = scratch
    for xb, gb, *_ in rows.blocks(index, parts):
        sum_rows(gb, rows.channels, wide, narrow, sums[0])
        t = block[: xb.size].reshape(xb.shape)
        np.subtract(xb, shift[: xb.shape[1]], out=t)
        np.multiply(t, gb, out=t)
        sum_rows(t, rows.channels, wide, narrow, sums[1])


def normalise(rows: Rows, index: int, parts: int, scale: Array, offset: Array) -> None:
    """y = x * scale + offset for a part of the rows."""
    for xb, yb in rows.blocks(index, parts):
        width = xb.shape[1]
        np.multiply(xb, scale[:width], out=yb)
        np.add(yb, offset[:width], out=yb)


def differentiate(rows: Rows, index: int, parts: int, terms: tuple[Array, ...], scratch: list[Array]) -> None:
    """dx = a * dy + p * x + c for a part of the rows; terms: a, p, c.  dx may be dy."""
    a, p, c = terms
    for xb, gb, out in rows.blocks(index, parts):
        width = xb.shape[1]
        t = scratch[0][: xb.size].reshape(xb.shape)
        np.multiply(xb, p[:width], out=t)
        np.add(t, c[:width], out=t)
        np.multiply(gb, a[:width], out=out)
        np.add(out, t, out=out)
