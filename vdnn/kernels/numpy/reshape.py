"""Kernels that move elements about: flattening and upsampling.

N batch, C channels; H, W rows and columns of x; P, Q of y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, carve, carved_bytes, seconds, view
from vdnn.kernels.numpy.elementwise import ElementwiseKernels

Array = Any
Pair = tuple[int, int]


class ReshapeKernels(ElementwiseKernels):
    """flatten, unflatten, upsample_nearest and upsample_bilinear with their backwards."""

    def flatten(self, x: Array, y: Array) -> None:
        """y: (N, C * H * W) = x in logical order: for channels-last storage a transposing copy."""
        self._by_sample(x, view(y, x.shape))

    def flatten_backward(self, dy: Array, dx: Array) -> None:
        """The inverse of flatten."""
        self._by_sample(view(dy, dx.shape), dx)

    def _by_sample(self, x: Array, y: Array) -> None:
        if x.ndim == 2:
            self.copy(x, y)
            return
        self.parallel(lambda n, _: np.copyto(y[n], x[n]), len(x), 4 * seconds(x, y))

    def upsample_nearest(self, x: Array, y: Array, scale: Pair) -> None:
        """y[h, w] = x[h // scale, w // scale]."""
        x, y = x.transpose(0, 2, 3, 1), y.transpose(0, 2, 3, 1)

        def work(n: int, _: int) -> None:
            for i in range(scale[0]):
                for j in range(scale[1]):
                    np.copyto(y[n, i :: scale[0], j :: scale[1]], x[n])

        self.parallel(work, len(x), seconds(y))

    def upsample_nearest_backward(self, dy: Array, dx: Array, scale: Pair) -> None:
        """dx = the sum of dy over each element's block."""
        dy, dx = dy.transpose(0, 2, 3, 1), dx.transpose(0, 2, 3, 1)

        def work(n: int, _: int) -> None:
            np.copyto(dx[n], dy[n, :: scale[0], :: scale[1]])
            for k in range(1, scale[0] * scale[1]):
                i, j = divmod(k, scale[1])
                np.add(dx[n], dy[n, i :: scale[0], j :: scale[1]], out=dx[n])

        self.parallel(work, len(dx), seconds(dy))

    def upsample_bilinear_workspace(self, dtype: str, x: tuple[int, ...], y: tuple[int, ...]) -> int:
        """Bytes of scratch that upsample_bilinear and its backward need."""
        return self.threads * carved_bytes(*_bilinear_specs(dtype, x, y))

    def upsample_bilinear(self, x: Array, y: Array, align_corners: bool, workspace: Array) -> None:
        """y = x interpolated between its elements, first along rows, then along columns."""
        self._bilinear(x, y, False, align_corners, workspace)

    def upsample_bilinear_backward(self, dy: Array, dx: Array, align_corners: bool, workspace: Array) -> None:
        """The transpose of upsample_bilinear."""
        self._bilinear(dx, dy, True, align_corners, workspace)

    def _bilinear(self, x: Array, y: Array, is_backward: bool, align_corners: bool, workspace: Array) -> None:
        """From x to y, or back; in between lie arrays with y's columns and x's rows."""
        specs = _bilinear_specs(x.dtype, x.shape, y.shape)
        N, C, H, _ = x.shape
        Q, step = y.shape[3], _bilinear_images(x.shape, y.shape)

        def work(task: int, worker: int) -> None:
            both, spare = carve(workspace[worker * carved_bytes(*specs) :], *specs)
            images = slice(task * step, (task + 1) * step)
            xb, yb = x[images], y[images]
            middle = both[: len(xb) * H * Q * C].reshape(len(xb), H, Q, C)
            along_columns = xb.transpose(3, 0, 2, 1), middle.transpose(2, 0, 1, 3)
            along_rows = middle.transpose(1, 0, 2, 3), yb.transpose(2, 0, 3, 1)
            if is_backward:
                _spread_back(along_rows[1], along_rows[0], align_corners, spare)
                _spread_back(along_columns[1], along_columns[0], align_corners, spare)
            else:
                _interpolate(*along_columns, align_corners, spare)
                _interpolate(*along_rows, align_corners, spare)

        self.parallel(work, -(-N // step), 4 * seconds(y))


def _bilinear_images(x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """Images taken together."""
    (N, C, H, _), Q = x, y[3]
    return min(N, max(1, 4 * CHUNK // (H * Q * C)))


def _bilinear_specs(dtype: Any, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[tuple[int, Any], ...]:
    """Some images with y's columns and x's rows; a row or a column of each."""
    (_, C, H, _), Q = x, y[3]
    images = _bilinear_images(x, y)
    return (images * H * Q * C, dtype), (images * max(H, Q) * C, dtype)


def sources(inputs: int, outputs: int, align_corners: bool) -> list[tuple[int, int, float]]:
    """(lower, upper, weight of upper) for every output along an axis, as PyTorch has them."""
    table = []
    for o in range(outputs):
        if align_corners:
            place = o * (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
        else:
            place = max((o + 0.5) * inputs / outputs - 0.5, 0.0)
        lower = min(int(place), inputs - 1)
        table.append((lower, min(lower + 1, inputs - 1), place - lower))
    return table


def _interpolate(x: Array, y: Array, align_corners: bool, spare: Array) -> None:
    """y[o] = (1 - weight) * x[lower] + weight * x[upper] along the first axis."""
    t = spare[: y[0].size].reshape(y[0].shape)
    for o, (lower, upper, weight) in enumerate(sources(len(x), len(y), align_corners)):
        np.multiply(x[lower], 1 - weight, out=y[o])
        if weight:
            np.multiply(x[upper], weight, out=t)
            np.add(y[o], t, out=y[o])


def _spread_back(dy: Array, dx: Array, align_corners: bool, spare: Array) -> None:
    """The transpose of _interpolate."""
    t = spare[: dy[0].size].reshape(dy[0].shape)
    dx[...] = 0
    for o, (lower, upper, weight) in enumerate(sources(len(dx), len(dy), align_corners)):
        np.multiply(dy[o], 1 - weight, out=t)
        np.add(dx[lower], t, out=dx[lower])
        if weight:
            np.multiply(dy[o], weight, out=t)
            np.add(dx[upper], t, out=dx[upper])
