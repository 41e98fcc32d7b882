"""Layers that move elements about.  Sizes: N batch, C channels, H, W rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdnn.layers.base import Algorithm, Array, Layer, LayerError, Shape, ShapeError, Shapes
from vdnn.layers.common import elements, image, label, scratch
from vdnn.layers.conv import Pairs, pair


class Flatten(Layer):
    """y: (N, C * H * W) = x in its logical order, whatever the storage."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, ...)."""
        if len(x[0]) < 2:
            raise ShapeError(f"{label(self)}: x {x[0]} has no features; (N, C, H, W) or (N, F) would fit")
        return Shapes((x[0][0], elements(x[0][1:])))

    def views(self, kernels: Any, inputs: int = 1) -> Mapping[str, str]:
        """All of it, where storage is in logical order."""
        return {"y": "x", "dx": "dy"} if kernels.storage == "nchw" else {}

    def flops(self, phase: str, *x: Shape) -> int:
        """None: it only copies."""
        return 0

    def forward(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y."""
        kernels.flatten(x, y)

    def backward(self, kernels: Any, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx = dy in the shape of x
        kernels.flatten_backward(dy, dx)


class ConstantPad2d(Layer):
    """y = x with `value` around it.  padding: (left, right, top, bottom), or one number for all four.

    Convolution and pooling pad both sides alike by themselves; this is for sides that differ.
    """

    kind = "pad"

    def __init__(self, padding: int | Sequence[int], value: float = 0.0, name: str = "") -> None:
        sides = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
        if len(sides) != 4:
            raise LayerError(f"padding={padding!r} is neither a number nor (left, right, top, bottom)")
        self.padding = (*pair("padding", sides[:2], 0), *pair("padding", sides[2:], 0))
        self.value, self.name = float(value), name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        N, C, H, W = image(self, x[0])
        left, right, top, bottom = self.padding
        return Shapes((N, C, top + H + bottom, left + W + right))

    def flops(self, phase: str, *x: Shape) -> int:
        """None: it only copies."""
        return 0

    def forward(self, x: Array, y: Array) -> None:
        """Write y."""
        y[...] = self.value
        self._inner(y)[...] = x

    def backward(self, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx = dy without what is around x
        dx[...] = self._inner(dy)

    def _inner(self, y: Array) -> Array:
        left, right, top, bottom = self.padding
        return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]


class Upsample(Layer):
    """y has `scale_factor` times the rows and columns of x: repeated ("nearest") or interpolated ("bilinear").

    align_corners   for bilinear: corners of x and y fall on each other; otherwise their outer edges do.
    """

    def __init__(
        self, scale_factor: Pairs = 2, mode: str = "nearest", align_corners: bool = False, name: str = ""
    ) -> None:
        self.scale_factor = pair("scale_factor", scale_factor, 1)
        self.mode, self.align_corners, self.name = mode, bool(align_corners), name
        if mode not in ("nearest", "bilinear"):
            raise LayerError(f'mode={mode!r} is neither "nearest" nor "bilinear"')
        if align_corners and mode == "nearest":
            raise LayerError('align_corners=True goes with mode="bilinear" only')

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        N, C, H, W = image(self, x[0])
        return Shapes((N, C, H * self.scale_factor[0], W * self.scale_factor[1]))

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; bilinear takes scratch for what is interpolated along one axis only."""
        return scratch(kernels, f"upsample_{self.mode}", dtype, x[0], self.shapes(*x).y)

    def flops(self, phase: str, *x: Shape) -> int:
        """None for nearest, six per element of y for bilinear."""
        return elements(self.shapes(*x).y) * (6 if self.mode == "bilinear" else int(phase == "backward"))

    def forward(self, kernels: Any, x: Array, y: Array, workspace: Array) -> None:
        """Write y."""
        if self.mode == "nearest":
            kernels.upsample_nearest(x, y, self.scale_factor)
        else:
            kernels.upsample_bilinear(x, y, self.align_corners, workspace)

    def backward(self, kernels: Any, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        # the transpose of forward: every dy goes to the elements of x that it came from, with the same weights
        if self.mode == "nearest":
            kernels.upsample_nearest_backward(dy, dx, self.scale_factor)
        else:
            kernels.upsample_bilinear_backward(dy, dx, self.align_corners, workspace)
