"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen, 2018) as torchvision has it.

Layers bear torchvision's names with "_" for ".": features_2_conv_1_0 is the depthwise convolution of the second block.
"""

from __future__ import annotations

from vdnn.layers import Add, BatchNorm2d, Conv2d, ReLU6
from vdnn.models.common import averaged_scores
from vdnn.network import Network, Tensor

# expansion, output channels, blocks, stride of the first of them (table 2 of the MobileNetV2 paper)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    dropout: float = 0.2,
    dtype: str = "float32",
) -> Network:
    """MobileNetV2 of width 1: 3,504,872 parameters.  It has no max pooling, hence no option `saves`."""
    net = Network((batch, *image), dtype, "mobilenet_v2")
    x = _conv_bn_relu(net, net.input, "features_0_", 32, 3, 2)
    block = 1
    for expansion, channels, count, first_stride in STAGES:
        for i in range(count):
            x = _block(net, x, f"features_{block}_", expansion, channels, first_stride if i == 0 else 1)
            block += 1
    x = _conv_bn_relu(net, x, f"features_{block}_", 1280, 1)
    averaged_scores(net, x, classes, dropout, ("classifier_0", "classifier_1"))
    return net


def _block(net: Network, x: Tensor, prefix: str, expansion: int, channels: int, stride: int) -> Tensor:
    """An inverted residual: x widened, filtered channel by channel, narrowed; plus x where the shapes are equal."""
    wide = x.shape[1] * expansion
    y, position = x, 0
    if expansion > 1:
        y, position = _conv_bn_relu(net, y, f"{prefix}conv_0_", wide, 1), 1
    y = _conv_bn_relu(net, y, f"{prefix}conv_{position}_", wide, 3, stride, groups=wide)
    narrow = Conv2d(channels, 1, bias=False, init="kaiming")
    y = net.add(narrow, y, name=f"{prefix}conv_{position + 1}")
    y = net.add(BatchNorm2d(), y, name=f"{prefix}conv_{position + 2}")
    return net.add(Add(), y, x, name=f"{prefix}add") if x.shape == y.shape else y


def _conv_bn_relu(
    net: Network, x: Tensor, prefix: str, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> Tensor:
    layer = Conv2d(channels, kernel, stride, kernel // 2, groups=groups, bias=False, init="kaiming")
    x = net.add(layer, x, name=f"{prefix}0")
    x = net.add(BatchNorm2d(), x, name=f"{prefix}1")
    return net.add(ReLU6(), x, name=f"{prefix}2")
