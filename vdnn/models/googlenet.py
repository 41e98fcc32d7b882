"""GoogLeNet (Szegedy et al., 2014), the first version, without the auxiliary classifiers."""

from __future__ import annotations

from vdnn.layers import (
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    SoftmaxCrossEntropy,
)
from vdnn.network import Network, Tensor

# channels of: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; projection after the pool (table 1 of the GoogLeNet paper)
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    dropout: float = 0.4,
    lrn: bool = True,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """GoogLeNet with a ReLU after every convolution and no batch norm: 6,998,552 parameters.

    `lrn=False` leaves out the two local response normalisations, as the vDNN paper's memory figures do.
    """
    net = Network((batch, *image), dtype, "googlenet")
    x = _conv(net, net.input, "conv1_7x7_s2", 64, 7, stride=2)
    x = _pool(net, x, "pool1_3x3_s2", saves)
    x = _normalise(net, x, "pool1_norm1", lrn)
    x = _conv(net, x, "conv2_3x3_reduce", 64, 1)
    x = _conv(net, x, "conv2_3x3", 192, 3)
    x = _normalise(net, x, "conv2_norm2", lrn)
    x = _pool(net, x, "pool2_3x3_s2", saves)
    for name, channels in INCEPTION.items():
        x = _inception(net, x, name, channels, saves)
        if name in ("3b", "4e"):
            x = _pool(net, x, f"pool{name[0]}_3x3_s2", saves)
    x = net.add(GlobalAvgPool2d(), x, name="pool5_7x7_s1")
    x = net.add(Flatten(), x, name="flatten")
    if dropout:
        x = net.add(Dropout(dropout), x, name="pool5_drop")
    x = net.add(Linear(classes), x, name="fc")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net


def _inception(net: Network, x: Tensor, name: str, channels: tuple[int, ...], saves: str) -> Tensor:
    """Four branches on x, side by side in the channels of one output."""
    c1, c3_reduce, c3, c5_reduce, c5, projection = channels
    one = _conv(net, x, f"{name}_1x1", c1, 1)
    three = _conv(net, _conv(net, x, f"{name}_3x3_reduce", c3_reduce, 1), f"{name}_3x3", c3, 3)
    five = _conv(net, _conv(net, x, f"{name}_5x5_reduce", c5_reduce, 1), f"{name}_5x5", c5, 5)
    pooled = net.add(MaxPool2d(3, 1, 1, saves=saves), x, name=f"{name}_pool")
    pooled = _conv(net, pooled, f"{name}_pool_proj", projection, 1)
    return net.add(Concat(), one, three, five, pooled, name=f"{name}_output")


def _conv(net: Network, x: Tensor, name: str, channels: int, kernel: int, stride: int = 1) -> Tensor:
    block, _, rest = name.partition("_")  # 3a_3x3 is followed by 3a_relu_3x3
    x = net.add(Conv2d(channels, kernel, stride, padding=kernel // 2, init="kaiming"), x, name=name)
    return net.add(ReLU(), x, name=f"{block}_relu_{rest}")


def _pool(net: Network, x: Tensor, name: str, saves: str) -> Tensor:
    return net.add(MaxPool2d(3, 2, ceil_mode=True, saves=saves), x, name=name)


def _normalise(net: Network, x: Tensor, name: str, lrn: bool) -> Tensor:
    return net.add(LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0), x, name=name) if lrn else x
