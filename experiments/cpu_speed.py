"""Whole training steps on the CPU: vdnn, with NumPy alone and with Numba, against PyTorch, in turn in one run.

    python experiments/cpu_speed.py [--quick] [--only vgg11] [--threads 2]   # writes experiments/results/cpu_speed.csv,
                                                                             # and cpu_speed_layers.csv

Both sides train the same network from the same weights on the same images, with the same number of threads and SGD with
momentum: PyTorch in both of its layouts with its fused SGD, the better of which vdnn is held against, and, printed
beside, in that better layout with its default SGD.  vdnn keeps everything and undoes nothing.

Each side is a process of its own (cpu_side.py), and they take turns (A B C A B C ...): one works at a time.  The
default SGD joins the process of the better layout after the first round, when the peaks of resident sets are noted.
Before each the machine rests for 60 ms, so that the threads of the one before sleep, and where steps are short one that
is not timed comes first.  Medians count; quartiles, and the cores that others took meanwhile, are written beside them.
All numbers are measured.

Exit status 1 if losses differ: then these are not the same networks.  A limit that is missed is printed with the layers
that took the time, and is no failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import click
import record
from cpu_cases import CASES, LAYOUTS, Case, kernels_here
from cpu_child import Task
from cpu_layers import LAYER_COLUMNS, LayerTimes, rows_of, slowest
from cpu_report import COLUMNS, Line, faults, missed, table_of, wide_console
from cpu_side import Remote
from predict import busy_seconds

from vdnn.commands.measure import processor

REST = 0.06  # seconds
BLOCK, MOST = 0.4, 5  # seconds of timed steps in a row, and at most so many steps
WARM = 1.0  # seconds: before steps that are shorter comes one that does not count
SLOW = 3.0  # seconds: of what takes longer the first step after a change is like the others
FEWEST, FEWEST_OTHERS = 3, 2  # rounds, however long they take: with the first number of threads, with others
QUICK = {"vgg11": 32, "resnet18": 32, "resnet20": 16}  # rows and columns


@dataclass
class Side:
    """One way to train: its process, the seconds of the steps that counted, the first loss."""

    name: str
    remote: Remote
    kernels: str = ""
    layout: str = ""
    sgd: str = ""
    seconds: list[float] = field(default_factory=list)
    first_loss: float = float("nan")
    expected: float = 0.0  # seconds of a step, before any counted
    peak: int = 0

    def start(self) -> None:
        """The steps before those that count: the first touches its memory and compiles; then it is known how long one
        takes.
        """
        time.sleep(REST)
        (self.expected,), self.first_loss = self.remote.steps(1, self.sgd)
        self.warm()

    def warm(self) -> None:
        """A step that does not count, where steps are short, or may have been so long because it compiled."""
        if self.expected < SLOW or self.kernels == "fast":
            time.sleep(REST)
            (self.expected,), _ = self.remote.steps(1, self.sgd)

    def again(self) -> None:
        """Forget what was measured, as the number of threads has changed."""
        self.seconds, self.peak = [], 0
        if self.kernels:
            self.start()  # its network is made anew, with its first weights; PyTorch's goes on
        else:
            self.warm()

    def block(self) -> None:
        """Rest, warm up where steps are short, and time some steps."""
        time.sleep(REST)
        unseen = int(self.expected < WARM)
        count = max(1, min(MOST, round(BLOCK / self.expected)))
        self.seconds += self.remote.steps(unseen + count, self.sgd)[0][unseen:]

    def layers(self, times: int) -> LayerTimes:
        """The median time of every layer."""
        self.warm()
        time.sleep(REST)
        runs = [self.remote.layers(self.sgd) for _ in range(times)]
        return {key: median(run.get(key, 0.0) for run in runs) for key in runs[0]}


class Study:
    """One network: all sides in turn, with one number of threads after the other."""

    def __init__(self, case: Case, threads: int, stack: ExitStack) -> None:
        self.case, self.threads, self.stack = case, threads, stack
        self.others: list[float] = []  # cores, of every round
        self.sides = [self._ours(kernels) for kernels in kernels_here()]
        self.sides += [self._theirs(layout) for layout in LAYOUTS]
        for remote in self._remotes():  # they import and build side by side
            remote.ready()
        for side in self.sides:
            side.start()

    def _ours(self, kernels: str) -> Side:
        return Side(f"vdnn {kernels}", self._remote("vdnn", kernels=kernels), kernels=kernels)

    def _theirs(self, layout: str) -> Side:
        return Side(f"torch {layout} fused", self._remote("torch", layout=layout), "", layout, "fused")

    def _remote(self, side: str, **how: Any) -> Remote:
        remote = Remote(Task(side, self.case.plain(), self.threads, 0, **how))
        self.stack.callback(remote.close)
        return remote

    def again(self, threads: int) -> None:
        """Begin anew with another number of threads."""
        self.threads, self.others = threads, []
        for remote in self._remotes():
            remote.threads(threads)
        for remote in self._remotes():
            remote.ready()
        for side in self.sides:
            side.again()

    def run(self, rounds: int, fewest: int, until: float) -> None:
        """So many rounds, or as many as begin until then, but so many at least."""
        for number in range(rounds):
            if number >= min(fewest, rounds) and time.perf_counter() > until:
                break
            first = number % len(self.sides)  # none always follows the same other one
            before, began = self._others_worked(), time.perf_counter()
            for side in (*self.sides[first:], *self.sides[:first]):
                side.block()
            self.others.append((self._others_worked() - before) / (time.perf_counter() - began))

    def join_default(self) -> None:
        """Note what was resident at most, then have PyTorch's default SGD take part, in the faster layout's process."""
        for side in self.sides:
            side.peak = side.remote.peak()
        better = min((side for side in self.sides if side.layout), key=lambda side: median(side.seconds))
        self.sides.append(replace(better, name=f"torch {better.layout} default", sgd="default", seconds=[], peak=0))
        self.sides[-1].warm()

    def _remotes(self) -> list[Remote]:
        """Every process once."""
        return list({id(side.remote): side.remote for side in self.sides}.values())

    def _others_worked(self) -> float:
        """Processor seconds of what is neither this process nor a side's."""
        return busy_seconds() - sum(remote.worked() for remote in self._remotes())

    def lines(self) -> list[Line]:
        """What was found of every side."""
        about = self.case.network, self.case.batch, self.case.shape, self.threads
        others = max(0.0, median(self.others))  # clocks of processes tick, so that it can be below
        return [
            Line(*about, s.name, s.kernels, s.layout, s.sgd, tuple(s.seconds), s.first_loss, others, s.peak)
            for s in self.sides
        ]

    def layer_times(self) -> dict[str, LayerTimes]:
        """{side: the time of every layer}, of every side but the default SGD."""
        slow = max(median(side.seconds) for side in self.sides) > WARM
        return {side.name: side.layers(1 if slow else 2) for side in self.sides if side.sgd != "default"}


