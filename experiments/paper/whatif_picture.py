"""The what-if study's picture: the share of copying that hides, over links and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from drawing import DPI, GREY, WIDTH
from published import label
from whatif_plans import CHANNELS, OFFLOADING, Found, at, hiding_channels

LEVELS = np.linspace(0, 1, 11)
TIE = "#d55e00"


def title(network: str, batch: int) -> str:
    """The network's name for people."""
    return f"ResNet-152 ({batch})" if network == "resnet152" else label(network, batch)


def draw(found: Sequence[Found], folder: Path) -> Path:
    """Write whatif.png, the share of copying that hides by network and policy; return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(WIDTH, 7.2), layout="constrained", facecolor="white", dpi=DPI)
    FigureCanvasAgg(figure)
    pairs = list(dict.fromkeys((each.network, each.batch) for each in found))
    grid = figure.subplots(2, len(pairs), squeeze=False, sharex=True, sharey=True)
    colours = ScalarMappable(BoundaryNorm(LEVELS, 256), "YlGnBu_r")
    for column, pair in enumerate(pairs):
        for row, policy in enumerate(OFFLOADING[:2]):
            _panel(grid[row][column], [e for e in found if (e.network, e.batch) == pair], policy, colours)
            grid[row][column].set_title(f"{title(*pair)}, {policy}", loc="left", fontsize=8.5)
    figure.suptitle("What if: how much of the copying hides", x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("link, GB/s each way", fontsize=8)
    figure.supylabel("arithmetic at its peak, TFLOPS", fontsize=8)
    bar = figure.colorbar(colours, ax=grid, shrink=0.6, aspect=35, format="{x:.0%}")
    bar.set_label("share of the time of copies that hides (simulated)", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    folder.mkdir(parents=True, exist_ok=True)
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    pixels.quantize(64, dither=Image.Dither.NONE).save(folder / "whatif.png", optimize=True)  # 64 colours: a small file
    return folder / "whatif.png"


def _panel(axes: Any, found: Sequence[Found], policy: str, colours: Any) -> None:
    """One network under one policy: the ground, the hiding rule, the line, the machines."""
    from matplotlib.ticker import NullLocator

    plane = {(e.policy, e.flops_per_second, e.link): e for e in found if not e.machine}
    links, rates = (sorted({key[i] for key in plane}) for i in (2, 1))
    ours, recompute = ([[plane[name, f, x] for x in links] for f in rates] for name in (policy, "checkpoint"))
    hidden = [[e.simulated_hidden_copy_fraction for e in row] for row in ours]
    axes.set(xscale="log", yscale="log")
    axes.contourf(links, rates, hidden, LEVELS, cmap=colours.cmap, norm=colours.norm)
    for channels in CHANNELS:
        _hiding_rule(axes, channels, links, rates)
    _tie(axes, links, rates, ours, recompute)
    for each in found:
        if each.machine and each.policy == policy and each.flops_per_second >= rates[0]:
            _machine(axes, each, colours)
    axes.set_xticks([13e9, 25e9, 50e9, 100e9, 200e9, 375e9], ["13", "25", "50", "100", "200", "375"])
    axes.set_yticks([7e12, 15e12, 30e12, 67e12, 150e12, 500e12], ["7", "15", "30", "67", "150", "500"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(color=GREY, length=2.5, labelsize=7)
    axes.spines[:].set_visible(False)


def _hiding_rule(axes: Any, channels: int, links: Sequence[float], rates: Sequence[float]) -> None:
    """Where a 3x3 CONV of so many output channels just hides its X; their number at the line's end."""
    intensity = channels / hiding_channels(at(1.0, 1.0), 1.0)  # FLOP per second over bytes per second
    low, high = max(links[0], rates[0] / intensity), min(links[-1], rates[-1] / intensity)
    axes.plot([low, high], [low * intensity, high * intensity], color="#202124", linewidth=0.6, linestyle=":")
    is_right = high == links[-1]
    axes.annotate(
        f"{channels}", (high, high * intensity), (2, 0) if is_right else (0, 1.5), textcoords="offset points",
        fontsize=6, color="#5f6368", ha="left" if is_right else "center", va="center" if is_right else "bottom",
        annotation_clip=False,
    )  # fmt: skip


def _tie(axes: Any, links: Sequence[float], rates: Sequence[float], ours: Any, recompute: Any) -> None:
    """The line where recompute is as fast as the policy: solid where it needs no more memory, ticked to its side."""
    from matplotlib.patheffects import withTickedStroke

    faster = np.log([[a.simulated_step_seconds / b.simulated_step_seconds for a, b in zip(*row, strict=True)]
                     for row in zip(ours, recompute, strict=True)])  # fmt: skip
    if not faster.min() < 0 < faster.max():
        return
    is_larger = recompute[0][0].peak_bytes > min(each.peak_bytes for row in ours for each in row)
    line = axes.contour(
        links, rates, faster, [0.0], colors=[TIE], linewidths=1.4, linestyles="--" if is_larger else "-"
    )
    line.set(path_effects=[withTickedStroke(angle=90, spacing=9, length=0.5)])


def _machine(axes: Any, each: Found, colours: Any) -> None:
    """A machine's point in the colour of its own share, and its name."""
    x, y = each.link, each.flops_per_second
    colour = colours.to_rgba(each.simulated_hidden_copy_fraction)
    marker = "s" if each.machine.endswith("TF32") else "o"
    axes.plot(x, y, marker, color=colour, markersize=5, markeredgecolor="black", markeredgewidth=0.7, clip_on=False)
    place = {"ha": "right", "xytext": (-4.5, 0)} if x > 200e9 else {"xytext": (4.5, 0)}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.4}
    axes.annotate(each.machine, (x, y), textcoords="offset points", va="center", fontsize=5.5, bbox=box, **place)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    def line(label: str, **style: Any) -> Any:
        return Line2D([], [], label=label, **style)

    return [
        line("as fast as recompute, which wins on the side of the ticks", color=TIE),
        line("the same, where recompute needs more memory", color=TIE, linestyle="--"),
        line("a 3x3 CONV of so many output channels just hides its X", color=GREY, linestyle=":"),
        line("machine (fp32)", color="none", marker="o", markeredgecolor="black", markersize=5),
        line("machine, tensor cores (TF32)", color="none", marker="s", markeredgecolor="black", markersize=5),
        line("(points: with the machine's own memory bandwidth)", color="none"),
    ]
