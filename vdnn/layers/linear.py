"""Fully connected layer.  Sizes: N batch, IN input features, OUT output features."""

from __future__ import annotations

from typing import Any

from vdnn.layers.base import DEFAULT, Algorithm, Array, Init, Layer, Shape, ShapeError, Shapes, Spec
from vdnn.layers.conv import count


class Linear(Layer):
    """A product with a matrix: y = x w^T + b.  x: (N, IN), w: (OUT, IN), b: (OUT,), y: (N, OUT)."""

    def __init__(self, out_features: int, bias: bool = True, name: str = "") -> None:
        self.out_features = count("out_features", out_features)
        self.bias = bool(bias)
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, IN)."""
        if len(x[0]) != 2:
            label = self.name or type(self).__name__
            raise ShapeError(f"{label}: x {x[0]} has {len(x[0])} dimensions; (N, IN) would fit, as after a Flatten")
        N, IN = x[0]
        init = Init("uniform", IN**-0.5)  # PyTorch's
        parameters = {"w": Spec((self.out_features, IN), init=init)}
        if self.bias:
            parameters["b"] = Spec((self.out_features,), init=init)
        return Shapes((N, self.out_features), parameters)

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One, with the rate that the kernel set tells, if it does."""
        declared = getattr(kernels, "linear_algorithms", None)
        found: tuple[Algorithm, ...] = declared(phase, *x[0], self.out_features) if declared else DEFAULT
        return found

    def flops(self, phase: str, *x: Shape) -> int:
        """2 N IN OUT in every phase."""
        return 2 * x[0][0] * x[0][1] * self.out_features

    def forward(self, kernels: Any, x: Array, w: Array, y: Array, b: Array = None) -> None:
        """Write y."""
        kernels.linear_forward(x, w, b, y)

    def backward_weights(self, kernels: Any, x: Array, dy: Array, dw: Array, db: Array = None) -> None:
        """Write dw and db."""
        # dw = dy^T x; db = sum over n of dy
        kernels.linear_backward_weights(x, dy, dw, db)

    def backward_data(self, kernels: Any, w: Array, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx = dy w
        kernels.linear_backward_data(w, dy, dx)
