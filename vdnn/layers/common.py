"""What several layers share: checks of shapes, and workspaces as the kernel set declares them."""

from __future__ import annotations

from math import prod
from typing import Any

from vdnn.layers.base import Algorithm, Layer, Shape, ShapeError


def label(layer: Layer) -> str:
    """How messages name a layer: by its name, or by its class if it has none yet."""
    return layer.name or type(layer).__name__


def image(layer: Layer, x: Shape) -> tuple[int, int, int, int]:
    """x, which must be (N, C, H, W).  Raises ShapeError."""
    if len(x) != 4:
        raise ShapeError(f"{label(layer)}: x {x} has {len(x)} dimensions; (N, C, H, W) would fit")
    N, C, H, W = x
    return N, C, H, W


def scratch(kernels: Any, kernel: str, *arguments: Any) -> tuple[Algorithm, ...]:
    """One algorithm, with the bytes that `kernels.<kernel>_workspace(*arguments)` tells; 0 if it is silent."""
    declared = getattr(kernels, f"{kernel}_workspace", None)
    return (Algorithm("default", declared(*arguments) if declared else 0),)


def has_rectify(kernels: Any, kernel: str) -> bool:
    """Whether the kernel of that name takes `rectify`; sets of kernels name theirs in `rectifying`."""
    return kernel in getattr(kernels, "rectifying", ())


def asked(rectify: bool) -> dict[str, bool]:
    """`rectify` if it is asked for: kernels that do not take it are never given it."""
    return {"rectify": True} if rectify else {}


def elements(shape: Shape) -> int:
    """The number of elements of a shape."""
    return prod(shape)
