"""Batch normalisation on channels-last storage.

N batch, C channels, H, W rows and columns; M = N * H * W values per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import Sharing, carve, carved_bytes, seconds
from vdnn.kernels.numpy.norm_rows import Rows, block_rows, repeat, sum_rows

Array = Any
SLICES = 16  # sums over the batch are taken over this many slices, then over slices in order
PARTS = 64  # that what is then done to every element is cut into


def _specs(dtype: Any, C: int) -> tuple[list[tuple[int, Any]], list[tuple[int, Any]]]:
    """Scratch (shared, per worker): partial sums, totals, three repeated rows; a block, a repeated row, a row."""
    wide = repeat(C) * C
    shared = [(SLICES * 2 * C, "float64"), (4 * C, "float64"), (3 * wide, dtype)]
    return shared, [(block_rows(C) * C, dtype), (wide, dtype), (C, "float64")]


class _Scratch:
    """The workspace of one batch normalisation, cut up."""

    def __init__(self, workspace: Array, dtype: Any, C: int) -> None:
        shared, self.own = _specs(dtype, C)
        partial, totals, wide = carve(workspace, *shared)
        self.partial = partial.reshape(SLICES, 2, C)
        self.totals = totals.reshape(4, C)
        self.wide = wide.reshape(3, -1)
        self.rest = workspace[carved_bytes(*shared) :]
        self.channels = C

    def worker(self, worker: int) -> list[Array]:
        """(block, repeated row, float64 row) of one worker."""
        return carve(self.rest[worker * carved_bytes(*self.own) :], *self.own)

    def spread(self, index: int, row: Array) -> Array:
        """A float64 row of C values, repeated in the network's precision."""
        wide = self.wide[index]
        wide.reshape(-1, self.channels)[...] = row
        return wide


