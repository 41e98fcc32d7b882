"""Rows of channels in blocks that stay in cache, and batch normalisation's passes over them.

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
HEIGHT = BLOCK // WIDE  # rows of the tallest block of long rows
ONES = {np.dtype(kind): np.ones((1, HEIGHT), kind) for kind in ("float32", "float64")}


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


def _sum_rows(t: Array, C: int, wide: Array, narrow: Array, total: Array) -> None:
    """total: (C,) float64 += the sum over all rows of t, a block as Rows gives it."""
    width = t.shape[1]
    if len(t) <= HEIGHT:
        np.matmul(ONES[t.dtype][:, : len(t)], t, out=wide[None, :width])
    else:
        np.add.reduce(t, axis=0, out=wide[:width])
    np.add.reduce(wide[:width].reshape(-1, C), axis=0, dtype=np.float64, out=narrow)
    np.add(total, narrow, out=total)


def centre(rows: Rows, s: Scratch) -> None:
    """s.wide[0] = the mean of some rows: near enough to that of all for squares not to drown in it."""
    _, wide, narrow = s.worker(0)
    first = next(rows.blocks(0, rows.count))[0]
    mean = s.totals[0]
    mean[...] = 0
    _sum_rows(first, rows.channels, wide, narrow, mean)
    np.divide(mean, first.size // rows.channels, out=mean)
    s.spread(0, mean)


def sum_moments(rows: Rows, s: Scratch, index: int, worker: int) -> None:
    """s.partial[index] = the sums of x - s.wide[0] and of its square over a part of the rows."""
    block, wide, narrow = s.worker(worker)
    sums, shift = s.partial[index], s.wide[0]
    sums[...] = 0
    for xb, *_ in rows.blocks(index, len(s.partial)):
        t = block[: xb.size].reshape(xb.shape)
        np.subtract(xb, shift[: xb.shape[1]], out=t)
        _sum_rows(t, rows.channels, wide, narrow, sums[0])
        np.multiply(t, t, out=t)
        _sum_rows(t, rows.channels, wide, narrow, sums[1])


def settle_moments(rows: Rows, s: Scratch, eps: float, w: Array, b: Array, statistics: tuple[Array, ...]) -> None:
    """Write mean, inverse deviation and unbiased variance from the partial sums, and s.wide[:2] = scale and offset."""
    mean, inverse_deviation, variance = statistics
    total, square, spare, _ = s.totals
    M = rows.all
    np.add.reduce(s.partial[:, 0], axis=0, out=total)
    np.add.reduce(s.partial[:, 1], axis=0, out=square)
    np.divide(total, M, out=total)
    np.multiply(total, total, out=spare)
    np.multiply(spare, M, out=spare)
    np.subtract(square, spare, out=square)
    np.maximum(square, 0, out=square)  # the sum of (x - mean) ** 2
    np.divide(square, max(M - 1, 1), out=spare)
    variance[...] = spare
    np.divide(square, M, out=square)
    np.add(total, s.wide[0, : rows.channels], out=total)  # the mean
    mean[...] = total
    _inverse_deviation(square, eps)
    inverse_deviation[...] = square
    _scale(s, total, square, w, b)


def settle_averages(s: Scratch, eps: float, w: Array, b: Array, mean: Array, variance: Array) -> None:
    """s.wide[:2] = scale and offset for a given mean and variance."""
    total, square, *_ = s.totals
    total[...] = mean
    square[...] = variance
    _inverse_deviation(square, eps)
    _scale(s, total, square, w, b)


def _scale(s: Scratch, mean: Array, inverse: Array, w: Array, b: Array) -> None:
    """s.wide[:2] = scale and offset; inverse and mean (float64) are used up."""
    np.multiply(inverse, w, out=inverse)
    s.spread(0, inverse)
    np.multiply(mean, inverse, out=mean)
    np.subtract(b, mean, out=mean)
    s.spread(1, mean)


def _inverse_deviation(variance: Array, eps: float) -> None:
    """variance = 1 / sqrt(variance + eps), in place."""
    np.add(variance, eps, out=variance)
    np.sqrt(variance, out=variance)
    np.divide(1.0, variance, out=variance)


def normalise(rows: Rows, s: Scratch, index: int) -> None:
    """y = x * s.wide[0] + s.wide[1] for a part of the rows."""
    scale, offset, _ = s.wide
    for xb, yb in rows.blocks(index, rows.parts):
        width = xb.shape[1]
        np.multiply(xb, scale[:width], out=yb)
        np.add(yb, offset[:width], out=yb)


def sum_gradients(rows: Rows, s: Scratch, index: int, worker: int) -> None:
    """s.partial[index] = the sums of dy and of dy * (x - s.wide[0]) over a part of the rows."""
    block, wide, narrow = s.worker(worker)
    sums, shift = s.partial[index], s.wide[0]
    sums[...] = 0
    for xb, gb, *_ in rows.blocks(index, len(s.partial)):
        _sum_rows(gb, rows.channels, wide, narrow, sums[0])
        t = block[: xb.size].reshape(xb.shape)
        np.subtract(xb, shift[: xb.shape[1]], out=t)
        np.multiply(t, gb, out=t)
        _sum_rows(t, rows.channels, wide, narrow, sums[1])


def settle_gradients(rows: Rows, s: Scratch, w: Array, saved: tuple[Array, Array], dw: Array, db: Array) -> None:
    """Write dw and db from the partial sums, and s.wide = a, p, c of dx = a * dy + p * x + c.

    saved: mean and inverse deviation.
    """
    mean, inverse_deviation = saved
    total, moment, a, c = s.totals
    M = rows.all
    np.add.reduce(s.partial[:, 0], axis=0, out=total)
    np.add.reduce(s.partial[:, 1], axis=0, out=moment)
    np.multiply(moment, inverse_deviation, out=moment)
    db[...] = total
    dw[...] = moment
    np.multiply(w, inverse_deviation, out=a, dtype=np.float64)
    np.multiply(moment, inverse_deviation, out=moment)
    np.multiply(moment, a, out=moment)
    np.divide(moment, -M, out=moment)
    np.multiply(total, a, out=c)
    np.divide(c, -M, out=c)
    np.multiply(moment, mean, out=total)
    np.subtract(c, total, out=c)
    for index, row in enumerate((a, moment, c)):
        s.spread(index, row)


def differentiate(rows: Rows, s: Scratch, index: int, worker: int) -> None:
    """dx = a * dy + p * x + c for a part of the rows; s.wide: a, p, c.  dx may be dy."""
    block, *_ = s.worker(worker)
    a, p, c = s.wide
    for xb, gb, out in rows.blocks(index, rows.parts):
        width = xb.shape[1]
        t = block[: xb.size].reshape(xb.shape)
        np.multiply(xb, p[:width], out=t)
        np.add(t, c[:width], out=t)
        np.multiply(gb, a[:width], out=out)
        np.add(out, t, out=out)
