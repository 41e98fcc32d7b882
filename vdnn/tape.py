"""Tape: the ops of one training step in order, with the tensors that they read and write.

Forward ops come first, then backward ops in reverse; a sum follows each further gradient of a tensor that several
layers use, and an update follows each layer's backward.  What may share bytes is decided here as well (`buffers`), so
that everything later thinks in buffers only.  A tape is data: it holds names and sizes, no layers and no arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vdnn import clock
from vdnn.layers.base import BACKWARD, Algorithm, LayerError
from vdnn.network import Network, Node, Role, Tensor

GRANULE = 512  # bytes: sizes and offsets of buffers are multiples of it, on every device
PURPOSES = ("step", "gradients", "evaluate")
FORWARD_PHASES = ("forward", "evaluate", "update_statistics")


def granules(nbytes: int) -> int:
    """`nbytes` rounded up to whole granules of 512 bytes."""
    return -(-nbytes // GRANULE) * GRANULE


def near(name: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: the known ones that look like it, or nothing."""
    found = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


@dataclass(frozen=True, eq=False)
class Op:
    """One kernel call.  `arguments` maps the method's argument names to tensors' names, None for a dx nobody wants.

    A tensor that is both read and written (a weight in its update, an alias) stands in `reads` and in `writes`.
    `layer` is empty for sums and updates; `target` is the weight that an update changes; `kind` is the layer's, such as
    "conv" or "pool".
    """

    name: str
    layer: str
    phase: str
    arguments: Mapping[str, str | None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    algorithms: tuple[Algorithm, ...]
    flops: int
    target: str = ""
    kind: str = ""

    @property
    def is_forward(self) -> bool:
        """Whether the op may be run again to bring back what it wrote."""
        return self.phase in ("forward", "evaluate")

    def algorithm(self, name: str) -> Algorithm:
        """The algorithm of that name.  Raises KeyError naming those there are."""
        for algorithm in self.algorithms:
            if algorithm.name == name:
                return algorithm
        raise KeyError(f"{self.name} has no algorithm {name!r}; it has {', '.join(a.name for a in self.algorithms)}")

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(self.reads)} -> {', '.join(self.writes)})"


@dataclass(frozen=True, eq=False)
class Buffer:
    """The bytes that one or several tensors share (an in-place ReLU's x and y).  Fates and offsets belong to buffers.

    `nbytes` is the largest tensor's size in whole granules; `role` that of its tensors.
    """

    name: str
    tensors: tuple[Tensor, ...]

    @cached_property
    def payload(self) -> int:
        """Bytes of the largest of its tensors, without padding."""
        return max(t.nbytes for t in self.tensors)

    @cached_property
    def nbytes(self) -> int:
        """Bytes that the buffer takes in an arena."""
        return granules(self.payload)

    @property
    def role(self) -> Role:
        """The role of its tensors."""
        return self.tensors[0].role

    def __repr__(self) -> str:
        return f"{self.name} ({', '.join(t.name for t in self.tensors)}) {self.nbytes} bytes"


