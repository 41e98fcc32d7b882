"""Tables for people: a plan tensor by tensor, hardware, and what all tables share."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdnn.memory.decisions import Fate
from vdnn.micro_batches import without_round
from vdnn.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.memory.trace import Trace

RIGHT = frozenset(
    {"bytes", "leaves", "returns", "stall", "peak", "arena", "average", "host", "disk", "moved", "step", "of oracle"}
    | {"TFLOPS", "GB/s", "out GB/s", "back GB/s", "memory"}
    | {"step/oracle", "bound", "gap", "median", "p95", "largest", "samples/s"}
    | {"copies", "hidden", "reruns", "saves", "parts"}
    | {"batch", "floor", "allowed", "loss"}
    | {"output bytes", "parameters", "of the step", "busy, simulated", "busy, measured"}
)
# Columns that go, in this order, where it is narrow.
SPARE = (
    *("description", "shape", "returns", "leaves", "disk", "host", "average", "peak", "algorithms", "bound", "moved"),
    *("loss", "floor", "allowed"),
    *("step/oracle", "median", "fits", "p95", "gap", "used by", "hidden", "reruns", "copies", "saves", "instead"),
    "stall",
)
# columns of prose, and the width from which on others matter more
WRAPPED = {"about": 30, "used by": 30, "instead": 30, "why": 36}
STYLES = {"offload": "cyan", "drop": "yellow", "no": "red", "failed": "red"}


@dataclass(frozen=True)
class Row:
    """A feature map or input whose fate was decided, and what became of it.

    leaves, returns   steps of the plan: the offload, or the op after which it was forgotten; the prefetch, or the op
                      that made it again; -1 where there is none
    stall             seconds that compute waited for its copies; None without a trace
    tier              where its copy is, host or disk; "" if it has none
    """

    tensor: str
    shape: tuple[int, ...]
    bytes: int
    fate: Fate
    leaves: int
    returns: int
    stall: float | None
    tier: str = ""


def rows(plan: Plan, trace: Trace | None = None) -> list[Row]:
    """One row per buffer that backward reads, in the order of the last forward ops that do; then others that stalled.

    A buffer bears the name of the last tensor in it: relu1.y stands for conv1.y as well, where ReLU is in place.
    """
    tape = plan.tape
    waited: dict[str, float] = {}
    for stall in trace.stalls if trace else ():
        waited[stall.cause] = waited.get(stall.cause, 0.0) + stall.seconds
    moves = _moves(plan)
    saved = [tape.buffer_of[t.name] for t in tape.saved if without_round(t.name) != "clock" or t.name in waited]
    others = [name for name in waited if name and name not in saved]
    out = []
    for buffer in (*saved, *others):
        fate = plan.fate(buffer) or Fate.KEEP
        leaves, returns = moves.get(buffer, (-1, -1)) if fate is not Fate.KEEP else (-1, -1)
        last = tape.buffers[buffer].tensors[-1]
        stall_seconds = waited.get(buffer, 0.0) if trace else None
        moved = plan.tier(buffer) if fate is Fate.OFFLOAD else ""
        out.append(Row(last.name, last.shape, plan.payload(buffer), fate, leaves, returns, stall_seconds, moved))
    return out


def _moves(plan: Plan) -> dict[str, tuple[int, int]]:
    """{buffer: (step at which it leaves, step at which it is back)} of those that leave between their uses."""
    freed: dict[str, int] = {}
    offloaded: dict[str, int] = {}
    moves: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(plan.steps):
        if step.kind == "offload":
            offloaded[step.name] = i
        elif step.kind == "free":
            freed.setdefault(step.name, i)
        elif step.kind == "alloc" and step.name in freed and step.name not in moves:
            moves[step.name] = (offloaded.get(step.name, freed[step.name]), _next_use(plan, step.name, i))
    return moves


def _next_use(plan: Plan, buffer: str, at: int) -> int:
    tape = plan.tape
    for i in range(at + 1, len(plan.steps)):
        step = plan.steps[i]
        if step.name == buffer or (step.kind == "compute" and buffer in tape.writes[tape.index[step.name]]):
            return i
    return -1


def plan_table(plan: Plan, trace: Trace | None = None, width: int | None = None) -> str:
    """The table as text, no wider than the terminal; with a trace, with its times and stalls.

    Leaves and returns are steps of the plan, and with a trace the times at which these start.
    """
    title = "\n".join([headline(plan), note(plan, trace), *plan.notes])
    return render(title, _columns(plan, trace), list(_cells(plan, trace)), width)


def note(plan: Plan, trace: Trace | None) -> str:
    """What the headline leaves out, in a line: with a trace, its times."""
    if trace is None:
        disk = f", disk {format_bytes(plan.disk_bytes)}" if plan.disk_bytes else ""
        return f"floor {format_bytes(plan.floor_bytes)}, host {format_bytes(plan.host_bytes)}{disk}"
    stalls = sum(stall.seconds for stall in trace.stalls)
    return (
        f"{trace.kind}: {format_seconds(trace.step_seconds)} a step, {format_seconds(stalls)} of it stalls, "
        f"{trace.hidden_copy_fraction:.0%} of the copies hidden"
    )


def plan_html(plan: Plan, trace: Trace | None = None) -> str:
    """The table as HTML, for notebooks; with a trace, with its times and stalls."""
    from vdnn.html_tables import html_table

    steps = [] if trace else ["leaves, returns: steps of the plan"]
    title = "\n".join([headline(plan), note(plan, trace), *steps, *plan.notes])
    sizes = [row.bytes for row in rows(plan, trace)]
    cells = list(_cells(plan, trace))
    return html_table(title, _columns(plan, trace), cells, rows="tensors that backward reads", bar=("bytes", sizes))


def headline(plan: Plan) -> str:
    """The plan in one line."""
    tape = plan.tape
    return (
        f"{tape.network}, {tape.batch_label}, {plan.policy or 'own decisions'}: "
        f"arena {format_bytes(plan.arena_bytes)}, peak {format_bytes(plan.peak_bytes)}"
    )


def _columns(plan: Plan, trace: Trace | None) -> tuple[str, ...]:
    tier = ("tier",) if plan.disk_bytes else ()
    columns = ("tensor", "shape", "bytes", "fate", *tier, "leaves", "returns")
    return (*columns, "stall") if trace else columns


def _cells(plan: Plan, trace: Trace | None) -> Iterator[list[str]]:
    times = {e.index: e.start for e in trace.events} if trace else {}

    def when(step: int) -> str:
        start = times.get(step)
        if step < 0 or start is None:
            return "" if step < 0 else str(step)
        return f"{step}, {format_seconds(start)}"

    for row in rows(plan, trace):
        shape = "x".join(map(str, row.shape))
        tier = [row.tier] if plan.disk_bytes else []
        cells = [row.tensor, shape, format_bytes(row.bytes), str(row.fate), *tier, when(row.leaves), when(row.returns)]
        yield [*cells, format_seconds(row.stall) if row.stall else ""] if trace else cells


# ---- hardware


def hardware_list(table: Mapping[str, Mapping[str, Any]], width: int | None = None) -> str:
    """The hardware of vdnn.memory.cost.hardware_table, a line each, without sources."""
    columns = ("hardware", "TFLOPS", "GB/s", "out GB/s", "back GB/s", "memory", "description")
    rates = ("flops_per_second", "bytes_per_second", "offload_bytes_per_second", "prefetch_bytes_per_second")
    lines = []
    for name, figures in table.items():
        values = [figures[rate]["value"] for rate in rates]
        numbers = [f"{values[0] / 1e12:.3g}", *(f"{value / 1e9:.4g}" for value in values[1:])]
        lines.append([name, *numbers, format_bytes(figures["memory_bytes"]["value"]), figures["description"]])
    title = "published peaks of fp32 arithmetic and memory; attained rates of the link out and back"
    return render(title, columns, lines, width)


def render(
    title: str,
    columns: Sequence[str],
    lines: Sequence[Sequence[str]],
    width: int | None,
    right: Container[str] = RIGHT,
) -> str:
    """The table as text: with colours on a terminal, and without columns that have no room there.

    right   columns whose cells stand at the right
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if width is None:
        terminal = Console()
        width = terminal.width if terminal.is_terminal or os.environ.get("COLUMNS") else 1000
    console = Console(width=width, highlight=False, markup=False, emoji=False)  # [brackets] are text
    shown = _columns_that_fit(columns, lines, width)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i in shown:
        table.add_column(columns[i], justify="right" if columns[i] in right else "left", overflow="fold")
    for cells in lines:
        styles = [style for cell in cells if (style := STYLES.get(cell))]
        table.add_row(*(cells[i] for i in shown), style=styles[0] if styles else None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"


def _columns_that_fit(columns: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> list[int]:
    wanted = [max([len(name), *(len(cells[i]) for cells in lines)]) for i, name in enumerate(columns)]
    needed = [2 + min(WRAPPED.get(name, size), size) for name, size in zip(columns, wanted, strict=True)]
    shown = list(range(len(columns)))
    for name in SPARE:
        if name in columns and 1 + sum(needed[i] for i in shown) > width:
            shown.remove(columns.index(name))
    return shown
