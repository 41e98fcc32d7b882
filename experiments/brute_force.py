"""search held against enumeration on small random networks: does it find the fastest plan that there is?

    python experiments/brute_force.py [--quick]       # writes experiments/results/brute_force.csv

Chains, forks and joins of convolutions, batch norm, ReLU, pools and linear layers with at most seven saved tensors that
matter, by the host's kernels and the paper's, on hardware whose link takes about as long as its ops, each in a budget
between the floor and what everything kept needs.  All times are *simulated*.

What is enumerated says experiments/enumerated.py.  Search *hits* if no member of that family is faster by more than a
millionth.  Exit status 1 unless it does in 98 % of the networks, is nowhere 3 % slower, and finds a plan wherever
enumeration does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path

import click
import record
from enumerated import movable, optimum

from vdnn import optimizers
from vdnn.building import build
from vdnn.layers import (
    Add,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    SoftmaxCrossEntropy,
)
from vdnn.memory.cost import Cost, Roofline, roofline
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.plan import Plan
from vdnn.memory.search import find
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.trial import fastest, sketch
from vdnn.network import Network, Tensor
from vdnn.setting import kernels_named
from vdnn.tape import Tape

FEWEST, MOST = 2, 6  # saved tensors that are enumerated
EQUAL = 1e-6  # of the step: what is no difference
HITS, WORST = 0.98, 1.03  # limits
HARDWARE = ("titan-x", "a100", "host")


@dataclass(frozen=True)
class Case:
    """A tape, a budget and a cost model that the seed stands for."""

    seed: int
    tape: Tape
    budget: int
    cost: Cost
    room: float  # share of what everything kept needs above the floor
    link: float  # seconds to move all that is saved, there and back, by seconds of all ops


@dataclass(frozen=True)
class Row:
    """One comparison; seconds are simulated, inf where nothing fits."""

    seed: int
    network: str
    kernels: str
    hardware: str
    saved: int
    room: float
    link: float
    oracle: float
    bound: float
    search: float
    enumerated: float
    members: int
    laid_out: int
    is_whole: bool
    search_seconds_measured: float
    enumeration_seconds_measured: float

    @property
    def ratio(self) -> float:
        """Search's step by the best that is known; inf where only enumeration found a plan."""
        best = min(self.search, self.enumerated)
        return 1.0 if best == inf else self.search / best

    @property
    def is_hit(self) -> bool:
        """Whether no member is faster."""
        return self.ratio <= 1 + EQUAL

    def cells(self) -> tuple[object, ...]:
        """The row's line of the CSV."""
        values = (getattr(self, f.name) for f in fields(self))
        return *(f"{v:.6g}" if isinstance(v, float) else v for v in values), f"{self.ratio:.6f}"


NAMES = {"oracle": "oracle_seconds_simulated", "bound": "bound_seconds", "search": "search_seconds_simulated"}
NAMES |= {"enumerated": "enumerated_seconds_simulated"}
COLUMNS = (*(NAMES.get(f.name, f.name) for f in fields(Row)), "ratio")

# ---- networks


def network(lot: random.Random) -> Network:
    """A chain of blocks, some with a fork and a join."""
    size = lot.choice((8, 12, 16))
    net = Network((lot.choice((16, 32)), lot.choice((3, 8, 16)), size, size), name="small")
    x = net.input
    for _ in range(lot.randrange(1, 4)):
        x = _block(net, x, lot)
        if x.shape[2] >= 8 and lot.random() < 0.35:
            x = net.add(MaxPool2d(2, saves=lot.choice(("input", "indices"))), x)
    x = net.add(GlobalAvgPool2d(), x) if lot.random() < 0.5 else x
    x = net.add(Flatten(), x)
    if lot.random() < 0.3:
        x = net.add(ReLU(), net.add(Linear(lot.choice((64, 256))), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(10), x))
    return net


def _block(net: Network, x: Tensor, lot: random.Random) -> Tensor:
    """A convolution with what may follow it; or two beside each other, added or put together; or one with a skip."""
    filters = lot.choice((8, 16, 24, 32))
    kind = lot.choice(("chain", "chain", "chain", "skip", "add", "concat"))
    if kind == "chain":
        return _unit(net, x, filters, lot)
    if kind == "skip":
        x = _unit(net, x, filters, lot)
        return net.add(Add(), _unit(net, x, filters, lot), x)
    branches = _unit(net, x, filters, lot), _unit(net, x, filters, lot)
    return net.add(Add() if kind == "add" else Concat(), *branches)


