"""Tables of explanations: a line for each tensor, or all about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vdnn.html_tables import html_table
from vdnn.tables import headline, note, render
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.alternatives import Alternative
    from vdnn.explain import Explanation, Row
    from vdnn.memory.plan import Plan

ESTIMATED = "~"  # before what is estimated
LEFT_OUT = ("leaves", "returns", "copies", "hidden", "reruns")  # of HTML, which cannot know how wide the page is


def explanation_table(explanation: Explanation, width: int | None = None) -> str:
    """The fate of every tensor that backward reads, what it costs and saves, and why; see vdnn.explain."""
    rows = _shown(explanation)
    return render(_title(explanation, rows), _columns(explanation.plan), [_cells(explanation, r) for r in rows], width)


def explanation_html(explanation: Explanation) -> str:
    """The same as HTML, for notebooks, without what stands in the reasons as well."""
    rows, columns = _shown(explanation), _columns(explanation.plan)
    shown = [i for i, name in enumerate(columns) if name not in LEFT_OUT]
    lines = [[cells[i] for i in shown] for cells in (_cells(explanation, row) for row in rows)]
    lines = [[*cells[:-2], cells[-2].replace("; ", "\n"), cells[-1]] for cells in lines]  # an alternative a line
    title, sizes = _title(explanation, rows), [row.bytes for row in rows]
    return html_table(title, [columns[i] for i in shown], lines, rows="tensors", bar=("bytes", sizes))


def _shown(explanation: Explanation) -> list[Row]:
    return [row for row in explanation.rows if row.is_read_back or row.copy_seconds or row.rerun_seconds]


def _title(explanation: Explanation, rows: Sequence[Row]) -> str:
    plan, others = explanation.plan, len(explanation.rows) - len(rows)
    lines = [headline(plan), note(plan, explanation.trace), *plan.notes]
    lines.append(f"the peak is at {explanation.peak_op}; not shown: {others} that backward does not read")
    if any(row.alternatives for row in rows):
        said = "instead: by how much step and peak would change, that one fate changed and planned again, simulated"
        is_any = any(not other.is_replanned for row in rows for other in row.alternatives)
        lines.append(f"{said}; after {ESTIMATED} estimated at most" if is_any else said)
    return "\n".join(lines)


def _columns(plan: Plan) -> tuple[str, ...]:
    tier = ("tier",) if plan.disk_bytes else ()
    columns = ("tensor", "bytes", "fate", *tier, "leaves", "returns", "copies", "hidden", "stall", "reruns", "saves")
    return (*columns, "used by", "instead", "why")


def _cells(explanation: Explanation, row: Row) -> list[str]:
    def seconds(value: float) -> str:
        return format_seconds(value) if value else ""

    return [
        *(row.tensor, format_bytes(row.bytes), str(row.fate), *([row.tier] if explanation.plan.disk_bytes else [])),
        *("" if at is None else format_seconds(at) for at in (row.leaves, row.returns)),
        *map(seconds, (row.copy_seconds, row.hidden_seconds, row.stall_seconds, row.rerun_seconds)),
        format_bytes(row.saved_bytes) if row.saved_bytes else "",
        f"{_users((*row.written_by, *row.read_by))} | {_users(row.read_back_by)}",
        "; ".join(map(_briefly, row.alternatives)),
        row.reason,
    ]


def _users(ops: Sequence[str]) -> str:
    """The ops of a tensor, without their phase where the column says it."""
    return ", ".join(dict.fromkeys(op.removesuffix(".forward") for op in ops)) or "none"


def _briefly(other: Alternative) -> str:
    about = "" if other.is_replanned else ESTIMATED
    return f"{other.fate} {about}{signed_seconds(other.step_seconds)}, {about}{signed_bytes(other.peak_bytes)}"


def signed_seconds(seconds: float) -> str:
    """A change in seconds with its sign; what is less than a nanosecond is none."""
    return "+0 s" if abs(seconds) < 1e-9 else f"{'+' if seconds > 0 else ''}{format_seconds(seconds)}"


def signed_bytes(count: int) -> str:
    """A change in bytes with its sign."""
    return f"{'' if count < 0 else '+'}{format_bytes(count)}"


# ---- one tensor


def about_tensor(explanation: Explanation, row: Row) -> str:
    """All about one tensor of a plan, a fact a line; times are simulated."""
    return "\n".join(f"{name:<14}{text}".rstrip() for name, text in _facts(explanation, row)) + "\n"


def _facts(explanation: Explanation, row: Row) -> Iterator[tuple[str, str]]:
    plan = explanation.plan
    tensor = plan.tape.tensors[row.tensor]
    yield "tensor", f"{row.tensor} in {headline(plan)}"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    yield "bytes", f"{format_bytes(row.bytes)} ({row.bytes} bytes): {tensor.dtype} {shape}"
    others = [name for name in row.tensors if name != row.tensor]
    if others:
        yield "shared with", ", ".join(others)
    yield "written by", ", ".join(row.written_by) or "nothing: it comes from the host"
    yield "read by", ", ".join(row.read_by) or "nothing else in forward"
    yield "backward", ", ".join(row.read_back_by) or "does not read it"
    yield "fate", f"{row.fate}{f' on {row.tier}' if row.tier else ''}: {row.reason}"
    if row.leaves is not None and row.returns is not None:
        yield "away", f"from {format_seconds(row.leaves)} to {format_seconds(row.returns)} of the step, simulated"
    if row.copy_seconds:
        copied, hidden = format_seconds(row.copy_seconds), format_seconds(row.hidden_seconds)
        yield "copies", f"{copied}, of which {hidden} beside ops, simulated"
    yield "stall", f"{format_seconds(row.stall_seconds)} that compute waits for its copies, simulated"
    if row.rerun_seconds:
        yield "run again", f"{format_seconds(row.rerun_seconds)} of ops, simulated"
    yield "saves", f"{format_bytes(row.saved_bytes)} at the peak, which is at {explanation.peak_op}"
    for other in row.alternatives:
        yield f"if {other.fate}", _at_length(explanation, other)


def _at_length(explanation: Explanation, other: Alternative) -> str:
    step = explanation.trace.step_seconds + other.step_seconds
    peak = explanation.plan.peak_bytes + other.peak_bytes
    how = "planned again and simulated" if other.is_replanned else "estimated, at most"
    arena = "" if other.arena_bytes is None else f", arena {format_bytes(other.arena_bytes)}"
    return (
        f"step {format_seconds(step)} ({signed_seconds(other.step_seconds)}), "
        f"peak {format_bytes(peak)} ({signed_bytes(other.peak_bytes)}){arena}: {how}"
    )
