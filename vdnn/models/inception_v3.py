"""Inception v3 (Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, 2015) as torchvision has it.

Layers bear torchvision's names with "_" for ".": Mixed_5b_branch1x1_conv, Mixed_5b_branch1x1_bn.
"""

from __future__ import annotations

from vdnn.models.branches import AvgPool, Conv, Fork, MaxPool, Step, add_steps
from vdnn.models.common import averaged_scores
from vdnn.network import Network

MEAN = AvgPool("branch_avgpool", counted=True)
STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    MaxPool("maxpool1"),
    Conv("Conv2d_3b_1x1", 80, (1, 1)),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
    MaxPool("maxpool2"),
)


def _mixed_5(name: str, pooled: int) -> Fork:
    one = (Conv("branch1x1", 64, (1, 1)),)
    five = (Conv("branch5x5_1", 48, (1, 1)), Conv("branch5x5_2", 64, (5, 5)))
    double = (
        Conv("branch3x3dbl_1", 64, (1, 1)),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3)),
    )
    return Fork(name, (one, five, double, (MEAN, Conv("branch_pool", pooled, (1, 1)))))


def _mixed_6(name: str, width: int) -> Fork:
    one = (Conv("branch1x1", 192, (1, 1)),)
    seven = (
        Conv("branch7x7_1", width, (1, 1)),
        Conv("branch7x7_2", width, (1, 7)),
        Conv("branch7x7_3", 192, (7, 1)),
    )
    double = (
        Conv("branch7x7dbl_1", width, (1, 1)),
        Conv("branch7x7dbl_2", width, (7, 1)),
        Conv("branch7x7dbl_3", width, (1, 7)),
        Conv("branch7x7dbl_4", width, (7, 1)),
        Conv("branch7x7dbl_5", 192, (1, 7)),
    )
    return Fork(name, (one, seven, double, (MEAN, Conv("branch_pool", 192, (1, 1)))))


def _mixed_7(name: str) -> Fork:
    one = (Conv("branch1x1", 320, (1, 1)),)
    three = (Conv("branch3x3_1", 384, (1, 1)), _wide("branch3x3_2"))
    double = (Conv("branch3x3dbl_1", 448, (1, 1)), Conv("branch3x3dbl_2", 384, (3, 3)), _wide("branch3x3dbl_3"))
    return Fork(name, (one, three, double, (MEAN, Conv("branch_pool", 192, (1, 1)))))


def _wide(name: str) -> Fork:
    """1x3 and 3x1 side by side."""
    return Fork(name, ((Conv("a", 384, (1, 3)),), (Conv("b", 384, (3, 1)),)), separator="")


MIXED_6A = Fork(
    "Mixed_6a",
    (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (
            Conv("branch3x3dbl_1", 64, (1, 1)),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ),
        (MaxPool("branch_pool"),),
    ),
)
MIXED_7A = Fork(
    "Mixed_7a",
    (
        (Conv("branch3x3_1", 192, (1, 1)), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192, (1, 1)),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (MaxPool("branch_pool"),),
    ),
)
STEPS: tuple[Step, ...] = (
    *STEM,
    _mixed_5("Mixed_5b", 32),
    _mixed_5("Mixed_5c", 64),
    _mixed_5("Mixed_5d", 64),
    MIXED_6A,
    _mixed_6("Mixed_6b", 128),
    _mixed_6("Mixed_6c", 160),
    _mixed_6("Mixed_6d", 160),
    _mixed_6("Mixed_6e", 192),
    MIXED_7A,
    _mixed_7("Mixed_7b"),
    _mixed_7("Mixed_7c"),
)


def inception_v3(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 299, 299),
    classes: int = 1000,
    dropout: float = 0.5,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """Inception v3 without the auxiliary classifier: 23,834,568 parameters (27,161,264 with it, in torchvision).

    A network has one loss here, so that the auxiliary one has no place.  The smallest image is 75x75.
    """
    net = Network((batch, *image), dtype, "inception_v3")
    x = add_steps(net, net.input, STEPS, saves)
    averaged_scores(net, x, classes, dropout, ("dropout", "fc"))
    return net
