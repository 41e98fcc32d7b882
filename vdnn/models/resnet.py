"""ResNet (He, Zhang, Ren and Sun, 2015) as torchvision has it: a bottleneck strides in its 3x3 convolution.

Layers bear torchvision's names with "_" for ".": layer1_0_conv1, layer1_0_bn1, layer1_0_downsample_0.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from vdnn.layers import (
    Add,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    SoftmaxCrossEntropy,
)
from vdnn.network import Network, Tensor

# (kernel, channels as a multiple of the stage's width) of a block's convolutions
BASIC = ((3, 1), (3, 1))
BOTTLENECK = ((1, 1), (3, 1), (1, 4))
Block = tuple[tuple[int, int], ...]

STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
}


class Options(TypedDict, total=False):
    """Keyword arguments of every ResNet."""

    batch: int
    image: tuple[int, int, int]
    classes: int
    saves: str
    dtype: str


def resnet(
    depth: int,
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """ResNet of a depth of 18, 34, 50, 101 or 152."""
    if depth not in STAGES:
        raise ValueError(f"there is no ResNet of depth {depth}: {', '.join(map(str, STAGES))}")
    block, counts = STAGES[depth]
    net = Network((batch, *image), dtype, f"resnet{depth}")
    x = _conv_bn(net, net.input, ("conv1", "bn1"), 64, 7, 2)
    x = net.add(ReLU(), x, name="relu")
    x = net.add(MaxPool2d(3, 2, 1, saves=saves), x, name="maxpool")
    for stage, count in enumerate(counts, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            x = _block(net, x, f"layer{stage}_{i}", block, 32 * 2**stage, stride)
    x = net.add(GlobalAvgPool2d(), x, name="avgpool")
    x = net.add(Flatten(), x, name="flatten")
    x = net.add(Linear(classes), x, name="fc")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net


def _block(net: Network, x: Tensor, name: str, block: Block, width: int, stride: int) -> Tensor:
    """ReLU of the block's convolutions plus x, which is projected where the shapes differ."""
    strided = next(i for i, (kernel, _) in enumerate(block, start=1) if kernel == 3)
    y = x
    for i, (kernel, multiple) in enumerate(block, start=1):
        names = (f"{name}_conv{i}", f"{name}_bn{i}")
        y = _conv_bn(net, y, names, width * multiple, kernel, stride if i == strided else 1)
        if i < len(block):
            y = net.add(ReLU(), y, name=f"{name}_relu{i}")
    if x.shape != y.shape:
        x = _conv_bn(net, x, (f"{name}_downsample_0", f"{name}_downsample_1"), y.shape[1], 1, stride)
    y = net.add(Add(), y, x, name=f"{name}_add")
    return net.add(ReLU(), y, name=f"{name}_relu{len(block)}")


def _conv_bn(net: Network, x: Tensor, names: tuple[str, str], channels: int, kernel: int, stride: int) -> Tensor:
    x = net.add(Conv2d(channels, kernel, stride, padding=kernel // 2, bias=False, init="kaiming"), x, name=names[0])
    return net.add(BatchNorm2d(), x, name=names[1])


def resnet18(**options: Unpack[Options]) -> Network:
    """ResNet-18: 11,689,512 parameters."""
    return resnet(18, **options)


def resnet34(**options: Unpack[Options]) -> Network:
    """ResNet-34: 21,797,672 parameters."""
    return resnet(34, **options)


def resnet50(**options: Unpack[Options]) -> Network:
    """ResNet-50: 25,557,032 parameters."""
    return resnet(50, **options)


def resnet101(**options: Unpack[Options]) -> Network:
    """ResNet-101: 44,549,160 parameters."""
    return resnet(101, **options)


def resnet152(**options: Unpack[Options]) -> Network:
    """ResNet-152: 60,192,808 parameters."""
    return resnet(152, **options)
