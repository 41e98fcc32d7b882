"""A small VGG for the 8x8 handwritten digits of `vdnn.data.digits`: seconds to train, and a real plan to study."""

from __future__ import annotations

from vdnn.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.network import Network


def digits_vgg(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (1, 8, 8),
    classes: int = 10,
    channels: int = 32,
    counts: tuple[int, ...] = (6, 2),
    batch_norm: bool = True,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """`counts` 3x3 convolutions before each pool, with twice the channels after it, then one fully connected layer.

    The maps before the first pool are of equal size, so that any one layer needs a small part of what all of them
    need together: the ratio that offloading lives on, as in a large VGG.  Without `batch_norm` training starts slowly
    or, with nine convolutions, not at all: each passes on about 0.4 of the deviation that it is given.
    """
    net = Network((batch, *image), dtype, "digits_vgg")
    x = net.input
    for group, count in enumerate(counts, start=1):
        for i in range(1, count + 1):
            convolution = Conv2d(channels * 2 ** (group - 1), 3, padding=1, bias=not batch_norm)
            x = net.add(convolution, x, name=f"conv{group}_{i}")
            if batch_norm:
                x = net.add(BatchNorm2d(), x, name=f"bn{group}_{i}")
            x = net.add(ReLU(), x, name=f"relu{group}_{i}")
        x = net.add(MaxPool2d(2, saves=saves), x, name=f"pool{group}")
    x = net.add(Flatten(), x, name="flatten")
    x = net.add(Linear(classes), x, name="fc")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net
