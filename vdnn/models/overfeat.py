"""OverFeat (Sermanet et al., 2013): the accurate model, table 3 of its paper."""

from __future__ import annotations

from vdnn.layers import Flatten, Linear, SoftmaxCrossEntropy
from vdnn.models.common import Stage, convolutions, hidden
from vdnn.network import Network

STAGES = (
    Stage(96, 7, 2, 0, (3, 3)),
    Stage(256, 7, 1, 0, (2, 2)),
    Stage(512, 3, 1, 1),
    Stage(512, 3, 1, 1),
    Stage(1024, 3, 1, 1),
    Stage(1024, 3, 1, 1, (3, 3)),
)


def overfeat(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 221, 221),
    classes: int = 1000,
    dropout: float = 0.5,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """OverFeat, the accurate model of six convolutions: 144,656,488 parameters.

    The vDNN paper's amounts of memory are this model's, although convnet-benchmarks, where it says that its networks
    come from, holds the fast one.  `dropout` follows both hidden layers.  The smallest image is 77x77.
    """
    net = Network((batch, *image), dtype, "overfeat")
    x = convolutions(net, STAGES, saves)
    x = net.add(Flatten(), x, name="flatten")
    x = hidden(net, x, 7, dropout)
    x = hidden(net, x, 8, dropout)
    x = net.add(Linear(classes), x, name="fc9")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net
