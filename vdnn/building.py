"""build: the tape of a network: forward ops, backward ops in reverse, sums where gradients meet, updates.

What may share bytes is decided here as well, so that everything later thinks in buffers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vdnn import clock
from vdnn.aliases import Wish, legal_aliases
from vdnn.collector import collector_paused
from vdnn.layers.base import BACKWARD, Algorithm, LayerError
from vdnn.layers.fused import PAIR, Fused, is_split
from vdnn.micro_batches import check_parts, joined
from vdnn.naming import hint
from vdnn.network import Network, Node, Role, Tensor
from vdnn.rewrites import STANDARD, checked, rewritten
from vdnn.tape import COUNTS, PURPOSES, Op, Tape


@collector_paused()
def build(
    network: Network,
    kernels: Any,
    optimizer: Any = None,
    purpose: str = "step",
    *,
    rewrites: str | Iterable[str] = STANDARD,
    count: str = "all",
    micro_batches: int | Sequence[int] = 1,
    allow_coupled: bool = False,
) -> Tape:
    """The tape of `network` for one purpose, with workspaces as `kernels` declares them.

    optimizer   gives the names of its state and its update's workspace; None only for evaluate and gradients.
    rewrites    changes of the tape that change no bit, by name (vdnn.rewrites)
    count       what takes bytes of the arena; see Tape
    micro_batches  run forward and backward so many times, each on an equal part of the batch (vdnn.micro_batches); or
                how many samples of it each part has
    allow_coupled  sub-batches even where a layer, such as batch norm, takes statistics over the samples that are
                together: then each sub-batch has its own, so that results are not those of the whole batch, and running
                averages move once for each
    Raises LayerError if the network cannot be trained (no loss; an output that nothing uses), or not in sub-batches;
    RewriteError; MicroBatchError if the batch does not come in so many.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}{hint(purpose, PURPOSES)}")
    if count not in COUNTS:
        raise ValueError(f"count {count!r} is none of {', '.join(COUNTS)}{hint(count, COUNTS)}")
    if purpose == "step" and optimizer is None:
        raise ValueError("a tape with updates needs an optimizer; without one there are 'gradients' and 'evaluate'")
    names = checked(rewrites)
    parts = check_parts(network, micro_batches, purpose, allow_coupled)
    networks = {samples: network.with_batch(samples) for samples in parts}
    tapes = {n: _Builder(net, kernels, optimizer, purpose, names, count).build() for n, net in networks.items()}
    return tapes[parts[0]] if len(parts) == 1 else joined([tapes[samples] for samples in parts])


