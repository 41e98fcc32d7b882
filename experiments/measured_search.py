"""search against other policies, measured on this CPU with a slow link, in budgets where something must give way.

    python experiments/measured_search.py [--quick]       # writes experiments/results/measured_search.csv

Of every network the ops, by all their algorithms, and the copies are measured first (`vdnn measure`); every policy then
plans by these times.  The budget is the floor and a quarter of what the plan with everything kept needs above it.  A
policy that has no plan within it runs its smallest one, outside of the budget, which is said.  Plans run in turn,
A B C D A B C D, each round from another one on; figures are medians of the rounds in which other processes took the
least of the processor: as many as asked for, of up to three times as many while more than a tenth of a core is taken.

Afterwards each plan makes two steps from equal weights, and so does everything kept with the same algorithms: losses
and weights must be equal to the bit.  Exit status 1 if they are not, or if search is not the fastest of those that run
in its budget, and of those that do not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import record
from predict import QUIET, busy_seconds
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import models
from vdnn.commands.measure import Bench, processor
from vdnn.data import synthetic
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions
from vdnn.memory.plan import Plan
from vdnn.memory.search import find
from vdnn.network import Network
from vdnn.setting import Setting, choose_algorithms
from vdnn.units import format_bytes

CASES = (("resnet18", 12, (3, 112, 112)), ("vgg11", 12, (3, 96, 96)), ("googlenet", 8, (3, 112, 112)))
QUICK = (("digits_vgg", 256, (1, 8, 8)),)
OTHERS = ("vdnn_dyn", "checkpoint", "vdnn_all")
REFERENCE = "keep_all"
LINK = 150e6  # bytes per second each way
OPTIMIZER = "sgd"  # without momentum more of the memory is that of feature maps
SHARE = 0.25  # of what everything kept needs above the floor
STEPS = 2  # whose bits are compared
COLUMNS = (
    *("network", "batch", "image", "policy", "budget_bytes", "arena_bytes", "fits"),
    *("step_seconds_simulated", "step_seconds_measured", "search_by_this_simulated", "search_by_this_measured"),
    *("rounds", "others_cores", "bits_equal"),
)

Case = tuple[str, int, tuple[int, ...]]  # network, batch, image


@dataclass(frozen=True)
class Row:
    """One policy on one network; seconds of a step."""

    network: str
    batch: int
    image: str
    policy: str
    budget: int
    arena: int
    simulated: float
    measured: float
    rounds: int
    others: float  # cores that others took, at most
    same_bits: bool

    @property
    def fits(self) -> bool:
        """Whether it runs within the budget."""
        return self.arena <= self.budget

    def cells(self, search: Row) -> tuple[object, ...]:
        """The row's line of the CSV."""
        figures = self.simulated, self.measured, search.simulated / self.simulated, search.measured / self.measured
        what = self.network, self.batch, self.image, self.policy, self.budget, self.arena, self.fits
        return *what, *(f"{n:.6f}" for n in figures), self.rounds, f"{self.others:.2f}", self.same_bits


