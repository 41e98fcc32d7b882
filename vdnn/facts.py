"""facts: what a plan, its simulated trace and the cost model say of each buffer, for explanations."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice, pairwise

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Fate
from vdnn.memory.plan import Plan
from vdnn.memory.rerun import Reruns
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import COPIES

Users = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class Facts:
    """What the plan, its simulated trace and the cost model say of each buffer."""

    def __init__(self, plan: Plan, cost: Cost) -> None:
        self.plan, self.cost, self.tape = plan, cost, plan.tape
        self.trace = simulate(plan, cost)
        self.times = [(event.start or 0.0, event.finish or 0.0) for event in self.trace.events]
        self.computes = [i for i, step in enumerate(plan.steps) if step.kind == "compute"]
        self.ends = [self.times[i][1] for i in self.computes]
        self.turns = tuple(self._turns())
        peak = max(range(len(plan.steps)), key=plan.live_bytes.__getitem__, default=0)
        self.peak = next((i for i in self.computes if i >= peak), peak)
        self.stalls: dict[str, float] = {}
        for stall in self.trace.stalls:
            self.stalls[stall.cause] = self.stalls.get(stall.cause, 0.0) + stall.seconds

    def _turns(self) -> Iterator[int]:
        """For each round, the step at which its backward begins, or what runs again for it before."""
        seen: set[str] = set()
        places = iter(self.computes)
        for _, backward in self.tape.rounds:
            turn = len(self.plan.steps)
            for i in places:
                name = self.plan.steps[i].name
                if name in seen or self.tape.index[name] in backward:
                    turn = min(turn, i)
                seen.add(name)
                if self.tape.index[name] == backward.stop - 1:
                    break
            yield turn

    @cached_property
    def rounds(self) -> dict[str, int]:
        """{buffer: the round, from 0, whose ops touch it first}."""
        rounds: dict[str, int] = {}
        for number, (forward, backward) in enumerate(self.tape.rounds):
            for k in range(forward.start, backward.stop):
                for b in (*self.tape.reads[k], *self.tape.writes[k]):
                    rounds.setdefault(b, number)
        return rounds

    @property
    def peak_op(self) -> str:
        """The op that runs at the peak."""
        return self.plan.steps[self.peak].name if self.plan.steps else ""

    @cached_property
    def users(self) -> dict[str, Users]:
        """{buffer: the ops that write it in forward, read it in forward, touch it in backward}."""
        users: dict[str, tuple[list[str], list[str], list[str]]] = {}
        for op, reads, writes in zip(self.tape.ops, self.tape.reads, self.tape.writes, strict=True):
            for buffer in dict.fromkeys((*reads, *writes)):
                written, read, read_back = users.setdefault(buffer, ([], [], []))
                if op.is_backward:
                    read_back.append(op.name)
                    continue
                if buffer in writes:
                    written.append(op.name)
                if buffer in reads and op.name not in written:
                    read.append(op.name)
        return {buffer: (tuple(a), tuple(b), tuple(c)) for buffer, (a, b, c) in users.items()}

    @cached_property
    def uses(self) -> dict[str, list[int]]:
        """{buffer: the compute steps that touch it}."""
        uses: dict[str, list[int]] = {}
        for i in self.computes:
            k = self.tape.index[self.plan.steps[i].name]
            for b in dict.fromkeys((*self.tape.reads[k], *self.tape.writes[k])):
                uses.setdefault(b, []).append(i)
        return uses

    @cached_property
    def copies(self) -> dict[str, list[int]]:
        """{buffer: its copies, as steps of the plan}."""
        copies: dict[str, list[int]] = {}
        for i, step in enumerate(self.plan.steps):
            if step.kind in COPIES:
                copies.setdefault(step.name, []).append(i)
        return copies

    @cached_property
    def has_undo(self) -> bool:
        """Whether the plan copies to the host what updates overwrite."""
        residents = set(self.tape.resident)
        return any(step.kind == "offload" and step.name in residents for step in self.plan.steps)

    @cached_property
    def rerun_seconds(self) -> float:
        """Seconds of all reruns of the plan."""
        return self._rerun_seconds_of(self._dropped)

    def rerun_seconds_if(self, buffer: str, fate: Fate) -> float:
        """Seconds of all reruns if this buffer had this fate."""
        return self._rerun_seconds_of(self._dropped | {buffer} if fate is Fate.DROP else self._dropped - {buffer})

    @cached_property
    def _dropped(self) -> frozenset[str]:
        return frozenset(name for name, fate in self.plan.decisions.fates.items() if fate is Fate.DROP)

    def _rerun_seconds_of(self, dropped: frozenset[str]) -> float:
        again = Counter(self._reruns.runs(dropped))
        return sum((count - 1) * self._op_seconds(i) for i, count in again.items() if count > 1)

    @cached_property
    def _reruns(self) -> Reruns:
        return Reruns(self.tape)

    def _op_seconds(self, place: int) -> float:
        op = self.tape.ops[place]
        return self.cost.op_seconds(self.tape, op, self.plan.decisions.algorithms[op.name])

    def away(self, buffer: str) -> Iterator[tuple[int, int]]:
        """(place of a free, place of the next alloc) of the buffer, for each time that it comes back."""
        for freed, back in pairwise(self.lives.get(buffer, [])):
            if self.plan.steps[freed].kind == "free":
                yield freed, back

    @cached_property
    def lives(self) -> dict[str, list[int]]:
        """{buffer: its allocs and frees, as steps of the plan}."""
        lives: dict[str, list[int]] = {}
        for i, step in enumerate(self.plan.steps):
            if step.kind in ("alloc", "free"):
                lives.setdefault(step.name, []).append(i)
        return lives

    def hiding(self, copies: list[int]) -> tuple[float, list[str]]:
        """(seconds of these copies in which ops ran, the ops)."""
        hidden, ops = 0.0, []
        for copy in copies:
            begin, end = self.times[copy]
            for i in islice(self.computes, bisect_right(self.ends, begin), None):
                if self.times[i][0] >= end:
                    break
                hidden += min(end, self.times[i][1]) - max(begin, self.times[i][0])
                ops.append(self.plan.steps[i].name)
        return hidden, ops
