"""How long `search` takes on one core, and how near one second of it gets to ten.

    python experiments/search_speed.py      # writes experiments/results/search_speed.csv

Times are *measured* on this machine, with this process pinned to one of its cores; steps are *simulated* on a Titan X
with cuDNN 4's kernels, SGD with momentum, all rewrites.  The budget is so many per cent of the way from the floor to
keep_all's arena.  First large networks: `find` with its defaults and nothing known, and the whole policy by
vdnn.plan(tape, policy="search").  Then twelve cells, each searched for a second and for ten.  How a search got on is
said as seconds: step over oracle.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import record
from arena_cells import budgets, build_with_rewrites, network
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn.memory.cost import roofline
from vdnn.memory.plan import Plan
from vdnn.memory.policy import POLICIES
from vdnn.memory.search import SECONDS, find
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.progress import progress_bar
from vdnn.tape import Tape

HARDWARE = "titan-x"
LARGE = (("vgg19", 256, 25), ("resnet152", 32, 25))
CELLS = tuple(
    (*pair, percent)
    for pair in (("alexnet", 128), ("googlenet", 128), ("vgg19", 128), ("resnet50", 64), ("unet", 16), ("resnet18", 64))
    for percent in (50, 25)
)
QUICK = (("alexnet", 128, 25),)
SHORT, LONG = 1.0, 10.0  # seconds of the searches that are compared
NEAR = 1.05  # of the long search's step: what counts as near
COLUMNS = (
    *("network", "batch", "budget_percent", "what", "limit_seconds", "seconds_measured", "fits"),
    *("step_seconds_simulated", "step_over_oracle_simulated", "gap_simulated", "history"),
)

Cell = tuple[str, int, int]


class Row(NamedTuple):
    """One search: the seconds it was given and took, what it found (steps are simulated), and how it got on."""

    cell: Cell
    what: str
    limit: float
    seconds: float
    fits: bool
    step: float
    oracle: float
    gap: float | None
    history: tuple[tuple[float, float], ...]

    @property
    def ratio(self) -> float:
        """The step over the oracle's."""
        return self.step / self.oracle

    @property
    def story(self) -> str:
        """Seconds since the start and step over oracle whenever a better plan was found."""
        return "; ".join(f"{seconds:.2f}: {step / self.oracle:.4f}" for seconds, step in self.history)

    def cells(self) -> tuple[object, ...]:
        """What stands under COLUMNS."""
        gap = "" if self.gap is None else f"{self.gap:.5f}"
        figures = f"{self.seconds:.2f}", int(self.fits), f"{self.step:.9g}", f"{self.ratio:.5f}", gap
        return (*self.cell, self.what, f"{self.limit:g}", *figures, self.story)


def pin() -> int:
    """Keep this process on one of the cores that it may use, and return which; -1 where that cannot be done."""
    if not hasattr(os, "sched_setaffinity"):
        return -1
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def setting(cell: Cell) -> tuple[Tape, int]:
    """The tape and the budget in bytes of a cell."""
    name, batch, percent = cell
    tape = build_with_rewrites(network(name, batch))
    return tape, budgets(tape, roofline(HARDWARE), (percent,))[percent]


def search(cell: Cell, seconds: float) -> Row:
    """`find` alone, with nothing known beforehand."""
    cost = roofline(HARDWARE)
    tape, budget = setting(cell)
    began = time.perf_counter()
    found = find(tape, budget, cost, seconds=seconds)
    taken = time.perf_counter() - began
    figures = found.fits, found.step_seconds, oracle_seconds(tape, cost), found.gap
    return Row(cell, "find", seconds, taken, *figures, found.history)


def whole_policy(cell: Cell) -> Row:
    """The policy as users call it, with laying out and verifying."""
    cost = roofline(HARDWARE)
    tape, budget = setting(cell)
    began = time.perf_counter()
    plan: Plan = vdnn.plan(tape, "search", budget=budget, hardware=HARDWARE)
    taken = time.perf_counter() - began
    step = simulate(plan, cost).step_seconds
    fits = plan.arena_bytes <= budget
    return Row(cell, "policy", SECONDS, taken, fits, step, oracle_seconds(tape, cost), None, ())


def shares(rows: list[Row]) -> list[float]:
    """For each cell the step after the short search over that after the long one, as the cells come.

    inf where only the long search found a plan that fits; cells in which neither does are left out.
    """
    short, long = ({r.cell: r for r in rows if r.limit == limit} for limit in (SHORT, LONG))
    pairs = [(short[cell], long[cell]) for cell in short if cell in long and (short[cell].fits or long[cell].fits)]
    return [a.step / b.step if a.fits and b.fits else float("inf") if b.fits else 0.0 for a, b in pairs]


def table(rows: list[Row], title: str) -> Table:
    """All rows with how each search got on."""
    out = Table(title=title)
    for column in ("network", "budget", "what", "limit", "took", "step / oracle", "gap"):
        out.add_column(column, justify="right", no_wrap=True)
    out.add_column("history: measured seconds, simulated step / oracle")
    for row in rows:
        name, batch, percent = row.cell
        ratio = f"{row.ratio:.4f}" if row.fits else "no fit"
        gap = "" if row.gap is None else f"{row.gap:.2%}"
        times = f"{row.limit:g} s", f"{row.seconds:.2f} s"
        out.add_row(f"{name}({batch})", f"floor + {percent} %", row.what, *times, ratio, gap, row.story)
    return out


@click.command()
@click.option("--quick", is_flag=True, help="One cell; writes no file unless --out.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/search_speed.csv]")
def main(quick: bool, out: Path | None) -> None:
    """Time the searches and print how they got on."""
    core, console = pin(), Console(width=160)
    has_policy = "search" in POLICIES
    large, cells = ((), QUICK) if quick else (LARGE, CELLS)
    work: list[Callable[[], Row]] = [lambda c=c: search(c, SECONDS) for c in large]  # type: ignore[misc]
    work += [lambda c=c: whole_policy(c) for c in large if has_policy]  # type: ignore[misc]
    compared = [lambda c=c, s=s: search(c, s) for c in cells for s in (SHORT, LONG)]
    rows = list[Row]()
    with progress_bar("searches", len(work) + len(compared)) as advance:
        for each in (*work, *compared):
            rows.append(each())
            advance(f"{rows[-1].cell[0]}, {rows[-1].seconds:.1f} s")
    console.print(table(rows[: len(work)], f"large networks, on one core ({core})")) if work else None
    console.print(table(rows[len(work) :], f"searches of {SHORT:g} and {LONG:g} s"))
    found = shares(rows[len(work) :])
    near = sum(share <= NEAR for share in found)
    middle, worst = statistics.median(found), max(found)
    console.print(
        f"step after {SHORT:g} s over step after {LONG:g} s (simulated): median {middle:.4f}, worst {worst:.4f}; "
        f"within {NEAR - 1:.0%} in {near} of {len(found)} cells"
    )
    if not has_policy:
        console.print("there is no policy named search yet, so the whole policy was not timed")
    if out or not quick:
        facts = HARDWARE, f"one core of {os.cpu_count()}", "steps simulated, seconds measured"
        record.write(out or record.RESULTS / "search_speed.csv", COLUMNS, (row.cells() for row in rows), *facts)


if __name__ == "__main__":
    main()
