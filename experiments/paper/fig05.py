"""Fig. 5: the forward pass of VGG-16 (256), layer by layer: X + Y, workspace, weights.

    python experiments/paper/fig05.py

X + Y is what the layer's forward op reads and writes of maps in a plan of the baseline, and must be what its shape
says; weights likewise.  The workspaces are no result: they are this figure's own values, an input of the kernel set
cudnn4, and stand here to show that it declares them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click
from drawing import Series, line_pairs
from published import (
    FIGURE_5,
    FIGURE_5_CLASSIFIER_WEIGHTS_MIB,
    FIGURE_5_CONVOLUTION_WEIGHTS_MIB,
    FIGURE_5_NETWORK,
    MIB,
)
from reporting import Result, console_table, write_results
from rich.console import Console
from study import run

from vdnn.memory.plan import workspace_of
from vdnn.network import Role

HERE = Path(__file__).parent
MAPS = (Role.INPUT, Role.FEATURE)


@cache
def layers(kind: str) -> tuple[tuple[str, float, float, float], ...]:
    """(layer, MiB of X + Y, of workspace, of weights) in forward of the layers of a kind, "conv" or "linear"."""
    plan = run(*FIGURE_5_NETWORK, "baseline", "p", "paper", "weights").plan
    found = []
    for i, op in enumerate(plan.tape.ops[: plan.tape.turn]):
        if op.kind == kind:
            touched = [name for names in (plan.tape.reads, plan.tape.writes) for name in names[i]]
            maps = sum(plan.payload(name) for name in touched if plan.role(name) in MAPS)
            filters = plan.payload(f"{op.layer}.w")
            found.append((op.layer, maps / MIB, plan.size(workspace_of(op.name)) / MIB, filters / MIB))
    return tuple(found)


@cache
def results() -> list[Result]:
    """X + Y and workspace of each convolution, and the weights' sizes."""
    found = []
    for paper, (_, maps, workspace, _) in zip(FIGURE_5, layers("conv"), strict=True):
        found.append(_row(f"{paper.layer} X + Y", paper.maps_mib, maps, "exact", "1 MiB", 1.0))
        note = "the kernel set has the figure's value"
        found.append(_row(f"{paper.layer} workspace", paper.workspace_mib, workspace, "simulated", "input", note=note))
    filters = [weights for *_, weights in layers("conv")]
    for pick, paper in zip((min, max), FIGURE_5_CONVOLUTION_WEIGHTS_MIB, strict=True):
        name = f"weights of a convolution, {pick.__name__}imum"
        found.append(_row(name, paper, pick(filters), "exact", "0.1 MiB", 0.1))
    for i, (paper, layer) in enumerate(zip(FIGURE_5_CLASSIFIER_WEIGHTS_MIB, layers("linear"), strict=True), 1):
        found.append(_row(f"FC_{i} weights", paper, layer[3], "exact", "0.1 MiB", 0.1))
    return found


def _row(
    name: str, paper: float, ours: float, kind: str, tolerance: str = "", allowed: float | None = None, note: str = ""
) -> Result:
    return Result("Fig. 5", *FIGURE_5_NETWORK, name, "MiB", paper, ours, kind, tolerance, note, allowed)


def draw(folder: Path) -> None:
    """Write fig05.png: X + Y and workspace of each convolution."""
    of = {r.quantity: r for r in results()}
    names = [each.layer for each in FIGURE_5]
    series = []
    for title, what in (("X + Y, MiB", "X + Y"), ("workspace, MiB (input)", "workspace")):
        rows = [of[f"{name} {what}"] for name in names]
        series.append(Series(title, [r.ours for r in rows], [r.paper for r in rows]))
    title = "Fig. 5: forward of VGG-16 (256), layer by layer"
    line_pairs(folder / "fig05.png", title, names, series, "MiB", kind="exact; workspace: input")


@click.command()
def main() -> None:
    """Recompute Fig. 5: print it, and write results/fig05.csv and pictures/fig05.png."""
    Console().print(console_table(results()))
    about = "Fig. 5 recomputed: X + Y and weights exact, from a plan of the baseline; workspaces are inputs"
    write_results(HERE / "results" / "fig05.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
