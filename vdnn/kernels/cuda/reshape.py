"""Kernels that move elements about: flattening and upsampling.

N batch, C channels; H, W rows and columns of x; P, Q of y.
"""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cuda.base import Launching, storage_of
from vdnn.kernels.cuda.elementwise import start_copy
from vdnn.layers.base import Array
from vdnn.layers.common import elements

Pair = tuple[int, int]


class ReshapeKernels(Launching):
    """flatten, upsample_nearest and upsample_bilinear with their backwards."""

    def flatten(self, x: Array, y: Array) -> None:
        """y: (N, C * H * W) = x in logical order: for channels-last storage a transposing copy."""
        start_copy(self, x, y.reshape(x.shape))

    def flatten_backward(self, dy: Array, dx: Array) -> None:
        """The inverse of flatten."""
        start_copy(self, dy.reshape(dx.shape), dx)

    def upsample_nearest(self, x: Array, y: Array, scale: Pair) -> None:
        """y[h, w] = x[h // scale, w // scale]."""
        self._upsample("upsample_nearest", x, y, *x.shape[2:], *scale)

    def upsample_nearest_backward(self, dy: Array, dx: Array, scale: Pair) -> None:
        """dx = the sum of dy over each element's block."""
        self._upsample("upsample_nearest_backward", dy, dx, *dx.shape[2:], *scale)

    def upsample_bilinear(self, x: Array, y: Array, align_corners: bool, workspace: Any = None) -> None:
        """y = x interpolated between its elements, first along rows, then along columns."""
        self._upsample("upsample_bilinear", x, y, *x.shape[2:], *y.shape[2:], int(align_corners))

    def upsample_bilinear_backward(self, dy: Array, dx: Array, align_corners: bool, workspace: Any = None) -> None:
        """The transpose of upsample_bilinear."""
        self._upsample("upsample_bilinear_backward", dy, dx, *dx.shape[2:], *dy.shape[2:], int(align_corners))

    def _upsample(self, name: str, source: Array, target: Array, *sizes: int) -> None:
        """Launch a kernel that has a thread for each element of a plane of `target`."""
        N, C = target.shape[:2]
        planes, inner = (N, C) if storage_of(source, target) == "nhwc" else (N * C, 1)
        grid, width = self.spread(planes, elements(target.shape[2:]) * inner)
        self.launch(name, target, grid, source, target, planes, inner, *sizes, width)
