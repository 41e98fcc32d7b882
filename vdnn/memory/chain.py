"""chain: a round of a tape as a chain of stages, which is what algorithms for sequential networks plan on.

A stage is the ops between two cuts; a cut is the only feature map that later ops need of what came before, and one
that backward reads.  A network without forks has a cut after nearly every layer; one with forks is a chain of its
blocks.  Stage 0 has no ops: its output is the network's input.

    input | conv1 relu1 | conv2 relu2 | pool2 | ... | fc, loss
        y0            y1            y2      y3                    outputs; what else a stage saves is its inside
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.checkpointing import cuts_of
from vdnn.memory.cost import Cost
from vdnn.micro_batches import without_round
from vdnn.network import Role
from vdnn.tape import Tape, granules

SMALL = 1000  # of what is saved, tensors of less than a thousandth of the largest always stay


@dataclass(frozen=True)
class Stage:
    """One stage; sizes in bytes of the arena, times in seconds.

    output, inside    what backward reads of what the stage makes: its last tensor ("" if none), and the others
    output_bytes, inside_bytes   their sizes
    forward_seconds, backward_seconds   of all its ops, updates included
    again_seconds, inside_seconds   to run it again for all that it saves, and for its inside only
    forward_bytes     most that is live of its input, its own tensors and workspace while it runs and its inside stays
    passing_bytes     the same where its inside does not stay
    backward_bytes    most that is live of its input, what it saved, gradients and workspace during its backward
    late_bytes        the same where its input comes back only when its backward reads it; of a chain whose tensors
                      come back for each use, where all that it saved is there only while it is read
    gradient_bytes    of the gradients that its backward starts from
    output_out, inside_out, output_in, inside_in   seconds of the copies to the host and back
    input_lead, inside_lead   seconds before the end of its forward at which input and inside may start to leave
    input_need, inside_need   seconds after the start of its backward at which they are read; of several the mean
    """

    output: str = ""
    inside: tuple[str, ...] = ()
    output_bytes: int = 0
    inside_bytes: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    again_seconds: float = 0.0
    inside_seconds: float = 0.0
    forward_bytes: int = 0
    passing_bytes: int = 0
    backward_bytes: int = 0
    late_bytes: int = 0
    gradient_bytes: int = 0
    output_out: float = 0.0
    inside_out: float = 0.0
    output_in: float = 0.0
    inside_in: float = 0.0
    input_lead: float = 0.0
    inside_lead: float = 0.0
    input_need: float = 0.0
    inside_need: float = 0.0


@dataclass(frozen=True)
class Chain:
    """The stages of a round, stage 0 first, and what is taken anyway: weights, small tensors, earlier gradients."""

    stages: tuple[Stage, ...]
    always_bytes: int


def chains_of(tape: Tape, cost: Cost, algorithms: Mapping[str, str], returns: str = "once") -> list[Chain]:
    """The chain of each round, with the times of `cost` for these {op: algorithm}; `returns` as in Decisions."""
    reader = _Reader(tape, cost, algorithms, returns)
    return [reader.chain(number) for number in range(len(tape.rounds))]


def queue(waiting: NDArray[Any], seconds: float, joining: Sequence[tuple[float, float]]) -> NDArray[Any]:
    """What of a queue for the link is left after `seconds`; each (lead, copy) joins `lead` seconds before the end."""
    left = seconds
    for lead, copy in sorted(joining, reverse=True):
        waiting = np.maximum(waiting - (left - lead), 0.0) + copy
        left = lead
    return np.maximum(waiting - left, 0.0)


class _Reader:
    """Reads stages off a tape: lifetimes of forward tensors and of gradients, and when each op starts in its stage."""

    def __init__(self, tape: Tape, cost: Cost, algorithms: Mapping[str, str], returns: str) -> None:
        self.tape, self.cost, self.returns = tape, cost, returns
        chosen = [algorithms.get(op.name, op.algorithms[0].name) for op in tape.ops]
        self.seconds = [cost.op_seconds(tape, op, a) for op, a in zip(tape.ops, chosen, strict=True)]
        self.scratch = [granules(op.algorithm(a).workspace) for op, a in zip(tape.ops, chosen, strict=True)]
        self.size = {name: buffer.nbytes for name, buffer in tape.buffers.items()}
        self.first: dict[str, int] = {}  # {buffer: first access}
        self.leaves: dict[str, int] = {}  # {buffer: last forward access}
        self.back: dict[str, tuple[int, int]] = {}  # {buffer: first and last backward access}
        for i, op in enumerate(tape.ops):
            for b in (*tape.reads[i], *tape.writes[i]):
                self.first.setdefault(b, i)
                if op.is_backward:
                    self.back[b] = self.back.get(b, (i, i))[0], i
                else:
                    self.leaves[b] = i
        saved = [tape.buffer_of[t.name] for t in tape.saved]
        least = max((self.size[b] for b in saved), default=0) / SMALL
        self.saved = [b for b in saved if self.size[b] > least]
        self.small = [b for b in saved if self.size[b] <= least]
        self.gradients = self._gradients()
        self.waiting = 0  # of those, bytes that are of rounds before the one that is read

    def _gradients(self) -> list[int]:
        """Bytes of the gradients that are live at each op."""
        change = [0] * (len(self.tape.ops) + 1)
        for b, (first, last) in self.back.items():
            if self.tape.buffers[b].role in (Role.GRADIENT, Role.WEIGHT_GRADIENT):
                change[first] += self.size[b]
                change[last + 1] -= self.size[b]
        return list(accumulate(change))

    def chain(self, number: int) -> Chain:
        """All stages of a round.  Inputs other than the first that is saved always stay."""
        tape = self.tape
        forward = tape.rounds[number][0]
        inputs = [b for b in self.saved if tape.buffers[b].role is Role.INPUT and self.first[b] in forward]
        source = inputs[0] if inputs and without_round(inputs[0]) == "input" else ""
        cuts = [(forward.start - 1, source)] + [(i, b) for i, b in cuts_of(tape)[number] if b in set(self.saved)]
        ends = [i for i, _ in cuts[1:]] + [forward.stop - 1]
        outputs = [b for _, b in cuts[1:]] + [""]
        backward = self._backward_ops(number, ends)
        self.waiting = self.gradients[forward.start]
        stages = [self._with_output(source)]
        for k, (end, output) in enumerate(zip(ends, outputs, strict=True)):
            stages.append(self._stage(range(cuts[k][0] + 1, end + 1), backward[k], cuts[k][1], output))
        always = [b for b in (*self.small, *inputs) if b != source and self.first[b] in forward]
        return Chain(tuple(stages), tape.resident_bytes + self.waiting + sum(self.size[b] for b in always))

    def _backward_ops(self, number: int, ends: Sequence[int]) -> list[list[int]]:
        """For each stage, the places of its backward ops; sums and updates go with the op before them."""
        forward, backward = self.tape.rounds[number]
        layer = {self.tape.ops[i].layer: i for i in forward}
        ops: list[list[int]] = [[] for _ in ends]
        at = len(ends) - 1
        for i in backward:
            place = layer.get(self.tape.ops[i].layer) if self.tape.ops[i].layer else None
            if place is not None:
                at = min(at, bisect_left(ends, place))
            ops[at].append(i)
        return ops

    def _with_output(self, output: str, **fields: Any) -> Stage:
        if output:
            fields |= {"output": output, "output_bytes": self.size[output]}
            fields |= {"output_out": self._copy([output], "offload"), "output_in": self._copy([output], "prefetch")}
        return Stage(**fields)

    def _copy(self, buffers: Sequence[str], kind: str) -> float:
        """Seconds to copy all of them; an input is not copied out, as the host has it."""
        found = [self.tape.buffers[b] for b in buffers]
        moved = [b for b in found if kind == "prefetch" or b.role is not Role.INPUT]
        return sum(self.cost.copy_seconds(b.payload, kind) for b in moved)

    def _stage(self, forward: range, backward: list[int], source: str, output: str) -> Stage:
        inside = tuple(b for b in self.saved if self.first[b] in forward and b not in (source, output))
        fields = self._times(forward, backward, inside) | self._sizes(forward, backward, source, inside, output)
        fields |= self._copies(forward, backward, source, inside)
        return self._with_output(output, inside=inside, **fields)

    def _times(self, forward: range, backward: list[int], inside: tuple[str, ...]) -> dict[str, float]:
        again = [i for i in forward if self.tape.ops[i].is_forward]
        wanted, for_inside = set(inside), 0.0
        for i in reversed(again):
            if wanted.intersection(self.tape.writes[i]):
                wanted |= {b for b in self.tape.reads[i] if self.first[b] in forward}
                for_inside += self.seconds[i]
        return {
            "forward_seconds": sum(self.seconds[i] for i in forward),
            "backward_seconds": sum(self.seconds[i] for i in backward),
            "again_seconds": sum(self.seconds[i] for i in again),
            "inside_seconds": for_inside,
        }

    def _sizes(
        self, forward: range, backward: list[int], source: str, inside: tuple[str, ...], output: str
    ) -> dict[str, int]:
        roles = (Role.FEATURE, Role.INPUT)
        touched = dict.fromkeys(b for i in forward for b in (*self.tape.reads[i], *self.tape.writes[i]))
        own = [b for b in touched if self.tape.buffers[b].role in roles and b != source and b not in self.small]

        def live(i: int, staying: tuple[str, ...]) -> int:
            there = (b for b in own if self.first[b] <= i and (i <= self.leaves[b] or b in staying))
            return sum(self.size[b] for b in there) + self.scratch[i] + self.size.get(source, 0)

        def saved_at(i: int, names: tuple[str, ...]) -> int:
            return sum(self.size[b] for b in names if b and self.back.get(b, (0, -1))[1] >= i)

        def late(i: int) -> int:
            if self.returns == "each":
                return sum(self.size[b] for b in (*inside, output, source) if b in self.tape.reads[i])
            return saved_at(i, (*inside, output)) + (self.size.get(source, 0) if i >= returns else 0)

        returns = next((i for i in backward if source in self.tape.reads[i]), len(self.tape.ops))
        own_back = {i: self.scratch[i] + self.gradients[i] - self.waiting for i in backward}
        at_source = self.size.get(source, 0)
        arriving = {b for i in backward[:1] for b in self.tape.reads[i] if self.tape.ops[self.first[b]].is_backward}
        return {
            "inside_bytes": sum(self.size[b] for b in inside),
            "forward_bytes": max((live(i, (*inside, output)) for i in forward), default=0),
            "passing_bytes": max((live(i, (output,)) for i in forward), default=0),
            "backward_bytes": max(
                (own_back[i] + saved_at(i, (*inside, output)) + at_source for i in backward), default=0
            ),
            "late_bytes": max((own_back[i] + late(i) for i in backward), default=0),
            "gradient_bytes": sum(self.size[b] for b in arriving),
        }

    def _copies(self, forward: range, backward: list[int], source: str, inside: tuple[str, ...]) -> dict[str, float]:
        """Seconds of the copies of what is inside, and when it and the stage's input may leave and are needed."""
        leads = {b: self._lead(forward, b) for b in (*inside, source) if b}
        needs = {b: self._need(backward, b) for b in (*inside, source) if b}
        total = sum(self.size[b] for b in inside) or 1
        return {
            "inside_out": self._copy(inside, "offload"),
            "inside_in": self._copy(inside, "prefetch"),
            "input_lead": leads.get(source, 0.0),
            "input_need": needs.get(source, 0.0),
            "inside_lead": sum(leads[b] * self.size[b] for b in inside) / total,
            "inside_need": sum(needs[b] * self.size[b] for b in inside) / total,
        }

    def _lead(self, forward: range, buffer: str) -> float:
        """Seconds from the start of its copy to the end of the stage: beside an op that only reads, else after it."""
        last = self.leaves[buffer]
        beside = buffer not in self.tape.writes[last]
        return sum(self.seconds[i] for i in forward if i > last or (i == last and beside))

    def _need(self, backward: list[int], buffer: str) -> float:
        """Seconds from the start of the stage's backward to the first op of it that reads the buffer."""
        reader = next((i for i in backward if buffer in self.tape.reads[i]), len(self.tape.ops))
        return sum(self.seconds[i] for i in backward if i < reader)
