"""onnx_constants: arithmetic on shapes, which exporters leave in a graph, done while it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vdnn.exchange.onnx_file import OnnxNode
from vdnn.layers.base import Array

LARGEST = 64  # elements: shapes, not weights


def _axes(node: OnnxNode, arrays: list[Array]) -> tuple[int, ...]:
    """An attribute until opset 12, an input since then."""
    return tuple(node.attributes["axes"] if "axes" in node.attributes else arrays[1].tolist())


def _unsqueeze(node: OnnxNode, arrays: list[Array]) -> Array:
    return np.expand_dims(arrays[0], _axes(node, arrays))


def _squeeze(node: OnnxNode, arrays: list[Array]) -> Array:
    has_axes = "axes" in node.attributes or len(arrays) > 1
    return np.squeeze(arrays[0], _axes(node, arrays) if has_axes else None)


def _slice(node: OnnxNode, arrays: list[Array]) -> Array:
    if "starts" in node.attributes:
        starts, ends = (node.attributes[key] for key in ("starts", "ends"))
    else:
        starts, ends = arrays[1].tolist(), arrays[2].tolist()
    if len(starts) != 1 or arrays[0].ndim != 1 or any(array.tolist() != [1] for array in arrays[4:5]):
        raise ValueError("a slice of more than one axis, or with steps")
    return arrays[0][starts[0] : ends[0]]


FOLDED: Mapping[str, Callable[[OnnxNode, list[Array]], Any]] = {
    "Cast": lambda node, arrays: arrays[0],
    "Concat": lambda node, arrays: np.concatenate(arrays),
    "Gather": lambda node, arrays: np.take(arrays[0], arrays[1], node.attributes.get("axis", 0)),
    "Mul": lambda node, arrays: arrays[0] * arrays[1],
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def folded(node: OnnxNode, arrays: list[Array]) -> Array:
    """What the node makes of these constants, all integers.  Raises ValueError, LookupError, TypeError."""
    if any(array.dtype.kind != "i" or array.size > LARGEST for array in arrays):
        raise ValueError(f"constants that are no shape: {', '.join(f'{a.dtype}{list(a.shape)}' for a in arrays)}")
    return np.asarray(FOLDED[node.operator](node, arrays), np.int64)
