"""Batch normalisation: sums over slices, a small kernel that finishes each channel, and one pass that applies it.

N batch, C channels, H, W rows and columns; M = N * H * W values per channel.
"""

from __future__ import annotations

import numpy as np

from vdnn.kernels.cuda.base import BLOCK, Launching, reciprocal, storage_of
from vdnn.layers.base import Array
from vdnn.layers.common import elements

LANES = 32  # channels that a block adds up side by side, where they lie so
SLICE = 4096  # values that a block adds up, at least
MOST_BLOCKS = 2048  # for sums: a few for each multiprocessor of the largest GPUs
AT_ONCE = 4  # elements of an image that a thread applies, NORM_AT_ONCE of the source
COEFFICIENTS = 4  # of a channel, at most


class NormKernels(Launching):
    """batch_norm, batch_norm_evaluate, batch_norm_backward."""

    def batch_norm_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that each of the three batch_norm kernels needs, however x is stored."""
        N, C, H, W = x
        slices = max(_slices(N * H * W, C, lanes) for lanes in (1, _lanes(C)))
        return 16 * C * slices + COEFFICIENTS * C * np.dtype(dtype).itemsize

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
        """
        call = _Call(x, y)
        partial, coefficients = self._addresses(call, workspace)
        sizes = (call.C, call.row, call.M, call.slices)
        self.launch("norm_moments", x, call.grid, x, partial, *sizes, call.lanes)
        outputs = (mean, inverse_deviation, variance, coefficients)
        self.launch("norm_finish", x, call.finishers, x, partial, w, b, *outputs, *sizes, call.columns, float(eps))
        self._apply(call, x, None, coefficients, y)

    def batch_norm_evaluate(
        self, x: Array, w: Array, b: Array, mean: Array, variance: Array, y: Array, eps: float, workspace: Array
    ) -> None:
        """y = (x - mean) / sqrt(variance + eps) * w + b with given mean and variance: (C,)."""
        call = _Call(x, y)
        _, coefficients = self._addresses(call, workspace)
        self.launch("norm_evaluate", x, self.blocks(call.C), w, b, mean, variance, coefficients, call.C, float(eps))
        self._apply(call, x, None, coefficients, y)

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
        call = _Call(x, dy, *([] if dx is None else [dx]))
        partial, coefficients = self._addresses(call, workspace)
        sizes = (call.C, call.row, call.M, call.slices, call.lanes)
        self.launch("norm_moments_backward", x, call.grid, x, dy, mean, partial, *sizes)
        arrays = (partial, w, mean, inverse_deviation, dw, db, coefficients)
        self.launch("norm_finish_backward", x, call.finishers, *arrays, call.C, call.M, call.slices, call.columns)
        if dx is not None:
            self._apply(call, x, dy, coefficients, dx)

    def _addresses(self, call: _Call, workspace: Array) -> tuple[int, int]:
        """Where the workspace has partial sums, and coefficients."""
        start = int(self.driver.address(workspace))
        return start, start + 16 * call.C * call.slices

    def _apply(self, call: _Call, x: Array, dy: Array | None, coefficients: int, y: Array) -> None:
        N = x.shape[0]
        size = elements(x.shape[1:])
        grid = self.over_images(size, N, AT_ONCE)
        over = (reciprocal(call.row), reciprocal(call.C))
        self.launch("norm_apply", x, grid, x, dy, coefficients, y, N, call.C, size, *over)


class _Call:
    """How the kernels see arrays of one shape and storage: C channels of M values in rows of `row`, in slices."""

    def __init__(self, *arrays: Array) -> None:
        N, self.C, H, W = arrays[0].shape
        self.row = H * W if storage_of(*arrays) == "nchw" else 1
        self.M = N * H * W
        self.lanes = 1 if self.row > 1 else _lanes(self.C)
        self.slices = _slices(self.M, self.C, self.lanes)
        self.grid = (-(-self.C // self.lanes), self.slices)
        # to finish: as many threads for a channel as it has slices, so that few wait
        self.columns = BLOCK // min(BLOCK, _power_of_two(self.slices))
        self.finishers = -(-self.C // self.columns)


def _lanes(C: int) -> int:
    return min(LANES, _power_of_two(C))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _slices(M: int, C: int, lanes: int) -> int:
    """Into how many slices the M values of a channel are cut; by the shape alone, so that every GPU adds up alike."""
    most = max(1, MOST_BLOCKS // -(-max(1, C) // lanes))
    return max(1, min(M * lanes // SLICE, most))
