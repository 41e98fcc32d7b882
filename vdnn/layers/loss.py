"""Losses: the mean over the samples at hand, y: (1,), compared with `labels`.

Their gradient, which starts the backward pass, is that of the mean over all `samples` of the step.
"""

from __future__ import annotations

from typing import Any

from vdnn.layers.base import Algorithm, Array, Layer, Shape, ShapeError, Shapes, Spec
from vdnn.layers.common import elements, label, scratch


class SoftmaxCrossEntropy(Layer):
    """y = mean of -log(p[n, labels[n]]), p = softmax of x by rows.  x: (N, K), labels: (N,) integers below K.

    Kept for backward: p, not x.
    """

    kind = "loss"
    is_loss = True

    def __init__(self, name: str = "") -> None:
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, K)."""
        if len(x[0]) != 2:
            raise ShapeError(f"{label(self)}: x {x[0]} is no row of scores per sample; (N, K) would fit")
        return Shapes((1,), saved={"p": Spec(x[0])}, labels=Spec((x[0][0],), "int64"))

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; forward may take scratch."""
        kernel = "softmax_cross_entropy_backward" if phase == "backward" else "softmax_cross_entropy"
        return scratch(kernels, kernel, dtype, x[0])

    def flops(self, phase: str, *x: Shape) -> int:
        """About fifteen per score forward (an exponential counts as ten), two backward."""
        return elements(x[0]) * (2 if phase == "backward" else 15)

    def forward(self, kernels: Any, x: Array, labels: Array, p: Array, y: Array, workspace: Array) -> None:
        """Write p and y."""
        kernels.softmax_cross_entropy(x, labels, p, y, workspace)

    def backward(self, kernels: Any, samples: int, p: Array, labels: Array, dx: Array) -> None:
        """Write dx."""
        # dx = (p - one_hot(labels)) / samples
        kernels.softmax_cross_entropy_backward(p, labels, dx, samples)


class MeanSquaredError(Layer):
    """y = mean of (x - labels) ** 2 over all elements.  labels: like x."""

    kind = "loss"
    is_loss = True

    def __init__(self, name: str = "") -> None:
        self.name = name

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for any input shape."""
        return Shapes((1,), labels=Spec(x[0]))

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; forward takes scratch."""
        kernel = "mean_squared_error_backward" if phase == "backward" else "mean_squared_error"
        return scratch(kernels, kernel, dtype, x[0])

    def flops(self, phase: str, *x: Shape) -> int:
        """Three per element forward, two backward."""
        return elements(x[0]) * (2 if phase == "backward" else 3)

    def forward(self, kernels: Any, x: Array, labels: Array, y: Array, workspace: Array) -> None:
        """Write y."""
        kernels.mean_squared_error(x, labels, y, workspace)

    def backward(self, kernels: Any, samples: int, x: Array, labels: Array, dx: Array) -> None:
        """Write dx."""
        # dx = 2 * (x - labels) / number of elements of all samples
        kernels.mean_squared_error_backward(x, labels, dx, samples)
