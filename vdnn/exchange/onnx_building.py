"""onnx_building: a network that grows operator by operator, and where its weights come from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import NoReturn

import numpy as np

from vdnn.exchange.errors import ModelError, ModelShapeError
from vdnn.exchange.onnx_file import OnnxGraph, OnnxNode
from vdnn.exchange.stored import StoredTensor
from vdnn.layers.base import Array, Layer, Shape
from vdnn.network import Network, Tensor

LARGEST = 2**40  # elements of a map, 4 TiB: no machine has it, and later arithmetic is spared it
Weights = Mapping[str, StoredTensor]
NONE: Weights = MappingProxyType({})
SMALL = 4096  # elements of a constant that is looked at while the network is made


def transformed(tensor: StoredTensor, shape: Shape, change: Callable[[Array], Array]) -> StoredTensor:
    """The tensor after `change`, which gives it that shape; done when it is read."""
    return replace(tensor, shape=shape, read=lambda: change(tensor.read()))


class Building:
    """What has been read of a graph: the network so far, values by their names in the graph, and weights to be read.

    net       the network
    tensors   {value: tensor of the network}
    constants {value: constant}
    weights   {name of a parameter or statistic: constant}
    notes     what a user should know
    biases    {output of a node: constant that a later Add adds to it}, which the node's layer takes as its bias
    """

    def __init__(self, graph: OnnxGraph, shape: Shape) -> None:
        self.graph = graph
        self.net = Network(shape, name=graph.path.name)
        self.tensors: dict[str, Tensor] = {graph.input: self.net.input}
        self.constants = dict(graph.constants)
        self.weights: dict[str, StoredTensor] = {}
        self.notes: list[str] = []
        self.readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter([graph.output])
        self.biases = self._biases()

    def _biases(self) -> dict[str, StoredTensor]:
        """Exporters write a bias as an Add of its own, after MatMul always."""
        makers = {n.outputs[0]: n for n in self.graph.nodes if n.operator in ("MatMul", "Conv", "ConvTranspose")}
        found = {}
        for node in self.graph.nodes:
            if node.operator != "Add":
                continue
            for value, other in (node.inputs, node.inputs[::-1]):
                maker = makers.get(value)
                if maker and other in self.constants and self.readers[value] == 1 and not maker.input(2):
                    found[value] = self.constants[other]
        return found

    def fail(self, node: OnnxNode, why: object) -> NoReturn:
        """Raise ModelError that names the node."""
        raise ModelError(self.message(node, why))

    def message(self, node: OnnxNode, why: object) -> str:
        """What is wrong, and with which node of which file."""
        return f"{self.graph.path}: {node}: {why}"

    def x(self, node: OnnxNode, i: int = 0) -> Tensor:
        """The network's tensor that is the i-th input.  Raises ModelError for a constant."""
        name = node.input(i)
        if name not in self.tensors:
            what = "a constant" if name in self.constants else "not there" if name else "left out"
            self.fail(node, f"its input {i + 1} ({name[:60]!r}) is {what}; what layers make is needed")
        return self.tensors[name]

    def stored(self, node: OnnxNode, i: int, dimensions: int) -> StoredTensor:
        """The constant of so many dimensions that is the i-th input: a weight.  Raises ModelError."""
        found = self.constants.get(node.input(i))
        if found is None or len(found.shape) != dimensions or not found.is_float:
            what = f"of shape {found.shape}, type {found.dtype}" if found else "no constant"
            needed = f"a weight of {dimensions} dimensions in the file is needed"
            self.fail(node, f"its input {i + 1} ({node.input(i)[:60]!r}) is {what}; {needed}")
        return found

    def small(self, node: OnnxNode, i: int) -> Array | None:
        """The constant that is the i-th input, None if it is left out.  Raises ModelError for what is computed."""
        name = node.input(i)
        if not name:
            return None
        found = self.constants.get(name)
        if found is None or prod(found.shape) > SMALL:
            self.fail(node, f"its input {i + 1} ({name[:60]!r}) is computed or large; a small constant is needed")
        return found.read()

    def add(self, layer: Layer, node: OnnxNode, *inputs: Tensor, weights: Weights = NONE, part: str = "") -> Tensor:
        """Put a layer under the node's name, with its weights by the layer's names of them; returns its output.

        part   after the node's name, for a layer that is not all of it

        Raises ModelError, LayerError, ShapeError.
        """
        y = self.net.add(layer, *inputs, name=self.free_name(node.name + part))
        if prod(y.shape) > LARGEST:
            self.fail(node, f"its output {y.shape} is larger than {LARGEST:,} elements")
        made = self.net.nodes[-1]
        own = {**made.parameters, **made.statistics}
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                needed = f"{name} has shape {tensor.shape}; {own[name].shape} would fit its input {inputs[0].shape}"
                raise ModelShapeError(self.message(node, needed))
            self.weights[own[name].name] = tensor
        return y

    def put(self, node: OnnxNode, y: Tensor) -> None:
        """Note that the node's output is `y`."""
        self.tensors[node.outputs[0]] = y

    def put_constant(self, node: OnnxNode, value: Array) -> None:
        """Note that the node's output is this constant."""
        self.constants[node.outputs[0]] = StoredTensor(value.shape, value.dtype.name, lambda: value)

    def free_name(self, wanted: str) -> str:
        """A layer's name like the node's: no dots, slashes or spaces, and not one that is taken."""
        base = re.sub(r"\W+", "_", wanted).strip("_")[:100]
        if not base or base.isdigit() or base in ("input", "labels", "clock"):
            base = f"node_{base}".rstrip("_")
        taken, name, number = {node.name for node in self.net.nodes}, base, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        return name


def vector(
    building: Building, node: OnnxNode, tensor: StoredTensor, count: int, rank: int, factor: float = 1.0
) -> StoredTensor:
    """A bias for `count` channels, of a constant that broadcasts to them in a tensor of that rank, whose axis 1 they
    are.  Raises ModelError.
    """
    aligned = (1,) * (rank - len(tensor.shape)) + tensor.shape  # as ONNX broadcasts: from the right
    wanted = (1, count, *[1] * (rank - 2))
    if not tensor.is_float or aligned not in (wanted, (1,) * rank):
        needed = f"one number for each of {count} channels, {wanted}, would fit"
        building.fail(node, f"adds {tensor.dtype} of shape {tensor.shape}; {needed}")

    def change(array: Array) -> Array:
        return np.broadcast_to(array.reshape(-1) * array.dtype.type(factor), (count,)).copy()

    return transformed(tensor, (count,), change)


Operator = Callable[[Building, OnnxNode], None]
Operators = Mapping[str, Operator]
