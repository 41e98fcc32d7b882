"""Convolution and transposed convolution.

Sizes: N batch, C input channels, H, W input rows and columns; K output channels, R, S filter rows and columns;
OH, OW output rows and columns.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

from vdnn.layers.base import Algorithm, Array, Init, Layer, LayerError, Shape, ShapeError, Shapes, Spec
from vdnn.layers.common import asked, has_rectify
from vdnn.naming import hint

Pair = tuple[int, int]
Pairs = int | Sequence[int]
INITS = ("uniform", "kaiming")


def pair(name: str, value: Pairs, least: int) -> Pair:
    """`value`, or twice the same number, as two integers of at least `least`.  Raises LayerError."""
    try:
        rows, columns = (value, value) if isinstance(value, int) else value
        numbers = operator.index(rows), operator.index(columns)
    except (TypeError, ValueError):
        raise LayerError(f"{name}={value!r} is neither an integer nor a pair of integers") from None
    if min(numbers) < least or isinstance(value, bool):
        raise LayerError(f"{name}={value!r}: at least {least} is needed")
    return numbers


def count(name: str, value: int) -> int:
    """`value` as an integer of at least 1.  Raises LayerError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise LayerError(f"{name}={value!r} is not an integer") from None
    if number < 1 or isinstance(value, bool):
        raise LayerError(f"{name}={value!r}: at least 1 is needed")
    return number


def divisors(n: int) -> str:
    """The divisors of n as text, the first few of many."""
    found = [str(d) for d in range(1, n + 1) if n % d == 0]
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")


def times(size: Pair) -> str:
    """3x5, as sizes are written in messages."""
    return f"{size[0]}x{size[1]}"


class _Convolution(Layer):
    """What the two convolutions share: attributes, checks and the kernels' keyword arguments."""

    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    bias: bool
    init: str

    def _set(
        self,
        out_channels: int,
        kernel_size: Pairs,
        stride: Pairs,
        padding: Pairs,
        dilation: Pairs,
        groups: int,
        bias: bool,
        init: str,
        name: str,
    ) -> None:
        if init not in INITS:
            raise LayerError(f"init={init!r} is none of {', '.join(INITS)}{hint(init, INITS)}")
        self.init = init
        self.out_channels = count("out_channels", out_channels)
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = count("groups", groups)
        self.bias = bool(bias)
        self.name = name
        if self.out_channels % self.groups:
            fitting = divisors(self.out_channels)
            raise LayerError(f"groups={groups} does not divide out_channels={out_channels}; {fitting} do")

    @property
    def _label(self) -> str:
        return self.name or type(self).__name__

    @property
    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def _check_input(self, x: Shape) -> None:
        if len(x) != 4:
            raise ShapeError(f"{self._label}: x {x} has {len(x)} dimensions; (N, C, H, W) would fit")
        if x[1] % self.groups:
            raise ShapeError(f"{self._label}: groups={self.groups} does not divide C={x[1]}; {divisors(x[1])} do")

    def _parameters(self, w: Shape) -> dict[str, Spec]:
        """`uniform` is PyTorch's default, +-1 / sqrt(fan-in), with the fan-in that it reads from the weight's shape.

        `kaiming` is for deep stacks of ReLU (He et al., 2015): normal, sqrt(2 / fan-out), biases 0, as in torchvision.
        """
        starts = Init("uniform", prod(w[1:]) ** -0.5)
        specs = {"w": Spec(w, init=starts)}
        if self.init == "kaiming":
            starts = Init()
            specs["w"] = Spec(w, init=Init("normal", (2 / (w[0] * w[2] * w[3])) ** 0.5))
        if self.bias:
            specs["b"] = Spec((self.out_channels,), init=starts)
        return specs


