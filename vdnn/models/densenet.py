"""DenseNet (Huang, Liu, van der Maaten and Weinberger, 2016) with bottlenecks and compression, as torchvision has it.

Layers bear torchvision's names with "_" for ".": features_denseblock1_denselayer1_norm1, features_transition1_conv.
"""

from __future__ import annotations

from vdnn.layers import AvgPool2d, BatchNorm2d, Concat, Conv2d, MaxPool2d, ReLU
from vdnn.models.common import averaged_scores
from vdnn.network import Network, Tensor

GROWTH = 32  # channels that each dense layer adds
BOTTLENECK = 4 * GROWTH
COUNTS = (6, 12, 24, 16)  # dense layers of each block


def densenet121(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """DenseNet-121: 7,978,856 parameters.

    Each dense layer joins its maps to all that came before it, as in the authors' standard code.  torchvision joins all
    of the maps anew in front of each layer: equal values in maps of equal sizes.  The smallest image is 29x29.
    """
    net = Network((batch, *image), dtype, "densenet121")
    x = net.add(Conv2d(2 * GROWTH, 7, 2, 3, bias=False, init="kaiming"), net.input, name="features_conv0")
    x = _norm_relu(net, x, "features_", "0")
    x = net.add(MaxPool2d(3, 2, 1, saves=saves), x, name="features_pool0")
    for block, count in enumerate(COUNTS, start=1):
        for i in range(1, count + 1):
            x = _dense_layer(net, x, f"features_denseblock{block}_denselayer{i}_")
        if block < len(COUNTS):
            x = _transition(net, x, f"features_transition{block}_")
    x = _norm_relu(net, x, "features_", "5")
    averaged_scores(net, x, classes, 0.0, ("", "classifier"))
    return net


def _dense_layer(net: Network, x: Tensor, prefix: str) -> Tensor:
    """x, and beside it the maps that two convolutions make of it."""
    y = _norm_relu(net, x, prefix, "1")
    y = net.add(Conv2d(BOTTLENECK, 1, bias=False, init="kaiming"), y, name=f"{prefix}conv1")
    y = _norm_relu(net, y, prefix, "2")
    y = net.add(Conv2d(GROWTH, 3, padding=1, bias=False, init="kaiming"), y, name=f"{prefix}conv2")
    return net.add(Concat(), x, y, name=f"{prefix}concat")


def _transition(net: Network, x: Tensor, prefix: str) -> Tensor:
    """Half of the channels, rows and columns of x."""
    x = _norm_relu(net, x, prefix)
    x = net.add(Conv2d(x.shape[1] // 2, 1, bias=False, init="kaiming"), x, name=f"{prefix}conv")
    return net.add(AvgPool2d(2), x, name=f"{prefix}pool")


def _norm_relu(net: Network, x: Tensor, prefix: str, number: str = "") -> Tensor:
    x = net.add(BatchNorm2d(), x, name=f"{prefix}norm{number}")
    return net.add(ReLU(), x, name=f"{prefix}relu{number}")
