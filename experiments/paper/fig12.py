"""Fig. 12: what one iteration offloads to the host under vDNN_conv and vDNN_all.

    python experiments/paper/fig12.py

Recomputed as plans' copies under the paper's rules, and refused unless they are, to the byte, a sum that knows no plan:
the sizes of the different X of a network's CONV, or CONV and POOL, layers.  A map that several layers read counts once,
an in-place ReLU's is the convolution's own, the images are among them and the classifier's inputs are not.  For the
very deep networks, which Fig. 12 does not show, the CPU bars of Fig. 15 are what is compared with: dyn offloads all X
there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click
from drawing import Series, grouped_bars
from published import FIGURE_12, FIGURE_15, MIB, Pair, label
from reporting import ReportError, Result, console_table, write_results
from rich.console import Console
from study import SIX, TEN, network, run

from vdnn.layers import AvgPool2d, Conv2d, GlobalAvgPool2d, MaxPool2d
from vdnn.network import Network

HERE = Path(__file__).parent
KINDS = {"conv": (Conv2d,), "all": (Conv2d, MaxPool2d, AvgPool2d, GlobalAvgPool2d)}
LEAST_ALLOWED, SHARE_ALLOWED = 12.0, 0.005  # MiB; share of the paper's number


def allowed(paper: float) -> float:
    """How far an amount may be off in MiB: about the figure's resolution, or 0.5 % if that is more."""
    return max(LEAST_ALLOWED, SHARE_ALLOWED * paper)


def summed(net: Network, policy: str) -> int:
    """Bytes of the different X of the layers that the policy, "conv" or "all", offloads."""
    inputs = {node.inputs[0] for node in net.nodes if isinstance(node.layer, KINDS[policy])}
    return sum(x.nbytes for x in inputs)


def offloaded(pair: Pair, policy: str) -> int:
    """Bytes that a step's plan copies to the host, by its own steps."""
    plan = run(*pair, f"vdnn_{policy}", "m", "paper", "weights").plan
    copied = [step.name for step in plan.steps if step.kind == "offload"]
    return sum(plan.payload(name) for name in copied if name not in plan.tape.results)


def checked(pair: Pair, policy: str) -> int:
    """What is offloaded, in bytes.  Raises ReportError if that is not the sum over X to the byte."""
    ours, wanted = offloaded(pair, policy), summed(network(*pair), policy)
    if ours != wanted:
        raise ReportError(f"{label(*pair)}, {policy}: the plan offloads {ours:,} bytes, its X are {wanted:,}")
    return ours


def published(pair: Pair, policy: str) -> float | None:
    """MiB by Fig. 12, or by Fig. 15 for the very deep networks; None where there is neither."""
    if pair in FIGURE_12:
        return getattr(FIGURE_12[pair], f"{policy}_mib")
    return FIGURE_15[pair].cpu_mib if policy == "all" else None


@cache
def results() -> list[Result]:
    """For each of the ten networks and both policies the amount.  Raises ReportError if it is not the sum over X."""
    return [_amount(pair, policy) for pair in TEN for policy in KINDS]


def _amount(pair: Pair, policy: str) -> Result:
    paper = published(pair, policy)
    limits = ("12 MiB, or 0.5 % if that is more", "", allowed(paper)) if paper else ("", "not in the paper", None)
    ours = checked(pair, policy) / MIB
    return Result("Fig. 12", *pair, f"offloaded, {policy}", "MiB", paper, ours, "exact", *limits)


def draw(folder: Path) -> None:
    """Write fig12.png: both policies on the six networks."""
    by_name = {(r.network, r.batch, r.quantity): r for r in results()}
    series = []
    for policy in KINDS:
        rows = [by_name[*pair, f"offloaded, {policy}"] for pair in SIX]
        series.append(Series(policy, [r.ours for r in rows], [r.paper for r in rows]))
    title, names = "Fig. 12: what an iteration offloads under vDNN_conv and vDNN_all", [label(*pair) for pair in SIX]
    grouped_bars(folder / "fig12.png", title, names, series, "MiB", kind="exact bytes", panels=6)


@click.command()
def main() -> None:
    """Recompute Fig. 12: print it, and write results/fig12.csv and pictures/fig12.png."""
    Console().print(console_table(results()))
    about = "Fig. 12 recomputed: copies of plans, paper's rules; exact"
    write_results(HERE / "results" / "fig12.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
