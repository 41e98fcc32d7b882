"""onnx_shapes: the operators that join, flatten, average and enlarge; and arithmetic on shapes."""

from __future__ import annotations

from math import prod

import numpy as np

from vdnn.exchange.onnx_building import Building, Operator, Operators
from vdnn.exchange.onnx_constants import FOLDED, folded
from vdnn.exchange.onnx_file import OnnxNode
from vdnn.layers import Concat, Flatten, GlobalAvgPool2d, Upsample
from vdnn.layers.base import Shape

FACTORS = range(1, 1025)  # by which maps are enlarged


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
    if len(scales) != 4 or tuple(scales[:2]) != (1, 1) or any(s not in FACTORS for s in scales[2:]):
        building.fail(node, f"scales {scales}; (1, 1, r, s) of whole numbers up to {FACTORS[-1]} would fit")
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


SHAPES: Operators = {
    **dict.fromkeys(FOLDED, _fold),
    "Cast": _or_fold(_cast),
    "Concat": _concat,
    "Flatten": _flatten,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Squeeze": _or_fold(_squeezed),
    "Upsample": _resize,
}
