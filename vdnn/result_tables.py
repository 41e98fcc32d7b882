"""Tables of answers: the largest that fits under each policy, and why tensors have their fates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vdnn.tables import headline, note, render
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.explain import Explanation
    from vdnn.largest import Largest


def fit_table(found: Sequence[Largest], width: int | None = None) -> str:
    """The largest value under each policy (vdnn.largest), a line each; where nothing fits, what the smallest takes."""
    if not found:
        return ""
    plans = [largest.plan for largest in found if largest.plan]
    named = {plan.tape.network for plan in plans}
    about = f"{named.pop()}, " if len(named) == 1 else ""
    title = f"{about}largest {found[0].what} within {format_bytes(found[0].budget_bytes)}; times simulated"
    lines = []
    for largest in found:
        if largest.plan is None:
            needs = f"none: {largest.what} {largest.smallest} takes {format_bytes(largest.refused_bytes)}"
            lines.append([largest.policy, needs, "", "", "", ""])
            continue
        sizes = [format_bytes(size) for size in (largest.plan.peak_bytes, largest.plan.arena_bytes)]
        rate = f"{largest.samples_per_second:.4g}"
        more = "" if largest.refused_value else " or more"
        lines.append([largest.policy, f"{largest.value}{more}", *sizes, format_seconds(largest.step_seconds), rate])
    return render(title, ("policy", "largest", "peak", "arena", "step", "samples/s"), lines, width)


def explanation_table(explanation: Explanation, width: int | None = None) -> str:
    """The fate of every tensor that backward reads, what it costs and saves, and why; see vdnn.explain."""
    columns = ("tensor", "bytes", "fate", "leaves", "returns", "copies", "hidden", "stall", "reruns", "saves", "why")
    plan = explanation.plan

    def seconds(value: float) -> str:
        return format_seconds(value) if value else ""

    lines = [
        [
            *(row.tensor, format_bytes(row.bytes), str(row.fate)),
            *("" if at is None else format_seconds(at) for at in (row.leaves, row.returns)),
            *map(seconds, (row.copy_seconds, row.hidden_seconds, row.stall_seconds, row.rerun_seconds)),
            *(format_bytes(row.saved_bytes) if row.saved_bytes else "", row.reason),
        ]
        for row in explanation.rows
        if row.is_read_back or row.copy_seconds or row.rerun_seconds
    ]
    others = len(explanation.rows) - len(lines)
    title = (
        f"{headline(plan)}\n{note(plan, explanation.trace)}\n"
        f"the peak is at {explanation.peak_op}; not shown: {others} that backward does not read"
    )
    return render(title, columns, lines, width)
