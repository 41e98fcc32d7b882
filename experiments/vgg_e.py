"""VGG-E in less memory than it needs: how near `search` gets to the oracle, and how near any plan could.

    python experiments/vgg_e.py         # writes experiments/results/vgg_e.csv

A *simulated* Titan X with cuDNN 4's kernels, everything counted: weights, gradients, optimizer state.  First with SGD
without momentum, as the targets are meant; then with momentum, which takes another 548 MiB, without targets.  The ratio
is the oracle's seconds over the step's, of the same tape: 1 is no loss.  The certificate is the same ratio for the
lower bound: no plan of that tape in that budget has a better one.

Exit status 1 if without momentum a row misses its target, or a plan is better than its certificate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

import click
import record
from arena_cells import build_with_rewrites
from rich.console import Console
from rich.table import Table

from vdnn import models
from vdnn.memory.cost import roofline
from vdnn.memory.search import SECONDS, find
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.verify import verify
from vdnn.progress import progress_bar
from vdnn.units import format_bytes, parse_bytes

HARDWARE = "titan-x"
NETWORK = "vgg19"
OPTIMIZERS = ("sgd", "momentum")
COLUMNS = (
    *("network", "batch", "optimizer", "saves", "rewrites", "budget_bytes", "floor_bytes", "arena_bytes", "fits"),
    *("step_seconds_simulated", "oracle_seconds_simulated", "bound_seconds_simulated", "oracle_over_step_simulated"),
    *("oracle_over_bound_simulated", "gap_simulated", "target", "holds", "search_seconds_measured", "origin"),
)


BEHIND = "standard+relu_behind_pool"  # with indices, the map before the pool need not be kept at all


class Case(NamedTuple):
    """A batch in a budget; what pooling saves for backward; the set of rewrites; the ratio that is wanted."""

    batch: int
    budget: str
    saves: str
    rewrites: str
    target: float


CASES = (
    Case(256, "12GiB", "indices", "standard", 0.995),
    Case(256, "10GiB", "input", "standard", 0.98),
    Case(256, "10GiB", "indices", BEHIND, 0.99),
    Case(256, "8GiB", "indices", "all", 0.99),
    Case(128, "5376MiB", "input", "standard", 0.98),
    Case(128, "5376MiB", "indices", BEHIND, 0.99),
)


class Row(NamedTuple):
    """What was found for a case: bytes, simulated seconds, measured seconds of the search; where the plan came from."""

    case: Case
    optimizer: str
    budget: int
    floor: int
    arena: int
    step: float
    oracle: float
    bound: float
    search: float
    origin: str
    network: str = NETWORK

    @property
    def fits(self) -> bool:
        """Whether the arena is within the budget."""
        return self.arena <= self.budget

    @property
    def ratio(self) -> float:
        """The oracle's seconds over the step's; 0 if the plan does not fit."""
        return self.oracle / self.step if self.fits else 0.0

    @property
    def certificate(self) -> float:
        """The oracle's seconds over the bound's: no plan has a larger ratio; 0 if none fits, inf if that is unknown."""
        return self.oracle / self.bound if self.bound else inf

    @property
    def holds(self) -> bool:
        """Whether the ratio is at least the target."""
        return self.ratio >= self.case.target

    def wrong(self) -> str:
        """What should not be, in words; nothing if all is well."""
        name = f"{self.network}({self.case.batch}), {self.optimizer}, {self.case.budget}, {self.case.saves}"
        if self.ratio > self.certificate:
            return f"{name}: a ratio of {self.ratio:.6f} is above its certificate, {self.certificate:.6f}"
        if self.optimizer == "sgd" and not self.holds:
            return f"{name}: a ratio of {self.ratio:.4f}, at least {self.case.target} wanted"
        return ""

    def cells(self) -> tuple[object, ...]:
        """What stands under COLUMNS."""
        case = self.case
        return (
            *(self.network, case.batch, self.optimizer, case.saves, case.rewrites),
            *(self.budget, self.floor, self.arena, int(self.fits)),
            *(f"{self.step:.9g}", f"{self.oracle:.9g}", f"{self.bound:.9g}", f"{self.ratio:.5f}"),
            *(f"{self.certificate:.5f}", f"{self.gap:.5f}" if self.fits else ""),
            *(case.target, int(self.holds), f"{self.search:.2f}", self.origin),
        )

    @property
    def gap(self) -> float:
        """By which share of the bound the step is above it."""
        return self.step / self.bound - 1 if self.bound else inf


def measure(case: Case, optimizer: str, seconds: float, network: str = NETWORK) -> Row:
    """Search one case, with nothing known beforehand, and verify what was found."""
    cost = roofline(HARDWARE)
    net = models.get(network, batch=case.batch, saves=case.saves)
    tape = build_with_rewrites(net, optimizer, case.rewrites)
    budget = parse_bytes(case.budget)
    began = time.perf_counter()
    found = find(tape, budget, cost, seconds=seconds)
    taken = time.perf_counter() - began
    verify(found.plan)
    figures = found.step_seconds, oracle_seconds(tape, cost), found.bound_seconds
    return Row(
        case, optimizer, budget, tape.floor_bytes, found.plan.arena_bytes, *figures, taken, found.origin, network
    )


def table(rows: Sequence[Row], optimizer: str) -> Table:
    """The rows with one optimizer."""
    out = Table(title=f"VGG-E on a simulated Titan X, {optimizer}: oracle / step, 1 is no loss (search: measured)")
    columns = ("batch", "budget", "saves", "rewrites", "floor", "arena", "ratio", "certificate", "gap", "target")
    for column in (*columns, "holds", "search"):
        out.add_column(column, justify="right", no_wrap=True)
    for row in (row for row in rows if row.optimizer == optimizer):
        case = row.case
        figures = (f"{row.ratio:.4f}", f"{row.certificate:.4f}", f"{row.gap:.2%}") if row.fits else ("no fit", "", "")
        is_meant = optimizer == "sgd"
        target = (str(case.target), "yes" if row.holds else "no") if is_meant else ("-", "-")
        sizes = format_bytes(row.floor), format_bytes(row.arena)
        out.add_row(
            str(case.batch),
            case.budget,
            case.saves,
            case.rewrites,
            *sizes,
            *figures,
            *target,
            f"{row.search:.1f} s",
        )
    return out


@click.command()
@click.option("--seconds", default=SECONDS, show_default=True, type=click.FloatRange(0), help="Of each search.")
@click.option("--quick", is_flag=True, help="Without momentum, searches of a second; writes no file unless --out.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/vgg_e.csv]")
def main(seconds: float, quick: bool, out: Path | None) -> None:
    """Search every case; print the tables and check the targets."""
    optimizers, seconds = (OPTIMIZERS[:1], min(seconds, 1.0)) if quick else (OPTIMIZERS, seconds)
    rows, console = list[Row](), Console(width=140)
    with progress_bar("VGG-E", len(optimizers) * len(CASES)) as advance:
        for optimizer in optimizers:
            for case in CASES:
                rows.append(measure(case, optimizer, seconds))
                advance(f"{case.batch} in {case.budget}: {rows[-1].ratio:.4f}")
    for optimizer in optimizers:
        console.print(table(rows, optimizer))
    if out or not quick:
        path = out or record.RESULTS / "vgg_e.csv"
        record.write(path, COLUMNS, (row.cells() for row in rows), HARDWARE, f"searches of {seconds:g} s", "simulated")
    wrong = [reason for row in rows if (reason := row.wrong())]
    for reason in wrong:
        console.print(f"wrong: {reason}", highlight=False, soft_wrap=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
