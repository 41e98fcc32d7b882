"""The sizes of one convolution, in one hashable record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from vdnn.layers.base import Shape

Pair = tuple[int, int]


def output_length(length: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """Output rows (or columns) of a convolution over `length` input rows; below 1 if the filter does not fit."""
    return (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution; C and K are channels per group."""

    N: int
    C: int
    K: int
    groups: int
    source: Pair  # H, W
    outputs: Pair  # OH, OW
    taps: Pair  # R, S
    stride: Pair
    padding: Pair
    dilation: Pair
    dtype: str

    @property
    def flops(self) -> int:
        """Of each phase, all groups together."""
        pixels = self.N * self.outputs[0] * self.outputs[1]
        return 2 * pixels * self.groups * self.K * self.C * self.taps[0] * self.taps[1]

    @property
    def is_pointwise(self) -> bool:
        """Whether this is a plain product: 1x1, stride 1, no padding."""
        return self.taps == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


@lru_cache(maxsize=4096)
def geometry(x: Shape, w: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int, dtype: str) -> Geometry:
    """Sizes from logical shapes x: (N, C, H, W) and w: (K, C / groups, R, S).  Raises ValueError if they disagree."""
    N, C, H, W = x
    K, inner, R, S = w
    if inner * groups != C or K % groups:
        raise ValueError(f"x {x} and w {w} do not fit together with groups={groups}")
    OH = output_length(H, R, stride[0], padding[0], dilation[0])
    OW = output_length(W, S, stride[1], padding[1], dilation[1])
    if OH < 1 or OW < 1:
        raise ValueError(f"w {w} with dilation {dilation} is larger than x {x} with padding {padding}")
    return Geometry(N, inner, K // groups, groups, (H, W), (OH, OW), (R, S), stride, padding, dilation, dtype)
