"""Predictions held against measurements: how long a step takes under several policies, simulated and run on this CPU.

    python experiments/predict.py [--quick]       # writes experiments/results/predict.csv

What the simulator is told are the times that `vdnn measure` records: of ops where everything is kept and nothing is
copied, of copies alone, and of both at once.  These runs and those of the plans that are predicted, of all networks,
take turns, so that all meet the same machine.  Rounds in which other processes take more than a tenth of a core are run
again, as far as somewhat more than two minutes allow, and the quietest are used for both sides alike.

Copies go over a link of 300 MB/s, so that some are hidden behind compute and some are not.  Exit status 1 if the median
error is above 10 %, or if two plans whose measured times differ by more than 10 % are predicted in the other order.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import record
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import models
from vdnn.commands.measure import Bench, processor
from vdnn.progress import progress_bar

CASES = (("digits_vgg", 128, (1, 8, 8)), ("resnet18", 8, (3, 112, 112)), ("vgg11", 4, (3, 128, 128)))
QUICK = (("digits_vgg", 128, (1, 8, 8)), ("resnet18", 4, (3, 64, 64)))
POLICIES = ("keep_all", "vdnn_conv", "vdnn_all", "checkpoint", "least")
LINK = 300e6  # bytes per second each way
QUIET = 0.1  # cores that others may use in a round
PATIENCE, FEWEST = 140.0, 3  # seconds until rounds end in any case, if there are so many
LIMIT, APART = 0.10, 0.10  # of the median error; between times whose order must be right
COLUMNS = ("network", "batch", "image", "policy", "simulated_seconds", "measured_seconds", "error")


@dataclass(frozen=True)
class Row:
    """One plan: its name, and seconds of a step."""

    network: str
    batch: int
    image: str
    policy: str
    simulated: float
    measured: float

    @property
    def error(self) -> float:
        """The share by which the simulated time is longer."""
        return self.simulated / self.measured - 1

    def cells(self) -> tuple[object, ...]:
        """The row's line of the CSV."""
        times = f"{self.simulated:.6f}", f"{self.measured:.6f}", f"{self.error:+.4f}"
        return self.network, self.batch, self.image, self.policy, *times

    def __str__(self) -> str:
        return f"{self.network} {self.policy}"


def busy_seconds() -> float:
    """Seconds of processor time that others have used, on all cores, the host of a virtual machine among them."""
    with suppress(OSError, ValueError):
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = fields[3] + fields[4]
        return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return 0.0


Case = tuple[str, int, tuple[int, ...]]  # network, batch, image


class Study:
    """One network: its op times and its plans, measured in turn."""

    def __init__(self, name: str, batch: int, image: tuple[int, ...], threads: int) -> None:
        self.batch, self.image = batch, image
        self.net = models.get(name, batch=batch, image=image)
        self.bench = Bench(self.net, threads=threads, link_bandwidth=LINK)
        self.recorder = self.bench.recorder()
        self.plans = {policy: self.bench.plan(policy) for policy in POLICIES}
        self.seconds: list[dict[str, float]] = []
        for plan in self.plans.values():
            self.bench.run(plan)

    def round(self) -> None:
        """Run what the times of ops come from, and every plan once."""
        self.recorder.round()
        first = len(self.seconds) % len(POLICIES)  # none always follows the same other one
        order = (*POLICIES[first:], *POLICIES[:first])
        self.seconds.append({policy: self.bench.run(self.plans[policy]).step_seconds for policy in order})

    def rows(self, rounds: list[int]) -> Iterator[Row]:
        """Predicted from, and measured in, these rounds."""
        cost = self.bench.cost([self.recorder.rounds[i] for i in rounds])
        shape = "x".join(map(str, self.image))
        for policy, plan in self.plans.items():
            predicted, taken = vdnn.simulate(plan, cost).step_seconds, [self.seconds[i][policy] for i in rounds]
            yield Row(self.net.name, self.batch, shape, policy, predicted, median(taken))


def predictions(cases: Sequence[Case], rounds: int, threads: int) -> tuple[list[Row], float]:
    """(a row for each network and policy, the most cores that others used in a round that counts).

    All networks take part in every round: the machine's speed drifts, and then it does for all of them.
    """
    with ExitStack() as stack:
        studies = [Study(*case, threads) for case in cases]
        for study in studies:
            stack.enter_context(closing(study.bench))
        others: list[float] = []
        until = time.perf_counter() + PATIENCE
        with progress_bar("rounds", rounds, keep=False) as advance:
            while sum(share <= QUIET for share in others) < rounds:
                before, began = busy_seconds(), time.perf_counter()
                if len(others) >= FEWEST and began > until:
                    break
                for study in studies:
                    study.round()
                others.append((busy_seconds() - before) / (time.perf_counter() - began))
                advance(f"others use {others[-1]:.2f} cores")
        count = max(min(rounds, len(others)), len(others) // 2)  # where nothing is quiet, more make a better median
        quietest = sorted(range(len(others)), key=others.__getitem__)[:count]
        return [row for study in studies for row in study.rows(quietest)], others[quietest[-1]]


def apart(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Pairs (faster, slower) of plans that are measured more than 10 % apart."""
    pairs = (sorted(pair, key=lambda row: row.measured) for pair in itertools.combinations(rows, 2))
    return [(a, b) for a, b in pairs if b.measured > (1 + APART) * a.measured]


def table_of(rows: list[Row]) -> Table:
    table = Table(title="seconds of one step")
    for column in ("network", "policy", "simulated", "measured", "error"):
        table.add_column(column, justify="left" if column in ("network", "policy") else "right")
    for row in rows:
        table.add_row(row.network, row.policy, f"{row.simulated:.4f}", f"{row.measured:.4f}", f"{row.error:+.1%}")
    return table


@click.command()
@click.option("--quick", is_flag=True, help="Two small networks; writes no file unless --out.")
@click.option("--rounds", type=click.IntRange(min=1), default=11, show_default=True)
@click.option("--threads", default=1, show_default=True, help="One leaves the copies a core of two, as an engine has.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/predict.csv]")
def main(quick: bool, rounds: int, threads: int, out: Path | None) -> None:
    """Print simulated beside measured seconds of every plan, and check both error and order."""
    rows, others = predictions(QUICK if quick else CASES, rounds, threads)
    if out or not quick:
        facts = processor(), f"{threads} threads", f"link {LINK:.0f} bytes/s", f"others at most {others:.2f} cores"
        record.write(out or record.RESULTS / "predict.csv", COLUMNS, (row.cells() for row in rows), *facts)
    Console().print(table_of(rows))
    pairs, typical = apart(rows), median(abs(row.error) for row in rows)
    wrong = [(a, b) for a, b in pairs if b.simulated <= a.simulated]
    click.echo(f"median error {typical:.1%}, at most {LIMIT:.0%} wanted; others used at most {others:.2f} cores")
    click.echo(
        f"pairs measured more than {APART:.0%} apart: {len(pairs)}; in the other order when simulated: {len(wrong)}"
    )
    for faster, slower in wrong:
        click.echo(
            f"  {faster} before {slower}: {faster.simulated:.4f} and {slower.simulated:.4f} s simulated, "
            f"{faster.measured:.4f} and {slower.measured:.4f} s measured"
        )
    raise SystemExit(typical > LIMIT or bool(wrong))


if __name__ == "__main__":
    main()
