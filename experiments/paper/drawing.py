"""Pictures in the form of the paper's figures: ours filled, the paper's outlined beside it.  Drawn from numbers alone.

Two-column width, 150 dots an inch, colours by Okabe and Ito.  Axes say what ours is: one of `KINDS`.
All functions raise ValueError, with the numbers, for what cannot be drawn, and PlotError where matplotlib is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vdnn.plot import PlotError

File = str | Path
Names = Sequence[str]

KINDS = ("simulated", "exact bytes", "exact; workspace: model", "exact; workspace: input")
COLOURS = ("#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73", "#b3b3b3", "#4d4d4d")  # in the order of the series
WORK = {"forward": "#56b4e9", "backward": "#e69f00", "offload": "#009e73", "prefetch": "#cc79a7", "wasted": "#ffffff"}
WIDTH, DPI, SHADES = 7.2, 150, 96  # inches; dots an inch; colours in a file
GREY = "#8a8f98"
OURS: dict[str, Any] = {"linewidth": 0.4}
PAPER: dict[str, Any] = {"facecolor": "white", "hatch": "//////", "linewidth": 0.7}


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour: a number for each group or layer, None where there is none.

    marked   for each number, whether a star goes above it: the paper's mark of what cannot train
    """

    name: str
    ours: Sequence[float | None]
    paper: Sequence[float | None]
    marked: Sequence[bool] = ()


class Block(NamedTuple):
    """Something that a lane of a timeline does from start to finish; kind is a key of `WORK`."""

    lane: str
    label: str
    start: float
    finish: float
    kind: str


def grouped_bars(
    path: File,
    title: str,
    groups: Names,
    series: Sequence[Series],
    ylabel: str,
    *,
    kind: str,
    panels: int = 0,
    line: tuple[float, str] | None = None,
    beside: str = "the paper",
) -> Path:
    """Draw a pair of bars for each series in each group, as in Fig. 11, 12 and 14; return the path.

    panels   0: all groups on one axis.  Otherwise each group has its own axis and scale, so many in a row
    line     a level and its name, drawn across: the GPU's memory, for example
    beside   what the hatched bars are
    """
    _check(kind, groups, series)
    rows = -(-len(groups) // panels) if panels else 1
    figure, grid = _figure(title, rows, panels or 1, 0.75 + 1.7 * rows if panels else 3.0)
    slot = 0.84 if panels else 0.84 / max(len(series), 1)
    for k, each in enumerate(series):
        for group in range(len(groups)):
            axes, left = (grid[group], k - 0.42) if panels else (grid[0], group - 0.42 + k * slot)
            _pair(axes, left, slot / 2, COLOURS[k], each, group)
    names = [each.name for each in series]
    for group, axes in enumerate(grid):
        axes.set_visible(group < len(groups))
        _name_places(axes, names if panels else groups, line, slanted=bool(panels) and len(names) > 3)
        if panels and group < len(groups):
            axes.set_title(groups[group].replace(" (", "\n(") if panels > 4 else groups[group], fontsize=8, loc="left")
    return _finish(figure, path, [] if panels else names, ylabel, kind, beside)


def stacked_bars(
    path: File, title: str, groups: Names, parts: Sequence[Series], ylabel: str, *, kind: str, same_scale: bool = False
) -> Path:
    """Draw what adds up to a whole in each group, as in Fig. 4: ours and the paper's side by side; return the path.

    parts         from the bottom up; their numbers are by group
    same_scale   one scale for all groups; otherwise each has its own
    """
    _check(kind, groups, parts)
    figure, grid = _figure(title, 1, len(groups), 3.0, sharey=same_scale)
    for group, axes in enumerate(grid):
        ours = paper = 0.0
        for part, colour in zip(parts, COLOURS, strict=False):
            more, theirs = part.ours[group] or 0.0, part.paper[group] or 0.0
            axes.bar(0, more, 0.84, ours, color=colour, edgecolor=colour, **OURS)
            axes.bar(1, theirs, 0.84, paper, edgecolor=colour, **PAPER)
            ours, paper = ours + more, paper + theirs
        axes.set_xticks([])
        axes.set_xlabel(f"ours {ours:,.0f}\npaper {f'{paper:,.0f}' if paper else '–'}", fontsize=6)
        axes.set_title(groups[group].replace(" (", "\n("), fontsize=7.5)
    return _finish(figure, path, [part.name for part in parts], ylabel, kind)


def line_pairs(path: File, title: str, layers: Names, series: Sequence[Series], ylabel: str, *, kind: str) -> Path:
    """Draw a value for each layer, as in Fig. 5 and 6: a panel with its own scale for each series; return the path."""
    _check(kind, layers, series)
    figure, grid = _figure(title, len(series), 1, 1.0 + 1.2 * len(series), sharex=True)
    for axes, each, colour in zip(grid, series, COLOURS[1:] + COLOURS[:1], strict=False):
        axes.plot(each.ours, color=colour, marker="o", markersize=3, linewidth=1.2, clip_on=False)
        axes.plot(
            each.paper, color="black", marker="s", markersize=5.5, markerfacecolor="none",
            markeredgewidth=0.7, linestyle=(0, (2, 2)), linewidth=0.7, clip_on=False,
        )  # fmt: skip
        axes.set_ylim(0, 1.12 * max((value for value in (*each.ours, *each.paper) if value), default=1))
        axes.set_title(each.name, loc="left", fontsize=8)
    grid[-1].set_xticks(range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor")
    return _finish(figure, path, [], ylabel, kind, is_line=True)


def timeline(path: File, title: str, blocks: Sequence[Block], *, kind: str, unit: str = "ms") -> Path:
    """Draw what each lane does over time, as in Fig. 9, time that is wasted hatched; return the path.

    blocks   lanes go down in the order of their first block; a label that has no room in its block is left out
    """
    _check(kind, [block.label for block in blocks], ())
    for block in blocks:
        if block.kind not in WORK or not block.start <= block.finish:
            raise ValueError(f"{block} cannot be drawn: kinds are {', '.join(WORK)}, and finish is not before start")
    lanes = list(dict.fromkeys(block.lane for block in blocks))
    figure, (axes,) = _figure(title, 1, 1, 1.0 + 0.45 * len(lanes))
    axes.set_xlim(0, max(block.finish for block in blocks))
    axes.set_yticks(range(len(lanes)), lanes)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel(f"time, {unit} ({kind})", fontsize=8)
    drawn = [_draw_block(axes, lanes.index(block.lane), block) for block in blocks]
    shown = {block.kind: bar for block, (bar, _) in zip(blocks, drawn, strict=True)}
    names = [work for work in WORK if work in shown]
    figure.legend(
        [shown[work] for work in names], names, loc="outside lower left", ncols=len(WORK), frameon=False, fontsize=7
    )
    figure.draw_without_rendering()
    for bar, text in drawn:
        _fit(text, bar)
    return _save(figure, path)


# ---- parts


def _check(kind: str, groups: Names, series: Sequence[Series]) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if not groups or len(series) > len(COLOURS):
        raise ValueError(
            f"{len(groups)} places and {len(series)} series; wanted are 1 or more, and {len(COLOURS)} at most"
        )
    for each in series:
        ours, paper, marked = len(each.ours), len(each.paper), len(each.marked or groups)
        if not ours == paper == marked == len(groups):
            raise ValueError(
                f"{each.name}: {ours} of ours, {paper} of the paper's, {marked} marks; {len(groups)} places"
            )


def _figure(title: str, rows: int, columns: int, height: float, **shared: Any) -> tuple[Any, list[Any]]:
    """An empty figure and its axes in reading order."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise PlotError("pictures need matplotlib; install it with: pip install 'vdnn[plot]'") from error
    layout = ConstrainedLayoutEngine(rect=(0, 0, 0.985, 1))  # a label may be wider than the axes above it
    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(color=GREY, length=2.5, labelsize=7)
        axes.yaxis.set_major_formatter("{x:,g}")
    return figure, list(grid.flat)


def _pair(axes: Any, left: float, width: float, colour: str, series: Series, index: int) -> None:
    """Two bars that touch: ours and the paper's."""
    ours, paper = series.ours[index] or 0.0, series.paper[index] or 0.0
    axes.bar(left, ours, 0.94 * width, align="edge", color=colour, edgecolor=colour, **OURS)
    axes.bar(left + width, paper, 0.94 * width, align="edge", edgecolor=colour, **PAPER)
    if series.marked and series.marked[index]:
        axes.annotate("*", (left + 1.5 * width, paper), (0, -3), textcoords="offset points", ha="center", fontsize=9)


def _name_places(axes: Any, names: Names, line: tuple[float, str] | None, slanted: bool) -> None:
    """Names below the bars, and a level across them with its name, if the axis reaches it."""
    style = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(names)), names, **style)
    axes.set_xlim(-0.5, len(names) - 0.5)
    if line is None or line[0] > 1.05 * axes.get_ylim()[1]:
        return
    axes.axhline(line[0], color="black", linewidth=0.7, linestyle=(0, (5, 3)))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    axes.annotate(line[1], (0, line[0]), (3, 3), axes.get_yaxis_transform(), "offset points", fontsize=6.5, bbox=box)


