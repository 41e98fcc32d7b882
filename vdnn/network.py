"""Network: layers laid out over tensors, shapes inferred as they are added."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod

import numpy as np

from vdnn.layers.base import Layer, LayerError, Shape, ShapeError, Shapes, Spec
from vdnn.naming import hint

MOST_SAMPLES = 1 << 24  # of a batch: what can still be planned in seconds


class Role(StrEnum):
    """What a tensor is for; memory is reported by role."""

    INPUT = "input"
    FEATURE = "feature map"
    GRADIENT = "gradient map"
    WEIGHT = "weight"
    WEIGHT_GRADIENT = "weight gradient"
    STATE = "optimizer state"
    STATISTICS = "statistics"
    WORKSPACE = "workspace"


@dataclass(frozen=True)
class Tensor:
    """A named array: its shape is logical, (N, C, H, W) or (K, C, R, S), whatever the storage."""

    name: str
    shape: Shape
    dtype: str
    role: Role

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the data itself, without padding."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def __repr__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Node:
    """A layer in its place: its input tensors and all tensors of its own."""

    name: str
    layer: Layer
    inputs: tuple[Tensor, ...]
    shapes: Shapes
    y: Tensor
    parameters: Mapping[str, Tensor]
    saved: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Logical shapes of the inputs, in order."""
        return tuple(t.shape for t in self.inputs)

    @property
    def x(self) -> dict[str, Tensor]:
        """Inputs by the names that the layer's methods use: x, or x0, x1, ..."""
        if self.layer.inputs == 1:
            return {"x": self.inputs[0]}
        return {f"x{i}": t for i, t in enumerate(self.inputs)}


def _checked(shape: Shape) -> Shape:
    """`shape` as plain integers.  Raises ShapeError."""
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 1:
        raise ShapeError(f"a network takes (batch, ...) of positive integers, such as (64, 3, 32, 32); got {shape}")
    if sizes[0] > MOST_SAMPLES:
        raise ShapeError(f"a batch has at most {MOST_SAMPLES} samples; got {sizes[0]}")
    return sizes


