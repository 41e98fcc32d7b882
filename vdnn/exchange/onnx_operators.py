"""onnx_operators: what each operator becomes; more are in onnx_windows and onnx_shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vdnn.exchange.onnx_building import Building, Operator, transformed, vector
from vdnn.exchange.onnx_file import OnnxNode
from vdnn.exchange.onnx_shapes import SHAPES
from vdnn.exchange.onnx_windows import WINDOWS
from vdnn.layers import (
    Add,
    BatchNorm2d,
    Dropout,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    ReLU,
    ReLU6,
    Sigmoid,
    Tanh,
)
from vdnn.layers.base import Layer


def _plain(kind: type[Layer]) -> Operator:
    """The operator is just that layer, without arguments."""

    def operator(building: Building, node: OnnxNode) -> None:
        building.put(node, building.add(kind(), node, building.x(node)))

    return operator


def _leaky(building: Building, node: OnnxNode) -> None:
    building.put(node, building.add(LeakyReLU(node.attributes.get("alpha", 0.01)), node, building.x(node)))


def _clip(building: Building, node: OnnxNode) -> None:
    """An attribute until opset 10, an input since then."""
    limits = []
    for i, name in enumerate(("min", "max"), start=1):
        given = building.small(node, i)
        limits.append(float(given.reshape(-1)[0]) if given is not None else node.attributes.get(name))
    low, high = limits
    endless = high is None or high >= np.finfo(np.float32).max
    if low != 0 or not (endless or high == 6):
        building.fail(node, f"between {low} and {high}; 0 and 6, or 0 and no end, are supported")
    building.put(node, building.add(ReLU() if endless else ReLU6(), node, building.x(node)))


def _gemm(building: Building, node: OnnxNode) -> None:
    """alpha and beta are multiplied into the weights."""
    x, b = building.x(node), building.stored(node, 1, 2)
    if node.attributes.get("transA", 0):
        building.fail(node, "transA=1 is not supported: samples are rows")
    alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    transposed = bool(node.attributes.get("transB", 0))
    shape = b.shape if transposed else b.shape[::-1]
    weights = {"w": transformed(b, shape, lambda a: (a if transposed else a.T) * a.dtype.type(alpha))}
    if node.input(2):
        given = building.constants.get(node.input(2))
        if given is None:
            building.fail(node, f"its input 3 ({node.input(2)[:60]!r}) is no constant; a bias in the file is needed")
        weights["b"] = vector(building, node, given, shape[0], 2, beta)
    building.put(node, building.add(Linear(shape[0], "b" in weights), node, x, weights=weights))


def _matmul(building: Building, node: OnnxNode) -> None:
    x, b = building.x(node), building.stored(node, 1, 2)
    weights = {"w": transformed(b, b.shape[::-1], lambda a: a.T)}
    later = building.biases.get(node.outputs[0])
    if later is not None:
        weights["b"] = vector(building, node, later, b.shape[1], 2)
    building.put(node, building.add(Linear(b.shape[1], "b" in weights), node, x, weights=weights))


def _batch_norm(building: Building, node: OnnxNode) -> None:
    get = node.attributes.get
    if get("training_mode", 0) or not get("spatial", 1) or any(node.outputs[1:]):
        building.fail(node, "training_mode=1, spatial=0 and further outputs are not supported; export it for inference")
    momentum = 1 - float(np.float32(get("momentum", 0.9)))  # of the old average in ONNX, of the new values here
    layer = BatchNorm2d(float(get("epsilon", 1e-5)), round(min(max(momentum, 0.0), 1.0), 7))
    names = ("w", "b", "mean", "variance")
    weights = {name: building.stored(node, i, 1) for i, name in enumerate(names, start=1)}
    building.put(node, building.add(layer, node, building.x(node), weights=weights))


def _lrn(building: Building, node: OnnxNode) -> None:
    get = node.attributes.get
    size = get("size", 0)
    if size % 2 == 0:
        building.fail(node, f"size={size}; an odd one is supported, as an even one has its window elsewhere")
    layer = LocalResponseNorm(size, float(get("alpha", 1e-4)), float(get("beta", 0.75)), float(get("bias", 1.0)))
    building.put(node, building.add(layer, node, building.x(node)))


def _dropout(building: Building, node: OnnxNode) -> None:
    if any(building.readers[name] for name in node.outputs[1:] if name):
        building.fail(node, "its second output, the mask, is not supported")
    given = building.small(node, 1)
    p = float(given.reshape(-1)[0]) if given is not None else float(node.attributes.get("ratio", 0.5))
    building.put(node, building.add(Dropout(p), node, building.x(node)))


def _identity(building: Building, node: OnnxNode) -> None:
    building.put(node, building.x(node))


def _add(building: Building, node: OnnxNode) -> None:
    merged = [name for name in node.inputs if name in building.biases]
    if merged:  # the layer before has this as its bias
        building.put(node, building.tensors[merged[0]])
    elif len(node.inputs) == 1:
        _identity(building, node)
    else:
        inputs = [building.x(node, i) for i in range(len(node.inputs))]
        building.put(node, building.add(Add(), node, *inputs))


def _softmax(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    axis = node.attributes.get("axis", 1 if building.graph.opset < 13 else -1)
    if node.outputs[0] != building.graph.output or axis not in (1, 1 - len(x.shape)):
        building.fail(node, f"axis={axis}; over axis 1, as the last operator, is supported")
    building.notes.append(f"{node} is left out: scores are what it would read, and the loss has a softmax of its own")
    building.put(node, x)


OPERATORS: Mapping[str, Operator] = {
    **WINDOWS,
    **SHAPES,
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Constant": _identity,  # read with the file
    "Dropout": _dropout,
    "Gemm": _gemm,
    "Identity": _identity,
    "LRN": _lrn,
    "LeakyRelu": _leaky,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Relu": _plain(ReLU),
    "Sigmoid": _plain(Sigmoid),
    "Softmax": _softmax,
    "Sum": _add,
    "Tanh": _plain(Tanh),
}
