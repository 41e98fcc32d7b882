"""Sphinx extension: the pictures that are drawn from plans while pages are built, each for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

import vdnn
from vdnn.network import Role
from vdnn.plot import COLOURS

FOLDER = Path(__file__).parent.parent / "pictures" / "drawn"
INK = {"light": "#33373d", "dark": "#cfd0d0"}
POLICIES = {"keep_all": "everything kept", "vdnn_all": "inputs of convolution and pooling offloaded"}
SHOWN = (Role.WEIGHT, Role.STATE, Role.INPUT, Role.FEATURE, Role.GRADIENT, Role.WEIGHT_GRADIENT, Role.WORKSPACE)
GIB = 2**30


def arena(ink: str) -> Figure:
    """Which bytes of the arena hold what, over the time of a step of VGG-16, batch 32, under two policies."""
    net, cost = vdnn.models.vgg16(batch=32), vdnn.roofline("titan-x")
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (policy, words) in zip(panels, POLICIES.items(), strict=True):
        trace = vdnn.simulate(vdnn.plan(net, policy=policy, cost=cost), cost)
        _draw(axes, trace)
        axes.set_title(f"{policy}: {words}", fontsize=9.5, loc="left")
        floor = trace.plan.floor_bytes / GIB
        axes.axhline(floor, color=ink, linewidth=0.9, linestyle="--")
        axes.text(1.01, floor, "floor", transform=axes.get_yaxis_transform(), fontsize=8, va="center")
        axes.set_xlabel("time in the step, ms (simulated, Titan X)")
    panels[0].autoscale_view()  # of both, since they share their axes
    panels[0].set_ylim(bottom=0)
    panels[0].set_xlim(left=0)
    panels[0].set_ylabel("address in the arena, GiB (exact)")
    keys = [Patch(color=COLOURS[str(role)], label=str(role)) for role in SHOWN]
    figure.legend(handles=keys, loc="outside lower center", ncols=7, frameon=False, fontsize=8, handlelength=1)
    return figure


def _draw(axes: Any, trace: vdnn.Trace) -> None:
    patches, colours = [], []
    for name, _, offset, birth, death in trace.lives():
        size = (death - birth) * 1e3, trace.plan.size(name) / GIB
        patches.append(Rectangle((birth * 1e3, offset / GIB), *size))
        colours.append(COLOURS[str(trace.plan.role(name))])
    edge = {"edgecolor": "white", "linewidth": 0.25}
    axes.add_collection(PatchCollection(patches, facecolor=colours, **edge))
    axes.spines[["top", "right"]].set_visible(False)


def _write(app: Any) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for mode, ink in INK.items():
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
        with matplotlib.rc_context({**colours, "svg.hashsalt": "vdnn"}):
            arena(ink).savefig(FOLDER / f"arena-{mode}.svg", transparent=True, metadata={"Date": None})


def setup(app: Any) -> dict[str, Any]:
    """Draw before Sphinx looks for pictures."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True}