class _Builder:
    """Collects ops in order; the only state is what has been emitted so far."""

    def __init__(
        self, network: Network, kernels: Any, optimizer: Any, purpose: str, rewrites: tuple[str, ...], count: str
    ) -> None:
        self.network, self.kernels, self.optimizer, self.purpose = network, kernels, optimizer, purpose
        self.rewrites, self.count = rewrites, count
        self.nodes = rewritten(network, rewrites, kernels)
        self.accumulates = getattr(kernels, "accumulates", False) and "sum_inplace" in rewrites
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}
        self.wishes: list[Wish] = []
        self.views: dict[str, str] = {}  # {tensor: another that has the same bytes, or holds them as a part}
        self.partials: dict[str, list[str]] = {}  # {tensor: gradients received so far}
        self.sums: Counter[str] = Counter()  # {tensor: sums of its gradients so far}
        self.added: set[str] = set()  # gradients that an op wrote for one tensor alone: more may be added to them
        self.added_to: dict[str, str] = {}  # {gradient: the one received before that it was added to}
        self.results: list[str] = []
        self.clock = Tensor("clock", (clock.SIZE,), clock.DTYPE, Role.INPUT)

    def build(self) -> Tape:
        self._check_uses()
        resident = self._resident()
        for node in self.nodes:
            self._forward(node)
        if self.purpose == "evaluate":
            self.results.append(self.network.scores.name)
        if self.network.labels is not None:
            self.results.append(self.network.loss.y.name)
        if self.purpose != "evaluate":
            for node in reversed(self.nodes):
                self._backward(node)
        if "early_update" not in self.rewrites:
            self._update_last()
        return Tape(
            network=self.network.name,
            batch=self.network.batch,
            purpose=self.purpose,
            optimizer=getattr(self.optimizer, "name", ""),
            kernels=self.kernels.name,
            storage=self.kernels.storage,
            threads=self.kernels.threads,
            tensors=self.tensors,
            alias=legal_aliases(self.ops, self.wishes, self.tensors, self.results, self.views),
            ops=tuple(self.ops),
            resident=resident,
            results=tuple(self.results),
            count=self.count,
            rewrites=self.rewrites,
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
        whole = Fused(layer) if phase == "backward" and is_split(layer) else None
        needs = whole.needs(len(node.inputs)) if whole else layer.needs(phase, len(node.inputs))
        offered = {"clock": self.clock, **arguments}
        bound = {n: offered[n] for n in needs if n in offered}
        for tensor in bound.values():
            if tensor is not None:
                self.tensors.setdefault(tensor.name, tensor)
        written = {n for n in writes if n in bound}
        added_to = self._added_to(node, bound) if phase in BACKWARD else {}
        # statistics are updated in place, so they are read as well
        reads = [t.name for n, t in bound.items() if t and (n not in written or n in node.statistics)]
        self.ops.append(
            Op(
                name=f"{node.name}.{phase}",
                layer=node.name,
                phase=phase,
                arguments={n: t.name if t else None for n, t in bound.items()},
                reads=tuple(dict.fromkeys((*reads, *added_to.values()))),
                writes=tuple(bound[n].name for n in bound if n in written and bound[n] is not None),  # type: ignore[union-attr]
                algorithms=(
                    whole.algorithms(self.kernels, self.network.dtype, *node.input_shapes)
                    if whole
                    else layer.algorithms(self.kernels, work, self.network.dtype, *node.input_shapes)
                ),
                flops=whole.flops(*node.input_shapes) if whole else layer.flops(work, *node.input_shapes),
                kind=layer.kind,
                launches=len(PAIR) if whole else 1,
            )
        )
        allowed = layer.inplace if "inplace" in self.rewrites else {}
        pairs = [(bound[out], bound[into]) for out, into in allowed.items() if out in bound and into in bound]
        wishes = {y.name: (x.name,) for y, x in pairs if y is not None and x is not None and y.name not in added_to}
        self.wishes.append(wishes)
        self.views |= added_to
        self.added_to |= added_to

    def _added_to(self, node: Node, bound: Mapping[str, Tensor | None]) -> dict[str, str]:
        """{a dx of the op: the gradient, received already, that the op adds its own to}, where kernels can."""
        found: dict[str, str] = {}
        for name, tensor in node.x.items():
            dx, before = bound.get(f"d{name}"), self.partials.get(tensor.name)
            if self.accumulates and dx is not None and before and before[0] in self.added - {*found.values()}:
                found[dx.name] = before[0]
        return found

    def _is_view(self, node: Node) -> bool:
        """Whether y needs no op: what an op may overwrite or copy to the host must have been made by one."""
        x = node.inputs[0]
        made = x.name in self.tensors and self.tensors[x.name].role is Role.FEATURE
        return made and node.y is not self.network.scores and "y" in node.layer.views(self.kernels, len(node.inputs))

    def _forward(self, node: Node) -> None:
        if self._is_view(node):
            self.tensors[node.y.name] = node.y
            self.views[node.y.name] = node.inputs[0].name
            return
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
            self.added.discard(dy.name)  # several tensors have it now
            for name, tensor in node.x.items():
                if wanted[name]:
                    self._receive(tensor, dy)
            return
        if dy is not None and self._pass_views(node, dy, wanted):
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
        for phase in self._phases(node, any(wanted.values())):
            self._emit(node, phase, arguments, writes)
        self._updates(node)
        for name, tensor in node.x.items():
            gradient = arguments[f"d{name}"]
            if gradient is not None and gradient.name in self.tensors:
                self._receive(tensor, gradient)
                self.added.add(gradient.name)

    def _phases(self, node: Node, wants_dx: bool) -> tuple[str, ...]:
        """The backward ops of a layer, in order."""
        if "split" not in self.rewrites and is_split(node.layer) and wants_dx:
            return ("backward",)
        found = (phase for phase in BACKWARD if node.layer.needs(phase, len(node.inputs)))
        return tuple(phase for phase in found if phase != "backward_data" or wants_dx)

    def _pass_views(self, node: Node, dy: Tensor, wanted: Mapping[str, bool]) -> bool:
        """Whether every dx is a view of dy, which is then passed on without an op."""
        views = node.layer.views(self.kernels, len(node.inputs))
        if node.parameters or any(views.get(f"d{name}") != "dy" for name in node.x):
            return False
        for name, tensor in node.x.items():
            if wanted[name]:
                part = Tensor(f"{node.name}.d{name}", tensor.shape, tensor.dtype, Role.GRADIENT)
                self.tensors[part.name] = part
                self.views[part.name] = dy.name
                self._receive(tensor, part)
        return True

    def _gradient(self, node: Node) -> Tensor:
        if node.y.name not in self.partials:
            readers = ", ".join(n.name for n in self.network.nodes if node.y in n.inputs)
            raise LayerError(f"no gradient reaches {node.name}: no backward method of {readers} writes its dx")
        return self.tensors[self.partials[node.y.name][0]]

    def _receive(self, tensor: Tensor, gradient: Tensor) -> None:
        """Take a gradient of `tensor`; a second one is added to the first by an op of its own."""
        partials = self.partials.setdefault(tensor.name, [])
        if not partials or self.added_to.get(gradient.name) == partials[0]:
            partials[:] = [gradient.name]
            return
        self.sums[tensor.name] += 1
        total = Tensor(f"{tensor.name}.sum{self.sums[tensor.name]}", tensor.shape, tensor.dtype, Role.GRADIENT)
        first = partials.pop()
        self.tensors[total.name] = total
        size = total.nbytes // (8 if total.dtype == "float64" else 4)
        arguments = {"x0": first, "x1": gradient.name, "y": total.name}
        reads = tuple(dict.fromkeys((first, gradient.name)))
        self.ops.append(
            Op(total.name, "", "sum", arguments, reads, (total.name,), (Algorithm("default", 0),), size, tensor.name)
        )
        self.wishes.append({total.name: (first, gradient.name)} if "sum_inplace" in self.rewrites else {})
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

    def _update_last(self) -> None:
        """Move all updates to the end, in their order."""
        pairs = sorted(zip(self.ops, self.wishes, strict=True), key=lambda pair: pair[0].phase == "update")
        self.ops, self.wishes = [op for op, _ in pairs], [wish for _, wish in pairs]
