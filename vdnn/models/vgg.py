"""VGG (Simonyan and Zisserman, 2014), and the deep ones of the vDNN paper (section IV-C).

Five groups of 3x3 convolutions, each followed by a max pool, then three fully connected layers.
The paper's "VGG-16" has groups of 2, 2, 4, 4 and 4: it is VGG-E, here `vgg19`.
VGG-116 to VGG-416 add 20 to 80 convolutions to each group of it; their number counts convolutions only.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from vdnn.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.models.common import hidden
from vdnn.network import Network

CHANNELS = (64, 128, 256, 512, 512)
GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Options(TypedDict, total=False):
    """Keyword arguments of every VGG; `dropout` follows both hidden layers of the classifier, 0 leaves it out."""

    batch: int
    image: tuple[int, int, int]
    classes: int
    dropout: float
    saves: str
    dtype: str


def groups_of(depth: int) -> tuple[int, ...]:
    """Convolutions in each of the five groups.  Raises ValueError for a depth that VGG does not come in."""
    if depth in GROUPS:
        return GROUPS[depth]
    more, rest = divmod(depth - 16, 5)  # VGG-E has 16 convolutions
    if more < 1 or rest:
        raise ValueError(
            f"there is no VGG of depth {depth}: {', '.join(map(str, GROUPS))}, or 16 + 5 k convolutions (116, 216, ...)"
        )
    return tuple(n + more for n in GROUPS[19])


def vgg(
    depth: int,
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    dropout: float = 0.5,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """VGG of a depth of 11, 13, 16 or 19, or of 16 + 5 k convolutions with k more in each group than VGG-E."""
    net = Network((batch, *image), dtype, f"vgg{depth}")
    x = net.input
    for group, (count, channels) in enumerate(zip(groups_of(depth), CHANNELS, strict=True), start=1):
        for i in range(1, count + 1):
            x = net.add(Conv2d(channels, 3, padding=1, init="kaiming"), x, name=f"conv{group}_{i}")
            x = net.add(ReLU(), x, name=f"relu{group}_{i}")
        x = net.add(MaxPool2d(2, saves=saves), x, name=f"pool{group}")
    x = net.add(Flatten(), x, name="flatten")
    x = hidden(net, x, 6, dropout)
    x = hidden(net, x, 7, dropout)
    x = net.add(Linear(classes), x, name="fc8")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net


def vgg11(**options: Unpack[Options]) -> Network:
    """VGG-A: 8 convolutions, 132,863,336 parameters."""
    return vgg(11, **options)


def vgg16(**options: Unpack[Options]) -> Network:
    """VGG-D: 13 convolutions, 138,357,544 parameters."""
    return vgg(16, **options)


def vgg19(**options: Unpack[Options]) -> Network:
    """VGG-E: 16 convolutions, 143,667,240 parameters.  What the vDNN paper calls VGG-16."""
    return vgg(19, **options)


def vgg116(**options: Unpack[Options]) -> Network:
    """VGG-E with 20 more convolutions in each group."""
    return vgg(116, **options)


def vgg216(**options: Unpack[Options]) -> Network:
    """VGG-E with 40 more convolutions in each group."""
    return vgg(216, **options)


def vgg316(**options: Unpack[Options]) -> Network:
    """VGG-E with 60 more convolutions in each group."""
    return vgg(316, **options)


def vgg416(**options: Unpack[Options]) -> Network:
    """VGG-E with 80 more convolutions in each group."""
    return vgg(416, **options)