def _unit(net: Network, x: Tensor, filters: int, lot: random.Random) -> Tensor:
    kernel = lot.choice((1, 3, 3, 5))
    x = net.add(Conv2d(filters, kernel, padding=kernel // 2), x)
    if lot.random() < 0.25:
        x = net.add(BatchNorm2d(), x)
    return net.add(ReLU(), x) if lot.random() < 0.7 else x


def cases(seed: int, most: int = MOST) -> Iterator[Case]:
    """The case of that seed: the first network of its lot that can be enumerated and that a budget matters to."""
    lot = random.Random(seed)
    while True:
        kernels = kernels_named("numpy", 1) if lot.random() < 0.5 else kernels_named("cudnn4")
        tape = build(network(lot), kernels, optimizers.get(lot.choice(("sgd", "momentum"))))
        cost, link = _hardware(tape, lot)
        kept = sketch(tape, resolve(Decisions(algorithms=fastest(tape, cost)), tape, {})).peak_bytes
        above = kept - tape.floor_bytes
        room = lot.uniform(0.05, 0.9)
        if FEWEST <= len(movable(tape)) <= most and above > 0.1 * tape.floor_bytes:
            yield Case(seed, tape, tape.floor_bytes + int(room * above), cost, room, link)
            return


def _hardware(tape: Tape, lot: random.Random) -> tuple[Roofline, float]:
    """(hardware with a link of its own, by how much longer that takes for everything than the ops do)."""
    name, link = lot.choice(HARDWARE), 2.0 ** lot.uniform(-3, 2)
    ideal = roofline(name, launch_seconds=1e-7, copy_latency_seconds=1e-7)
    moved = sum(tape.buffers[b].payload for b in movable(tape))
    rate = moved / (link * oracle_seconds(tape, ideal))
    return replace(ideal, offload_bytes_per_second=rate, prefetch_bytes_per_second=rate * lot.choice((1, 1, 2))), link


# ---- comparison


def compare(case: Case, seconds: float = 2.0, most: int = 400, known: bool = True) -> tuple[Row, Plan, Plan | None]:
    """(the row, search's plan, the fastest that enumeration found).

    known   enumeration leaves out what cannot be faster than search's plan
    """
    began = time.perf_counter()
    found = find(case.tape, case.budget, case.cost, seconds=seconds)
    searched = time.perf_counter()
    step = found.step_seconds if found.fits else inf
    best = optimum(case.tape, case.budget, case.cost, step * (1 + EQUAL / 2) if known else inf, most)
    done = time.perf_counter()
    row = Row(
        case.seed,
        "-".join(op.kind for op in case.tape.ops[: case.tape.turn]),
        case.tape.kernels,
        case.cost.name,
        len(movable(case.tape)),
        case.room,
        case.link,
        oracle_seconds(case.tape, case.cost),
        found.bound_seconds,
        step,
        best.seconds,
        best.members,
        best.laid_out,
        best.is_whole,
        searched - began,
        done - searched,
    )
    return row, found.plan, best.plan


def _row(seed: int, seconds: float, most: int) -> Row:
    return compare(next(cases(seed)), seconds, most)[0]


def summary(rows: Sequence[Row]) -> tuple[str, bool]:
    """(what is to be said of all rows, whether the limits are held)."""
    hits = sum(row.is_hit for row in rows) / len(rows)
    missed = [row.seed for row in rows if row.ratio == inf]
    worst = max((row.ratio for row in rows if row.ratio < inf), default=1.0)
    above = sum(row.bound > min(row.search, row.enumerated) * (1 + EQUAL) for row in rows)
    text = (
        f"{len(rows)} networks, simulated: search hits {hits:.1%} (at least {HITS:.0%} wanted), at worst {worst:.4f} "
        f"(at most {WORST}), finds no plan in {len(missed)} budgets that have one; it is faster than all that was "
        f"enumerated in {sum(row.search * (1 + EQUAL) < row.enumerated for row in rows)}; "
        f"enumerated as a whole {sum(row.is_whole for row in rows) / len(rows):.1%}; bounds above a plan: {above}"
    )
    return text, hits >= HITS and worst <= WORST and not missed and not above


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the networks; writes no file unless --out.")
@click.option("--count", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the first network; each has the next.")
@click.option("--seconds", default=2.0, show_default=True, help="For search.")
@click.option("--most", default=400, show_default=True, help="Plans that enumeration lays out for one network.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/brute_force.csv]")
def main(quick: bool, count: int, seed: int, seconds: float, most: int, processes: int, out: Path | None) -> None:
    """Compare, print every miss and the shares, and check the limits."""
    count = -(-count // 10) if quick else count
    rows = []
    with ProcessPoolExecutor(processes) as pool:
        for row in pool.map(_row, range(seed, seed + count), [seconds] * count, [most] * count):
            rows.append(row)
            if not row.is_hit:
                click.echo(f"seed {row.seed}: search {row.search:.6g} s, {row.ratio:.5f} of the optimum  {row.network}")
    if out or not quick:
        facts = f"seeds {seed} to {seed + count - 1}", f"search {seconds:g} s", f"at most {most} plans laid out"
        record.write(out or record.RESULTS / "brute_force.csv", COLUMNS, (row.cells() for row in rows), *facts)
    text, is_held = summary(rows)
    click.echo(text)
    raise SystemExit(not is_held)


if __name__ == "__main__":
    main()
