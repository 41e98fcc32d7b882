"""U-Net (Ronneberger, Fischer and Brox, 2015), with padding so that maps to be joined are of equal size."""

from __future__ import annotations

from vdnn.layers import Concat, Conv2d, ConvTranspose2d, Dropout, MaxPool2d, MeanSquaredError, ReLU, ShapeError
from vdnn.network import Network, Tensor

CHANNELS = (64, 128, 256, 512, 1024)  # at each level, the finest first
MULTIPLE = 2 ** (len(CHANNELS) - 1)  # of the image's rows and columns: each level has half of those above it


def unet(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (1, 512, 512),
    classes: int = 2,
    dropout: float = 0.5,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """U-Net: 31,030,658 parameters.  Its scores are maps, (N, classes, H, W), and so are its labels.

    The loss is MeanSquaredError on the maps: regression of every pixel, where a class is a map of 0 and 1.  The paper
    has a softmax over each pixel's classes, but SoftmaxCrossEntropy takes one row of scores per sample.  The paper does
    not pad: from 572x572 it has scores for the inner 388x388; here every pixel has some.  The default image is that of
    the grey microscope pictures that U-Net was made for.

    dropout   after the two deepest levels of the way down; 0 leaves the layers out

    Raises ShapeError unless the rows and columns of `image` are multiples of 16.
    """
    net = Network((batch, *image), dtype, "unet")
    if any(size % MULTIPLE for size in image[1:]):
        raise ShapeError(f"unet: image {image}; rows and columns must be multiples of {MULTIPLE}, to be halved 4 times")
    x, skips = net.input, []
    for level, channels in enumerate(CHANNELS, start=1):
        x = _two_convolutions(net, x, f"down{level}", channels)
        if dropout and level >= len(CHANNELS) - 1:
            x = net.add(Dropout(dropout), x, name=f"down{level}_drop")
        if level < len(CHANNELS):
            skips.append(x)
            x = net.add(MaxPool2d(2, saves=saves), x, name=f"pool{level}")
    for level in range(len(skips), 0, -1):
        channels = CHANNELS[level - 1]
        x = net.add(ConvTranspose2d(channels, 2, 2, init="kaiming"), x, name=f"up{level}")
        x = net.add(Concat(), skips[level - 1], x, name=f"up{level}_concat")
        x = _two_convolutions(net, x, f"up{level}", channels)
    x = net.add(Conv2d(classes, 1), x, name="score")
    net.add(MeanSquaredError(), x, name="loss")
    return net


def _two_convolutions(net: Network, x: Tensor, name: str, channels: int) -> Tensor:
    for i in (1, 2):
        x = net.add(Conv2d(channels, 3, padding=1, init="kaiming"), x, name=f"{name}_conv{i}")
        x = net.add(ReLU(), x, name=f"{name}_relu{i}")
    return x
