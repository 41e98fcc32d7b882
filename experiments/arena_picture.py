"""The arena's pictures: steps against budgets, by machine; and search, the best published policy and the bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from arena_cells import SEARCH, Row

from vdnn.memory.published import PUBLISHED

DPI = 150
GREY, OURS, RIVAL = "#8a8f98", "#c1272d", "#0072b2"
FRONT: dict[str, Any] = {"color": OURS, "linewidth": 3.0, "marker": "o", "markersize": 5.0}
BEHIND: dict[str, Any] = {"color": RIVAL, "linewidth": 1.1, "linestyle": "--", "marker": "s", "markersize": 2.5}
GROUND = "#e9ebee"  # where no plan can be
# Okabe and Ito's, then others; dashes tell apart what colours do not
COLOURS = ("#56b4e9", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#4d4d4d")
DASHES = ("-", "--", ":")
NAMES = {"titan-x": "Titan X", "v100": "V100", "a100": "A100", "h100-sxm": "H100 SXM"}
TICKS = (1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10)
FRONTS_ON = "titan-x"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """The median step over the oracle against the budget, a panel for every machine and a line for every policy.

    A cell that a policy does not fit counts as infinitely slow, so that a line ends where less than half fit.
    """
    machines = list(dict.fromkeys(row.hardware for row in rows))
    figure, grid = _figure(-(-len(machines) // 2), min(2, len(machines)), 3.3, "y")
    styles = _styles(row.policy for row in rows)
    drawn = []
    for axes, machine in zip(grid, machines, strict=False):
        for name, style in styles.items():
            points = _medians(row for row in rows if (row.hardware, row.policy) == (machine, name))
            if points:
                axes.plot(*zip(*points, strict=True), **style)
                drawn.append(name)
        _dress(axes, NAMES.get(machine, machine))
        _scale(axes)
        axes.set_xlabel("budget: % of keep_all's arena above the floor", fontsize=8)
        axes.set_ylabel("simulated step / oracle", fontsize=8)
    count = len({(row.network, row.batch) for row in rows})
    figure.suptitle(
        f"Median over {count} networks (simulated); a line ends where less than half of them fit",
        x=0.01, ha="left", fontsize=10, fontweight="bold",
    )  # fmt: skip
    handles = [_handle(name, style) for name, style in styles.items() if name in drawn]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    absent = ", ".join(name for name in styles if name not in drawn)
    if absent:
        figure.supxlabel(f"nowhere do half of them fit with {absent}", fontsize=7.5, color="#5f6368", x=0.01, ha="left")
    return _save(figure, grid[len(machines) :], path)


def _medians(rows: Iterable[Row]) -> list[tuple[int, float]]:
    """(percent, median of step over oracle) by rising budget, where at least half of the cells fit."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.percent, []).append(row.ratio if row.fits else inf)
    points = ((percent, median(ratios)) for percent, ratios in sorted(found.items()))
    return [(percent, ratio) for percent, ratio in points if isfinite(ratio)]


def _styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each policy's line is drawn: search thick and below, so that one that is as fast shows on it."""
    others = [name for name in dict.fromkeys(names) if name != SEARCH]
    styles: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(others):
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        styles[name] = {"color": COLOURS[i % len(COLOURS)], "linestyle": dash, "linewidth": 1.1, "alpha": 0.9}
    styles[SEARCH] = {"color": OURS, "linewidth": 4.0, "marker": "o", "markersize": 6.0, "zorder": 1.5}
    return {name: {"marker": ".", "markersize": 4} | style for name, style in styles.items()}


def draw_fronts(rows: Sequence[Row], path: Path, hardware: str = FRONTS_ON) -> Path | None:
    """Step over oracle against the budget on one machine, a panel for every network: search, rival, bound.

    The rival is whichever published policy is the fastest in that budget; None, and no file, without rows of it.
    """
    own = [row for row in rows if row.hardware == hardware]
    networks = list(dict.fromkeys((row.network, row.batch) for row in own))
    if not networks:
        return None
    columns = min(4, len(networks))
    figure, grid = _figure(-(-len(networks) // columns), columns, 2.1, "none")
    for axes, pair in zip(grid, networks, strict=False):
        _front(axes, [row for row in own if (row.network, row.batch) == pair])
        _dress(axes, f"{pair[0]} ({pair[1]})")
        axes.set_xlabel("budget, GiB", fontsize=7.5)
    figure.supylabel("simulated step / oracle", fontsize=8.5)
    title = f"{NAMES.get(hardware, hardware)}: search, the best published policy of each budget, and the bound"
    figure.suptitle(f"{title} (simulated)", x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.legend(handles=_front_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _save(figure, grid[len(networks) :], path)


def _front(axes: Any, rows: Sequence[Row]) -> None:
    """One network's lines; the ground below the bound is filled."""

    def line(rows: Iterable[Row], value: Callable[[Row], float]) -> list[tuple[float, float]]:
        best: dict[int, float] = {}
        for row in rows:
            best[row.budget] = min(best.get(row.budget, inf), value(row))
        return [(budget / 2**30, best[budget]) for budget in sorted(best) if isfinite(best[budget])]

    search = [row for row in rows if row.policy == SEARCH]
    bound = line(search, lambda row: row.bound / row.oracle)
    rival = line((row for row in rows if row.policy in PUBLISHED and row.fits), lambda row: row.ratio)
    ours = line((row for row in search if row.fits), lambda row: row.ratio)
    if bound:
        # what holds for a budget holds for all that are smaller, so between two the lower bound is proved
        axes.fill_between(*zip(*bound, strict=True), 0, step="pre", color=GROUND, linewidth=0)
        axes.step(*zip(*bound, strict=True), where="pre", color=GREY, linewidth=0.9)
    if ours:
        axes.plot(*zip(*ours, strict=True), **FRONT)
    if rival:
        axes.plot(*zip(*rival, strict=True), **BEHIND)
    ratios = [1.0, *(ratio for _, ratio in (*rival, *ours, *bound))]  # sub-batches may undercut the oracle
    room = max(max(ratios) - min(ratios), 0.01)
    axes.set_ylim(min(ratios) - 0.06 * room, min(ratios) + 1.08 * room)


def _front_legend() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        _handle("search", FRONT),
        _handle("best published policy of that budget", BEHIND),
        Patch(facecolor=GROUND, edgecolor=GREY, label="below the bound: no plan"),
    ]


def _figure(rows: int, columns: int, height: float, shared: str) -> tuple[Any, list[Any]]:
    """An empty figure with so many panels, and the panels.  Raises PlotError if matplotlib is not there."""
    from vdnn.plot import PlotError

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("pictures need matplotlib; install it with: pip install 'vdnn[plot]'") from error
    figure = Figure(figsize=(10, 0.9 + height * rows), layout="constrained", facecolor="white", dpi=DPI)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=shared == "y")
    return figure, list(grid.flat)


def _handle(name: str, style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=name, **style)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelsize=7.5)
    axes.grid(axis="y", color="#eceef1", linewidth=0.7)
    axes.set_axisbelow(True)


def _scale(axes: Any) -> None:
    """Logarithmic, with ticks that are read as times of the oracle."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _save(figure: Any, unused: Iterable[Any], path: Path) -> Path:
    """Write the figure without its unused panels."""
    for axes in unused:
        axes.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
