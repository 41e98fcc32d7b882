"""Layers of several inputs.  In their signatures `**x` stands for x0, x1, ... and `**dx` for dx0, dx1, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdnn.layers.base import Array, Layer, Shape, ShapeError, Shapes
from vdnn.layers.common import elements, label


class Concat(Layer):
    """y = all inputs, one after the other along channels (axis 1)."""

    inputs = None

    def __init__(self, name: str = "") -> None:
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays; the inputs may differ in channels only."""
        first = x[0]
        for other in x[1:]:
            if len(other) != len(first) or len(first) < 2 or (other[0], *other[2:]) != (first[0], *first[2:]):
                fit = ("N", "C", *first[2:]) if len(first) > 1 else ("N", "C")
                raise ShapeError(
                    f"{label(self)}: inputs {', '.join(map(str, x))} differ in more than channels; "
                    f"({', '.join(map(str, (first[0], *fit[1:])))}) with any C would fit beside {first}"
                )
        return Shapes((first[0], sum(s[1] for s in x), *first[2:]))

    def views(self, kernels: Any, inputs: int = 1) -> Mapping[str, str]:
        """Each dx is a part of dy, where kernels take arrays with any strides."""
        return {f"dx{i}": "dy" for i in range(inputs)} if getattr(kernels, "takes_any_strides", False) else {}

    def flops(self, phase: str, *x: Shape) -> int:
        """None: it only copies."""
        return 0

    def forward(self, kernels: Any, y: Array, **x: Array) -> None:
        """Write y."""
        kernels.concat([x[f"x{i}"] for i in range(len(x))], y)

    def backward(self, kernels: Any, dy: Array, **dx: Array | None) -> None:
        """Write every dx that is wanted."""
        # dx0, dx1, ... = dy, cut along channels
        parts = [dx[f"dx{i}"] for i in range(len(dx))]
        known = sum(part.shape[1] for part in parts if part is not None)
        # only the network's own input wants no gradient, so those that are None are all of one size
        unwanted = sum(part is None for part in parts)
        rest = (dy.shape[1] - known) // max(unwanted, 1)
        kernels.concat_backward(dy, parts, [rest if part is None else part.shape[1] for part in parts])


class Add(Layer):
    """y = x0 + x1 + ...; every dx is dy itself, so there is no backward op."""

    inputs = None
    passes_gradient = True
    inplace = {"y": "x0"}

    def __init__(self, name: str = "") -> None:
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays; the inputs have one shape."""
        if any(s != x[0] for s in x):
            raise ShapeError(f"{label(self)}: inputs {', '.join(map(str, x))} differ; all of them {x[0]} would fit")
        return Shapes(x[0])

    def flops(self, phase: str, *x: Shape) -> int:
        """One per element and input beyond the first."""
        return elements(x[0]) * (len(x) - 1)

    def forward(self, kernels: Any, y: Array, **x: Array) -> None:
        """Write y."""
        kernels.add_all([x[f"x{i}"] for i in range(len(x))], y)
