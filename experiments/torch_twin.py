"""A vdnn network as a PyTorch module: translated layer by layer from vdnn's graph, with the same weights.

For Conv2d, Linear, MaxPool2d, AvgPool2d, GlobalAvgPool2d, BatchNorm2d, LocalResponseNorm, ReLU, Dropout, Flatten, Add
and Concat; a SoftmaxCrossEntropy at the end is PyTorch's `cross_entropy`, which whoever trains calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import nn

from vdnn.arrays import initial
from vdnn.network import Network, Node

NOT_SAVED = ("Conv2d", "BatchNorm2d", "Linear", "Add")  # backward of these reads none of their outputs
TRANSLATED = (
    *("Conv2d", "Linear", "MaxPool2d", "AvgPool2d", "GlobalAvgPool2d", "BatchNorm2d", "LocalResponseNorm", "ReLU"),
    *("Dropout", "Flatten", "Add", "Concat"),
)
OWN_NAMES = {"weight": "w", "bias": "b"}  # PyTorch's parameters and vdnn's


def module_of(node: Node, inplace: bool) -> nn.Module | None:
    """PyTorch's module for a vdnn layer; None for Add and Concat, which are functions."""
    layer: Any = node.layer
    width = node.inputs[0].shape[1]
    kind = type(layer).__name__
    if kind == "Conv2d":
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        return nn.Conv2d(width, layer.out_channels, *geometry, bias=layer.bias)
    if kind == "MaxPool2d":
        return nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)
    if kind == "AvgPool2d":
        window = (layer.kernel_size, layer.stride, layer.padding)
        return nn.AvgPool2d(*window, ceil_mode=layer.ceil_mode, count_include_pad=layer.count_include_pad)
    plain: dict[str, Callable[[], nn.Module | None]] = {
        "ReLU": lambda: nn.ReLU(inplace=inplace),
        "BatchNorm2d": lambda: nn.BatchNorm2d(width, layer.eps, layer.momentum),
        "LocalResponseNorm": lambda: nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k),
        "GlobalAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
        "Flatten": nn.Flatten,
        "Linear": lambda: nn.Linear(width, layer.out_features, bias=layer.bias),
        "Dropout": lambda: nn.Dropout(layer.p),
        "Add": lambda: None,
        "Concat": lambda: None,
    }
    if kind not in plain:
        raise ValueError(f"{node.name}: there is no translation of {kind}; there are {', '.join(TRANSLATED)}")
    return plain[kind]()


class Piece(nn.Module):
    """Layers in a row that take one tensor and give one: a part of the network that could be run again by itself."""

    def __init__(self, nodes: Sequence[Node], source: str, inplace: set[str]) -> None:
        super().__init__()
        self.source, self.output = source, nodes[-1].y.name
        self.layers = nn.ModuleDict()
        self.work: list[tuple[str, str, list[str], list[str]]] = []  # (layer, its kind, inputs, what is over with it)
        last = {t.name: node.name for node in nodes for t in node.inputs}
        for node in nodes:
            made = module_of(node, node.name in inplace)
            if made is not None:
                self.layers[node.name] = made
            inputs = [t.name for t in node.inputs]
            over = [name for name in dict.fromkeys(inputs) if last[name] == node.name]
            self.work.append((node.name, type(node.layer).__name__, inputs, over))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer's output."""
        known = {self.source: x}
        del x
        for name, kind, inputs, over in self.work:
            given = [known[i] for i in inputs]
            for i in over:  # nothing here keeps a tensor longer than its last reader
                del known[i]
            y = self.run(name, kind, given)
            del given
            known[f"{name}.y"] = y  # as vdnn calls it
        return known[self.output]

    def run(self, name: str, kind: str, given: list[torch.Tensor]) -> torch.Tensor:
        """The output of one layer."""
        if kind == "Concat":
            return torch.cat(given, 1)
        if kind == "Add":
            return sum(given[1:], start=given[0])
        return self.layers[name](given[0])


class Translated(nn.Module):
    """A vdnn network, without its loss, as a row of pieces; in PyTorch's default type until it is moved to another."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        nodes = [node for node in net.nodes if not node.layer.is_loss]
        inplace = _inplace(nodes)
        self.pieces = nn.ModuleList()
        source, part = net.input.name, list[Node]()
        for i, node in enumerate(nodes):
            part.append(node)
            following = nodes[i + 1].name if i + 1 < len(nodes) else ""
            if _only(nodes, i) and following not in inplace:  # an input that is overwritten cannot be used again
                self.pieces.append(Piece(part, source, inplace))
                source, part = node.y.name, []

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take vdnn's values: {"conv1.w": (K, C, R, S), ...}."""
        with torch.no_grad():
            for name, parameter in self.by_name().items():
                parameter.copy_(torch.from_numpy(weights[name]))

    def by_name(self) -> dict[str, nn.Parameter]:
        """Every parameter under vdnn's name: {"conv1.w": (K, C, R, S), ...}."""
        layers = (item for piece in self.pieces for item in piece.layers.items())
        return {
            f"{layer}.{OWN_NAMES[own]}": parameter
            for layer, module in layers
            for own, parameter in module.named_parameters()
        }

    def parts(self) -> list[nn.Sequential]:
        """Pieces that are run again together: each block with what leads to it, or about sqrt(n) parts of a chain."""
        pieces = list(self.pieces)
        blocks = [any(kind in ("Add", "Concat") for _, kind, _, _ in piece.work) for piece in pieces]
        if not any(blocks):
            size = -(-len(pieces) // max(1, isqrt(len(pieces))))
            return [nn.Sequential(*pieces[i : i + size]) for i in range(0, len(pieces), size)]
        parts: list[list[nn.Module]] = [[]]
        for piece, is_block in zip(pieces, blocks, strict=True):
            parts[-1].append(piece)
            if is_block:
                parts.append([])
        return [nn.Sequential(*part) for part in parts if part]


def _inplace(nodes: Sequence[Node]) -> set[str]:
    """The ReLUs that may overwrite their input: nobody else reads it, and the backward of who wrote it does not."""
    readers = Counter(t.name for node in nodes for t in node.inputs)
    writer = {node.y.name: type(node.layer).__name__ for node in nodes}
    relus = [node for node in nodes if type(node.layer).__name__ == "ReLU"]
    return {n.name for n in relus if readers[n.inputs[0].name] == 1 and writer.get(n.inputs[0].name, "") in NOT_SAVED}


def _only(nodes: Sequence[Node], i: int) -> bool:
    """Whether after node `i` only its own output is still read."""
    made = {nodes[0].inputs[0].name} | {node.y.name for node in nodes[: i + 1]}
    read = {t.name for node in nodes[i + 1 :] for t in node.inputs}
    return made & read <= {nodes[i].y.name}


def first_weights(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    """{"conv1.w": (K, C, R, S), ...}: what vdnn's Trainer starts with under that seed."""
    return {name: initial(tensor, spec, seed) for name, (tensor, spec) in net.parameters.items()}
