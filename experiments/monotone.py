"""Less memory is never faster: twenty falling budgets from keep_all's arena to the floor, for several networks.

    python experiments/monotone.py          # writes experiments/results/monotone.csv

A *simulated* Titan X with cuDNN 4's kernels, SGD with momentum, all rewrites.  The front (vdnn.memory.search.front)
searches the smallest budget first and hands what it found to the next.  Beside it stands what searches alone find, one
for each budget from the largest to the smallest: each is a heuristic that may find less in more memory, and how often
it does is counted, not checked.

Exit status 1 if in the front an arena is above its budget where it is not proved that no plan fits, if nothing fits in
a budget above one in which something does, or if a step is faster than one in a larger budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

import click
import record
from arena_cells import Pair, budgets, build_with_rewrites, network
from rich.console import Console
from rich.table import Table

from vdnn.memory.cost import Cost, roofline
from vdnn.memory.search import Found, find, front
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.verify import verify
from vdnn.progress import progress_bar
from vdnn.tape import Tape

HARDWARE = "titan-x"
NETWORKS = (("vgg16", 64), ("resnet18", 64), ("googlenet", 64), ("alexnet", 128), ("unet", 8), ("mobilenet_v2", 32))
QUICK = (("alexnet", 128),)
BUDGETS = 20
COLUMNS = (
    *("network", "batch", "budget_bytes", "floor_bytes", "way", "fits", "arena_bytes", "step_seconds_simulated"),
    *("oracle_seconds_simulated", "bound_seconds_simulated", "origin"),
)


class Point(NamedTuple):
    """What was found in a budget; `bound` is inf where it is proved that nothing fits."""

    budget: int
    fits: bool
    arena: int
    step: float
    bound: float
    origin: str


class Run(NamedTuple):
    """One network: points of the front and of searches alone, both from the largest budget to the smallest."""

    pair: Pair
    floor: int
    oracle: float
    front: tuple[Point, ...]
    alone: tuple[Point, ...]

    def rows(self) -> list[tuple[object, ...]]:
        """What stands under COLUMNS."""
        return [
            (*self.pair, p.budget, self.floor, way, int(p.fits), p.arena, *figures, p.origin)
            for way, points in (("front", self.front), ("alone", self.alone))
            for p in points
            for figures in [(f"{p.step:.9g}", f"{self.oracle:.9g}", f"{p.bound:.9g}")]
        ]


def falling(tape: Tape, cost: Cost, count: int = BUDGETS) -> list[int]:
    """So many budgets at equal distances, from keep_all's arena to the floor."""
    ends = budgets(tape, cost, (100, 0))
    return [ends[0] + (ends[100] - ends[0]) * i // (count - 1) for i in reversed(range(count))]


def measure(pair: Pair, seconds: float, count: int = BUDGETS) -> Run:
    """The front of one network, and searches alone; every plan is verified."""
    cost = roofline(HARDWARE)
    tape = build_with_rewrites(network(*pair))
    limits = falling(tape, cost, count)
    together = front(tape, limits, cost, seconds=seconds)
    alone = [find(tape, budget, cost, seconds=seconds) for budget in limits]
    points = tuple(map(_point, together)), tuple(map(_point, alone))
    return Run(pair, tape.floor_bytes, oracle_seconds(tape, cost), *points)


def _point(found: Found) -> Point:
    verify(found.plan)
    plan = found.plan
    return Point(found.budget, found.fits, plan.arena_bytes, found.step_seconds, found.bound_seconds, found.origin)


def unfitting(points: Sequence[Point]) -> list[str]:
    """Where a plan is above its budget although it is not proved that none fits, in words."""
    return [f"an arena of {p.arena} bytes in {p.budget}" for p in points if p.arena > p.budget and p.bound != inf]


def unmonotone(points: Sequence[Point]) -> list[str]:
    """Where less memory does better, in words; the points are from the largest budget to the smallest."""
    wrong = []
    for larger, smaller in pairwise(points):
        if smaller.fits and not larger.fits:
            wrong.append(f"a plan fits in {smaller.budget} bytes and none in {larger.budget}")
        elif smaller.fits and smaller.step < larger.step:
            wrong.append(f"{smaller.step:.6g} s in {smaller.budget} bytes, {larger.step:.6g} s in {larger.budget}")
    return wrong


def raised(points: Sequence[Point]) -> int:
    """How often a smaller budget has the larger arena: both within their budgets, so only to be known."""
    return sum(smaller.fits and smaller.arena > larger.arena for larger, smaller in pairwise(points))


def table(runs: Sequence[Run]) -> Table:
    """How many budgets fit and how often less memory does better, by network."""
    out = Table(title="from keep_all's arena to the floor: simulated steps")
    columns = ("budgets", "front: fit", "slowest / oracle", "faster in less", "arena raised", "alone: fit")
    out.add_column("network", no_wrap=True)
    for column in (*columns, "alone: faster in less", "alone slower than front"):
        out.add_column(column, justify="right")
    for run in runs:
        slowest = max((p.step for p in run.front if p.fits), default=inf) / run.oracle
        slower = sum(a.step > f.step or (f.fits and not a.fits) for a, f in zip(run.alone, run.front, strict=True))
        figures = (
            *(len(run.front), sum(p.fits for p in run.front), f"{slowest:.3f}", len(unmonotone(run.front))),
            *(raised(run.front), sum(p.fits for p in run.alone), len(unmonotone(run.alone)), slower),
        )
        out.add_row(f"{run.pair[0]}({run.pair[1]})", *map(str, figures))
    return out


@click.command()
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0), help="Of each search.")
@click.option("--quick", is_flag=True, help="One network, searches of half a second; writes no file unless --out.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/monotone.csv]")
def main(seconds: float, quick: bool, out: Path | None) -> None:
    """Search all budgets; print what breaks monotony, and check the front."""
    networks, seconds = (QUICK, min(seconds, 0.5)) if quick else (NETWORKS, seconds)
    runs, console = list[Run](), Console(width=140)
    with progress_bar("fronts", len(networks)) as advance:
        for pair in networks:
            runs.append(measure(pair, seconds))
            advance(f"{pair[0]}({pair[1]})")
    console.print(table(runs))
    if out or not quick:
        path = out or record.RESULTS / "monotone.csv"
        rows = (row for run in runs for row in run.rows())
        record.write(path, COLUMNS, rows, HARDWARE, f"searches of {seconds:g} s", "simulated")
    alone = sum(len(unmonotone(run.alone)) for run in runs)
    console.print(f"searches alone: {alone} of {sum(len(run.alone) - 1 for run in runs)} smaller budgets were faster")
    wrong = [f"{run.pair[0]}: {r}" for run in runs for r in (*unfitting(run.front), *unmonotone(run.front))]
    for reason in wrong:
        console.print(f"wrong in the front: {reason}", highlight=False, soft_wrap=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
