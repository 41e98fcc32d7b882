"""Tables of answers: plans side by side, and the largest that fits under each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vdnn.html_tables import html_table
from vdnn.tables import render
from vdnn.tape import batch_label
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.largest import Largest


Sheet = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns, lines

FIGURES = {
    "peak": ("peak_bytes", format_bytes),
    "arena": ("arena_bytes", format_bytes),
    "average": ("average_bytes", format_bytes),
    "host": ("host_bytes", format_bytes),
    "disk": ("disk_bytes", format_bytes),
    "moved": ("offloaded_bytes", format_bytes),
    "step": ("step_seconds", format_seconds),
    "bound": ("bound_seconds", lambda seconds: "" if seconds is None else format_seconds(seconds)),
    "gap": ("gap", lambda gap: "" if gap is None else f"{gap:.1%}"),
    "median": ("median", lambda ratio: f"x{ratio:.3f}"),
    "p95": ("p95", lambda ratio: f"x{ratio:.3f}"),
    "step/oracle": ("ratio", lambda ratio: f"{ratio:.4f}"),
    "of oracle": ("speed", lambda ratio: f"{ratio:.1%}"),
}
CERTIFIED, JITTERED = ("bound", "gap"), ("median", "p95")  # columns that are there only where a plan has them


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with what follows from it: how far the step is from the oracle and from the bound."""
    step, oracle, bound = summary["step_seconds"], summary["oracle_seconds"], summary.get("bound_seconds")
    jitter = summary.get("jitter") or {}
    return {
        "disk_bytes": 0,
        **summary,
        "speed": oracle / step,
        "ratio": step / oracle,
        "bound_seconds": bound,
        "gap": step / bound - 1 if bound and summary["fits"] else None,
        "median": jitter.get("median_slowdown", 1.0),
        "p95": jitter.get("p95_slowdown", 1.0),
    }


def comparison_table(summaries: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    """Plans side by side, from their summaries (vdnn.planning.summary); "of oracle" is oracle / step.

    Where a policy gives a lower bound for the budget, gap is by how much of it the step is longer; under jitter, median
    and p95 are step / undisturbed step.
    Algorithms and a budget that are the same for all stand in the title.  Floor and oracle are those of the step that
    was asked for; parts, where there are any, is in how many sub-batches each plan has it.
    """
    return render(*_comparison(summaries), width) if summaries else ""


def comparison_html(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The same as HTML, for notebooks."""
    if not summaries:
        return html_table("no plans to compare", (), ())
    seconds = [s["step_seconds"] for s in summaries]
    return html_table(*_comparison(summaries), rows="plans", bar=("step", seconds))


def _comparison(summaries: Sequence[Mapping[str, Any]]) -> Sheet:
    """Title, columns and lines of a comparison."""
    title = _comparison_title(summaries)
    words = {
        "policy": [s["policy"] for s in summaries],
        "parts": [str(s["micro_batches"]) for s in summaries],
        "algorithms": [s["algorithms"] for s in summaries],
        "budget": [format_bytes(s["budget_bytes"]) for s in summaries],
        "fits": ["yes" if s["fits"] else "no" for s in summaries],
    }
    if set(words["parts"]) == {"1"}:
        words.pop("parts")
    for name in ("algorithms", "budget"):
        if len(set(words[name])) == 1:
            title += f", {name} {words.pop(name)[0]}"
    title += _jitter_note(summaries) + _idle_note(summaries)
    absent = set() if any(s.get("bound_seconds") for s in summaries) else set(CERTIFIED)
    absent |= set() if any(s.get("jitter") for s in summaries) else set(JITTERED)
    absent |= set() if any(s.get("disk_bytes") for s in summaries) else {"disk"}
    shown = {name: figure for name, figure in FIGURES.items() if name not in absent}
    figures = [[show(_figures(s)[key]) for key, show in shown.values()] for s in summaries]
    lines = [[*cells, *numbers] for cells, numbers in zip(zip(*words.values(), strict=True), figures, strict=True)]
    return title, (*words, *shown), lines


def _idle_note(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Which policies, of those that move tensors, moved none: a line of the title."""
    idle = dict.fromkeys(s["policy"] for s in summaries if s.get("is_idle"))
    return f"\nmoving nothing and running nothing again: {', '.join(idle)}" if idle else ""


def _comparison_title(summaries: Sequence[Mapping[str, Any]]) -> str:
    first = summaries[0]
    of = " of the whole batch" if is_of_whole(summaries) else ""
    return (
        f"{first['network']}, {asked_label(first)}, {first['optimizer']}, on {first['hardware']} ({first['time']})\n"
        f"rules {first['rules']}, kernels {first['kernels']}, counted {first['count']}\n"
        f"floor{of} {format_bytes(first['floor_bytes'])}, oracle {format_seconds(first['oracle_seconds'])}"
    )


def _jitter_note(summaries: Sequence[Mapping[str, Any]]) -> str:
    """What the columns under jitter are, in a line of the title."""
    jitters = [s["jitter"]["jitter"] for s in summaries if s.get("jitter")]
    if not jitters:
        return ""
    return f"\nmedian, p95: step over the undisturbed step, durations varying by {100 * jitters[0]:g}%, simulated"


def asked_label(summary: Mapping[str, Any]) -> str:
    """The batch that was asked for in words, whatever sub-batches a policy chose."""
    return batch_label(summary["batch"], summary["asked_micro_batches"])


def is_of_whole(summaries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some of the plans have sub-batches, while floor and oracle are those of the whole batch."""
    return any(s["micro_batches"] != 1 == s["asked_micro_batches"] for s in summaries)


def fit_table(found: Sequence[Largest], width: int | None = None) -> str:
    """The largest value under each policy (vdnn.largest), a line each; where nothing fits, what the smallest takes."""
    return render(*_fits(found), width) if found else ""


def fit_html(found: Sequence[Largest]) -> str:
    """The same as HTML, for notebooks."""
    return html_table(*_fits(found), rows="policies") if found else html_table("no policies", (), ())


def _fits(found: Sequence[Largest]) -> Sheet:
    """Title, columns and lines of the largest values."""
    plans = [largest.plan for largest in found if largest.plan]
    named = {plan.tape.network for plan in plans}
    about = f"{named.pop()}, " if len(named) == 1 else ""
    title = f"{about}largest {found[0].what} within {format_bytes(found[0].budget_bytes)}; times simulated"
    columns = ["policy", "largest", "peak", "arena", "step", "samples/s"]
    lines = [_fit_cells(largest) for largest in found]
    if any(plan.tape.micro_batches != 1 for plan in plans):
        columns.insert(2, "parts")
        for largest, cells in zip(found, lines, strict=True):
            cells.insert(2, str(largest.plan.tape.micro_batches) if largest.plan else "")
    return title, columns, lines


def _fit_cells(largest: Largest) -> list[str]:
    if largest.plan is None:
        least = "at least " if largest.is_refused_by_floor else ""
        needs = f"none: {largest.what} {largest.smallest} takes {least}{format_bytes(largest.refused_bytes)}"
        return [largest.policy, needs, "", "", "", ""]
    sizes = [format_bytes(size) for size in (largest.plan.peak_bytes, largest.plan.arena_bytes)]
    more = "" if largest.refused_value else " or more"
    seconds, rate = format_seconds(largest.step_seconds), f"{largest.samples_per_second:.4g}"
    return [largest.policy, f"{largest.value}{more}", *sizes, seconds, rate]
