"""Batch normalisation's passes over rows of channels, and what lies between them.

N batch, C channels, H, W rows and columns; M = N * H * W values per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.elementwise import relu
from vdnn.kernels.numpy.norm_rows import BLOCK, WIDE, Rows, Scratch

Array = Any
HEIGHT = BLOCK // WIDE  # rows of the tallest block of long rows
ONES = {np.dtype(kind): np.ones((1, HEIGHT), kind) for kind in ("float32", "float64")}


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


def normalise(rows: Rows, s: Scratch, index: int, rectify: bool) -> None:
    """y = x * s.wide[0] + s.wide[1] for a part of the rows; rectify: max(y, 0) in place of y."""
    scale, offset, _ = s.wide
    for xb, yb in rows.blocks(index, rows.parts):
        width = xb.shape[1]
        np.multiply(xb, scale[:width], out=yb)
        np.add(yb, offset[:width], out=yb)
        if rectify:
            flat = yb.reshape(-1) if yb.flags.c_contiguous else yb
            relu(flat, flat)


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
