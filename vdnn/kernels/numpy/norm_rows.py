"""Rows of channels in blocks that stay in cache, and the scratch of batch normalisation.

N batch, C channels, H, W rows and columns; M = N * H * W values per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import carve, carved_bytes, flat, is_channels_last, view

Array = Any
BLOCK = 131072  # elements of a block; with less, threads hand the interpreter to and fro
WIDE = 1024  # a row of C values is repeated to at least so many, as broadcasting short rows is slow
VECTOR = 16  # and to a multiple of so many, for the compiled passes
SLICES = 16  # sums over the batch are taken over this many slices at most, then over slices in order
PARTS = 64  # that what is then done to every element is cut into, at most
SLICE = 131072  # elements of a slice and of a part, at least


class Rows:
    """Arrays (N, C, H, W) of one shape as groups of rows of C channels, in blocks that stay in cache.

    Channels-last arrays are one group of M rows; otherwise every image is a group.  flat: them as 1-D arrays, if
    all are channels-last.
    """

    def __init__(self, *arrays: Array) -> None:
        N, C, H, W = arrays[0].shape
        self.given = arrays
        self.channels = C
        self.all = N * H * W
        self.flat = flat(arrays) if all(map(is_channels_last, arrays)) else None
        self.rows = self.all if self.flat else H * W
        self.repeat = repeat(C)
        self.step = block_rows(C)
        self.per_group = -(-self.rows // self.step)
        self.count = self.all // self.rows * self.per_group
        self.parts = parts(self.all * C, PARTS)

    def views(self) -> list[Array]:
        """The arrays as (groups, rows, C)."""
        if self.flat:
            return [a.reshape(1, self.rows, self.channels) for a in self.flat]
        return [view(a.transpose(0, 2, 3, 1), (len(a), self.rows, self.channels)) for a in self.given]

    def blocks(self, index: int, parts: int) -> Iterator[list[Array]]:
        """Each array's rows of the blocks of one of `parts` equal parts.

        A block is (rows, C), or (rows / repeat, repeat * C) where that is a view.
        """
        views = self.views()
        for i in range(index * self.count // parts, (index + 1) * self.count // parts):
            group, place = divmod(i, self.per_group)
            found = [a[group, place * self.step : (place + 1) * self.step] for a in views]
            if len(found[0]) % self.repeat == 0 and all(a.flags.c_contiguous for a in found):
                found = [a.reshape(-1, self.repeat * self.channels) for a in found]
            yield found


def repeat(C: int) -> int:
    """How often a row of C channels is repeated: a power of two, so that it divides a block's rows."""
    times = 1
    while times * C < WIDE or times * C % VECTOR:
        times *= 2
    return times


def block_rows(C: int) -> int:
    """Rows of C channels in a block: a multiple of repeat(C)."""
    times = repeat(C)
    return max(1, BLOCK // (times * C)) * times


def parts(elements: int, most: int) -> int:
    """How many parts so many elements are cut into."""
    return max(1, min(most, elements // SLICE))


@lru_cache(maxsize=1024)
def _specs(dtype: Any, C: int, slices: int) -> tuple[tuple[tuple[int, Any], ...], tuple[tuple[int, Any], ...]]:
    """Scratch (shared, per worker): partial sums, totals, three repeated rows; a block, a repeated row, a row."""
    wide = repeat(C) * C
    shared = (slices * 2 * C, "float64"), (4 * C, "float64"), (3 * wide, dtype)
    return shared, ((block_rows(C) * C, dtype), (wide, dtype), (C, "float64"))


class Scratch:
    """The workspace of one batch normalisation, cut up.

    partial  (slices, 2, C) float64, sums over slices of the rows
    totals   (4, C) float64
    wide     (3, repeat * C) in the network's precision: rows of C values, repeated
    """

    def __init__(self, workspace: Array, x: Array) -> None:
        C = x.shape[1]
        slices = parts(x.size, SLICES)
        shared, self.own = _specs(x.dtype, C, slices)
        partial, totals, wide = carve(workspace, *shared)
        self.partial = partial.reshape(slices, 2, C)
        self.totals = totals.reshape(4, C)
        self.wide = wide.reshape(3, -1)
        self.rest = workspace[carved_bytes(*shared) :]

    def worker(self, worker: int) -> list[Array]:
        """(block, repeated row, float64 row) of one worker."""
        return carve(self.rest[worker * carved_bytes(*self.own) :], *self.own)

    def spread(self, index: int, row: Array) -> None:
        """wide[index] = a float64 row of C values, repeated."""
        self.wide[index].reshape(-1, row.size)[...] = row


def scratch_bytes(dtype: str, x: tuple[int, ...], threads: int) -> int:
    """Bytes that `Scratch` needs for x: (N, C, H, W)."""
    shared, own = _specs(np.dtype(dtype), x[1], parts(x[0] * x[1] * x[2] * x[3], SLICES))
    return carved_bytes(*shared) + threads * carved_bytes(*own)
