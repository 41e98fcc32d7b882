"""explain: for every tensor whose fate was decided, what that costs and saves, and a reason that follows from it.

A reason holds the fate against what else could be done with that tensor alone, all others staying as they are: its
copies take what the cost model says, and running its makers again takes what the plan's reruns would take more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

from vdnn.collector import collector_paused
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Fate
from vdnn.memory.passes import rerun_dropped
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import COPIES, Trace
from vdnn.network import Role
from vdnn.reasons import reason


@dataclass(frozen=True)
class Row:
    """One buffer, named after the last tensor in it; all times are simulated seconds.

    is_read_back    whether backward reads it
    leaves          when its source begins to be copied, or when the last op that needs it before it is forgotten ends
    returns         when its copy back begins, or when the op that makes it again does; both None while it stays
    copy_seconds    of all its copies both ways
    hidden_seconds  of these, the time in which an op ran
    stall_seconds   in which compute waited for one of its copies
    rerun_seconds   of reruns there would not be if it were kept, and all else stayed as it is
    saved_bytes     by which the plan's peak would be higher if its bytes stayed where it is away
    """

    tensor: str
    bytes: int
    fate: Fate
    is_read_back: bool
    leaves: float | None
    returns: float | None
    copy_seconds: float
    hidden_seconds: float
    stall_seconds: float
    rerun_seconds: float
    saved_bytes: int
    reason: str


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why the tensors of a plan have their fates: a row for each, in the order of their last forward uses."""

    plan: Plan
    trace: Trace
    peak_op: str
    rows: tuple[Row, ...]

    def table(self, width: int | None = None) -> str:
        """The rows as text."""
        from vdnn.result_tables import explanation_table

        return explanation_table(self, width)

    def summary(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [asdict(row) for row in self.rows]


@collector_paused()
def explain(plan: Plan, cost: Cost) -> Explanation:
    """What every fate of the plan costs and saves, simulated with the times of `cost`, and why it may be so."""
    facts = Facts(plan, cost)
    rows = tuple(facts.row(tensor.name) for tensor in plan.tape.features)
    return Explanation(plan, facts.trace, facts.peak_op, rows)


class Facts:
    """What the plan, its simulated trace and the cost model say of each buffer."""

    def __init__(self, plan: Plan, cost: Cost) -> None:
        self.plan, self.cost, self.tape = plan, cost, plan.tape
        self.trace = simulate(plan, cost)
        self.times = [(event.start or 0.0, event.finish or 0.0) for event in self.trace.events]
        self.computes = [i for i, step in enumerate(plan.steps) if step.kind == "compute"]
        self.ends = [self.times[i][1] for i in self.computes]
        self.turn = next((i for i, _, op in plan.computes() if self.tape.index[op.name] >= self.tape.turn), 0)
        self.turn = min([self.turn, *(i for i, _ in self._reruns())]) or len(plan.steps)
        peak = max(range(len(plan.steps)), key=plan.live_bytes.__getitem__, default=0)
        self.peak = next((i for i in self.computes if i >= peak), peak)
        self.stalls: dict[str, float] = {}
        for stall in self.trace.stalls:
            self.stalls[stall.cause] = self.stalls.get(stall.cause, 0.0) + stall.seconds

    def _reruns(self) -> Iterator[tuple[int, str]]:
        seen = set()
        for i in self.computes:
            name = self.plan.steps[i].name
            if name in seen:
                yield i, name
            seen.add(name)

    @property
    def peak_op(self) -> str:
        """The op that runs at the peak."""
        return self.plan.steps[self.peak].name if self.plan.steps else ""

    def row(self, tensor: str) -> Row:
        """All about the buffer of that tensor."""
        buffer = self.tape.buffer_of[tensor]
        case = Case(self, buffer, self.plan.decisions.fates[buffer])
        return Row(
            self.tape.buffers[buffer].tensors[-1].name, self.plan.payload(buffer), case.fate, case.is_read_back,
            case.leaves, case.returns, case.copy_seconds, case.hidden_seconds, case.stall_seconds,
            case.rerun_seconds, case.saved_bytes, reason(case),
        )  # fmt: skip

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
    def rerun_seconds(self) -> float:
        """Seconds of all reruns of the plan."""
        return self.rerun_seconds_if({})

    def rerun_seconds_if(self, fates: dict[str, Fate]) -> float:
        """Seconds of all reruns if these buffers had these fates."""
        decisions = replace(self.plan.decisions, fates={**self.plan.decisions.fates, **fates})
        seen: set[str] = set()
        seconds = 0.0
        for step in rerun_dropped(self.tape, decisions):
            if step.name in seen:
                op = self.tape.ops[self.tape.index[step.name]]
                seconds += self.cost.op_seconds(self.tape, op, step.algorithm)
            seen.add(step.name)
        return seconds

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


class Case:
    """One buffer under its fate, and what else could be done with it."""

    def __init__(self, facts: Facts, buffer: str, fate: Fate) -> None:
        self.facts, self.buffer, self.fate = facts, buffer, fate
        plan, cost = facts.plan, facts.cost
        self.is_input = plan.role(buffer) is Role.INPUT
        self.is_read_back = any(buffer in reads for reads in facts.tape.reads[facts.tape.turn :])
        uses = facts.uses.get(buffer, [])
        self.last = max((i for i in uses if i < facts.turn), default=-1)
        self.next = min((i for i in uses if i >= facts.turn), default=len(plan.steps))
        self.copies = facts.copies.get(buffer, [])
        self.copy_seconds = sum(facts.times[i][1] - facts.times[i][0] for i in self.copies)
        self.hidden_seconds, _ = facts.hiding(self.copies)
        self.stall_seconds = facts.stalls.get(buffer, 0.0)
        out = 0.0 if self.is_input else cost.copy_seconds(plan.payload(buffer), "offload")
        self.there_and_back = out + cost.copy_seconds(plan.payload(buffer), "prefetch")

    def hiding(self, kind: str) -> list[str]:
        """The ops that run beside its offload, or its prefetch."""
        return self.facts.hiding([i for i in self.copies if self.facts.plan.steps[i].kind == kind])[1]

    @cached_property
    def rerun_seconds(self) -> float:
        """Of reruns that its own fate causes."""
        if self.fate is not DROP:
            return 0.0
        return self.facts.rerun_seconds - self.facts.rerun_seconds_if({self.buffer: KEEP})

    @cached_property
    def rerun_if_dropped(self) -> float | None:
        """Seconds of reruns more if it were dropped, or that there are because it is; None for an input."""
        if self.is_input:
            return None
        if self.fate is DROP:
            return self.rerun_seconds
        return self.facts.rerun_seconds_if({self.buffer: DROP}) - self.facts.rerun_seconds

    @property
    def is_next_at_once(self) -> bool:
        """Whether the op after its last forward use needs it again."""
        between = [i for i in self.facts.computes if self.last < i <= self.next]
        return self.last >= 0 and between == [self.next]

    @property
    def is_apart(self) -> bool:
        """Whether the peak lies between its last forward use and the first use after: only then can leaving help."""
        return self.last < self.facts.peak < self.next and self.last >= 0 and self.is_read_back

    @cached_property
    def saved_bytes(self) -> int:
        """By how much the peak would be higher if its bytes stayed where it is away."""
        plan = self.facts.plan
        if self.fate is KEEP or not self.is_read_back:
            return 0
        most = max((max(plan.live_bytes[start:stop]) for start, stop in self.facts.away(self.buffer)), default=0)
        return max(0, most + plan.size(self.buffer) - plan.peak_bytes)

    @property
    def leaves(self) -> float | None:
        """When it leaves."""
        if self.fate is KEEP or not self.is_read_back or self.last < 0:
            return None
        out = [i for i in self.copies if self.facts.plan.steps[i].kind == "offload"]
        return self.facts.times[out[0]][0] if out and self.fate is OFFLOAD else self.facts.times[self.last][1]

    @property
    def returns(self) -> float | None:
        """When it begins to come back."""
        if self.leaves is None or self.next == len(self.facts.plan.steps):
            return None
        back = [i for i in self.copies if self.facts.plan.steps[i].kind == "prefetch" and i > self.last]
        return self.facts.times[back[0] if back and self.fate is OFFLOAD else self.next][0]