class NormKernels(Sharing):
    """batch_norm, batch_norm_evaluate, batch_norm_backward, move_average."""

    def batch_norm_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that each of the three batch_norm kernels needs."""
        shared, own = _specs(dtype, x[1])
        return carved_bytes(*shared) + self.threads * carved_bytes(*own)

    def batch_norm(
        self,
        x: Array,
        w: Array,
        b: Array,
        y: Array,
        mean: Array,
        inverse_deviation: Array,
        variance: Array,
        eps: float,
        workspace: Array,
    ) -> None:
        """y = (x - mean) / sqrt(biased variance + eps) * w + b over the batch; writes mean (C,), 1 / sqrt(...) and
        the unbiased variance, which running averages take.

        One pass sums x - c and its square, c being the mean of the first block: near enough to the mean that the
        squares do not drown in it.
        """
        rows, s = Rows(x, y), _Scratch(workspace, x.dtype, x.shape[1])
        self._sum_moments(rows, s)
        centre, total, square, spare = s.totals
        M = x.size // x.shape[1]
        np.divide(total, M, out=total)
        np.multiply(total, total, out=spare)
        np.multiply(spare, M, out=spare)
        np.subtract(square, spare, out=square)
        np.maximum(square, 0, out=square)  # the sum of (x - mean) ** 2
        np.divide(square, max(M - 1, 1), out=spare)
        variance[...] = spare
        np.divide(square, M, out=square)
        np.add(total, centre, out=total)  # the mean
        mean[...] = total
        _inverse_deviation(square, eps)
        inverse_deviation[...] = square
        self._normalise(rows, s, total, square, w, b)

    def _sum_moments(self, rows: Rows, s: _Scratch) -> None:
        """s.totals: c, the sum of x - c, the sum of its square, and something left over."""
        C = rows.channels
        centre, total, square, _ = s.totals
        _, wide, narrow = s.worker(0)
        first = rows.block(0)[0]
        centre[...] = 0
        sum_rows(first, C, wide, narrow, centre)
        np.divide(centre, first.size // C, out=centre)
        shift = s.spread(0, centre)
        centre[...] = shift[:C]  # as rounded

        routine = self.routines.sum_moments

        def sums(index: int, worker: int) -> None:
            s.partial[index] = 0
            routine(rows, index, SLICES, shift, s.partial[index], s.worker(worker))

        self.share(sums, SLICES, 3 * seconds(rows.arrays[0]))
        np.add.reduce(s.partial[:, 0], axis=0, out=total)
        np.add.reduce(s.partial[:, 1], axis=0, out=square)

    def batch_norm_evaluate(
        self, x: Array, w: Array, b: Array, mean: Array, variance: Array, y: Array, eps: float, workspace: Array
    ) -> None:
        """y = (x - mean) / sqrt(variance + eps) * w + b with given mean and variance: (C,)."""
        rows, s = Rows(x, y), _Scratch(workspace, x.dtype, x.shape[1])
        _, total, square, _ = s.totals
        total[...] = mean
        square[...] = variance
        _inverse_deviation(square, eps)
        self._normalise(rows, s, total, square, w, b)

    @staticmethod
    def move_average(value: Array, average: Array, momentum: float) -> None:
        """average = (1 - momentum) * average + momentum * value, in place."""
        if momentum == 0:
            return
        np.multiply(average, (1 - momentum) / momentum, out=average)  # no temporary this way
        np.add(average, value, out=average)
        np.multiply(average, momentum, out=average)

    def _normalise(self, rows: Rows, s: _Scratch, mean: Array, inverse: Array, w: Array, b: Array) -> None:
        """y = scale * x + offset; inverse and mean (float64) are used up."""
        np.multiply(inverse, w, out=inverse)
        scale = s.spread(0, inverse)
        np.multiply(mean, inverse, out=mean)
        np.subtract(b, mean, out=mean)
        offset = s.spread(1, mean)

        routine = self.routines.normalise
        parts = min(PARTS, rows.count)
        self.share(lambda index, _: routine(rows, index, parts, scale, offset), parts, 2 * seconds(*rows.arrays))

    def batch_norm_backward(
        self,
        x: Array,
        w: Array,
        mean: Array,
        inverse_deviation: Array,
        dy: Array,
        dx: Array | None,
        dw: Array,
        db: Array,
        workspace: Array,
    ) -> None:
        """With z = (x - mean) * inverse_deviation: db = sum(dy), dw = sum(dy * z),
        dx = w * inverse_deviation * (dy - db / M - z * dw / M).  dx may be dy, or None.
        """
        C = x.shape[1]
        M = x.size // C
        rows, s = Rows(x, dy, *([] if dx is None else [dx])), _Scratch(workspace, x.dtype, C)
        shift = s.spread(0, mean)

        sum_gradients, differentiate = self.routines.sum_gradients, self.routines.differentiate

        def sums(index: int, worker: int) -> None:
            s.partial[index] = 0
            sum_gradients(rows, index, SLICES, shift, s.partial[index], s.worker(worker))

        self.share(sums, SLICES, 3 * seconds(x, dy))
        total, moment, a, c = s.totals
        np.add.reduce(s.partial[:, 0], axis=0, out=total)
        np.add.reduce(s.partial[:, 1], axis=0, out=moment)
        np.multiply(moment, inverse_deviation, out=moment)
        db[...] = total
        dw[...] = moment
        if dx is None:
            return
        # dx = a * dy + p * (x - mean) + c
        np.multiply(w, inverse_deviation, out=a, dtype=np.float64)
        np.multiply(moment, inverse_deviation, out=moment)
        np.multiply(moment, a, out=moment)
        np.divide(moment, -M, out=moment)
        np.multiply(total, a, out=c)
        np.divide(c, -M, out=c)
        np.multiply(moment, mean, out=total)
        np.subtract(c, total, out=c)
        terms = s.spread(0, a), s.spread(1, moment), s.spread(2, c)
        parts = min(PARTS, rows.count)

        def apply(index: int, worker: int) -> None:
            differentiate(rows, index, parts, terms, s.worker(worker))

        self.share(apply, parts, 2 * seconds(x, dy, dx))


def _inverse_deviation(variance: Array, eps: float) -> None:
    """variance = 1 / sqrt(variance + eps), in place."""
    np.add(variance, eps, out=variance)
    np.sqrt(variance, out=variance)
    np.divide(1.0, variance, out=variance)