@dataclass(frozen=True, eq=False)
class Tape:
    """The ops of one step and everything that a plan needs to know about them.

    purpose   "step", "gradients" (no updates: the gradients go to the host) or "evaluate" (forward only)
    tensors   by name, in order of first appearance
    alias     {tensor: the tensor whose bytes it uses}, for those that own none
    resident  names of what stays on the device from step to step, in the order in which it is laid out
    results   names of what is copied to the host when it is ready
    """

    network: str
    batch: int
    purpose: str
    optimizer: str
    kernels: str
    storage: str
    threads: int
    tensors: Mapping[str, Tensor]
    alias: Mapping[str, str]
    ops: tuple[Op, ...]
    resident: tuple[str, ...]
    results: tuple[str, ...]

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        """Every buffer by the name of the tensor that it is named after."""
        members: dict[str, list[Tensor]] = {}
        for name, tensor in self.tensors.items():
            members.setdefault(self.buffer_of[name], []).append(tensor)
        return {name: Buffer(name, tuple(tensors)) for name, tensors in members.items()}

    @cached_property
    def buffer_of(self) -> dict[str, str]:
        """{tensor: the name of its buffer}."""
        roots: dict[str, str] = {}
        for name in self.tensors:
            root = name
            while root in self.alias:
                root = self.alias[root]
            roots[name] = root
        return roots

    @cached_property
    def reads(self) -> tuple[tuple[str, ...], ...]:
        """The buffers that each op reads, without repeats."""
        return tuple(tuple(dict.fromkeys(self.buffer_of[n] for n in op.reads)) for op in self.ops)

    @cached_property
    def writes(self) -> tuple[tuple[str, ...], ...]:
        """The buffers that each op writes, without repeats."""
        return tuple(tuple(dict.fromkeys(self.buffer_of[n] for n in op.writes)) for op in self.ops)

    @cached_property
    def index(self) -> dict[str, int]:
        """{op's name: its place on the tape}."""
        return {op.name: i for i, op in enumerate(self.ops)}

    @cached_property
    def turn(self) -> int:
        """Place of the first backward op: where forward ends."""
        return next((i for i, op in enumerate(self.ops) if op.phase not in FORWARD_PHASES), len(self.ops))

    @cached_property
    def saved(self) -> tuple[Tensor, ...]:
        """What backward reads of what forward wrote or was given: one tensor a buffer, in order of the ops that read it
        last in forward.  These are the tensors whose fate is worth deciding; see also `features`.
        """
        read = {b for reads in self.reads[self.turn :] for b in reads}
        return tuple(t for t in self.features if self.buffer_of[t.name] in read)

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """One tensor for every buffer of a feature map or input that forward reads or writes."""
        last: dict[str, int] = {}
        for i in range(self.turn):
            for b in (*self.reads[i], *self.writes[i]):
                if self.buffers[b].role in (Role.FEATURE, Role.INPUT):
                    last[b] = i
        ordered = sorted(last, key=lambda b: last[b])
        return tuple(self.buffers[b].tensors[0] for b in ordered)

    @cached_property
    def makers(self) -> dict[str, tuple[int, ...]]:
        """{buffer: places of the forward ops that write it}, each in tape order."""
        makers: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            if op.is_forward:
                for b in self.writes[i]:
                    makers.setdefault(b, []).append(i)
        return {b: tuple(ops) for b, ops in makers.items()}

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of all that stays on the device from step to step."""
        return sum(self.buffers[n].nbytes for n in self.resident)

    @cached_property
    def floor_bytes(self) -> int:
        """No plan of this tape needs less: the most that one op's own buffers, least workspace, the gradients that
        wait across it and the resident buffers take together.
        """
        waiting = _waiting(self)
        floor = 0
        for i, op in enumerate(self.ops):
            own = {*self.reads[i], *self.writes[i], *waiting[i]} - set(self.resident)
            scratch = min(granules(a.workspace) for a in op.algorithms)
            floor = max(floor, sum(self.buffers[b].nbytes for b in own) + scratch)
        return floor + self.resident_bytes

    def tensor(self, name: str | Tensor) -> Tensor:
        """The tensor of that name.  Raises KeyError with near matches."""
        key = name if isinstance(name, str) else name.name
        if key not in self.tensors:
            raise KeyError(f"{key!r} is no tensor of {self.network}{near(key, self.tensors)}")
        return self.tensors[key]


def _waiting(tape: Tape) -> list[set[str]]:
    """For each op, the gradients that hold something before and after it: they can be neither moved nor dropped."""
    last: dict[str, int] = {}
    for i in range(len(tape.ops)):
        for b in tape.reads[i]:
            last[b] = i
    waiting, live = [], set[str]()
    for i in range(len(tape.ops)):
        live -= {b for b in live if last.get(b, -1) < i}
        waiting.append(set(live))
        live |= {b for b in tape.writes[i] if tape.buffers[b].role in (Role.GRADIENT, Role.WEIGHT_GRADIENT)}
    return waiting


def build(network: Network, kernels: Any, optimizer: Any = None, purpose: str = "step") -> Tape:
    """The tape of `network` for one purpose, with workspaces as `kernels` declares them.

    optimizer   gives the names of its state and its update's workspace; None only for evaluate and gradients.
    Raises LayerError if the network cannot be trained (no loss; an output that nothing uses).
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
    if purpose == "step" and optimizer is None:
        raise ValueError("a tape with updates needs an optimizer; without one there are 'gradients' and 'evaluate'")
    return _Builder(network, kernels, optimizer, purpose).build()


Wish = Mapping[str, tuple[str, ...]]  # of one op: {tensor written: tensors whose bytes it may take, best first}


