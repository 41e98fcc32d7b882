"""reasons: one tensor under its fate, what else could be done with it, and what that says in plain words."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from vdnn.memory.cost import copy_of
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Fate
from vdnn.memory.plan import DISK
from vdnn.network import Role
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.facts import Facts

NEARLY = 0.999  # of the copies' time hidden: the rest is rounding


class Case:
    """One buffer under its fate, and what else could be done with it."""

    def __init__(self, facts: Facts, buffer: str, fate: Fate) -> None:
        self.facts, self.buffer, self.fate = facts, buffer, fate
        plan, cost = facts.plan, facts.cost
        self.is_input = plan.role(buffer) is Role.INPUT
        own = facts.rounds.get(buffer, 0)
        backward, turn = facts.tape.rounds[own][1], facts.turns[own]
        self.is_read_back = any(buffer in reads for reads in facts.tape.reads[backward.start : backward.stop])
        uses = facts.uses.get(buffer, [])
        self.last = max((i for i in uses if i < turn), default=-1)
        self.next = min((i for i in uses if i >= turn), default=len(plan.steps))
        self.copies = facts.copies.get(buffer, [])
        self.copy_seconds = sum(facts.times[i][1] - facts.times[i][0] for i in self.copies)
        self.hidden_seconds, _ = facts.hiding(self.copies)
        self.stall_seconds = facts.stalls.get(buffer, 0.0)
        self.tier = plan.tier(buffer) if fate is OFFLOAD else ""
        out = 0.0 if self.is_input else copy_of(cost, plan.payload(buffer), "offload", self.tier)
        self.there_and_back = out + copy_of(cost, plan.payload(buffer), "prefetch", self.tier)

    def hiding(self, kind: str) -> list[str]:
        """The ops that run beside its offload, or its prefetch."""
        return self.facts.hiding([i for i in self.copies if self.facts.plan.steps[i].kind == kind])[1]

    @cached_property
    def rerun_seconds(self) -> float:
        """Of reruns that its own fate causes."""
        if self.fate is not DROP:
            return 0.0
        return self.facts.rerun_seconds - self.facts.rerun_seconds_if(self.buffer, KEEP)

    @cached_property
    def rerun_if_dropped(self) -> float | None:
        """Seconds of reruns more if it were dropped, or that there are because it is; None for an input."""
        if self.is_input:
            return None
        if self.fate is DROP:
            return self.rerun_seconds
        return self.facts.rerun_seconds_if(self.buffer, DROP) - self.facts.rerun_seconds

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
        """By how much the peak would be higher if its bytes stayed where it is away; see vdnn.explain.Row."""
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


def reason(case: Case) -> str:
    """Why the fate may be so: only what was computed, and the alternatives beside it."""
    if not case.is_read_back:
        return "backward does not read it"
    return {KEEP: _kept, OFFLOAD: _offloaded, DROP: _dropped}[case.fate](case)


def _kept(case: Case) -> str:
    plan = case.facts.plan
    if plan.decisions.lifetimes == "network":
        return "everything stays for the whole step"
    if case.is_next_at_once:
        return f"{plan.steps[case.next].name} reads it at once"
    if not case.is_apart:
        return f"leaving would free nothing at the peak, {case.facts.peak_op}"
    free, copies = format_bytes(plan.size(case.buffer)), format_seconds(case.there_and_back)
    again = case.rerun_if_dropped
    price = f"{copies} of copies" if again is None else f"{copies} of copies or {_again(again)}"
    return f"leaving would free {free} at the peak, for {price}"


def _again(seconds: float) -> str:
    return f"{format_seconds(seconds)} of running again" if seconds > 0 else "no more running again than there is"


def _offloaded(case: Case) -> str:
    again = case.rerun_if_dropped
    other = "an input cannot be made again" if again is None else f"dropping it would take {_again(again)}"
    return f"{_moved(case)}; {other}{_freed(case)}"


def _moved(case: Case) -> str:
    copies = f"{format_seconds(case.copy_seconds)} of copies{' to disk and back' if case.tier == DISK else ''}"
    if case.stall_seconds:
        return f"compute waits {format_seconds(case.stall_seconds)} for its {copies}"
    if case.hidden_seconds < NEARLY * case.copy_seconds:
        return f"compute never waits for its {copies}"
    ways = (("out", "offload"), ("back", "prefetch"))
    behind = [f"{way} behind {_span(ops)}" for way, kind in ways if (ops := case.hiding(kind))]
    return f"its {copies} hide, {', '.join(behind)}"


def _span(ops: list[str]) -> str:
    """The ops that run beside copies, by their ends where there are many."""
    unique = list(dict.fromkeys(ops))
    return " and ".join(unique) if len(unique) <= 2 else f"{unique[0]} to {unique[-1]}"


def _dropped(case: Case) -> str:
    again, copies = case.rerun_seconds, format_seconds(case.there_and_back)
    if again <= 0:
        return f"it comes back with what is run again for others; copies would take {copies}{_freed(case)}"
    return f"run again in {format_seconds(again)}; copies would take {copies}{_freed(case)}"


def _freed(case: Case) -> str:
    return "" if case.saved_bytes else "; the peak would be no higher if it stayed"
