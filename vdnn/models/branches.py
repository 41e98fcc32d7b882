"""What the later Inception networks are made of, as data: a network is a tuple of steps."""

from __future__ import annotations

from dataclasses import dataclass

from vdnn.layers import AvgPool2d, BatchNorm2d, Concat, Conv2d, Layer, MaxPool2d, ReLU
from vdnn.network import Network, Tensor

EPS = 1e-3  # of batch norm, in both networks


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, batch norm and ReLU.

    padded  rows and columns stay as they are; a convolution that strides is never padded
    """

    name: str
    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class MaxPool:
    """Of 3x3 and stride 2, not padded."""

    name: str


@dataclass(frozen=True)
class AvgPool:
    """Of 3x3 and stride 1, padded; the padding counts as zeros if `counted`."""

    name: str
    counted: bool


@dataclass(frozen=True)
class Fork:
    """Branches on one x, side by side in the channels of one output.

    separator   between its name and those of its steps
    """

    name: str
    branches: tuple[tuple[Step, ...], ...]
    separator: str = "_"


Step = Conv | MaxPool | AvgPool | Fork


def add_steps(net: Network, x: Tensor, steps: tuple[Step, ...], saves: str, prefix: str = "") -> Tensor:
    """x after all of these steps; `prefix` is put before their names, `saves` is max pooling's."""
    for step in steps:
        name = prefix + step.name
        if isinstance(step, Fork):
            parts = [add_steps(net, x, branch, saves, name + step.separator) for branch in step.branches]
            x = net.add(Concat(), *parts, name=f"{name}_output")
        elif isinstance(step, Conv):
            x = _add_convolution(net, x, step, name)
        else:
            x = net.add(_pool(step, saves), x, name=name)
    return x


def _pool(step: MaxPool | AvgPool, saves: str) -> Layer:
    if isinstance(step, MaxPool):
        return MaxPool2d(3, 2, saves=saves)
    return AvgPool2d(3, 1, 1, count_include_pad=step.counted)


def _add_convolution(net: Network, x: Tensor, step: Conv, name: str) -> Tensor:
    rows, columns = step.kernel
    padding = (rows // 2, columns // 2) if step.padded and step.stride == 1 else 0
    layer = Conv2d(step.channels, step.kernel, step.stride, padding, bias=False, init="kaiming")
    x = net.add(layer, x, name=f"{name}_conv")
    x = net.add(BatchNorm2d(EPS), x, name=f"{name}_bn")
    return net.add(ReLU(), x, name=f"{name}_relu")
