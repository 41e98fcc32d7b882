"""onnx_model: a network and its weights from an ONNX file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from vdnn.exchange.errors import ModelError, ModelShapeError
from vdnn.exchange.onnx_building import Building
from vdnn.exchange.onnx_file import OnnxGraph, OnnxNode, read_graph
from vdnn.exchange.onnx_operators import OPERATORS
from vdnn.exchange.stored import StoredTensor
from vdnn.layers import Flatten, MeanSquaredError, SoftmaxCrossEntropy
from vdnn.layers.base import Array, Shape, ShapeError
from vdnn.network import Network

ENDING = ".onnx"
Path = str | os.PathLike[str]


@dataclass(frozen=True)
class OnnxModel:
    """What was read of an ONNX file.

    network   with a loss last: SoftmaxCrossEntropy on rows of scores, MeanSquaredError on maps
    weights   {"conv1.w": (K, C, R, S), ...}: parameters and running statistics, for Trainer.load_weights
    notes     what of the file is otherwise in the network: a softmax left out, types converted, weights untied
    """

    network: Network
    weights: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def from_onnx(path: Path, batch: int = 32, *, image: tuple[int, int, int] | None = None) -> OnnxModel:
    """The network and the weights in an ONNX file, for `batch` samples of (C, H, W) `image`; None: as the file says.

    Raises ModelError, which names the node, for operators that no layer is for, and for files that are damaged, hostile
    or not valid; or if the package onnx is not installed.  Nothing in the file is run.
    """
    building, network = _built(path, batch, image)
    weights, notes = {}, list(building.notes)
    converted = Counter(t.dtype for t in building.weights.values() if t.dtype != network.dtype)
    notes += [f"{count} weights converted from {dtype} to {network.dtype}" for dtype, count in converted.items()]
    for name, tensor in building.weights.items():
        weights[name] = _checked(building.graph, name, tensor, network.dtype)
    return OnnxModel(network, weights, tuple(notes))


def network_of_onnx(path: Path, batch: int = 32, *, image: tuple[int, int, int] | None = None) -> Network:
    """The network alone, without reading weights: enough for a plan.  Raises ModelError."""
    return _built(path, batch, image)[1]


def _built(path: Path, batch: int, image: tuple[int, int, int] | None) -> tuple[Building, Network]:
    """The building of the file's own batch, and the network for `batch`: constants of the file may hold its own."""
    graph = read_graph(path, OPERATORS)
    building = Building(graph, _shape(graph, batch, image))
    for node in graph.nodes:
        _build(building, node)
    _add_loss(building)
    _note_shared(building)
    try:
        return building, building.net.with_batch(batch)
    except ValueError as error:
        raise ModelError(f"{graph.path}: with a batch of {batch}: {error}") from error


def _build(building: Building, node: OnnxNode) -> None:
    """Put a node into the network.  Raises ModelError, whatever it is that a layer does not take."""
    try:
        OPERATORS[node.operator](building, node)
    except ModelError:
        raise
    except ShapeError as error:
        raise ModelShapeError(building.message(node, error)) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # LayerError is a ValueError
        building.fail(node, error)


def _shape(graph: OnnxGraph, batch: int, image: tuple[int, int, int] | None) -> Shape:
    own, *sizes = graph.input_shape
    shape = tuple(image) if image is not None else tuple(sizes)
    if any(size is None for size in shape):
        raise ModelError(
            f"{graph.path}: its input {graph.input} has shape {graph.input_shape}, where None is left open; say "
            "image=(C, H, W)"
        )
    return (own or batch, *(size for size in shape if size is not None))


def _add_loss(building: Building) -> None:
    graph, net = building.graph, building.net
    scores = building.tensors.get(graph.output)
    if scores is None or scores is net.input:
        raise ModelError(f"{graph.path}: its output {graph.output} is no layer's")
    if len(scores.shape) == 4 and scores.shape[2:] == (1, 1):
        scores = net.add(Flatten(), scores, name=building.free_name("flatten"))
        building.notes.append("its output (N, C, 1, 1) is taken as a row of scores, (N, C)")
    loss = SoftmaxCrossEntropy() if len(scores.shape) == 2 else MeanSquaredError()
    net.add(loss, scores, name=building.free_name("loss"))


def _note_shared(building: Building) -> None:
    """Layers have weights of their own here."""
    uses: Counter[int] = Counter()
    constants = building.graph.constants
    for name, tensor in constants.items():
        uses[id(tensor)] += building.readers[name] if tensor.is_float and prod(tensor.shape) > 1 else 0
    shared = [name for name, tensor in constants.items() if uses[id(tensor)] > 1]
    if shared:
        some = ", ".join(shared[:4]) + (", ..." if len(shared) > 4 else "")
        building.notes.append(f"{len(shared)} constants have several readers: each has a copy to train ({some})")


def _checked(graph: OnnxGraph, name: str, tensor: StoredTensor, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(tensor.read(), dtype)
    if not np.isfinite(array).all():
        raise ModelError(f"{graph.path}: values of {name} are not finite in {dtype}")
    return array
