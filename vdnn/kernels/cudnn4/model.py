"""Seconds and workspaces of convolutions under cuDNN 4 on a Titan X, from Fig. 5 and Fig. 6 of the vDNN paper alone.

Sizes: N batch, C input channels, K output channels, H, W rows and columns of the output, R, S of the filter.

without workspace   N K H W (p + q C R S): what a matrix product costs whose inner loop has C R S terms.  p and q are
                    fitted to CONV_01 to CONV_03, the layers whose fastest algorithm has no workspace in Fig. 5.
with workspace      N H W (a (C + K) + b C K), whatever R and S: transforms of both maps, then a product for every
                    frequency.  a and b are fitted to CONV_04 to CONV_16.  Only for stride 1 and filters above 1x1.
workspace           as a multiple of the input's bytes: in Fig. 5 it hardly depends on anything but the rows, so it is
                    interpolated in their logarithm, and grows with R S as with 3 x 3

Fits are by least squares of the relative error, forward and backward each for itself.  A backward is weights and data
together, half of the time each; the layer that reads the images has no data gradient, and all of the time is its
weights'.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log
from typing import Any

import numpy as np

from vdnn.layers.base import Shape

MIB = 1 << 20
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Convolution:
    """The sizes of one convolution; C is per group, and `groups` of them run one after the other."""

    N: int
    C: int
    K: int
    H: int
    W: int
    R: int
    S: int
    stride: int
    x_bytes: int
    groups: int = 1

    @classmethod
    def of(
        cls,
        x: Shape,
        w: Shape,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Convolution:
        """From the shapes of x: (N, C, H, W) and w: (K, C / groups, R, S)."""
        N, K, R, S = x[0], w[0], w[2], w[3]
        H, W = ((x[2 + i] + 2 * padding[i] - dilation[i] * (w[2 + i] - 1) - 1) // stride[i] + 1 for i in range(2))
        return cls(N, w[1], K // groups, H, W, R, S, max(stride), 4 * N * x[1] * x[2] * x[3], groups)

    @property
    def flops(self) -> int:
        """2 N K H W C R S, for all groups."""
        return 2 * self.groups * self.N * self.K * self.H * self.W * self.C * self.R * self.S

    @property
    def pixels(self) -> int:
        """N H W, for all groups."""
        return self.groups * self.N * self.H * self.W

    @property
    def in_figures(self) -> tuple[int, ...]:
        """Where in Fig. 5 and 6 convolutions of this shape stand; nowhere for others."""
        if (self.R, self.S, self.stride, self.groups) != (3, 3, 1, 1) or self.H != self.W:
            return ()
        return tuple(i for i, shape in enumerate(_figures()["layers"]["values"]) if shape == [self.C, self.K, self.H])


def forward_seconds(layer: Convolution, with_workspace: bool, phase: str = "forward") -> float:
    """Seconds of the forward pass."""
    return _seconds(layer, with_workspace, "forward_ms")


def backward_seconds(layer: Convolution, with_workspace: bool, phase: str) -> float:
    """Seconds of backward_weights or backward_data."""
    only = layer.C == IMAGE_CHANNELS and layer.groups == 1 and phase == "backward_weights"
    return _seconds(layer, with_workspace, "backward_ms") * (1.0 if only else 0.5)


def workspace(layer: Convolution) -> int:
    """Bytes of workspace of the algorithm with one; 0 if there is none."""
    known = layer.in_figures
    if known:
        figure = _figures()["figure 5"]
        return round(MIB * _mean(figure["workspace_mib"], known) * layer.N / int(figure["batch"]))
    if layer.stride > 1 or layer.R * layer.S == 1:
        return 0
    rows, multiples = _multiples()
    multiple = float(np.interp(log(layer.H), [log(n) for n in rows], multiples))
    return round(layer.x_bytes * multiple * layer.R * layer.S / 9)


def linear_seconds(phase: str, N: int, IN: int, OUT: int) -> float:
    """Seconds of a fully connected layer of VGG, half of its backward for weights and for data; 0 for any other."""
    figures = _figures()
    for i, shape in enumerate(figures["classifier"]["values"]):
        if shape == [IN, OUT]:
            share = N / figures["figure 6"]["batch"] / 1e3
            forward, backward = (figures["classifier"][f"{name}_ms"][i] * share for name in ("forward", "backward"))
            return float(forward if phase in ("forward", "evaluate") else backward / 2)
    return 0.0


def _seconds(layer: Convolution, with_workspace: bool, figure: str) -> float:
    known = layer.in_figures
    if known and with_workspace == bool(_figures()["figure 5"]["workspace_mib"][known[0]]):
        return _mean(_figures()["figure 6"][figure], known) / 1e3 * layer.N / int(_figures()["figure 6"]["batch"])
    constants = _constants(figure, with_workspace)
    terms = (layer.C + layer.K, layer.C * layer.K) if with_workspace else _terms(layer.C, layer.K, layer.R * layer.S)
    return layer.pixels * (constants[0] * terms[0] + constants[1] * terms[1])


def _terms(C: int, K: int, window: int) -> tuple[int, int]:
    return K, K * C * window


@cache
def _constants(figure: str, with_workspace: bool) -> tuple[float, float]:
    """p and q, or a and b, in seconds."""
    figures = _figures()
    rows = []
    for i, (C, K, H) in enumerate(figures["layers"]["values"]):
        if bool(figures["figure 5"]["workspace_mib"][i]) == with_workspace:
            terms = (C + K, C * K) if with_workspace else _terms(C, K, 9)
            pixels, seconds = figures["figure 6"]["batch"] * H * H, figures["figure 6"][figure][i] / 1e3
            rows.append([pixels * term / seconds for term in terms])
    found = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
    return float(found[0]), float(found[1])


@cache
def _multiples() -> tuple[list[int], list[float]]:
    """(rows, ascending, workspace as a multiple of the input's bytes) in Fig. 5, the mean where it shows several."""
    figure = _figures()["figure 5"]
    found: dict[int, list[float]] = {}
    for (C, _, H), mib in zip(_figures()["layers"]["values"], figure["workspace_mib"], strict=True):
        if mib:
            found.setdefault(H, []).append(mib * MIB / (4 * figure["batch"] * C * H * H))
    return sorted(found), [float(np.mean(found[H])) for H in sorted(found)]


def _mean(values: list[float], places: tuple[int, ...]) -> float:
    return float(np.mean([values[i] for i in places]))


@cache
def _figures() -> dict[str, Any]:
    text = files("vdnn.kernels.cudnn4").joinpath("figures.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures
