"""Normalisation.  Sizes: N batch, C channels, H, W rows and columns."""

from __future__ import annotations

from typing import Any

from vdnn.layers.base import DEFAULT, Algorithm, Array, Init, Layer, LayerError, Shape, ShapeError, Shapes, Spec
from vdnn.layers.common import asked, elements, has_rectify, image, label, scratch
from vdnn.layers.conv import count


class BatchNorm2d(Layer):
    """y = (x - mean) / sqrt(variance + eps) * w + b, with mean and variance per channel over the batch.

    Kept for backward: x, and the batch's mean and inverse deviation (2 C numbers); y is not.  Running averages,
    which `evaluate` uses, move in an op of their own: forward may run again in the middle of backward.
    """

    kind = "bn"
    inplace = {"dx": "dy"}
    couples_samples = True

    def __init__(self, eps: float = 1e-5, momentum: float = 0.1, name: str = "") -> None:
        self.eps, self.momentum, self.name = float(eps), float(momentum), name
        if self.eps < 0:
            raise LayerError(f"eps={eps!r}: at least 0 is needed")
        if not 0 <= self.momentum <= 1:
            raise LayerError(f"momentum={momentum!r} is outside 0 .. 1")

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        _, C, _, _ = image(self, x[0])
        zero, one = Spec((C,), init=Init("constant", 0.0)), Spec((C,), init=Init("constant", 1.0))
        saved = {"batch_mean": zero, "batch_inverse_deviation": zero, "batch_variance": zero}
        return Shapes(x[0], {"w": one, "b": zero}, saved, {"mean": zero, "variance": one})

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One, with scratch for partial sums.  Raises ShapeError where forward would have no variance to compute."""
        if phase == "update_statistics":
            return DEFAULT
        if phase == "forward" and elements(x[0]) == x[0][1]:  # evaluate takes the running averages, so it needs none
            raise ShapeError(
                f"{label(self)}: x {x[0]} has one value per channel, so no variance; N * H * W must be at least 2"
            )
        return scratch(kernels, "batch_norm", dtype, x[0])

    def takes_rectify(self, kernels: Any, phase: str) -> bool:
        """Whether the kernels do."""
        return has_rectify(kernels, "batch_norm" if phase == "forward" else "batch_norm_evaluate")

    def flops(self, phase: str, *x: Shape) -> int:
        """About five per element forward, nine backward."""
        if phase == "update_statistics":
            return 4 * x[0][1]
        return elements(x[0]) * {"forward": 5, "evaluate": 2, "backward": 9}.get(phase, 5)

    def forward(
        self,
        kernels: Any,
        x: Array,
        w: Array,
        b: Array,
        y: Array,
        batch_mean: Array,
        batch_inverse_deviation: Array,
        batch_variance: Array,
        workspace: Array,
        rectify: bool = False,
    ) -> None:
        """Write y and the batch's statistics (batch_variance is the unbiased one)."""
        statistics = batch_mean, batch_inverse_deviation, batch_variance
        kernels.batch_norm(x, w, b, y, *statistics, self.eps, workspace, **asked(rectify))

    def update_statistics(
        self, kernels: Any, batch_mean: Array, batch_variance: Array, mean: Array, variance: Array
    ) -> None:
        """Move the running averages: average = (1 - momentum) * average + momentum * batch's."""
        kernels.move_average(batch_mean, mean, self.momentum)
        kernels.move_average(batch_variance, variance, self.momentum)

    def evaluate(
        self,
        kernels: Any,
        x: Array,
        w: Array,
        b: Array,
        mean: Array,
        variance: Array,
        y: Array,
        workspace: Array,
        rectify: bool = False,
    ) -> None:
        """Write y from the running averages."""
        kernels.batch_norm_evaluate(x, w, b, mean, variance, y, self.eps, workspace, **asked(rectify))

    def backward(
        self,
        kernels: Any,
        x: Array,
        w: Array,
        batch_mean: Array,
        batch_inverse_deviation: Array,
        dy: Array,
        dx: Array,
        dw: Array,
        db: Array,
        workspace: Array,
    ) -> None:
        """Write dx, dw and db."""
        # z = (x - batch_mean) * batch_inverse_deviation; M = N * H * W
        # db = sum(dy); dw = sum(dy * z); dx = w * batch_inverse_deviation * (dy - db / M - z * dw / M)
        kernels.batch_norm_backward(x, w, batch_mean, batch_inverse_deviation, dy, dx, dw, db, workspace)


class LocalResponseNorm(Layer):
    """y = x / (k + alpha / size * sum of x ** 2 over `size` channels around each) ** beta, as in AlexNet.

    Kept for backward: x alone; the sums are computed again in passing, as they would be as large as x.
    """

    kind = "lrn"
    inplace = {"dx": "dy"}

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, name: str = "") -> None:
        self.size, self.alpha, self.beta, self.k = count("size", size), float(alpha), float(beta), float(k)
        self.name = name
        if self.k <= 0 or self.alpha < 0:
            raise LayerError(f"k={k!r}, alpha={alpha!r}: k > 0 and alpha >= 0 are needed, or the sum may be 0")

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        return Shapes(image(self, x[0]))

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One, with scratch for the sums."""
        return scratch(kernels, "lrn", dtype, x[0], self.size)

    def flops(self, phase: str, *x: Shape) -> int:
        """The window's sums, forward once, backward twice, and a power (counted as ten)."""
        return elements(x[0]) * ((2 * self.size + 18) if phase == "backward" else (self.size + 14))

    def forward(self, kernels: Any, x: Array, y: Array, workspace: Array) -> None:
        """Write y."""
        kernels.lrn(x, y, self.size, self.alpha, self.beta, self.k, workspace)

    def backward(self, kernels: Any, x: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        # s = k + alpha / size * window sum of x ** 2
        # dx = dy * s ** -beta - 2 * alpha * beta / size * x * (sum of dy * x * s ** (-beta - 1) over windows with it)
        kernels.lrn_backward(x, dy, dx, self.size, self.alpha, self.beta, self.k, workspace)
