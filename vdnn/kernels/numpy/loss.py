"""Losses: a mean over the batch, added up in float64, and its gradient.  N batch, K classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, Pieces, carve, carved_bytes, like
from vdnn.kernels.numpy.elementwise import ElementwiseKernels

Array = Any
MOST_ROWS = 1024  # rows of a block: numbers per row are small temporaries


def _row_blocks(N: int, K: int) -> list[slice]:
    step = min(MOST_ROWS, max(1, CHUNK // K))
    return [slice(n, n + step) for n in range(0, N, step)]


def _checked(labels: Array, K: int) -> Array:
    """`labels`, all of them in 0 .. K - 1.  Raises IndexError."""
    if labels.min() < 0 or labels.max() >= K:
        wrong = labels[(labels < 0) | (labels >= K)][0]
        raise IndexError(f"label {wrong} is outside 0 .. {K - 1}")
    return labels


class LossKernels(ElementwiseKernels):
    """softmax_cross_entropy and mean_squared_error with their backwards."""

    def softmax_cross_entropy(self, x: Array, labels: Array, p: Array, y: Array, workspace: Array | None) -> None:
        """p: (N, K) = softmax of x by rows; y: (1,) = mean of -log(p[n, labels[n]]).  p may be x."""
        N, K = x.shape
        total = 0.0
        for rows in _row_blocks(N, K):
            wanted = _checked(labels[rows], K)
            part = p[rows]
            np.subtract(x[rows], np.max(x[rows], axis=1, keepdims=True), out=part)
            chosen = part[np.arange(len(part)), wanted].astype(np.float64)
            np.exp(part, out=part)
            sums = np.sum(part, axis=1, keepdims=True)
            np.divide(part, sums, out=part)
            total += float(np.sum(np.log(sums[:, 0], dtype=np.float64) - chosen))
        y[0] = total / N

    def softmax_cross_entropy_backward(self, p: Array, labels: Array, dx: Array, samples: int | None = None) -> None:
        """dx = (p - one_hot(labels)) / samples, by default N.  dx may be p."""
        N, K = p.shape
        for rows in _row_blocks(N, K):
            wanted = _checked(labels[rows], K)
            part = dx[rows]
            np.copyto(part, p[rows])
            part[np.arange(len(part)), wanted] -= 1
            np.divide(part, samples or N, out=part)

    def mean_squared_error_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that mean_squared_error needs."""
        return carved_bytes((min(CHUNK, int(np.prod(x))), dtype))

    def mean_squared_error(self, x: Array, labels: Array, y: Array, workspace: Array) -> None:
        """y: (1,) = mean of (x - labels) ** 2."""
        pieces = Pieces((x, labels), CHUNK)
        (t,) = carve(workspace, (min(CHUNK, x.size), x.dtype))
        total = 0.0
        for i in range(len(pieces)):
            xi, target = pieces[i]
            difference = like(t, xi)
            np.subtract(xi, target, out=difference)
            np.multiply(difference, difference, out=difference)
            total += float(np.add.reduce(t[: xi.size]))
        y[0] = total / x.size

    def mean_squared_error_backward(self, x: Array, labels: Array, dx: Array, samples: int | None = None) -> None:
        """dx = 2 * (x - labels) / number of elements of so many samples, by default of x."""
        size = x.size // len(x) * (samples or len(x))
        pieces = Pieces((x, labels, dx), CHUNK)
        for i in range(len(pieces)):
            xi, target, out = pieces[i]
            np.subtract(xi, target, out=out)
            np.multiply(out, 2 / size, out=out)
