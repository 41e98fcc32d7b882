"""Batch normalisation on channels-last storage.

N batch, C channels, H, W rows and columns; M = N * H * W values per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.norm_passes import settle_averages
from vdnn.kernels.numpy.norm_rows import Rows, Scratch, scratch_bytes

Array = Any


class NormKernels(Sharing):
    """batch_norm, batch_norm_evaluate, batch_norm_backward, move_average."""

    def batch_norm_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that each of the three batch_norm kernels needs."""
        return scratch_bytes(dtype, x, self.threads)

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
        rectify: bool = False,
    ) -> None:
        """y = (x - mean) / sqrt(biased variance + eps) * w + b over the batch; writes mean (C,), 1 / sqrt(...) and
        the unbiased variance, which running averages take.  rectify: max(y, 0) in place of y, as relu has it.

        One pass sums x - c and its square, c being the mean of the first block: near enough to the mean that the
        squares do not drown in it.
        """
        rows, s, routines = Rows(x, y), Scratch(workspace, x), self.routines
        routines.centre(rows, s)
        cost = self.estimate(3, x)
        self.parallel(lambda index, worker: routines.sum_moments(rows, s, index, worker), len(s.partial), cost)
        routines.settle_moments(rows, s, eps, w, b, (mean, inverse_deviation, variance))
        self._normalise(rows, s, rectify)

    def batch_norm_evaluate(
        self,
        x: Array,
        w: Array,
        b: Array,
        mean: Array,
        variance: Array,
        y: Array,
        eps: float,
        workspace: Array,
        rectify: bool = False,
    ) -> None:
        """y = (x - mean) / sqrt(variance + eps) * w + b with given mean and variance: (C,).  rectify: as batch_norm."""
        rows, s = Rows(x, y), Scratch(workspace, x)
        settle_averages(s, eps, w, b, mean, variance)
        self._normalise(rows, s, rectify)

    @staticmethod
    def move_average(value: Array, average: Array, momentum: float) -> None:
        """average = (1 - momentum) * average + momentum * value, in place."""
        if momentum == 0:
            return
        np.multiply(average, (1 - momentum) / momentum, out=average)  # no temporary this way
        np.add(average, value, out=average)
        np.multiply(average, momentum, out=average)

    def _normalise(self, rows: Rows, s: Scratch, rectify: bool) -> None:
        routine = self.routines.normalise
        self.parallel(lambda index, _: routine(rows, s, index, rectify), rows.parts, self.estimate(2, *rows.given))

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
        rows, s = Rows(x, dy, *([] if dx is None else [dx])), Scratch(workspace, x)
        routines = self.routines
        s.spread(0, mean)
        cost = self.estimate(3, x, dy)
        self.parallel(lambda index, worker: routines.sum_gradients(rows, s, index, worker), len(s.partial), cost)
        routines.settle_gradients(rows, s, w, (mean, inverse_deviation), dw, db)
        if dx is not None:
            cost = self.estimate(2, *rows.given)
            self.parallel(lambda index, worker: routines.differentiate(rows, s, index, worker), rows.parts, cost)
