"""Tape: the ops of one training step in order, with the tensors that they read and write.

Forward ops come first, then backward ops in reverse; a sum follows each further gradient of a tensor that several
layers use, and an update follows each layer's backward.  With sub-batches (vdnn.micro_batches) forward and backward
take turns, round after round.  What may share bytes is decided here as well (`buffers`), so
that everything later thinks in buffers only.  A tape is data: it holds names and sizes, no layers and no arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vdnn.layers.base import Algorithm
from vdnn.naming import hint
from vdnn.network import Role, Tensor

GRANULE = 512  # bytes: sizes and offsets of buffers are multiples of it, on every device
PURPOSES = ("step", "gradients", "evaluate")
COUNTS = ("all", "weights", "features")
FORWARD_PHASES = ("forward", "evaluate", "update_statistics")


def granules(nbytes: int) -> int:
    """`nbytes` rounded up to whole granules of 512 bytes."""
    return -(-nbytes // GRANULE) * GRANULE


def batch_label(batch: int, micro_batches: int) -> str:
    """A batch in words: "batch 64", or "batch 64 in 4 parts"."""
    return f"batch {batch}" + (f" in {micro_batches} parts" if micro_batches > 1 else "")


@dataclass(frozen=True, eq=False)
class Op:
    """One kernel call, or the two of a fused backward (`launches`).

    `arguments` maps the method's argument names to tensors' names, None for a dx nobody wants.
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
    launches: int = 1

    @property
    def is_backward(self) -> bool:
        """Whether the op belongs to the backward half of its round: its sums and updates do."""
        return self.phase not in FORWARD_PHASES

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

    `nbytes` is the largest tensor's size in whole granules; `role` that of its tensors.  What the tape does not count
    lies outside of the arena: there it has no bytes at all.
    """

    name: str
    tensors: tuple[Tensor, ...]
    is_counted: bool = True

    @cached_property
    def payload(self) -> int:
        """Bytes of the largest of its tensors, without padding."""
        return max(t.nbytes for t in self.tensors) if self.is_counted else 0

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
    count     what takes bytes of the arena: "all"; "weights": of what stays and of weight gradients only the weights,
              so each weight once, as in the paper's Fig. 4; "features": convolution weights only, as its peaks count.
              Only a tape that counts all can be run.
    rewrites  which rewrites it was built with, as far as its layers and kernels have use for them (vdnn.rewrites)
    micro_batches   rounds of forward and backward in which the samples come
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
    count: str = "all"
    rewrites: tuple[str, ...] = ()
    micro_batches: int = 1

    @property
    def batch_label(self) -> str:
        """The batch in words: "batch 64", or "batch 64 in 4 parts"."""
        return batch_label(self.batch, self.micro_batches)

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        """Every buffer by the name of the tensor that it is named after."""
        members: dict[str, list[Tensor]] = {}
        for name, tensor in self.tensors.items():
            members.setdefault(self.buffer_of[name], []).append(tensor)
        outside = self._outside()
        return {name: Buffer(name, tuple(tensors), name not in outside) for name, tensors in members.items()}

    def _outside(self) -> set[str]:
        """Tensors that are not counted."""
        if self.count == "all":
            return set()
        roles = {Role.WEIGHT_GRADIENT, Role.STATE, Role.STATISTICS}
        filters = {name for op in self.ops if "conv" in op.kind for name in op.reads}
        return {
            name
            for name, tensor in self.tensors.items()
            if tensor.role in roles or (self.count == "features" and tensor.role is Role.WEIGHT and name not in filters)
        }

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
        """Place of the first backward op: where forward, with sub-batches that of the first round, ends."""
        return self.rounds[0][0].stop

    @cached_property
    def rounds(self) -> tuple[tuple[range, range], ...]:
        """(places of the forward ops, places of the backward ops) of each round; one round unless there are
        sub-batches.
        """
        backward = [op.is_backward for op in self.ops]
        starts = [0, *(i for i in range(1, len(backward)) if backward[i - 1] and not backward[i])]
        rounds = []
        for start, stop in zip(starts, [*starts[1:], len(backward)], strict=True):
            turn = next((i for i in range(start, stop) if backward[i]), stop)
            rounds.append((range(start, turn), range(turn, stop)))
        return tuple(rounds)

    @cached_property
    def saved(self) -> tuple[Tensor, ...]:
        """What backward reads of what forward wrote or was given: one tensor a buffer, in order of the ops that read it
        last in forward.  These are the tensors whose fate is worth deciding; see also `features`.
        """
        read = {b for op, reads in zip(self.ops, self.reads, strict=True) if op.is_backward for b in reads}
        return tuple(t for t in self.features if self.buffer_of[t.name] in read)

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """One tensor for every buffer of a feature map or input that forward reads or writes."""
        last: dict[str, int] = {}
        for i in (i for forward, _ in self.rounds for i in forward):
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
            raise KeyError(f"{key!r} is no tensor of {self.network}{hint(key, self.tensors)}")
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
