"""onnx_windows: the operators with a window: convolutions, pooling and padding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vdnn.exchange.onnx_building import Building, Operators, vector
from vdnn.exchange.onnx_file import OnnxNode
from vdnn.exchange.onnx_tensors import LARGEST
from vdnn.exchange.stored import StoredTensor
from vdnn.layers import AvgPool2d, ConstantPad2d, Conv2d, ConvTranspose2d, GlobalAvgPool2d, MaxPool2d
from vdnn.layers.base import Shape
from vdnn.network import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """A window and its padding: `begin` before the rows and columns, `end` after them."""

    kernel: Pair
    stride: Pair
    begin: Pair
    end: Pair
    dilation: Pair

    @property
    def is_even(self) -> bool:
        """Whether both ends of each axis are padded alike."""
        return self.begin == self.end


def _pair(building: Building, node: OnnxNode, name: str, default: Pair, least: int) -> Pair:
    value = node.attributes.get(name, default)
    if len(value) != 2 or not all(least <= n <= LARGEST for n in value):
        building.fail(node, f"{name}={value}; two numbers of {least} to {LARGEST} would fit")
    return value[0], value[1]


def _geometry(building: Building, node: OnnxNode, x: Shape, kernel: Pair | None = None) -> Geometry:
    """The node's window on x: (N, C, H, W).  `kernel` None: as an attribute says."""
    if len(x) != 4:
        building.fail(node, f"its input has shape {x}; (N, C, H, W) would fit")
    if kernel is None or "kernel_shape" in node.attributes:
        given = _pair(building, node, "kernel_shape", (0, 0), 1)
        if kernel not in (None, given):
            building.fail(node, f"kernel_shape={given}, but its weight is of {kernel}")
        kernel = given
    stride = _pair(building, node, "strides", (1, 1), 1)
    dilation = _pair(building, node, "dilations", (1, 1), 1)
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        needed = [_same(x[i + 2], kernel[i], stride[i], dilation[i]) for i in (0, 1)]
        few, many = (needed[0] // 2, needed[1] // 2), (-(-needed[0] // 2), -(-needed[1] // 2))
        begin, end = (few, many) if mode == "SAME_UPPER" else (many, few)
        return Geometry(kernel, stride, begin, end, dilation)
    if mode not in ("NOTSET", "VALID", ""):
        building.fail(node, f"auto_pad={mode!r} is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    pads = node.attributes.get("pads", (0, 0, 0, 0)) if mode != "VALID" else (0, 0, 0, 0)
    if len(pads) != 4 or not all(0 <= n <= LARGEST for n in pads):
        building.fail(node, f"pads={pads}; four numbers of 0 to {LARGEST} would fit")
    return Geometry(kernel, stride, (pads[0], pads[1]), (pads[2], pads[3]), dilation)


def _same(size: int, kernel: int, stride: int, dilation: int) -> int:
    """How much padding makes of `size` elements size / stride, rounded up."""
    return max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)


def _padded(building: Building, node: OnnxNode, x: Tensor, geometry: Geometry, value: float) -> tuple[Tensor, Geometry]:
    """x with a layer of its own for the padding, and the window that is left to do."""
    (top, left), (bottom, right) = geometry.begin, geometry.end
    y = building.add(ConstantPad2d((left, right, top, bottom), value), node, x, part="_pad")
    return y, replace(geometry, begin=(0, 0), end=(0, 0))


def _conv(building: Building, node: OnnxNode) -> None:
    x, w = building.x(node), building.stored(node, 1, 4)
    geometry = _geometry(building, node, x.shape, (w.shape[2], w.shape[3]))
    if not geometry.is_even:
        x, geometry = _padded(building, node, x, geometry, 0.0)
    weights = {"w": w} | _bias(building, node, w.shape[0])
    arguments = (geometry.stride, geometry.begin, geometry.dilation, node.attributes.get("group", 1), "b" in weights)
    building.put(node, building.add(Conv2d(w.shape[0], geometry.kernel, *arguments), node, x, weights=weights))


def _bias(building: Building, node: OnnxNode, count: int) -> dict[str, StoredTensor]:
    if node.input(2):
        return {"b": vector(building, node, building.stored(node, 2, 1), count, 2)}
    later = building.biases.get(node.outputs[0])
    return {} if later is None else {"b": vector(building, node, later, count, 4)}


def _conv_transpose(building: Building, node: OnnxNode) -> None:
    x, w = building.x(node), building.stored(node, 1, 4)
    if "output_shape" in node.attributes or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", ""):
        building.fail(node, "output_shape and auto_pad are not supported; pads and output_padding are")
    geometry = _geometry(building, node, x.shape, (w.shape[2], w.shape[3]))
    extra = _pair(building, node, "output_padding", (0, 0), 0)
    # less padding at the end is more output there
    beyond = [extra[i] + geometry.begin[i] - geometry.end[i] for i in (0, 1)]
    if any(not 0 <= beyond[i] < geometry.stride[i] for i in (0, 1)):
        building.fail(
            node,
            f"pads {geometry.begin} before and {geometry.end} after, output_padding {extra}: the output's end may go "
            f"beyond its begin by 0 to {geometry.stride[0] - 1} rows and {geometry.stride[1] - 1} columns",
        )
    groups = node.attributes.get("group", 1)
    count = w.shape[1] * groups
    weights = {"w": w} | _bias(building, node, count)
    arguments = (geometry.stride, geometry.begin, (beyond[0], beyond[1]), groups, "b" in weights, geometry.dilation)
    building.put(node, building.add(ConvTranspose2d(count, geometry.kernel, *arguments), node, x, weights=weights))


def _max_pool(building: Building, node: OnnxNode) -> None:
    if any(building.readers[name] for name in node.outputs[1:] if name):
        building.fail(node, "its second output, Indices, is not supported")
    x = building.x(node)
    geometry = _geometry(building, node, x.shape)
    x, geometry = _pooled(building, node, x, geometry, float("-inf"))
    ceil_mode = bool(node.attributes.get("ceil_mode", 0))
    layer = (geometry.kernel, geometry.stride, geometry.begin, geometry.dilation, ceil_mode)
    building.put(node, building.add(MaxPool2d(*layer), node, x))


def _average_pool(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    geometry, counted = _geometry(building, node, x.shape), bool(node.attributes.get("count_include_pad", 0))
    if geometry.dilation != (1, 1):
        building.fail(node, f"dilations={geometry.dilation}; an average without dilation is supported")
    if not counted and not geometry.is_even:
        building.fail(
            node,
            f"pads {geometry.begin} before and {geometry.end} after, which differ, with count_include_pad=0; equal "
            "pads, or count_include_pad=1, are supported",
        )
    if counted:
        x, geometry = _pooled(building, node, x, geometry, 0.0)
    ceil_mode = bool(node.attributes.get("ceil_mode", 0))
    layer = (geometry.kernel, geometry.stride, geometry.begin, ceil_mode, counted)
    building.put(node, building.add(AvgPool2d(*layer), node, x))


def _pooled(building: Building, node: OnnxNode, x: Tensor, geometry: Geometry, value: float) -> tuple[Tensor, Geometry]:
    """x and the window, with the padding in a layer of its own where the two ends differ."""
    if geometry.is_even:
        return x, geometry
    if node.attributes.get("ceil_mode", 0):
        begin, end = geometry.begin, geometry.end
        building.fail(node, f"pads {begin} before and {end} after: with ceil_mode they may not differ")
    return _padded(building, node, x, geometry, value)


def _global_average(building: Building, node: OnnxNode) -> None:
    building.put(node, building.add(GlobalAvgPool2d(), node, building.x(node)))


def _global_max(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    building.put(node, building.add(MaxPool2d(x.shape[2:]), node, x))


def _pad(building: Building, node: OnnxNode) -> None:
    x = building.x(node)
    given = building.small(node, 1)
    pads = tuple(given.tolist()) if given is not None else node.attributes.get("pads", ())
    filled = building.small(node, 2)
    value = float(filled.reshape(-1)[0]) if filled is not None and filled.size else node.attributes.get("value", 0.0)
    mode = node.attributes.get("mode", "constant")
    if mode != "constant" or node.input(3) or len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or min(pads) < 0:
        building.fail(node, f"mode={mode!r}, pads {pads}; constants around rows and columns are supported")
    if not any(pads):
        building.put(node, x)
        return
    building.put(node, building.add(ConstantPad2d((pads[3], pads[7], pads[2], pads[6]), value), node, x))


WINDOWS: Operators = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
    "Pad": _pad,
}
