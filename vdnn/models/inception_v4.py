"""Inception v4 (Szegedy, Ioffe, Vanhoucke and Alemi, 2016), figures 3 to 9 of its paper.

Layers bear the names of timm, PyTorch's collection of image models, with "_" for ".": features_6_branch1_0_conv.
"""

from __future__ import annotations

from vdnn.models.branches import AvgPool, Conv, Fork, MaxPool, Step, add_steps
from vdnn.models.common import averaged_scores
from vdnn.network import Network

MEAN = AvgPool("branch3_0", counted=False)
STEM: tuple[Step, ...] = (
    Conv("features_0", 32, (3, 3), 2),
    Conv("features_1", 32, (3, 3), padded=False),
    Conv("features_2", 64, (3, 3)),
    Fork("features_3", ((MaxPool("maxpool"),), (Conv("conv", 96, (3, 3), 2),))),
    Fork(
        "features_4",
        (
            (Conv("branch0_0", 64, (1, 1)), Conv("branch0_1", 96, (3, 3), padded=False)),
            (
                Conv("branch1_0", 64, (1, 1)),
                Conv("branch1_1", 64, (1, 7)),
                Conv("branch1_2", 64, (7, 1)),
                Conv("branch1_3", 96, (3, 3), padded=False),
            ),
        ),
    ),
    Fork("features_5", ((Conv("conv", 192, (3, 3), 2),), (MaxPool("maxpool"),))),
)
INCEPTION_A: tuple[tuple[Step, ...], ...] = (
    (Conv("branch0", 96, (1, 1)),),
    (Conv("branch1_0", 64, (1, 1)), Conv("branch1_1", 96, (3, 3))),
    (Conv("branch2_0", 64, (1, 1)), Conv("branch2_1", 96, (3, 3)), Conv("branch2_2", 96, (3, 3))),
    (MEAN, Conv("branch3_1", 96, (1, 1))),
)
REDUCTION_A: tuple[tuple[Step, ...], ...] = (
    (Conv("branch0", 384, (3, 3), 2),),
    (Conv("branch1_0", 192, (1, 1)), Conv("branch1_1", 224, (3, 3)), Conv("branch1_2", 256, (3, 3), 2)),
    (MaxPool("branch2"),),
)
INCEPTION_B: tuple[tuple[Step, ...], ...] = (
    (Conv("branch0", 384, (1, 1)),),
    (Conv("branch1_0", 192, (1, 1)), Conv("branch1_1", 224, (1, 7)), Conv("branch1_2", 256, (7, 1))),
    (
        Conv("branch2_0", 192, (1, 1)),
        Conv("branch2_1", 192, (7, 1)),
        Conv("branch2_2", 224, (1, 7)),
        Conv("branch2_3", 224, (7, 1)),
        Conv("branch2_4", 256, (1, 7)),
    ),
    (MEAN, Conv("branch3_1", 128, (1, 1))),
)
REDUCTION_B: tuple[tuple[Step, ...], ...] = (
    (Conv("branch0_0", 192, (1, 1)), Conv("branch0_1", 192, (3, 3), 2)),
    (
        Conv("branch1_0", 256, (1, 1)),
        Conv("branch1_1", 256, (1, 7)),
        Conv("branch1_2", 320, (7, 1)),
        Conv("branch1_3", 320, (3, 3), 2),
    ),
    (MaxPool("branch2"),),
)


def _wide(name: str) -> Fork:
    """1x3 and 3x1 side by side."""
    return Fork(name, ((Conv("a", 256, (1, 3)),), (Conv("b", 256, (3, 1)),)), separator="")


INCEPTION_C: tuple[tuple[Step, ...], ...] = (
    (Conv("branch0", 256, (1, 1)),),
    (Conv("branch1_0", 384, (1, 1)), _wide("branch1_1")),
    (
        Conv("branch2_0", 384, (1, 1)),
        Conv("branch2_1", 448, (3, 1)),
        Conv("branch2_2", 512, (1, 3)),
        _wide("branch2_3"),
    ),
    (MEAN, Conv("branch3_1", 256, (1, 1))),
)
BLOCKS = (*[INCEPTION_A] * 4, REDUCTION_A, *[INCEPTION_B] * 7, REDUCTION_B, *[INCEPTION_C] * 3)
STEPS: tuple[Step, ...] = (*STEM, *(Fork(f"features_{i}", block) for i, block in enumerate(BLOCKS, start=len(STEM))))


def inception_v4(
    *,
    batch: int = 32,
    image: tuple[int, int, int] = (3, 299, 299),
    classes: int = 1000,
    dropout: float = 0.2,
    saves: str = "indices",
    dtype: str = "float32",
) -> Network:
    """Inception v4: 42,679,816 parameters; it has no residual connections.  The smallest image is 75x75."""
    net = Network((batch, *image), dtype, "inception_v4")
    x = add_steps(net, net.input, STEPS, saves)
    averaged_scores(net, x, classes, dropout, ("head_drop", "last_linear"))
    return net
