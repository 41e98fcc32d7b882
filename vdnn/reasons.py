"""reasons: what a plan's figures say about one tensor's fate, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdnn.memory.decisions import DROP, KEEP, OFFLOAD
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.explain import Case

PAST = {KEEP: "kept", OFFLOAD: "offloaded", DROP: "dropped"}
NEARLY = 0.999  # of the copies' time hidden: the rest is rounding


def reason(case: Case) -> str:
    """Why the fate may be so: only what was computed, and the alternatives beside it."""
    if not case.is_read_back:
        return f"{PAST[case.fate]}: backward does not read it"
    return f"{PAST[case.fate]}: {({KEEP: _kept, OFFLOAD: _offloaded, DROP: _dropped})[case.fate](case)}"


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
    copies = f"{format_seconds(case.copy_seconds)} of copies"
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
