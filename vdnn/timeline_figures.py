"""The figures at the head of a timeline page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdnn import timeline_data
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace


def figures(trace: Trace, budget: int | None) -> dict[str, str]:
    """What a reader wants to know first, {what: in words}."""
    plan = trace.plan
    stalls = sum(stall.seconds for stall in trace.stalls)
    moved = trace.moved_bytes
    told = {
        "times": trace.kind,
        "the step takes": format_seconds(trace.step_seconds),
        "of it stalled": f"{format_seconds(stalls)} ({stalls / (trace.step_seconds or 1):.1%})",
        "budget": "none given" if budget is None else format_bytes(budget),
        "arena": format_bytes(plan.arena_bytes) + _against(plan.arena_bytes, budget),
        "peak, average": f"{format_bytes(plan.peak_bytes)}, {format_bytes(trace.average_bytes)}",
        "copied out, back": f"{format_bytes(moved['offload'])}, {format_bytes(moved['prefetch'])}",
        "copying hidden": f"{trace.hidden_copy_fraction:.0%} of {format_seconds(trace.copy_seconds)}",
    }
    if timeline_data.is_coarse(trace):
        told["drawn"] = f"to 1/{timeline_data.FINEST} of the step, as it has {len(trace.events):,} events"
    if plan.disk_bytes:
        told["spill file"] = format_bytes(plan.disk_bytes)
    return told


def _against(arena: int, budget: int | None) -> str:
    if budget is None:
        return ""
    return " (fits)" if arena <= budget else f" (over by {format_bytes(arena - budget)})"
