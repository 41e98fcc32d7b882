"""AlexNet with a single tower, as in "One weird trick for parallelizing convolutional neural networks" (2014)."""

from __future__ import annotations

from vdnn.layers import Dropout, Flatten, Linear, SoftmaxCrossEntropy
from vdnn.models.common import Stage, convolutions, hidden
from vdnn.network import Network

STAGES = (
    Stage(64, 11, 4, 2, (3, 2)),
    Stage(192, 5, 1, 2, (3, 2)),
    Stage(384, 3, 1, 1),
    Stage(256, 3, 1, 1),
    Stage(256, 3, 1, 1, (3, 2)),
)


def alexnet(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    dropout: float = 0.5,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """AlexNet without LRN, the one that the vDNN paper measures and that torchvision has: 61,100,840 parameters.

    Five convolutions, three fully connected layers; `dropout` is on the input of both hidden ones.  The smallest image
    is 63x63.
    """
    net = Network((batch, *image), dtype, "alexnet")
    x = convolutions(net, STAGES, saves)
    x = net.add(Flatten(), x, name="flatten")
    for number in (6, 7):
        if dropout:
            x = net.add(Dropout(dropout), x, name=f"drop{number}")
        x = hidden(net, x, number, dropout=0.0)
    x = net.add(Linear(classes), x, name="fc8")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net
