"""Candidates: plans that were laid out and simulated for one budget, of which the best and the smallest are kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import OFFLOAD, Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import simulate
from vdnn.memory.tiers import tiers_of
from vdnn.memory.trial import sketch
from vdnn.tape import Tape

Progress = Callable[[str], None]
Finish = Callable[[Decisions], Decisions]


@dataclass(frozen=True)
class Found:
    """The best plan of a search.

    plan           laid out; the smallest found if none fits the budget
    budget         bytes
    step_seconds   of the plan, simulated
    bound_seconds  no plan of this step in this budget is faster, inf if there is none at all; without SciPy it is what
                   the step takes with unlimited memory
    origin         the seed it came from; "smallest" if none fits
    history        (seconds since the start, step_seconds) whenever a better one was found
    """

    plan: Plan
    budget: int
    step_seconds: float
    bound_seconds: float
    origin: str
    history: tuple[tuple[float, float], ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the plan's arena is within the budget."""
        return self.plan.arena_bytes <= self.budget

    @property
    def gap(self) -> float:
        """By which share of the bound the step is above it; inf where no plan fits."""
        return self.step_seconds / self.bound_seconds - 1 if self.fits else inf


class Candidates:
    """What was laid out for a budget, of one tape or of several of the same step."""

    def __init__(
        self,
        budget: int,
        cost: Cost,
        progress: Progress | None = None,
        evaluate: Callable[[Plan], float] | None = None,
        finish: Finish | None = None,
    ) -> None:
        self.budget = budget
        self.begun = time.monotonic()
        self.tell = progress or (lambda note: None)
        self.evaluate = evaluate or (lambda plan: simulate(plan, cost).step_seconds)
        self.finish = finish or (lambda decisions: decisions)
        self.plan: Plan | None = None
        self.seconds = inf
        self.origin = ""
        self.smallest: Plan | None = None
        self.history: list[tuple[float, float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun

    def tiers_if_moved(self, tape: Tape) -> dict[str, str]:
        """{buffer: "disk"} of what goes there if everything that backward reads is offloaded."""
        moved = Decisions(dict.fromkeys((t.name for t in tape.saved), OFFLOAD))
        return tiers_of(sketch(tape, self.finish(resolve(moved, tape, {}))))

    def lay_out(self, tape: Tape, decisions: Decisions, origin: str) -> int:
        """Bytes of the arena of these decisions' plan, which is simulated if it fits; of its peak if that is larger."""
        decisions = self.finish(resolve(decisions, tape, {}))
        plan = sketch(tape, decisions)
        if plan.peak_bytes > self.budget:
            self._is_small(replace(plan, arena_bytes=plan.peak_bytes))
            return plan.peak_bytes
        made = place(plan, decisions.effort)
        if made.arena_bytes <= self.budget:
            self._take(made, origin)
        else:
            self._is_small(made)
        return made.arena_bytes

    def _is_small(self, plan: Plan) -> None:
        if self.smallest is None or plan.arena_bytes < self.smallest.arena_bytes:
            self.smallest = plan

    def _take(self, laid: Plan, origin: str) -> None:
        """Keep the plan, whose arena is within the budget, if it is the best so far, by time and then by bytes."""
        plan = replace(laid, steps=tuple(order(laid)))
        seconds = self.evaluate(plan)
        if self.plan is not None and (seconds, plan.arena_bytes) >= (self.seconds, self.plan.arena_bytes):
            return
        if seconds < self.seconds:
            self.history.append((self.elapsed, seconds))
            self.tell(f"{seconds:.6g} s from {origin}")
        self.plan, self.seconds, self.origin = plan, seconds, origin

    def result(self, bound_seconds: float) -> Found:
        """The best plan; the smallest if nothing fits.  There must be one."""
        if self.plan is not None:
            return Found(self.plan, self.budget, self.seconds, bound_seconds, self.origin, tuple(self.history))
        assert self.smallest is not None
        plan = place(replace(self.smallest, arena_bytes=0), self.smallest.decisions.effort)
        plan = replace(plan, steps=tuple(order(plan)))
        return Found(plan, self.budget, self.evaluate(plan), bound_seconds, "smallest")
