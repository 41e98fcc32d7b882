"""Whole training steps on the CPU: vdnn, with NumPy alone and with Numba, against PyTorch, in turn in one run.

    python experiments/cpu_speed.py [--quick] [--only vgg11] [--threads 2]   # writes experiments/results/cpu_speed.csv,
                                                                             # and cpu_speed_layers.csv

Both sides train the same network from the same weights on the same images, with the same number of threads and SGD with
momentum: PyTorch in both of its layouts with its fused SGD, the better of which vdnn is held against, and, printed
beside, in that better layout with its default SGD.  vdnn keeps everything and undoes nothing.

The sides take turns (A B C A B C ...).  Before each the machine rests for 60 ms, so that the threads of the one before
sleep, and where steps are short one that is not timed comes first.  Medians count; quartiles, and the cores that other
processes took meanwhile, are written beside them.  The peak resident set is that of a process of each side's own, which
does nothing else.  All numbers are measured.

Exit status 1 if losses differ: then these are not the same networks.  A limit that is missed is printed with the layers
that took the time, and is no failure.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import click
import record
import torch
from cpu_cases import CASES, Case, batch_of, kernels_here, trainer_of
from cpu_child import Task, ask
from cpu_layers import LAYER_COLUMNS, LayerTimes, of_torch, of_trace, rows_of, slowest
from cpu_report import COLUMNS, Line, faults, missed, table_of, wide_console
from cpu_torch import LAYOUTS, TorchTraining
from predict import busy_seconds
from torch_twin import first_weights

from vdnn.commands.measure import processor

REST = 0.06  # seconds
BLOCK, MOST = 0.4, 5  # seconds of timed steps in a row, and at most so many steps
WARM = 1.0  # seconds: before steps that are shorter comes one that does not count
SLOW = 3.0  # seconds: of what takes longer one step comes first, else two
FEWEST = (3, 2)  # rounds, however long they take: with the first number of threads, with others
QUICK = {"vgg11": 32, "resnet18": 32, "resnet20": 16}  # rows and columns


@dataclass
class Side:
    """One way to train: a step, the time of its layers, the seconds of the steps that counted, the first loss."""

    name: str
    step: Callable[[], float]
    layers: Callable[[], LayerTimes]
    kernels: str = ""
    layout: str = ""
    sgd: str = ""
    seconds: list[float] = field(default_factory=list)
    first_loss: float = float("nan")
    expected: float = 0.0  # seconds of a step, before any counted

    def start(self) -> None:
        """The steps before those that count: the first touches its memory and compiles; then it is known how long one
        takes.
        """
        time.sleep(REST)
        began = time.perf_counter()
        self.first_loss = self.step()
        self.expected = time.perf_counter() - began
        if self.expected < SLOW:
            self.expected = self._timed()

    def block(self) -> None:
        """Rest, warm up where steps are short, and time some steps."""
        time.sleep(REST)
        if self.expected < WARM:
            self.step()
        self.seconds += [self._timed() for _ in range(max(1, min(MOST, round(BLOCK / self.expected))))]

    def _timed(self) -> float:
        began = time.perf_counter()
        self.step()
        return time.perf_counter() - began


@dataclass
class Study:
    """One network with one number of threads: all sides in turn."""

    case: Case
    threads: int
    stack: ExitStack
    others: list[float] = field(default_factory=list)  # cores, of every round

    def __post_init__(self) -> None:
        net = self.case.make()
        weights, batch = first_weights(net), batch_of(net)
        self.sides = [self._ours(kernels, batch) for kernels in kernels_here()]
        torch.set_num_threads(self.threads)  # after Numba, whose first parallel launch would set all
        self.models = {name: TorchTraining(net, weights, batch, name, self.case.rate) for name in LAYOUTS}
        self.sides += [self._theirs(layout, "fused") for layout in LAYOUTS]
        for side in self.sides:
            side.start()
        better = min(self.sides[-len(LAYOUTS) :], key=lambda side: side.expected)
        default = self._theirs(better.layout, "default")
        default.start()
        default.first_loss = better.first_loss  # its own is that of weights that are trained already
        self.sides.append(default)

    def _ours(self, kernels: str, batch: tuple[object, object]) -> Side:
        trainer = trainer_of(self.case, self.threads, kernels)
        self.stack.callback(trainer.close)

        def layers() -> LayerTimes:
            trainer.step(*batch)
            return of_trace(trainer.trace)

        return Side(f"vdnn {kernels}", lambda: float(trainer.step(*batch)), layers, kernels=kernels)

    def _theirs(self, layout: str, sgd: str) -> Side:
        model = self.models[layout]
        name = f"torch {layout} {sgd}"
        return Side(name, lambda: model.step(sgd), lambda: of_torch(model.layer_seconds(sgd)), "", layout, sgd)

    def run(self, rounds: int, fewest: int, seconds: float) -> None:
        """So many rounds, or as many as begin within these seconds, but so many at least."""
        until = time.perf_counter() + seconds
        for number in range(rounds):
            if number >= min(fewest, rounds) and time.perf_counter() > until:
                break
            first = number % len(self.sides)  # none always follows the same other one
            before, began = busy_seconds(), time.perf_counter()
            for side in (*self.sides[first:], *self.sides[:first]):
                side.block()
            self.others.append((busy_seconds() - before) / (time.perf_counter() - began))

    def lines(self) -> Iterator[Line]:
        """What was found of every side."""
        for side in self.sides:
            about = self.case.network, self.case.batch, self.case.shape, self.threads
            what = side.name, side.kernels, side.layout, side.sgd
            yield Line(*about, *what, tuple(side.seconds), side.first_loss, median(self.others))

    def layer_times(self, times: int) -> dict[str, LayerTimes]:
        """{side: the median time of every layer}, of every side but the default SGD; a step before does not count."""
        found = {}
        for side in self.sides[:-1]:
            time.sleep(REST)
            side.step()
            runs = [side.layers() for _ in range(times)]
            found[side.name] = {key: median(run.get(key, 0.0) for run in runs) for key in runs[0]}
        return found


def peaks(case: Case, threads: int, steps: int) -> dict[str, int]:
    """{side: bytes at most resident in a process of its own}."""
    about = {"network": case.network, "batch": case.batch, "image": case.image}
    what = {**about, "options": dict(case.options), "rate": case.rate}
    tasks = {f"vdnn {kernels}": Task("vdnn", what, threads, steps, kernels=kernels) for kernels in kernels_here()}
    tasks |= {f"torch {layout} fused": Task("torch", what, threads, steps, layout) for layout in LAYOUTS}
    return {name: ask(task, 600)["peak"] for name, task in tasks.items()}


def measured(
    case: Case, threads: int, rounds: int, seconds: float, is_first: bool, with_peaks: bool
) -> tuple[list[Line], dict[str, LayerTimes]]:
    """(a line of every side, the times of layers) of one network with one number of threads.

    Layers and peaks are those with the first number of threads.
    """
    with ExitStack() as stack:
        study = Study(case, threads, stack)
        study.run(rounds, FEWEST[0 if is_first else 1], seconds)
        slow = max(median(side.seconds) for side in study.sides) > WARM
        layers = study.layer_times(1 if slow else 2) if is_first else {}
        lines = list(study.lines())
        study.sides.clear()
        study.models.clear()
    gc.collect()
    found = peaks(case, threads, 2) if is_first and with_peaks else {}
    return [line.with_peak(found.get(line.side, 0)) for line in lines], layers


@click.command()
@click.option("--quick", is_flag=True, help="Three networks on small images, two rounds; writes no file unless --out.")
@click.option("--only", multiple=True, help="Of the networks only the one of that name; may be given again.")
@click.option("--threads", multiple=True, type=click.IntRange(min=1), default=(2, 1), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    help="No round begins later, once there are three, or two with another number of threads.",
)
@click.option("--peaks/--no-peaks", "with_peaks", default=True, help="Peak resident sets, by processes of their own.")
@click.option("--layers", is_flag=True, help="Print the slowest layers also where no limit is missed.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/cpu_speed.csv]")
def main(
    quick: bool,
    only: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
    with_peaks: bool,
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
        for count in threads:
            lines, times = measured(case, count, rounds, seconds, count == threads[0], with_peaks)
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
                facts = processor(), f"PyTorch {torch.__version__}", f"{time.perf_counter() - began:.0f} s in all"
                record.write(out, COLUMNS, rows, *facts)
                record.write(out.with_name(f"{out.stem}_layers.csv"), LAYER_COLUMNS, by_layer, *facts)
    click.echo(f"{time.perf_counter() - began:.0f} s in all")
    for fault in wrong:
        click.echo(fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
