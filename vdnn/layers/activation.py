"""Activations: y = f(x) element by element.

Every backward reads y rather than x where y tells enough, so that x may be overwritten by y or freed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdnn.layers.base import DEFAULT, Algorithm, Array, Layer, LayerError, Shape, Shapes, Spec
from vdnn.layers.common import elements, scratch

OVERFLOW = {"float32": 87.0, "float64": 708.0}  # exp of more does not fit


class ReLU(Layer):
    """y = max(x, 0), never -0.0.

    saves   "output": backward reads y; "mask": forward also writes a bit for each element, whether it passed, and
            backward reads those instead, a 32nd of y.  Both give the same bits.
    """

    inplace = {"y": "x", "dx": "dy"}
    backward: Callable[..., None]

    def __init__(self, saves: str = "output", name: str = "") -> None:
        self.saves, self.name = saves, name
        if saves not in ("output", "mask"):
            raise LayerError(f'saves={saves!r} is neither "output" nor "mask"')
        self.backward = self._backward_output if saves == "output" else self._backward_mask

    def shapes(self, *x: Shape) -> Shapes:
        """y like x; the mask: a bit per element in the order in which y is stored."""
        bits = Spec((-(-elements(x[0]) // 8),), "uint8", follows_storage=True)
        return Shapes(x[0], saved={"mask": bits} if self.saves == "mask" else {})

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; backward, and forward if it writes a mask, take a piece of scratch per worker."""
        if phase == "evaluate" or (phase == "forward" and self.saves == "output"):
            return DEFAULT
        kernel = "relu" if self.saves == "output" else "relu_mask"
        return scratch(kernels, f"{kernel}_backward" if phase == "backward" else kernel, dtype, x[0])

    def forward(self, kernels: Any, x: Array, y: Array, mask: Array = None, workspace: Array = None) -> None:
        """Write y and the mask."""
        if mask is None:
            kernels.relu(x, y)
        else:
            kernels.relu_mask(x, y, mask, workspace)

    def evaluate(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y alone."""
        kernels.relu(x, y)

    def rectifies(self, phase: str) -> bool:
        """Whether the phase writes no mask; of a subclass nobody knows."""
        return type(self) is ReLU and (phase == "evaluate" or (phase == "forward" and self.saves == "output"))

    def _backward_output(self, kernels: Any, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        # dx = dy if y > 0 else +0.0
        kernels.relu_backward(y, dy, dx, workspace)

    def _backward_mask(self, kernels: Any, mask: Array, dy: Array, dx: Array, workspace: Array) -> None:
        # the same
        kernels.relu_mask_backward(mask, dy, dx, workspace)

    def config(self) -> dict[str, Any]:
        """Constructor arguments; the default is left out, as before there was another."""
        return {k: v for k, v in super().config().items() if (k, v) != ("saves", "output")}


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
