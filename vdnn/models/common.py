"""What several networks of the literature are made of."""

from __future__ import annotations

from typing import NamedTuple

from vdnn.layers import Conv2d, Dropout, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.network import Network, Tensor


class Stage(NamedTuple):
    """A square convolution with its ReLU, and the (window, stride) of the max pool after it, None if there is none."""

    channels: int
    kernel: int
    stride: int
    padding: int
    pool: tuple[int, int] | None = None


def convolutions(net: Network, stages: tuple[Stage, ...], saves: str) -> Tensor:
    """The last map of these stages, the first of which reads the input; layers are conv1, relu1, pool1, conv2, ..."""
    x = net.input
    for i, (channels, kernel, stride, padding, pool) in enumerate(stages, start=1):
        x = net.add(Conv2d(channels, kernel, stride, padding, init="kaiming"), x, name=f"conv{i}")
        x = net.add(ReLU(), x, name=f"relu{i}")
        if pool:
            x = net.add(MaxPool2d(*pool, saves=saves), x, name=f"pool{i}")
    return x


def hidden(net: Network, x: Tensor, number: int, dropout: float) -> Tensor:
    """4096 features: a fully connected layer and its ReLU, then dropout if that is not 0: fc6, relu6, drop6."""
    x = net.add(Linear(4096), x, name=f"fc{number}")
    x = net.add(ReLU(), x, name=f"relu{number}")
    return net.add(Dropout(dropout), x, name=f"drop{number}") if dropout else x


def averaged_scores(net: Network, x: Tensor, classes: int, dropout: float, names: tuple[str, str]) -> None:
    """Average x over its plane and end the network in a loss on the scores; `names` of the dropout and the scores."""
    x = net.add(GlobalAvgPool2d(), x, name="avgpool")
    x = net.add(Flatten(), x, name="flatten")
    if dropout:
        x = net.add(Dropout(dropout), x, name=names[0])
    x = net.add(Linear(classes), x, name=names[1])
    net.add(SoftmaxCrossEntropy(), x, name="loss")
