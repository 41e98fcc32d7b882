"""onnx_file: an ONNX file, parsed by the onnx package and checked: its operators, its constants, where its data lie."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.exchange.errors import ModelError
from vdnn.exchange.onnx_tensors import LARGEST, TYPES, constant
from vdnn.exchange.stored import FLOATS, StoredTensor

OPSETS = (7, 26)  # of ONNX's own operators: the first and the last whose definitions were read for this
DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxNode:
    """An operator in its graph; an input that is left out is ""."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} {self.name:.100}"

    def input(self, i: int) -> str:
        """The name of the i-th input, "" if it is left out."""
        return self.inputs[i] if i < len(self.inputs) else ""


@dataclass(frozen=True)
class OnnxGraph:
    """A graph of one input and one output, every node after those that it reads; what is not read is left out.

    input_shape   None for a size that the file leaves open
    constants     initializers and Constant nodes
    """

    path: Path
    opset: int
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, StoredTensor]
    input: str
    input_shape: tuple[int | None, ...]
    output: str


def onnx_package() -> Any:
    """The onnx package.  Raises ModelError that says how to install it."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ModelError("to read ONNX files takes the package onnx: pip install 'vdnn[onnx]'") from error
    return onnx


def read_graph(path: str | os.PathLike[str], supported: Collection[str]) -> OnnxGraph:
    """The graph of the file at `path`.

    Raises ModelError: no such file, damaged, not valid, another opset than one of `OPSETS`, an operator that is not in
    `supported`, more than one input or output, or constants whose data are not what their shapes say.
    """
    onnx, file = onnx_package(), Path(path)
    model = _parsed(onnx, file)
    opset = _opset(file, model)
    graph = model.graph
    _refuse_other_text(file, graph)
    given = {tensor.name: constant(onnx, file, tensor) for tensor in graph.initializer}
    nodes = [_node(onnx, file, node, i) for i, node in enumerate(graph.node)]
    _refuse_operators(file, graph.node, nodes, supported)
    _check(onnx, file)
    outputs = [value.name for value in graph.output]
    if len(outputs) != 1:
        raise ModelError(f"{file} has {len(outputs)} outputs ({', '.join(outputs)[:200]}); one is supported")
    needed = _needed(nodes, outputs[0])
    constants = given | {
        node.outputs[0]: _constant_of(onnx, file, node) for node in needed if node.operator == "Constant"
    }
    nodes = _without_constants(needed, constants)
    name, shape = _input(file, graph, given)
    return OnnxGraph(file, opset, tuple(nodes), constants, name, shape, outputs[0])


def _parsed(onnx: Any, path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path} is no file")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own, which is none of onnx
        size = path.stat().st_size
        raise ModelError(f"{path} ({size:,} bytes) is truncated or no ONNX file: {error}") from error
    if not model.graph.node:
        raise ModelError(f"{path} ({path.stat().st_size:,} bytes) is truncated or no ONNX file: it has no operators")
    return model


def _refuse_other_text(path: Path, graph: Any) -> None:
    """Raise ModelError for names that are no UTF-8, which come as bytes."""
    names = [value.name for values in (graph.initializer, graph.input, graph.output) for value in values]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelError(f"{path} is damaged: the name {wrong!r:.60} is no text")


def _opset(path: Path, model: Any) -> int:
    """The version of ONNX's own operators.  Raises ModelError."""
    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    least, most = OPSETS
    if not versions:
        raise ModelError(f"{path} is truncated, or does not say which opset it is of; {least} to {most} are read")
    if not least <= versions[0] <= most:
        raise ModelError(
            f"{path} is of opset {versions[0]}; {least} to {most} are read; "
            "onnx.version_converter.convert_version makes one of another"
        )
    return int(versions[0])


def _node(onnx: Any, path: Path, node: Any, number: int) -> OnnxNode:
    name = node.name or (node.output[0] if node.output else "") or f"number {number + 1}"
    try:
        attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {node.op_type} {name}: its attributes cannot be read: {error}") from error
    return OnnxNode(name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _plain(value: Any) -> Any:
    """Text as text; numbers of several as a tuple."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return tuple(value) if isinstance(value, list) else value


def _refuse_operators(path: Path, protos: Any, nodes: list[OnnxNode], supported: Collection[str]) -> None:
    """Raise ModelError with every operator that is not supported, and where it is first."""
    first: dict[str, str] = {}
    for proto, node in zip(protos, nodes, strict=True):
        name = node.operator if proto.domain in DOMAINS else f"{proto.domain}::{node.operator}"
        if name not in supported:
            first.setdefault(name, node.name)
    if first:
        found = ", ".join(f"{name} (node {node})" for name, node in list(first.items())[:6])
        raise ModelError(f"{path}: {found}: not supported; supported are {', '.join(sorted(supported))}")


def _check(onnx: Any, path: Path) -> None:
    """Raise ModelError for what ONNX's own checker refuses: cycles, names used twice, wrong attributes."""
    try:
        onnx.checker.check_model(os.fspath(path))
    except Exception as error:
        first = str(error).strip().splitlines()[:2]
        raise ModelError(f"{path} is no valid model: {' '.join(first)[:300]}") from error


def _needed(nodes: list[OnnxNode], output: str) -> list[OnnxNode]:
    """The nodes that the output follows from, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted |= set(node.inputs) - {""}
            kept.append(node)
    return kept[::-1]


def _without_constants(nodes: list[OnnxNode], constants: dict[str, StoredTensor]) -> list[OnnxNode]:
    """The nodes without those that only name a constant again, which are noted in `constants`."""
    kept = []
    for node in nodes:
        if node.operator == "Identity" and node.inputs[0] in constants:
            constants[node.outputs[0]] = constants[node.inputs[0]]
        elif node.operator != "Constant":
            kept.append(node)
    return kept


def _input(path: Path, graph: Any, given: Mapping[str, StoredTensor]) -> tuple[str, tuple[int | None, ...]]:
    """(name, shape) of what is no initializer."""
    inputs = [value for value in graph.input if value.name not in given]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)[:200]
        raise ModelError(f"{path} has {len(inputs)} inputs ({names}); one is supported")
    kind = inputs[0].type.tensor_type
    name, dtype = inputs[0].name, TYPES.get(kind.elem_type, f"number {kind.elem_type}")
    if dtype not in FLOATS:
        raise ModelError(f"{path}: its input {name} is of type {dtype}, not of a floating-point one")
    sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    if len(sizes) != 4 or any(size is not None and not 1 <= size <= LARGEST for size in sizes):
        raise ModelError(f"{path}: its input {name} has shape {sizes}; (N, C, H, W) of 1 to {LARGEST} would fit")
    return name, sizes


def _constant_of(onnx: Any, path: Path, node: OnnxNode) -> StoredTensor:
    """The value of a Constant node."""
    kind, value = next(iter(node.attributes.items()), ("nothing", None))
    if kind == "value":
        return constant(onnx, path, value)
    if kind not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise ModelError(f"{path}: {node}: a constant of {kind}; numbers would do")
    array = np.asarray(value, np.float32 if "float" in kind else np.int64)
    return StoredTensor(array.shape, array.dtype.name, lambda: array)
