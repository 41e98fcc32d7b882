"""Pooling.  Sizes: N batch, C channels; H, W rows and columns of x; P, Q of y; R, S of the window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdnn.layers.base import DEFAULT, Algorithm, Array, Layer, LayerError, Shape, ShapeError, Shapes, Spec
from vdnn.layers.common import elements, image, label, scratch
from vdnn.layers.conv import Pair, Pairs, pair, times
from vdnn.layers.window import Window

MOST_POSITIONS = 255  # of a window whose winner fits into a byte; the 256th value says "none"


def pooled(layer: Layer, window: Window, x: Shape, ceil_mode: bool) -> Shape:
    """The shape of y, as PyTorch has it: with ceil_mode the last window may hang over the edge, but it must start
    inside x or its left padding.  Raises ShapeError.
    """
    N, C, *inputs = image(layer, x)
    outputs = []
    for axis in (0, 1):
        stride, pad = window.stride[axis], window.padding[axis]
        span = window.dilation[axis] * (window.size[axis] - 1) + 1
        free = inputs[axis] + 2 * pad - span
        if free < 0:
            raise ShapeError(
                f"{label(layer)}: a window of {times(window.size)} (padding {times(window.padding)}, dilation "
                f"{times(window.dilation)}) does not fit into x {x}; {'rows' if axis == 0 else 'columns'} must be at "
                f"least {span - 2 * pad}"
            )
        count = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
        if (count - 1) * stride >= inputs[axis] + pad:
            count -= 1
        outputs.append(count)
    return (N, C, *outputs)


class _Pool(Layer):
    """What the two window pools share."""

    kind = "pool"
    kernel_size: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    window: Window

    def _declare(
        self, kernel_size: Pairs, stride: Pairs | None, padding: Pairs, dilation: Pairs, ceil_mode: bool
    ) -> None:
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.ceil_mode = bool(ceil_mode)
        self.window = Window(self.kernel_size, self.stride, self.padding, pair("dilation", dilation, 1))
        if any(p > k // 2 for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise LayerError(f"padding={padding!r} is more than half of kernel_size={kernel_size!r}")

    def flops(self, phase: str, *x: Shape) -> int:
        """One per element of a window and output."""
        return elements(self.shapes(*x).y) * self.kernel_size[0] * self.kernel_size[1]


class MaxPool2d(_Pool):
    """y = the largest element of each window, NaN if it holds one; its gradient goes to the first such element.

    saves   "indices": forward also writes which element won (a byte per element of y), and x and y may be freed;
            "input": backward finds it again from x and y, as in the paper and cuDNN.  Both give the same bits.
    """

    backward: Callable[..., None]

    def __init__(
        self,
        kernel_size: Pairs,
        stride: Pairs | None = None,
        padding: Pairs = 0,
        dilation: Pairs = 1,
        ceil_mode: bool = False,
        saves: str = "indices",
        name: str = "",
    ) -> None:
        self._declare(kernel_size, stride, padding, dilation, ceil_mode)
        self.dilation = self.window.dilation
        self.saves = saves
        self.name = name
        if saves not in ("indices", "input"):
            raise LayerError(f'saves={saves!r} is neither "indices" nor "input"')
        if self.kernel_size[0] * self.kernel_size[1] > MOST_POSITIONS:
            raise LayerError(f"kernel_size={kernel_size!r} has more than {MOST_POSITIONS} elements")
        self.backward = self._backward_indices if saves == "indices" else self._backward_input

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        y = pooled(self, self.window, x[0], self.ceil_mode)
        return Shapes(y, saved={"indices": Spec(y, "uint8")} if self.saves == "indices" else {})

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; backward, and forward if it writes indices, take scratch."""
        if phase == "evaluate" or (phase == "forward" and self.saves == "input"):
            return DEFAULT
        return scratch(kernels, "max_pool_backward" if phase == "backward" else "max_pool", dtype, self.shapes(*x).y)

    def forward(self, kernels: Any, x: Array, y: Array, indices: Array = None, workspace: Array = None) -> None:
        """Write y and indices."""
        kernels.max_pool(x, y, indices, self.window, workspace)

    def evaluate(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y alone."""
        kernels.max_pool(x, y, None, self.window, None)

    def _backward_indices(self, kernels: Any, indices: Array, dy: Array, dx: Array, workspace: Array) -> None:
        # dx[h, w] = sum of dy over the windows that (h, w) won
        kernels.max_pool_backward(indices, dy, dx, self.window, workspace)

    def _backward_input(self, kernels: Any, x: Array, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        # the same; the winner is the first element of the window with x == y
        kernels.max_pool_backward_input(x, y, dy, dx, self.window, workspace)


def _check_saves(saves: str) -> None:
    if saves not in ("nothing", "input"):
        raise LayerError(f'saves={saves!r} is neither "nothing" nor "input"')


class AvgPool2d(_Pool):
    """y = the mean of each window; padding counts as zeros, or not at all if not `count_include_pad`.

    saves   "nothing": backward takes dy alone; "input": it asks for x and y as well, as in the paper and cuDNN, whose
            interface wants them although no number depends on them.  Both give the same bits.
    """

    def __init__(
        self,
        kernel_size: Pairs,
        stride: Pairs | None = None,
        padding: Pairs = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        saves: str = "nothing",
        name: str = "",
    ) -> None:
        self._declare(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        self.saves = saves
        self.name = name
        _check_saves(saves)
        if saves == "input":
            self.backward = self._backward_input  # type: ignore[assignment, method-assign]

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        return Shapes(pooled(self, self.window, x[0], self.ceil_mode))

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One; backward takes scratch."""
        return scratch(kernels, "avg_pool_backward" if phase == "backward" else "avg_pool", dtype, self.shapes(*x).y)

    def forward(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y."""
        kernels.avg_pool(x, y, self.window, self.count_include_pad)

    def backward(self, kernels: Any, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        # dx[h, w] = sum of dy / (number of elements of the window) over the windows that hold (h, w)
        kernels.avg_pool_backward(dy, dx, self.window, self.count_include_pad, workspace)

    def _backward_input(self, kernels: Any, x: Array, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        kernels.avg_pool_backward(dy, dx, self.window, self.count_include_pad, workspace)


class GlobalAvgPool2d(Layer):
    """y: (N, C, 1, 1) = the mean of each channel's plane.  `saves`: see AvgPool2d."""

    kind = "pool"

    def __init__(self, saves: str = "nothing", name: str = "") -> None:
        self.saves, self.name = saves, name
        _check_saves(saves)
        if saves == "input":
            self.backward = self._backward_input  # type: ignore[assignment, method-assign]

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        N, C, _, _ = image(self, x[0])
        return Shapes((N, C, 1, 1))

    def flops(self, phase: str, *x: Shape) -> int:
        """One per element of x."""
        return elements(x[0])

    def forward(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y."""
        kernels.global_avg_pool(x, y)

    def backward(self, kernels: Any, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx = dy / (H * W)
        kernels.global_avg_pool_backward(dy, dx)

    def _backward_input(self, kernels: Any, x: Array, y: Array, dy: Array, dx: Array) -> None:
        kernels.global_avg_pool_backward(dy, dx)