class Conv2d(_Convolution):
    """A convolution: y[n, k, i, j] = b[k] + sum of x[n, c, i stride - padding + r dilation, ...] w[k, c, r, s].

    x: (N, C, H, W), w: (K, C / groups, R, S), b: (K,), y: (N, K, OH, OW) with
    OH = (H + 2 padding - dilation (R - 1) - 1) // stride + 1.  K is `out_channels`; C comes from the input.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Pairs,
        stride: Pairs = 1,
        padding: Pairs = 0,
        dilation: Pairs = 1,
        groups: int = 1,
        bias: bool = True,
        init: str = "uniform",
        name: str = "",
    ) -> None:
        self._set(out_channels, kernel_size, stride, padding, dilation, groups, bias, init, name)

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        self._check_input(x[0])
        N, C, *source = x[0]
        outputs = []
        for axis in range(2):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            outputs.append((source[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1)
        if min(outputs) < 1:
            raise ShapeError(self._too_large((source[0], source[1])))
        return Shapes((N, self.out_channels, *outputs), self._parameters(self._filter(C)))

    def _filter(self, C: int) -> Shape:
        return (self.out_channels, C // self.groups, *self.kernel_size)

    def _too_large(self, source: Pair) -> str:
        reaches = [self.dilation[i] * (self.kernel_size[i] - 1) + 1 for i in range(2)]
        padded = (source[0] + 2 * self.padding[0], source[1] + 2 * self.padding[1])
        least = max(0, *(-(-(reaches[i] - source[i]) // 2) for i in range(2)))
        dilation = self.dilation[0] if self.dilation[0] == self.dilation[1] else times(self.dilation)
        return (
            f"{self._label}: kernel {times(self.kernel_size)} dilation {dilation} is larger than the padded input "
            f"{times(padded)}; padding of at least {least} would fit"
        )

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """The kernels' algorithms for this phase."""
        found: tuple[Algorithm, ...] = kernels.conv2d_algorithms(
            _phase(phase), x[0], self._filter(x[0][1]), dtype=dtype, **self._geometry
        )
        return found

    def flops(self, phase: str, *x: Shape) -> int:
        """2 N K OH OW C/groups R S in every phase."""
        return 2 * prod(self.shapes(*x).y) * prod(self._filter(x[0][1])[1:])

    def takes_rectify(self, kernels: Any, phase: str) -> bool:
        """Whether the kernels do."""
        return has_rectify(kernels, "conv2d_forward")

    def forward(
        self,
        kernels: Any,
        algorithm: str,
        workspace: Array,
        x: Array,
        w: Array,
        y: Array,
        b: Array = None,
        rectify: bool = False,
    ) -> None:
        """Write y."""
        how = {"algorithm": algorithm, "workspace": workspace, **self._geometry, **asked(rectify)}
        kernels.conv2d_forward(x, w, b, y, **how)

    def backward_weights(
        self, kernels: Any, algorithm: str, workspace: Array, x: Array, dy: Array, dw: Array, db: Array = None
    ) -> None:
        """Write dw and db."""
        # dw[k, c, r, s] = sum over n, i, j of dy[n, k, i, j] x[n, c, i stride - padding + r dilation, ...]
        # db[k] = sum over n, i, j of dy[n, k, i, j]
        kernels.conv2d_backward_weights(x, dy, dw, db, algorithm=algorithm, workspace=workspace, **self._geometry)

    def backward_data(self, kernels: Any, algorithm: str, workspace: Array, w: Array, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx[n, c, h, w] = sum over k, r, s with i stride - padding + r dilation = h of dy[n, k, i, j] w[k, c, r, s]
        kernels.conv2d_backward_data(w, dy, dx, algorithm=algorithm, workspace=workspace, **self._geometry)


class ConvTranspose2d(_Convolution):
    """The gradient of a convolution as a layer: each x[n, c, i, j] adds its filter to y at i stride - padding, ...

    x: (N, C, H, W), w: (C, K / groups, R, S), b: (K,), y: (N, K, OH, OW) with
    OH = (H - 1) stride - 2 padding + dilation (R - 1) + output_padding + 1.  `output_padding` must be below `stride`
    (PyTorch also takes one below `dilation`).
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Pairs,
        stride: Pairs = 1,
        padding: Pairs = 0,
        output_padding: Pairs = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pairs = 1,
        init: str = "uniform",
        name: str = "",
    ) -> None:
        self._set(out_channels, kernel_size, stride, padding, dilation, groups, bias, init, name)
        self.output_padding = pair("output_padding", output_padding, 0)
        if self.output_padding[0] >= self.stride[0] or self.output_padding[1] >= self.stride[1]:
            raise LayerError(f"output_padding={output_padding!r} must be below stride={stride!r}")

    def shapes(self, *x: Shape) -> Shapes:
        """Shapes of all arrays for the input shape (N, C, H, W)."""
        self._check_input(x[0])
        N, C, *source = x[0]
        outputs = []
        for axis in range(2):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            length = (source[axis] - 1) * self.stride[axis] + reach + self.output_padding[axis]
            if length <= 2 * self.padding[axis]:
                raise ShapeError(
                    f"{self._label}: padding={times(self.padding)} leaves nothing of the output of x {x[0]}; "
                    f"at most {(length - 1) // 2} would fit"
                )
            outputs.append(length - 2 * self.padding[axis])
        return Shapes((N, self.out_channels, *outputs), self._parameters(self._filter(C)))

    def _filter(self, C: int) -> Shape:
        return (C, self.out_channels // self.groups, *self.kernel_size)

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """The kernels' algorithms for the phase of the convolution y -> x that this phase is."""
        swapped = {"forward": "backward_data", "backward_data": "forward"}
        phase = _phase(phase)
        found: tuple[Algorithm, ...] = kernels.conv2d_algorithms(
            swapped.get(phase, phase), self.shapes(*x).y, self._filter(x[0][1]), dtype=dtype, **self._geometry
        )
        return found

    def flops(self, phase: str, *x: Shape) -> int:
        """2 N C H W K/groups R S in every phase."""
        return 2 * prod(x[0]) * prod(self._filter(x[0][1])[1:])

    def forward(
        self, kernels: Any, algorithm: str, workspace: Array, x: Array, w: Array, y: Array, b: Array = None
    ) -> None:
        """Write y."""
        kernels.conv2d_backward_data(w, x, y, algorithm=algorithm, workspace=workspace, **self._geometry)
        if b is not None:
            kernels.add_bias(y, b)

    def backward_weights(
        self, kernels: Any, algorithm: str, workspace: Array, x: Array, dy: Array, dw: Array, db: Array = None
    ) -> None:
        """Write dw and db."""
        # dw[c, k, r, s] = sum over n, i, j of x[n, c, i, j] dy[n, k, i stride - padding + r dilation, ...]
        # db[k] = sum over n, i, j of dy[n, k, i, j]
        kernels.conv2d_backward_weights(dy, x, dw, None, algorithm=algorithm, workspace=workspace, **self._geometry)
        if db is not None:
            kernels.bias_gradient(dy, db)

    def backward_data(self, kernels: Any, algorithm: str, workspace: Array, w: Array, dy: Array, dx: Array) -> None:
        """Write dx."""
        # dx[n, c, i, j] = sum over k, r, s of dy[n, k, i stride - padding + r dilation, ...] w[c, k, r, s]
        kernels.conv2d_forward(dy, w, None, dx, algorithm=algorithm, workspace=workspace, **self._geometry)


def _phase(phase: str) -> str:
    return "forward" if phase == "evaluate" else phase
