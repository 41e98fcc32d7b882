"""A picture of the arena: the step's time over the budget, a line per policy, and the front of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdnn.plot import PlotError
from vdnn.result_tables import asked_label, is_of_whole
from vdnn.units import format_bytes, format_seconds

COLOURS = ("#3b8bc2", "#d9662b", "#5fa777", "#7b5ea7", "#b8860b", "#c2527f", "#33475b", "#6b8e23", "#17838f", "#8a5a44")
MARKERS = "osD^vP*Xhp<>d"
GREY, RED, GOLD = "#8a8f98", "#b3261e", "#f2c14e"
TALL = 2.5  # times the oracle: beyond, the axis is logarithmic
SCALES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes"))
Points = list[tuple[float, float]]
Summaries = Sequence[Mapping[str, Any]]


def front_picture(summaries: Summaries, path: str | Path, title: str | None = None) -> Path:
    """Draw summaries of plans (vdnn.planning.summary) of one step under several policies and budgets; gives the path.

    Raises PlotError if matplotlib is not there.
    """
    figure = new_figure()
    axes = figure.subplots()
    budgets = sorted({s["budget_bytes"] for s in summaries})
    size, unit = next((n, name) for n, name in SCALES if budgets[-1] >= n)
    _draw_front(axes, summaries, size)
    _draw_policies(axes, summaries, size)
    _draw_bound(axes, summaries, size)
    _set_axes(axes, summaries, budgets, size, unit)
    _draw_misfits(axes, summaries, budgets, size)
    axes.set_title(title or _title(summaries[0]), loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, fontsize=9, labelspacing=0.35)
    figure.savefig(path, dpi=150)
    return Path(path)


def new_figure() -> Any:
    """An empty figure.  Raises PlotError if matplotlib is not there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("pictures need matplotlib; install it with: pip install 'vdnn[plot]'") from error
    figure = Figure(figsize=(10, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def front(summaries: Summaries) -> list[Mapping[str, Any]]:
    """The plans that fit and that no other equals or beats in the step's time with as small a budget, by budget."""
    best: list[Mapping[str, Any]] = []
    for summary in sorted((s for s in summaries if s["fits"]), key=lambda s: (s["budget_bytes"], s["step_seconds"])):
        if not best or summary["step_seconds"] < best[-1]["step_seconds"]:
            best.append(summary)
    return best


def _title(summary: Mapping[str, Any]) -> str:
    oracle = format_seconds(summary["oracle_seconds"])
    return (
        f"{summary['network']}, {asked_label(summary)}, {summary['optimizer']}, on {summary['hardware']}, "
        f"{summary['time']}: oracle {oracle}"
    )


def _ratio(summary: Mapping[str, Any]) -> float:
    ratio: float = summary["step_seconds"] / summary["oracle_seconds"]
    return ratio


def _points(summaries: Summaries, size: int) -> Points:
    return sorted((s["budget_bytes"] / size, _ratio(s)) for s in summaries if s["fits"])


def _draw_front(axes: Any, summaries: Summaries, size: int) -> None:
    best = _points(front(summaries), size)
    if not best:
        return
    right = max(s["budget_bytes"] for s in summaries) / size
    corners = [*best, (max(right, best[-1][0]), best[-1][1])]
    xs, ys = zip(*corners, strict=True)
    axes.step(xs, ys, where="post", color=GOLD, linewidth=7, alpha=0.55, solid_capstyle="round", label="best of all")


def _draw_policies(axes: Any, summaries: Summaries, size: int) -> None:
    """Steps each, as a plan fits larger budgets too.  The legend has them as they lie at the right, and later ones have
    smaller markers, so that those on one spot can be told apart.
    """
    drawn, never = [], []
    for place, name in enumerate(dict.fromkeys(s["policy"] for s in summaries)):
        own = _points([s for s in summaries if s["policy"] == name], size)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        if own:
            drawn.append((-own[-1][1], -len(own), name, own, colour, marker))
        else:
            never.append(name)
    for n, (_, _, name, own, colour, marker) in enumerate(sorted(drawn)):
        xs, ys = zip(*own, strict=True)
        axes.plot(
            xs, ys, drawstyle="steps-post", color=colour, marker=marker, markersize=11 - 6 * n / len(drawn),
            linewidth=1.3, label=name, markerfacecolor="none", markeredgewidth=1.2, zorder=3 + n, clip_on=False,
        )  # fmt: skip
    for name in never:
        axes.plot([], [], " ", label=f"{name}: never fits")


def _draw_bound(axes: Any, summaries: Summaries, size: int) -> None:
    """The oracle, and the largest lower bound for each budget where a policy gives one: no line, as between two of them
    nothing is known.
    """
    axes.axhline(1, color="#3c4043", linewidth=1, linestyle=(0, (6, 3)), label="oracle: unlimited memory")
    bounds: dict[float, float] = {}
    for summary in summaries:
        if summary.get("bound_seconds"):
            at, bound = summary["budget_bytes"] / size, summary["bound_seconds"] / summary["oracle_seconds"]
            bounds[at] = max(bound, bounds.get(at, 0.0))
    if bounds:
        xs, ys = zip(*sorted(bounds.items()), strict=True)
        axes.plot(xs, ys, color="#3c4043", linestyle="none", marker="_", markersize=9, label="lower bound")


def _set_axes(axes: Any, summaries: Summaries, budgets: Sequence[int], size: int, unit: str) -> None:
    ratios = [_ratio(s) for s in summaries if s["fits"]] or [1.0]
    left, right = budgets[0] / size, budgets[-1] / size
    margin = 0.04 * (right - left) or 0.05 * right
    axes.set_xlim(left - margin, right + margin)
    if max(ratios) > TALL:
        axes.set_yscale("log")
        ticks = [tick for tick in (1, 1.1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100) if tick <= 1.3 * max(ratios)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.minorticks_off()
        axes.set_ylim(0.97, max(ratios) ** 1.06)
    else:
        span = max(max(ratios) - 1, 0.02)
        axes.set_ylim(1 - 0.04 * span, 1 + 1.08 * span)
    axes.set_xlabel(f"budget, {unit}")
    axes.set_ylabel(f"step / oracle ({summaries[0]['time']})")
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=9)


def _draw_misfits(axes: Any, summaries: Summaries, budgets: Sequence[int], size: int) -> None:
    """A red band over the budgets at which nothing fits, and the floor where it is in sight."""
    across = axes.get_xaxis_transform()
    for budget in budgets:
        if not any(s["fits"] for s in summaries if s["budget_bytes"] == budget):
            axes.axvline(budget / size, color=RED, linewidth=1.2, linestyle=(0, (2, 2)))
            axes.text(
                budget / size, 0.97, " nothing fits ", transform=across, rotation=90, ha="right", va="top",
                fontsize=9, color=RED,
            )  # fmt: skip
    floor = summaries[0]["floor_bytes"] / size
    left, right = axes.get_xlim()
    if left <= floor <= right:
        axes.axvline(floor, color=GREY, linewidth=1.2)
        of = " of the whole batch" if is_of_whole(summaries) else ""
        text = f" floor{of} {format_bytes(summaries[0]['floor_bytes'])} "
        high = any(math.isclose(floor, budget / size) for budget in budgets)
        axes.text(
            floor, 0.55 if high else 0.97, text, transform=across, rotation=90, ha="right", va="top", fontsize=9,
            color="#5f6368",
        )  # fmt: skip