class Study:
    """One network on the host: its measured times, and the plans by them, which run in turn."""

    def __init__(self, case: Case, threads: int, repeats: int, seconds: float) -> None:
        name, self.batch, self.image = case
        self.net: Network = models.get(name, batch=self.batch, image=self.image)
        self.threads, self.seconds = threads, seconds
        self.bench = Bench(self.net, optimizer=OPTIMIZER, threads=threads, link_bandwidth=LINK)
        recorder = self.bench.recorder("all")
        for _ in range(repeats):
            recorder.round()
        self.cost: Cost = self.bench.cost(recorder.rounds, "all")
        self.tape = self.bench.tape
        self.fastest = choose_algorithms(self.tape, self.cost, "performance")
        kept = self._made(REFERENCE, self.fastest, 1 << 60)
        self.budget = self.tape.floor_bytes + int(SHARE * (kept.arena_bytes - self.tape.floor_bytes))
        self.plans = {REFERENCE: kept} | {name: self._plan(name) for name in OTHERS}
        known = [(name, plan.decisions) for name, plan in self.plans.items()]
        found = find(self.tape, self.budget, self.cost, seconds=seconds, known=known)
        self.plans = {"search": found.plan, **self.plans}
        self.simulated = {name: vdnn.simulate(plan, self.cost).step_seconds for name, plan in self.plans.items()}
        self.rounds: list[tuple[float, dict[str, float]]] = []  # (cores that others took, seconds of every plan)

    def _made(self, policy: str, algorithms: Mapping[str, str], budget: int) -> Plan:
        setting = Setting(self.tape, None, self.bench.device.kernels, self.bench.optimizer, self.cost, budget, False)
        return setting.make(policy, algorithms)

    def _plan(self, policy: str) -> Plan:
        """The fastest algorithms' plan if it fits, else that of the least workspaces, which may not fit either."""
        made = self._made(policy, self.fastest, self.budget)
        if made.arena_bytes <= self.budget:
            return made
        return self._made(policy, choose_algorithms(self.tape, self.cost, "memory"), self.budget)

    def run(self, rounds: int) -> None:
        """Run every plan in turn until there are so many quiet rounds, or three times as many."""
        while len(self.rounds) < 3 * rounds and sum(others <= QUIET for others, _ in self.rounds) < rounds:
            names = list(self.plans)
            first = len(self.rounds) % len(names)  # none always follows the same other one
            before, began = busy_seconds(), time.perf_counter()
            order = (*names[first:], *names[:first])
            found = {name: self.bench.run(self.plans[name]).step_seconds for name in order}
            others = (busy_seconds() - before) / (time.perf_counter() - began)
            self.rounds.append((others, found))

    def rows(self, rounds: int) -> Iterator[Row]:
        """Of every policy, from the quietest rounds; what it trains is compared now."""
        quietest = sorted(self.rounds, key=lambda r: r[0])[:rounds]
        for name, plan in self.plans.items():
            same = _same(self._trained(plan.decisions, plan), self._trained(Decisions(), plan))
            times = [found[name] for _, found in quietest]
            shape = "x".join(map(str, self.image))
            about = self.net.name, self.batch, shape, name, self.budget, plan.arena_bytes
            yield Row(*about, self.simulated[name], median(times), len(times), quietest[-1][0], same)

    def _trained(self, decisions: Decisions, algorithms: Plan) -> dict[str, Any]:
        """Losses, weights and statistics after a few steps under these decisions, with that plan's algorithms."""
        images, labels = synthetic(self.net.input.shape[1:], self.net.scores.shape[1], self.batch)
        trainer = vdnn.Trainer(
            models.get(self.net.name, batch=self.batch, image=self.image),
            decisions,
            algorithms=algorithms,
            threads=self.threads,
            undo=False,
            optimizer=OPTIMIZER,
        )
        with closing(trainer):
            found: dict[str, Any] = {f"loss {n}": np.asarray(float(trainer.step(images, labels))) for n in range(STEPS)}
            for group in (trainer.weights, trainer.state, trainer.statistics):
                found |= {key: np.array(value) for key, value in group.items()}
            return found


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether all is finite, something of it not 0, and equal to the bit."""
    if (
        a.keys() != b.keys()
        or not all(np.isfinite(v).all() for v in b.values())
        or not any(v.any() for v in b.values())
    ):
        return False
    return all(a[key].tobytes() == b[key].tobytes() for key in b)


def table_of(rows: list[Row]) -> Table:
    """What is printed of one network."""
    search = rows[0]
    about = f"{search.network}, batch {search.batch}, budget {format_bytes(search.budget)}"
    table = Table(title=f"{about}; others took {search.others:.1f} cores")
    heads = "policy", "arena", "simulated s", "measured s", "search by it, simulated", "measured", "bits"
    for column in heads:
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        arena = format_bytes(row.arena) + ("" if row.fits else " (does not fit)")
        ratios = f"{search.simulated / row.simulated:.3f}", f"{search.measured / row.measured:.3f}"
        bits = "equal" if row.same_bits else "DIFFER"
        table.add_row(row.policy, arena, f"{row.simulated:.4f}", f"{row.measured:.4f}", *ratios, bits)
    return table


def faults(rows: list[Row]) -> list[str]:
    """What does not hold of one network's rows, the first of which is search's."""
    search = rows[0]
    found = [f"{row.network} {row.policy}: other bits than everything kept" for row in rows if not row.same_bits]
    if not search.fits:
        found.append(f"{search.network}: search needs {search.arena} bytes in a budget of {search.budget}")
    for row in rows[1:]:
        if row.policy != REFERENCE and row.measured <= search.measured:
            found.append(f"{row.network}: {row.policy} takes {row.measured:.4f} s, search {search.measured:.4f} s")
    return found


@click.command()
@click.option("--quick", is_flag=True, help="One small network; writes no file unless --out.")
@click.option("--only", help="Of the networks only the one of that name.")
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds that measure ops.")
@click.option("--threads", default=1, show_default=True, help="One leaves the copies a core of two, as an engine has.")
@click.option("--seconds", default=15.0, show_default=True, help="For search.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/measured_search.csv]")
def main(
    quick: bool, only: str | None, rounds: int, repeats: int, threads: int, seconds: float, out: Path | None
) -> None:
    """Measure, plan, run in turn, compare bits, and print what does not hold."""
    lines, wrong = [], []
    for case in QUICK if quick else [case for case in CASES if only in (None, case[0])]:
        study = Study(case, threads, repeats, seconds)
        with closing(study.bench):
            study.run(rounds)
            rows = list(study.rows(rounds))
        lines += [row.cells(rows[0]) for row in rows]
        wrong += faults(rows)
        Console(width=110).print(table_of(rows))
    if out or not quick:
        facts = processor(), f"{threads} threads", f"link {LINK:.0f} bytes/s", f"search {seconds:g} s"
        record.write(out or record.RESULTS / "measured_search.csv", COLUMNS, lines, *facts)
    for fault in wrong:
        click.echo(fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