def _draw_block(axes: Any, lane: int, block: Block) -> tuple[Any, Any]:
    """A block's bar and its label."""
    colour, is_wasted = WORK[block.kind], block.kind == "wasted"
    style = {"hatch": "/////", "edgecolor": GREY} if is_wasted else {"edgecolor": "white"}
    bars = axes.barh(lane, block.finish - block.start, 0.74, block.start, facecolor=colour, linewidth=0.6, **style)
    box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
    middle = (block.start + block.finish) / 2
    return bars[0], axes.text(middle, lane, block.label, ha="center", va="center", fontsize=7, bbox=box)


def _fit(text: Any, bar: Any) -> None:
    """Turn a label that is wider than its bar; leave it out if that does not help."""
    room, needed = bar.get_window_extent(), text.get_window_extent()
    if needed.width > room.width:
        text.set_rotation(90)
        text.set_visible(needed.width <= room.height and needed.height <= room.width)


def _finish(
    figure: Any, path: File, names: Names, ylabel: str, kind: str, beside: str = "the paper", is_line: bool = False
) -> Path:
    """The legend below and the common label, and the file."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown: list[Any] = [Patch(color=colour, label=name) for name, colour in zip(names, COLOURS, strict=False)]
    if is_line:
        shown.append(Line2D([], [], color=GREY, marker="o", markersize=3, label=f"ours ({kind})"))
        shown.append(Line2D([], [], color="black", marker="s", markerfacecolor="none", ls=":", label=beside))
    else:
        shown.append(Patch(**OURS, facecolor=GREY, label=f"ours ({kind})"))
        shown.append(Patch(**PAPER, edgecolor=GREY, label=beside))
    columns = 5 if len(shown) > 6 else len(shown)
    figure.legend(handles=shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    figure.supylabel(f"{ylabel} (ours: {kind})", fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: File) -> Path:
    """Write the picture in few colours: a third of the bytes, and nothing that one would see."""
    from PIL import Image  # comes with matplotlib

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(SHADES).save(path, optimize=True)
    return Path(path)
