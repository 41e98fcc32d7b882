"""onnx_operators: what each operator becomes; those with a window are in onnx_windows."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from vdnn.exchange.onnx_building import Building, Operator, transformed, vector
from vdnn.exchange.onnx_constants import FOLDED, folded
from vdnn.exchange.onnx_file import OnnxNode
from vdnn.exchange.onnx_windows import WINDOWS
from vdnn.layers import (
    Add,
    BatchNorm2d,
    Concat,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    ReLU,
    ReLU6,
    Sigmoid,
    Tanh,
    Upsample,
)
from vdnn.layers.base import Layer, Shape


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
        weights["b"] = vector(building, node, given, shape[0], beta)
    building.put(node, building.add(Linear(shape[0], "b" in weights), node, x, **weights))


def _matmul(building: Building, node: OnnxNode) -> None:
    x, b = building.x(node), building.stored(node, 1, 2)
    weights = {"w": transformed(b, b.shape[::-1], lambda a: a.T)}
    later = building.biases.get(node.outputs[0])
    if later is not None:
        weights["b"] = vector(building, node, later, b.shape[1])
    building.put(node, building.add(Linear(b.shape[1], "b" in weights), node, x, **weights))


def _batch_norm(building: Building, node: OnnxNode) -> None:
    get = node.attributes.get
    if get("training_mode", 0) or not get("spatial", 1) or any(node.outputs[1:]):
        building.fail(node, "training_mode=1, spatial=0 and further outputs are not supported; export it for inference")
    momentum = 1 - float(np.float32(get("momentum", 0.9)))  # of the old average in ONNX, of the new values here
    layer = BatchNorm2d(float(get("epsilon", 1e-5)), round(min(max(momentum, 0.0), 1.0), 7))
    names = ("w", "b", "mean", "variance")
    weights = {name: building.stored(node, i, 1) for i, name in enumerate(names, start=1)}
    building.put(node, building.add(layer, node, building.x(node), **weights))


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


def _concat(building: Building, node: OnnxNode) -> None:
    if all(name in building.constants for name in node.inputs):
        _fold(building, node)
        return
    inputs = [building.x(node, i) for i in range(len(node.inputs))]
    dimensions = len(inputs[0].shape)
    axis = node.attributes.get("axis", 1)
    if axis not in (1, 1 - dimensions):
        building.fail(node, f"axis={axis}; channels, axis 1, are supported")
    building.put(node, building.add(Concat(), node, *inputs) if len(inputs) > 1 else inputs[0])


def _flatten(building: Building, node: OnnxNode) -> None:
    x, axis = building.x(node), node.attributes.get("axis", 1)
    if axis not in (1, 1 - len(x.shape)):
        building.fail(node, f"axis={axis}; all but the samples, axis 1, is supported")
    building.put(node, building.add(Flatten(), node, x))


def _reshape(building: Building, node: OnnxNode) -> None:
    """Flatten, or nothing at all."""
    x, given = building.x(node), building.small(node, 1)
    target = tuple(given.tolist()) if given is not None else tuple(node.attributes.get("shape", ()))
    keeps = not node.attributes.get("allowzero", 0)
    sizes = [x.shape[i] if n == 0 and keeps and i < len(x.shape) else n for i, n in enumerate(target)]
    if sizes.count(-1) == 1 and (rest := -prod(sizes)) and prod(x.shape) % rest == 0:
        sizes[sizes.index(-1)] = prod(x.shape) // rest
    if tuple(sizes) == x.shape:
        building.put(node, x)
    elif tuple(sizes) == (x.shape[0], prod(x.shape[1:])):
        building.put(node, building.add(Flatten(), node, x))
    else:
        building.fail(node, f"from {x.shape} to {target}; one row for each sample is supported")


def _fold(building: Building, node: OnnxNode) -> None:
    """Arithmetic on shapes."""
    arrays = [building.small(node, i) for i, name in enumerate(node.inputs) if name]
    try:
        building.put_constant(node, folded(node, [array for array in arrays if array is not None]))
    except (ValueError, LookupError, TypeError) as error:
        building.fail(node, f"on constants: {error}")


def _shape(building: Building, node: OnnxNode) -> None:
    if "start" in node.attributes or "end" in node.attributes:
        shape = building.x(node).shape[node.attributes.get("start", 0) : node.attributes.get("end")]
    else:
        shape = building.x(node).shape
    building.put_constant(node, np.array(shape, np.int64))


def _or_fold(operator: Operator) -> Operator:
    """Arithmetic on shapes where the input is a constant, else the operator."""

    def either(building: Building, node: OnnxNode) -> None:
        (_fold if node.input(0) in building.constants else operator)(building, node)

    return either


def _cast(building: Building, node: OnnxNode) -> None:
    if node.attributes.get("to") not in (1, 10, 11, 16):
        building.fail(node, f"to type number {node.attributes.get('to')}; a floating-point one is supported")
    building.put(node, building.x(node))


def _squeezed(building: Building, node: OnnxNode) -> None:
    """(N, C, 1, 1) to (N, C)."""
    x, given = building.x(node), building.small(node, 1)
    axes = tuple(given.tolist()) if given is not None else tuple(node.attributes.get("axes", (2, 3)))
    if sorted(axis % max(len(x.shape), 1) for axis in axes) != [2, 3] or x.shape[2:] != (1, 1):
        building.fail(node, f"axes {axes} of {x.shape}; rows and columns of (N, C, 1, 1) are supported")
    building.put(node, building.add(Flatten(), node, x))


def _mean(building: Building, node: OnnxNode) -> None:
    """The mean over rows and columns."""
    x, given = building.x(node), building.small(node, 1)
    axes = tuple(given.tolist()) if given is not None else tuple(node.attributes.get("axes", ()))
    if len(x.shape) != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        building.fail(node, f"over axes {axes} of {x.shape}; rows and columns of (N, C, H, W) are supported")
    y = building.add(GlobalAvgPool2d(), node, x)
    building.put(node, y if node.attributes.get("keepdims", 1) else building.add(Flatten(), node, y, part="_flatten"))


def _softmax(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    axis = node.attributes.get("axis", 1 if building.graph.opset < 13 else -1)
    if node.outputs[0] != building.graph.output or axis not in (1, 1 - len(x.shape)):
        building.fail(node, f"axis={axis}; over axis 1, as the last operator, is supported")
    building.notes.append(f"{node} is left out: scores are what it would read, and the loss has a softmax of its own")
    building.put(node, x)


def _resize(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    if len(x.shape) != 4:
        building.fail(node, f"its input has shape {x.shape}; (N, C, H, W) would fit")
    factors, mode = _factors(building, node, x.shape), node.attributes.get("mode", "nearest")
    corners = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if node.operator == "Upsample" or building.graph.opset < 11:  # before there was a choice
        corners = "asymmetric"
    kept = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
    changed = [name for name, value in kept.items() if node.attributes.get(name, value) != value]
    if mode == "nearest" and not changed:
        rounding = node.attributes.get("nearest_mode", "floor" if building.graph.opset < 11 else "round_prefer_floor")
        if all(_repeats(factor, corners, rounding) for factor in factors):
            building.put(node, building.add(Upsample(factors, "nearest"), node, x))
            return
        mode = f"nearest with {rounding}"
    if mode == "linear" and not changed and corners in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        layer = Upsample(factors, "bilinear", align_corners=corners == "align_corners")
        building.put(node, building.add(layer, node, x))
        return
    building.fail(
        node,
        f"mode {mode}, {corners}{', ' + ', '.join(changed) if changed else ''}; supported are nearest where it repeats "
        "every element, and linear with half_pixel or align_corners",
    )


def _factors(building: Building, node: OnnxNode, x: Shape) -> tuple[int, int]:
    """By how much rows and columns grow, whole numbers."""
    old = node.operator == "Upsample" or building.graph.opset < 11
    given, sizes = building.small(node, 1 if old else 2), None if old else building.small(node, 3)
    scales = given.tolist() if given is not None and given.size else list(node.attributes.get("scales", ()))
    if sizes is not None:
        scales = [size / n for size, n in zip(sizes.tolist(), x, strict=False)]
    if len(scales) != 4 or tuple(scales[:2]) != (1, 1) or any(s < 1 or s != int(s) for s in scales[2:]):
        building.fail(node, f"scales {scales}; (1, 1, r, s) of whole numbers would fit")
    return int(scales[2]), int(scales[3])


def _repeats(factor: int, corners: str, rounding: str) -> bool:
    """Whether each element is just repeated so many times: looked at on four of them, as the pattern repeats."""
    y = np.arange(4 * factor)
    places = {"asymmetric": y / factor, "half_pixel": (y + 0.5) / factor - 0.5}
    x = places.get(corners.removeprefix("pytorch_"))
    if x is None:
        return False
    rounded = {
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
    }
    return rounding in rounded and np.array_equal(np.clip(rounded[rounding], 0, 3), y // factor)


OPERATORS: Mapping[str, Operator] = {
    **WINDOWS,
    **dict.fromkeys(FOLDED, _fold),
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Cast": _or_fold(_cast),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _identity,  # read with the file
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "Identity": _identity,
    "LRN": _lrn,
    "LeakyRelu": _leaky,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "ReduceMean": _mean,
    "Relu": _plain(ReLU),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _plain(Sigmoid),
    "Softmax": _softmax,
    "Squeeze": _or_fold(_squeezed),
    "Sum": _add,
    "Tanh": _plain(Tanh),
    "Upsample": _resize,
}
