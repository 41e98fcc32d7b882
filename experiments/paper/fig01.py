"""Fig. 1: the baseline's size, and the largest share of it that one layer uses.

    python experiments/paper/fig01.py

Recomputed under the paper's rules with the fastest algorithms (p), every weight counted once.  A layer uses what its
forward, or its backward, reads and writes: the maps, the weights, the workspace.  Maps and weights are exact.  Our
workspaces are a model where Fig. 5 has no such layer, so all is given twice: with them, and with the workspace that
Fig. 4 shows.  That is one number per network; layers share it here as our workspaces have it, in proportion.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
from drawing import Series, grouped_bars
from published import FIGURE_1, FIGURE_4, MIB, Pair, label
from reporting import Result, console_table, write_results
from rich.console import Console
from study import SIX, run

from vdnn.memory.plan import Plan, workspace_of

HERE = Path(__file__).parent
BAR = "exact, plus Fig. 4's workspace"


class Use(NamedTuple):
    """What one op of a layer uses, in MiB."""

    op: str
    maps: float  # and weights
    workspace: float


@cache
def uses(pair: Pair) -> tuple[Use, ...]:
    """What every forward and backward op uses under the baseline."""
    plan = run(*pair, "baseline", "p", "paper", "weights").plan
    work = [(i, op) for i, op in enumerate(plan.tape.ops) if op.phase not in ("update", "sum")]
    return tuple(Use(op.name, _maps(plan, i), plan.size(workspace_of(op.name)) / MIB) for i, op in work)


def _maps(plan: Plan, index: int) -> float:
    return sum(plan.size(name) for name in {*plan.tape.reads[index], *plan.tape.writes[index]}) / MIB


@cache
def results() -> list[Result]:
    """For each network the size and the largest share, by our workspaces and by Fig. 4's."""
    return [each for pair in SIX for each in _of(pair)]


def _of(pair: Pair) -> list[Result]:
    plan = run(*pair, "baseline", "p", "paper", "weights").plan
    modelled = plan.breakdown.get("workspace", 0) / MIB
    bar = FIGURE_4[pair].workspace_mib
    ours = plan.peak_bytes / MIB
    swapped = ours - modelled + bar
    paper = FIGURE_1[pair]
    cause = f"the workspace: {modelled:,.0f} MiB by our model, {bar:,.0f} in Fig. 4"
    found = [
        Result("Fig. 1", *pair, "baseline (p)", "MiB", paper.total_mib, ours, "simulated", note=cause),
        Result("Fig. 1", *pair, "baseline with Fig. 4's workspace", "MiB", paper.total_mib, swapped, "exact", note=BAR),
    ]
    ways = {"largest share": (1.0, ours), "largest share with Fig. 4's workspace": (bar / modelled, swapped)}
    for name, (scale, base) in ways.items():
        most = max(uses(pair), key=lambda use: use.maps + use.workspace * scale)
        used = most.maps + most.workspace * scale
        note = f"{most.op}: {used:,.0f} MiB; the figure's share is {paper.largest_share * paper.total_mib:,.0f}. "
        note += _why(pair, most, used)
        found.append(Result("Fig. 1", *pair, name, "share", paper.largest_share, used / base, "simulated", note=note))
    return found


def _why(pair: Pair, most: Use, used: float) -> str:
    """What would account for the rest of the figure's share."""
    if most.workspace:
        return "Which layer has how much of Fig. 4's workspace is not published, and the share hangs on that"
    plan = run(*pair, "baseline", "p", "paper", "weights").plan
    layer = most.op.partition(".")[0]
    others = {name for op in plan.tape.ops if op.kind == "conv" and op.layer != layer for name in op.reads}
    weights = sum(plan.size(name) for name in others & set(plan.tape.resident)) / MIB
    images = plan.size("input") / MIB
    return (
        f"What else is there meanwhile, the other convolutions' weights ({weights:,.0f}) and the images "
        f"({images:,.0f}), would make it {used + weights + images:,.0f}"
    )


def draw(folder: Path) -> None:
    """Write fig01.png: both sizes of each network, with Fig. 4's workspace, each on a scale of its own."""
    by_name = {(r.network, r.batch, r.quantity): r for r in results()}
    size = [by_name[*pair, "baseline with Fig. 4's workspace"] for pair in SIX]
    share = [by_name[*pair, "largest share with Fig. 4's workspace"] for pair in SIX]
    used = [(r.ours * s.ours, r.paper * s.paper) for r, s in zip(share, size, strict=True)]
    series = [
        Series("base", [r.ours for r in size], [r.paper for r in size]),
        Series("layer", [ours for ours, _ in used], [paper for _, paper in used]),
    ]
    title = "Fig. 1: the baseline, and what one layer uses at most (workspace from Fig. 4)"
    grouped_bars(folder / "fig01.png", title, [label(*pair) for pair in SIX], series, "MiB", kind="simulated", panels=6)


@click.command()
def main() -> None:
    """Recompute Fig. 1: print it, and write results/fig01.csv and pictures/fig01.png."""
    Console().print(console_table(results()))
    about = "Fig. 1 recomputed: baseline (p), paper's rules, weights counted once; Titan X, cuDNN 4; simulated"
    write_results(HERE / "results" / "fig01.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
