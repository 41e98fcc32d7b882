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
from vdnn.memory.decisions import Fate
from vdnn.memory.passes import rerun_dropped
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import COPIES, Trace
from vdnn.reasons import Case, reason


@dataclass(frozen=True)
class Row:
    """One buffer, named after the last tensor in it; all times are simulated seconds.

    tier            where its copy is, host or disk, while it is offloaded; else ""
    is_read_back    whether backward reads it
    leaves          when its source begins to be copied, or when the last op that needs it before it is forgotten ends
    returns         when its copy back begins, or when the op that makes it again does; both None while it stays
    copy_seconds    of all its copies both ways
    hidden_seconds  of these, the time in which an op ran
    stall_seconds   in which compute waited for one of its copies
    rerun_seconds   of reruns there would not be if it were kept, and all else stayed as it is
    saved_bytes     by which the plan's peak would be higher if its bytes stayed where it is away, and all else was
                    as it is.  What is made again with others, as batch norm's statistics are, would come and go even
                    if it were kept.  And what leaving "would free at the peak" of a tensor that is kept makes the
                    peak no lower where as much is live at another place
    """

    tensor: str
    bytes: int
    fate: Fate
    tier: str
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

    def row(self, tensor: str) -> Row:
        """All about the buffer of that tensor."""
        buffer = self.tape.buffer_of[tensor]
        case = Case(self, buffer, self.plan.decisions.fates[buffer])
        return Row(
            self.tape.buffers[buffer].tensors[-1].name, self.plan.payload(buffer), case.fate, case.tier,
            case.is_read_back, case.leaves, case.returns, case.copy_seconds, case.hidden_seconds, case.stall_seconds,
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