class _Builder:
    """Collects ops in order; the only state is what has been emitted so far."""

    def __init__(self, network: Network, kernels: Any, optimizer: Any, purpose: str) -> None:
        self.network, self.kernels, self.optimizer, self.purpose = network, kernels, optimizer, purpose
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.wishes: list[Wish] = []
        self.partials: dict[str, list[str]] = {}  # {tensor: gradients received so far}
        self.results: list[str] = []
        self.clock = Tensor("clock", (clock.SIZE,), clock.DTYPE, Role.INPUT)

    def build(self) -> Tape:
        self._check_uses()
        resident = self._resident()
        for node in self.network.nodes:
            self._forward(node)
        if self.purpose == "evaluate":
            self.results.append(self.network.scores.name)
        if self.network.labels is not None:
            self.results.append(self.network.loss.y.name)
        if self.purpose != "evaluate":
            for node in reversed(self.network.nodes):
                self._backward(node)
        return Tape(
            network=self.network.name,
            batch=self.network.batch,
            purpose=self.purpose,
            optimizer=getattr(self.optimizer, "name", ""),
            kernels=self.kernels.name,
            storage=self.kernels.storage,
            threads=self.kernels.threads,
            tensors=self.tensors,
            alias=_legal_aliases(self.ops, self.wishes, self.tensors, self.results),
            ops=tuple(self.ops),
            resident=resident,
            results=tuple(self.results),
        )

    def _check_uses(self) -> None:
        used = {t.name for n in self.network.nodes for t in n.inputs} | {self.network.scores.name}
        for node in self.network.nodes:
            if node.y.name not in used and not node.layer.is_loss:
                raise LayerError(f"{node.name}'s output is used by no layer, so it cannot be trained")
        if self.purpose != "evaluate":
            _ = self.network.loss

    def _resident(self) -> tuple[str, ...]:
        """Weights, optimizer state and statistics: the same ones, in the same order, for every purpose and batch."""
        tensors = [t for t, _ in self.network.parameters.values()]
        for weight, _ in self.network.parameters.values():
            for state in getattr(self.optimizer, "state", ()):
                tensors.append(Tensor(f"{weight.name}.{state}", weight.shape, weight.dtype, Role.STATE))
        tensors += [t for t, _ in self.network.statistics.values()]
        self.tensors |= {t.name: t for t in tensors}
        return tuple(t.name for t in tensors)

    def _emit(self, node: Node, phase: str, arguments: dict[str, Tensor | None], writes: list[str]) -> None:
        """One op of a layer: of the arguments offered, those that the method's signature names."""
        layer = node.layer
        work = "forward" if phase == "evaluate" and not hasattr(layer, "evaluate") else phase
        needs = layer.needs(phase, len(node.inputs))
        offered = {"clock": self.clock, **arguments}
        bound = {n: offered[n] for n in needs if n in offered}
        for tensor in bound.values():
            if tensor is not None:
                self.tensors.setdefault(tensor.name, tensor)
        written = {n for n in writes if n in bound}
        # statistics are updated in place, so they are read as well
        reads = [t.name for n, t in bound.items() if t and (n not in written or n in node.statistics)]
        self.ops.append(
            Op(
                name=f"{node.name}.{phase}",
                layer=node.name,
                phase=phase,
                arguments={n: t.name if t else None for n, t in bound.items()},
                reads=tuple(dict.fromkeys(reads)),
                writes=tuple(bound[n].name for n in bound if n in written and bound[n] is not None),  # type: ignore[union-attr]
                algorithms=layer.algorithms(self.kernels, work, self.network.dtype, *node.input_shapes),
                flops=layer.flops(work, *node.input_shapes),
                kind=layer.kind,
            )
        )
        pairs = [(bound[out], bound[into]) for out, into in layer.inplace.items() if out in bound and into in bound]
        self.wishes.append({y.name: (x.name,) for y, x in pairs if y is not None and x is not None})

    def _forward(self, node: Node) -> None:
        arguments = self._arguments(node)
        phase = "evaluate" if self.purpose == "evaluate" else "forward"
        self._emit(node, phase, arguments, ["y", *node.saved])
        if self.purpose == "step" and node.layer.method("update_statistics"):
            self._emit(node, "update_statistics", arguments, list(node.statistics))

    def _arguments(self, node: Node) -> dict[str, Tensor | None]:
        """What every phase of the layer may name."""
        labels = {"labels": self.network.labels} if node.layer.is_loss else {}
        return {**node.x, "y": node.y, **node.parameters, **node.saved, **node.statistics, **labels}

    def _backward(self, node: Node) -> None:
        layer = node.layer
        wanted = {name: t is not self.network.input for name, t in node.x.items()}
        if not any(wanted.values()) and not node.parameters:
            return  # there would be nothing to write
        dy = None if layer.is_loss else self._gradient(node)
        if layer.passes_gradient:
            assert dy is not None
            for name, tensor in node.x.items():
                if wanted[name]:
                    self._receive(tensor, dy)
            return
        arguments = self._arguments(node)
        if dy is not None:
            arguments["dy"] = dy
        for name, weight in node.parameters.items():
            arguments[f"d{name}"] = Tensor(f"{node.name}.d{name}", weight.shape, weight.dtype, Role.WEIGHT_GRADIENT)
        for name, tensor in node.x.items():
            partial = Tensor(f"{node.name}.d{name}", tensor.shape, tensor.dtype, Role.GRADIENT)
            arguments[f"d{name}"] = partial if wanted[name] else None
        writes = [f"d{n}" for n in (*node.x, *node.parameters)]
        for phase in BACKWARD:
            if not layer.needs(phase, len(node.inputs)):
                continue
            if phase == "backward_data" and not any(wanted.values()):
                continue
            self._emit(node, phase, arguments, writes)
        self._updates(node)
        for name, tensor in node.x.items():
            gradient = arguments[f"d{name}"]
            if gradient is not None and gradient.name in self.tensors:
                self._receive(tensor, gradient)

    def _gradient(self, node: Node) -> Tensor:
        if node.y.name not in self.partials:
            readers = ", ".join(n.name for n in self.network.nodes if node.y in n.inputs)
            raise LayerError(f"no gradient reaches {node.name}: no backward method of {readers} writes its dx")
        return self.tensors[self.partials[node.y.name][0]]

    def _receive(self, tensor: Tensor, gradient: Tensor) -> None:
        """Take a gradient of `tensor`; a second one is added to the first by an op of its own."""
        partials = self.partials.setdefault(tensor.name, [])
        if not partials:
            partials.append(gradient.name)
            return
        count = sum(op.target == tensor.name and op.phase == "sum" for op in self.ops)
        total = Tensor(f"{tensor.name}.sum{count + 1}", tensor.shape, tensor.dtype, Role.GRADIENT)
        first = partials.pop()
        self.tensors[total.name] = total
        size = total.nbytes // (8 if total.dtype == "float64" else 4)
        arguments = {"x0": first, "x1": gradient.name, "y": total.name}
        reads = tuple(dict.fromkeys((first, gradient.name)))
        self.ops.append(
            Op(total.name, "", "sum", arguments, reads, (total.name,), (Algorithm("default", 0),), size, tensor.name)
        )
        self.wishes.append({total.name: (first, gradient.name)})
        partials.append(total.name)

    def _updates(self, node: Node) -> None:
        for name, weight in node.parameters.items():
            gradient = f"{node.name}.d{name}"
            if gradient not in self.tensors:
                raise LayerError(f"{node.name}: no backward method names d{name}, the gradient of {weight.name}")
            if self.purpose == "gradients":
                self.results.append(gradient)
                continue
            state = {s: f"{weight.name}.{s}" for s in self.optimizer.state}
            self.tensors.setdefault("clock", self.clock)
            elements = weight.nbytes // (8 if weight.dtype == "float64" else 4)
            scratch = self.optimizer.workspace(self.kernels, weight.shape, weight.dtype)
            self.ops.append(
                Op(
                    name=f"{weight.name}.update",
                    layer="",
                    phase="update",
                    arguments={"clock": "clock", "w": weight.name, "dw": gradient, **state},
                    reads=("clock", weight.name, gradient, *state.values()),
                    writes=(weight.name, *state.values()),
                    algorithms=(Algorithm("default", scratch),),
                    flops=elements * (2 + 2 * len(state)),
                    target=weight.name,
                )
            )
            self.wishes.append({})


def _legal_aliases(
    ops: list[Op], wishes: list[Wish], tensors: Mapping[str, Tensor], results: list[str]
) -> dict[str, str]:
    """{tensor: the tensor whose bytes it takes}: those of the wishes that can change no result.

    A gradient may be overwritten by the last op that reads it.  A feature map may be brought back by running its maker
    again, so it may be overwritten only by its sole reader: then nobody ever needs the old values.
    """
    readers: dict[str, list[int]] = {}
    for i, op in enumerate(ops):
        for name in op.reads:
            readers.setdefault(name, []).append(i)
    alias: dict[str, str] = {}
    kept = set(results)  # what must not be overwritten: results, and what is overwritten already

    def legal(i: int, into: str, out: str) -> bool:
        old, new = tensors[into], tensors[out]
        if old.nbytes != new.nbytes or into in kept or list(ops[i].arguments.values()).count(into) > 1:
            return False
        if old.role is Role.GRADIENT:
            return readers[into][-1] == i
        return old.role is Role.FEATURE and readers[into] == [i]

    for i, wish in enumerate(wishes):
        for out, candidates in wish.items():
            into = next((c for c in candidates if legal(i, c, out)), None)
            if into is not None:
                alias[out] = into
                kept.add(into)
    return alias
