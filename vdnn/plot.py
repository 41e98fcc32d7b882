"""Pictures: live bytes by role over one step, with what the streams do below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdnn.memory.plan import STREAMS
from vdnn.network import Role
from vdnn.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace

# From the bottom up: first what stays for the whole step.  Lightness differs as well, for grey and colour-blind eyes.
COLOURS = {
    str(Role.WEIGHT): "#33475b",
    str(Role.STATE): "#5d7389",
    str(Role.STATISTICS): "#8da0b3",
    str(Role.INPUT): "#b9c7d4",
    str(Role.FEATURE): "#3b8bc2",
    str(Role.GRADIENT): "#f2a541",
    str(Role.WEIGHT_GRADIENT): "#d9662b",
    str(Role.WORKSPACE): "#9bc59d",
}
WORK = {"forward": "#3b8bc2", "rerun": "#7b5ea7", "backward": "#f2a541", "update": "#33475b", "copy": "#5fa777"}
STALL = "#e9d8d8"


class PlotError(RuntimeError):
    """There is nothing to draw with."""


def memory_picture(trace: Trace, path: str | Path, budget: int | str | None = None, title: str | None = None) -> Path:
    """Draw `trace` into the file `path` (.png, .svg or .pdf) and return its path.

    budget   drawn as a line if given: a number of bytes or text such as "12GiB"
    Raises PlotError if matplotlib is not there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("pictures need matplotlib; install it with: pip install 'vdnn[plot]'") from error
    figure = Figure(figsize=(10, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    memory, streams = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.15])
    scale, unit = time_scale(trace.step_seconds)
    _draw_memory(memory, trace, scale, None if budget is None else parse_bytes(budget))
    _draw_streams(streams, trace, scale)
    streams.set_xlabel(f"time in the step, {unit} ({trace.kind})")
    memory.set_title(title or _title(trace), loc="left", fontsize=12, fontweight="bold", pad=12)
    for axes in (memory, streams):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#8a8f98")
        axes.tick_params(color="#8a8f98", labelsize=9)
    figure.savefig(path, dpi=150)
    return Path(path)


def _title(trace: Trace) -> str:
    tape = trace.plan.tape
    policy = trace.plan.policy or "own decisions"
    step = format_seconds(trace.step_seconds)
    return f"{tape.network}, {tape.batch_label}, {policy}: {format_bytes(trace.plan.arena_bytes)}, {step} a step"


def time_scale(seconds: float) -> tuple[float, str]:
    """(by what seconds are multiplied, the unit that they are then in), for an axis that long."""
    return (1.0, "s") if seconds >= 2 else (1e3, "ms") if seconds >= 2e-3 else (1e6, "us")


def _draw_memory(axes: Any, trace: Trace, scale: float, budget: int | None) -> None:
    times, by_role = trace.timeline
    highest = max(trace.timeline.total, default=0)
    size, unit = byte_scale(max(highest, trace.plan.arena_bytes))
    roles = [role for role in COLOURS if max(by_role.get(role, [0])) > highest / 500]
    axes.stackplot(
        [at * scale for at in times],
        [[count / size for count in by_role[role]] for role in roles],
        labels=roles,
        colors=[COLOURS[role] for role in roles],
        step="post",
        linewidth=0,
    )
    arena = trace.plan.arena_bytes
    top = max(highest, arena)
    is_close = budget is not None and 0 <= budget - arena < 0.06 * top  # no room for a label between the two lines
    if budget is not None:
        axes.axhline(budget / size, color="#b3261e", linewidth=1.4, linestyle=(0, (6, 3)))
        if budget <= 1.6 * top:
            top = max(top, budget)
            both = f", arena {format_bytes(arena)}" if is_close else ""
            _label(axes, budget / size, f"budget {format_bytes(budget)}{both}", "#b3261e")
    axes.axhline(arena / size, color="#3c4043", linewidth=0.9, linestyle=(0, (1, 2)))
    if not is_close:
        _label(axes, arena / size, f"arena {format_bytes(arena)}", "#3c4043", left=budget is not None)
    axes.set_ylim(0, top / size * 1.1)
    axes.set_xlim(0, trace.step_seconds * scale)
    axes.set_ylabel(f"live on the device, {unit}")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9,
        handlelength=1, handleheight=1,
    )  # fmt: skip


def _label(axes: Any, height: float, text: str, colour: str, left: bool = False) -> None:
    x, side = (0.008, "left") if left else (0.995, "right")
    axes.text(x, height, text, transform=axes.get_yaxis_transform(), ha=side, va="bottom", fontsize=9, color=colour)


def byte_scale(count: int) -> tuple[int, str]:
    """(by what bytes are divided, the unit that they are then in), for an axis that high."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2 * 2**exponent:
            return 2**exponent, unit
    return 1, "bytes"


def _draw_streams(axes: Any, trace: Trace, scale: float) -> None:
    bars: dict[tuple[str, str], list[tuple[float, float]]] = {}
    tape = trace.plan.tape
    seen: set[str] = set()
    for event in trace.events:
        if event.start is None or event.finish is None or event.step.kind in ("alloc", "free"):
            continue
        work = "copy"
        if event.step.kind == "compute":
            phase = tape.ops[tape.index[event.step.name]].phase
            work = "rerun" if event.step.name in seen else phase if phase in WORK else "backward"
            work = "forward" if phase in ("evaluate", "update_statistics") and work != "rerun" else work
            seen.add(event.step.name)
        span = (event.start * scale, (event.finish - event.start) * scale)
        lane = "compute" if event.step.kind == "compute" else event.step.kind  # one stream may copy both ways
        bars.setdefault((lane, work), []).append(span)
    starts = trace.starts
    for stall in trace.stalls:
        start = starts[stall.index]
        bars.setdefault(("compute", "stall"), []).append(((start - stall.seconds) * scale, stall.seconds * scale))
    for (lane, work), spans in bars.items():
        y = len(STREAMS) - 1 - STREAMS.index(lane)
        colour = STALL if work == "stall" else WORK[work]
        axes.broken_barh(spans, (y - 0.36, 0.72), facecolors=colour, linewidth=0)
    _name_streams(axes, {work for _, work in bars})


def _name_streams(axes: Any, works: set[str]) -> None:
    from matplotlib.patches import Patch

    axes.set_yticks(range(len(STREAMS)), STREAMS[::-1])
    axes.set_ylim(-0.6, len(STREAMS) - 0.4)
    axes.tick_params(axis="y", length=0)
    legend = [Patch(color=colour, label=work) for work, colour in {**WORK, "stall": STALL}.items() if work in works]
    axes.legend(
        handles=legend, loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9,
        handlelength=1, handleheight=1, labelspacing=0.25,
    )  # fmt: skip