def measured(
    case: Case, threads: tuple[int, ...], rounds: int, seconds: float
) -> Iterator[tuple[int, list[Line], dict[str, LayerTimes]]]:
    """(threads, a line of every side, the times of layers) of one network for each number of threads.

    Layers and peaks are those with the first number.
    """
    with ExitStack() as stack:
        study = Study(case, threads[0], stack)
        for count in threads:
            is_first = count == threads[0]
            if not is_first:
                study.again(count)
            until = time.perf_counter() + seconds
            if is_first:
                study.run(1, 1, until)
                study.join_default()
                study.run(rounds - 1, FEWEST - 1, until)
            else:
                study.run(rounds, FEWEST_OTHERS, until)
            yield count, study.lines(), study.layer_times() if is_first else {}


@click.command()
@click.option("--quick", is_flag=True, help="Three networks on small images, two rounds; writes no file unless --out.")
@click.option("--only", multiple=True, help="Of the networks only the one of that name; may be given again.")
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=(2, 1), show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    help="No round begins later, once there are three, or two with another number of threads.",
)
@click.option("--layers", is_flag=True, help="Print the slowest layers also where no limit is missed.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/cpu_speed.csv]")
def main(
    quick: bool,
    only: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
    layers: bool,
    out: Path | None,
) -> None:
    """Measure, print ratios and what is missed, write the CSV."""
    unknown = set(only) - {case.network for case in CASES}
    if unknown:
        raise click.UsageError(f"no case {sorted(unknown)}; there are {', '.join(case.network for case in CASES)}")
    cases = [case for case in CASES if not only or case.network in only]
    if quick:
        cases = [case.smaller(4, QUICK[case.network]) for case in cases if case.network in QUICK]
        rounds = min(rounds, 2)
    began, rows, by_layer, wrong, console = time.perf_counter(), [], [], [], wide_console()
    out = out or (None if quick else record.RESULTS / "cpu_speed.csv")
    for case in cases:
        for count, lines, times in measured(case, threads, rounds, seconds):
            rows += [line.cells(lines) for line in lines]
            by_layer += [(case.network, case.batch, case.shape, count, *cells) for cells in rows_of(times)]
            wrong += faults(lines)
            console.print(table_of(lines))
            short = [] if quick else missed(lines)
            for text in short:
                console.print(f"missed: {text}", highlight=False)
            if times and (layers or short):
                console.print(slowest(times))
            if out:  # after every network: what was measured is kept if a later one fails
                facts = processor(), f"PyTorch {version('torch')}", f"{time.perf_counter() - began:.0f} s in all"
                record.write(out, COLUMNS, rows, *facts)
                record.write(out.with_name(f"{out.stem}_layers.csv"), LAYER_COLUMNS, by_layer, *facts)
    click.echo(f"{time.perf_counter() - began:.0f} s in all")
    for fault in wrong:
        click.echo(fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
