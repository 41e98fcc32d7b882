"""Losses: a mean over the batch, added up in float64, and its gradient.  N batch, K classes."""

from __future__ import annotations

import numpy as np

from vdnn.kernels.cuda.base import BLOCK, WAVES, Launching, check_alike
from vdnn.layers.base import Array
from vdnn.layers.common import elements

MOST_PARTS = 1024  # sums that a mean is made of; their number depends on the shape alone, so bits do not on the device


class LossKernels(Launching):
    """softmax_cross_entropy and mean_squared_error with their backwards."""

    def softmax_cross_entropy_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that softmax_cross_entropy needs."""
        return _row_parts(*x)[1] * np.dtype("float64").itemsize

    def softmax_cross_entropy(self, x: Array, labels: Array, p: Array, y: Array, workspace: Array) -> None:
        """p: (N, K) = softmax of x by rows; y: (1,) = mean of -log(p[n, labels[n]]).  p may be x.

        A label outside 0 .. K - 1 makes y NaN.
        """
        check_alike((x, p))
        N, K = x.shape
        group, parts = _row_parts(N, K)
        blocks = min(parts, WAVES * self.driver.multiprocessors)
        self.launch("softmax", x, blocks, x, labels, p, workspace, N, K, group, parts)
        self.launch("mean_of_parts", x, 1, workspace, y, parts, N)

    def softmax_cross_entropy_backward(self, p: Array, labels: Array, dx: Array, samples: int | None = None) -> None:
        """dx = (p - one_hot(labels)) / samples, by default N.  dx may be p."""
        check_alike((p, dx))
        N, K = p.shape
        grid, width = self.spread(N, K)
        self.launch("softmax_cross_entropy_backward", p, grid, p, labels, dx, samples or N, N, K, width)

    def mean_squared_error_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that mean_squared_error needs."""
        return _parts(elements(x)) * np.dtype("float64").itemsize

    def mean_squared_error(self, x: Array, labels: Array, y: Array, workspace: Array) -> None:
        """y: (1,) = mean of (x - labels) ** 2."""
        check_alike((x, labels))
        parts = _parts(x.size)
        blocks = min(parts, WAVES * self.driver.multiprocessors)
        self.launch("squared_error", x, blocks, x, labels, workspace, parts, x.size)
        self.launch("mean_of_parts", x, 1, workspace, y, parts, x.size)

    def mean_squared_error_backward(self, x: Array, labels: Array, dx: Array, samples: int | None = None) -> None:
        """dx = 2 * (x - labels) / number of elements of so many samples, by default of x."""
        N = max(1, x.shape[0])
        size = max(1, x.size // N * (samples or N))
        self.each("mean_squared_error_backward", x, labels, dx, 2 / size, arrays=(x, labels, dx))


def _power(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def _row_parts(N: int, K: int) -> tuple[int, int]:
    """(threads for a row, sums of losses): sums of as many rows as a block takes, of more where there are many."""
    group = min(_power(K), BLOCK)
    return group, max(1, min(MOST_PARTS, -(-N * group // BLOCK)))


def _parts(size: int) -> int:
    """How many sums: of 16 elements a thread where there are enough."""
    return max(1, min(MOST_PARTS, -(-size // (16 * BLOCK))))