class Network:
    """A feed-forward network for one batch size; `net.with_batch(n)` is the same network for another.

    >>> net = Network((64, 3, 32, 32))
    >>> x = net.add(Conv2d(64, 3, padding=1, name="conv1"), net.input)
    >>> x = net.add(ReLU(), x)                            # named relu1

    Any tensor may feed several layers.  The last layer that is not a loss gives the scores.
    """

    def __init__(self, shape: Shape, dtype: str = "float32", name: str = "network") -> None:
        shape = _checked(shape)
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype {dtype!r} is not float32 or float64 (for checks)")
        self.name = name
        self.dtype = dtype
        self.input = Tensor("input", shape, dtype, Role.INPUT)
        self.labels: Tensor | None = None
        self.nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {"input": self.input}
        self._by_name: dict[str, Node] = {}
        self._layers: Counter[type[Layer]] = Counter()
        self._objects: set[int] = set()  # ids of the layers; nodes keep them alive

    @property
    def batch(self) -> int:
        """Samples in a full batch."""
        return self.input.shape[0]

    def add(self, layer: Layer, *inputs: Tensor, name: str = "") -> Tensor:
        """Put `layer` on `inputs`; returns its output.

        Raises ShapeError if the inputs do not suit the layer, LayerError if its signatures are wrong or its name is
        taken, ValueError if an input belongs to another network.
        """
        if not isinstance(layer, Layer):
            raise TypeError(f"{layer!r} is not a vdnn.Layer; did you mean {getattr(layer, '__name__', 'Layer')}()?")
        if name and layer.name not in ("", name):
            raise LayerError(
                f"{layer} has two names, {layer.name!r} and {name!r}: one of its own, or from the network that it was "
                "added to before, and one to be added under; what is random follows from the name, so give one"
            )
        name = name or layer.name or self._number(layer)
        self._check_inputs(name, layer, inputs)
        shapes = self._shapes(name, layer, inputs)
        node = Node(
            name,
            layer,
            inputs,
            shapes,
            Tensor(f"{name}.y", shapes.y, self.dtype, Role.FEATURE),
            self._own(name, shapes.parameters, Role.WEIGHT),
            self._own(name, shapes.saved, Role.FEATURE),
            self._own(name, shapes.statistics, Role.STATISTICS),
        )
        if shapes.labels is not None and layer.is_loss:
            self.labels = Tensor("labels", shapes.labels.shape, shapes.labels.dtype or self.dtype, Role.INPUT)
        self.nodes.append(node)
        self._by_name[name] = node
        self._layers[type(layer)] += 1
        self._objects.add(id(layer))
        self._tensors[node.y.name] = node.y
        return node.y

    def _shapes(self, name: str, layer: Layer, inputs: tuple[Tensor, ...]) -> Shapes:
        """The layer's shapes, after it was given its name; a layer that does not fit stays as it was."""
        before, layer.name = layer.name, layer.name or name
        try:
            shapes = layer.shapes(*(t.shape for t in inputs))
            layer.check(shapes, len(inputs))
            if layer.is_loss:
                self._check_loss(name, shapes)
        except BaseException:
            layer.name = before
            raise
        return shapes

    def _number(self, layer: Layer) -> str:
        count = 1 + self._layers[type(layer)]
        while f"{layer.kind}{count}" in self._by_name:
            count += 1
        return f"{layer.kind}{count}"

    def _check_inputs(self, name: str, layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        if id(layer) in self._objects:
            raise LayerError(f"{name}: the same layer object was added before; make a new one (weights are not shared)")
        if name in self._by_name:
            raise LayerError(f"a layer named {name!r} is in the network already")
        if not re.fullmatch(r"[^\s.]+", name) or name in ("input", "labels", "clock"):
            raise LayerError(f"{name!r} cannot name a layer: not empty, no '.' or space, not input, labels or clock")
        wanted = layer.inputs
        if (wanted is not None and len(inputs) != wanted) or (wanted is None and len(inputs) < 2):
            raise ShapeError(f"{name}: {layer} takes {wanted or 'two or more'} inputs, got {len(inputs)}")
        for t in inputs:
            if self._tensors.get(getattr(t, "name", "")) is not t:
                raise ValueError(f"{name}: {t!r} is no tensor of this network; pass what net.add returned or net.input")
        if self.labels is not None and any(t is self.loss.y for t in inputs):
            raise LayerError(f"{name}: a loss feeds no layer")

    def _own(self, name: str, specs: Mapping[str, Spec], role: Role) -> dict[str, Tensor]:
        return {k: Tensor(f"{name}.{k}", s.shape, s.dtype or self.dtype, role) for k, s in specs.items()}

    def _check_loss(self, name: str, shapes: Shapes) -> None:
        if self.labels is not None:
            raise LayerError(f"{name}: the network has a loss already ({self.loss.name}); one is supported")
        if shapes.labels is None:
            raise LayerError(f"{name}: a loss must declare its labels in shapes()")

    @property
    def loss(self) -> Node:
        """The loss layer's node.  Raises LayerError if there is none."""
        for node in reversed(self.nodes):
            if node.layer.is_loss:
                return node
        raise LayerError(f"{self.name} has no loss layer; add SoftmaxCrossEntropy() or MeanSquaredError() last")

    @property
    def scores(self) -> Tensor:
        """What the loss compares with the labels; without a loss, the last output."""
        if not self.nodes:
            raise LayerError(f"{self.name} has no layers")
        return self.loss.inputs[0] if self.labels is not None else self.nodes[-1].y

    def __getitem__(self, name: str) -> Node:
        if name in self._by_name:
            return self._by_name[name]
        names = [node.name for node in self.nodes]
        raise KeyError(f"{name!r} is no layer of {self.name}{hint(name, names)}; its layers: {', '.join(names)}")

    @property
    def parameters(self) -> dict[str, tuple[Tensor, Spec]]:
        """Every parameter by its full name ("conv1.w"), with the spec that says how it starts."""
        return {t.name: (t, n.shapes.parameters[k]) for n in self.nodes for k, t in n.parameters.items()}

    @property
    def statistics(self) -> dict[str, tuple[Tensor, Spec]]:
        """Every running statistic by its full name ("bn1.mean"), with its spec."""
        return {t.name: (t, n.shapes.statistics[k]) for n in self.nodes for k, t in n.statistics.items()}

    def with_batch(self, batch: int) -> Network:
        """The same layers over a batch of another size."""
        if batch == self.batch:
            return self
        other = Network((batch, *self.input.shape[1:]), self.dtype, self.name)
        tensors = {"input": other.input}
        for node in self.nodes:
            y = other.add(node.layer, *(tensors[t.name] for t in node.inputs), name=node.name)
            tensors[node.y.name] = y
        return other

    def _repr_html_(self) -> str:
        """The layers, for notebooks."""
        from vdnn.summaries import network_html

        return network_html(self)

    def __repr__(self) -> str:
        count = sum(int(np.prod(t.shape)) for t, _ in self.parameters.values())
        return f"Network({self.name}, input {list(self.input.shape)}, {len(self.nodes)} layers, {count:,} parameters)"
