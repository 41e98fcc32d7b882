"""Activations: y = f(x) element by element.

Every backward reads y rather than x where y tells enough, so that x may be overwritten by y or freed.
"""

from __future__ import annotations

from typing import Any

from vdnn.layers.base import Algorithm, Array, Layer, Shape
from vdnn.layers.common import scratch

OVERFLOW = {"float32": 87.0, "float64": 708.0}  # exp of more does not fit


class ReLU(Layer):
    """y = max(x, 0), never -0.0."""

    inplace = {"y": "x", "dx": "dy"}

    def __init__(self, name: str = "") -> None:
        self.name = name

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; backward takes a piece of scratch per worker."""
        return scratch(kernels, "relu_backward" if phase == "backward" else "relu", dtype, x[0])

    def forward(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y."""
        kernels.relu(x, y)

    def backward(self, kernels: Any, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        # dx = dy if y > 0 else +0.0
        kernels.relu_backward(y, dy, dx, workspace)


class _Elementwise(Layer):
    """An activation of a few ufuncs, which `kernels.elementwise` calls on pieces that stay in cache.

    A subclass writes `_apply` and `_differentiate`, where t is scratch like a piece; so y may be x, and dx may be dy.
    """

    inplace = {"y": "x", "dx": "dy"}

    def __init__(self, name: str = "") -> None:
        self.name = name

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One, with a piece of scratch per worker."""
        return scratch(kernels, "elementwise", dtype, x[0])

    def forward(self, kernels: Any, x: Array, y: Array, workspace: Array) -> None:
        """Write y."""
        kernels.elementwise(self._apply, workspace, x, y)

    def backward(self, kernels: Any, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        kernels.elementwise(self._differentiate, workspace, y, dy, dx)

    def _apply(self, xp: Any, t: Array, x: Array, y: Array) -> None:
        raise NotImplementedError

    def _differentiate(self, xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
        raise NotImplementedError


class LeakyReLU(_Elementwise):
    """y = x if x > 0 else slope * x."""

    def __init__(self, negative_slope: float = 0.01, name: str = "") -> None:
        super().__init__(name)
        self.negative_slope = float(negative_slope)
        if self.negative_slope < 0:  # then y > 0 does not tell that x > 0
            self.inplace = {"dx": "dy"}  # type: ignore[misc]
            self.backward = self._backward_x  # type: ignore[assignment, method-assign]

    def _apply(self, xp: Any, t: Array, x: Array, y: Array) -> None:
        xp.multiply(x, self.negative_slope, out=t)
        (xp.maximum if self.negative_slope <= 1 else xp.minimum)(x, t, out=y)

    def _backward_x(self, kernels: Any, x: Array, dy: Array, dx: Array, workspace: Array) -> None:
        kernels.elementwise(self._differentiate, workspace, x, dy, dx)

    def _differentiate(self, xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
        # dx = dy * (1 if y > 0 else slope); y may be x here, of which the same is true
        xp.greater(y, 0, out=t)
        xp.multiply(t, 1 - self.negative_slope, out=t)
        xp.add(t, self.negative_slope, out=t)
        xp.multiply(t, dy, out=dx)


class ReLU6(_Elementwise):
    """y = min(max(x, 0), 6)."""

    def _apply(self, xp: Any, t: Array, x: Array, y: Array) -> None:
        xp.maximum(x, 0, out=y)
        xp.minimum(y, 6, out=y)

    def _differentiate(self, xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
        # dx = dy if 0 < y < 6 else 0
        xp.subtract(6, y, out=t)
        xp.multiply(t, y, out=t)  # above 0 just where 0 < y < 6
        xp.greater(t, 0, out=t)
        xp.multiply(t, dy, out=dx)


class Sigmoid(_Elementwise):
    """y = 1 / (1 + exp(-x))."""

    def _apply(self, xp: Any, t: Array, x: Array, y: Array) -> None:
        xp.negative(x, out=y)
        xp.minimum(y, OVERFLOW[y.dtype.name], out=y)
        xp.exp(y, out=y)
        xp.add(y, 1, out=y)
        xp.divide(1, y, out=y)

    def _differentiate(self, xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
        # dx = dy * y * (1 - y)
        xp.subtract(1, y, out=t)
        xp.multiply(t, y, out=t)
        xp.multiply(t, dy, out=dx)


class Tanh(_Elementwise):
    """y = tanh(x)."""

    def _apply(self, xp: Any, t: Array, x: Array, y: Array) -> None:
        xp.tanh(x, out=y)

    def _differentiate(self, xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
        # dx = dy * (1 - y ** 2)
        xp.multiply(y, y, out=t)
        xp.subtract(1, t, out=t)
        xp.multiply(t, dy, out=dx)
