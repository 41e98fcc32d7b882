"""What each rewrite of the tape is worth: memory and time with all of them, with one left out, and with none.

    python experiments/rewrites.py [--quick]       # writes experiments/results/rewrites.csv

All figures are of plans: bytes, and *simulated* seconds of a Titan X with the kernel set cudnn4 and SGD.  The floor is
what no plan of the tape can undercut, the peak is that of keep_all with the fastest algorithms, and the oracle is the
time of all ops without any stall.  Rewrites change no bit of a result (tests/test_rewrites.py).  Exit status 1 if on
any network all of them together have a larger floor, a larger peak or a slower oracle than the standard ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
import record
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import models
from vdnn.memory.cost import roofline
from vdnn.memory.simulate import oracle_seconds
from vdnn.rewrites import ALL
from vdnn.setting import choose_algorithms, make_setting
from vdnn.units import format_bytes, format_seconds

NETWORKS = (("vgg19", 256), ("vgg19", 128), ("resnet50", 64), ("googlenet", 128), ("unet", 32))
QUICK = (("vgg19", 128), ("googlenet", 128))
CHOICES = ("none", "standard", *(f"all-{name}" for name in ALL), "all")
COLUMNS = ("network", "batch", "rewrites", "floor_bytes", "keep_all_peak_bytes")
COLUMNS += ("oracle_seconds_simulated", "oracle_over_standard_simulated")
HARDWARE, KERNELS, OPTIMIZER = "titan-x", "cudnn4", "sgd"


class Row(NamedTuple):
    """The figures of one network on one tape; `ratio` is the oracle over that of the standard tape."""

    network: str
    batch: int
    rewrites: str
    floor: int
    peak: int
    oracle: float
    ratio: float


def figures(network: str, batch: int, rewrites: str) -> tuple[int, int, float]:
    """(floor, peak of keep_all, oracle) of the tape with these rewrites."""
    cost = roofline(HARDWARE)
    net = models.get(network, batch=batch)
    setting = make_setting(net, hardware=HARDWARE, optimizer=OPTIMIZER, kernels=KERNELS, rewrites=rewrites)
    plan = setting.make({}, choose_algorithms(setting.tape, cost, "performance"))
    vdnn.verify(plan)
    return setting.tape.floor_bytes, plan.peak_bytes, oracle_seconds(setting.tape, cost)


def measure(network: str, batch: int) -> list[Row]:
    """One row for each choice of rewrites."""
    found = {rewrites: figures(network, batch, rewrites) for rewrites in CHOICES}
    standard = found["standard"][-1]
    return [Row(network, batch, name, *numbers, numbers[-1] / standard) for name, numbers in found.items()]


def show(rows: list[Row]) -> None:
    """Print one network's rows."""
    table = Table(title=f"{rows[0].network}, batch {rows[0].batch}: simulated {HARDWARE}, {KERNELS}, {OPTIMIZER}")
    for column in ("rewrites", "floor", "peak of keep_all", "oracle", "of standard"):
        table.add_column(column, justify="left" if column == "rewrites" else "right")
    for row in rows:
        seconds = format_seconds(row.oracle)
        table.add_row(row.rewrites, format_bytes(row.floor), format_bytes(row.peak), seconds, f"{row.ratio:.4f}")
    Console().print(table)


@click.command()
@click.option("--quick", is_flag=True, help="Two networks; writes no file unless --out.")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/rewrites.csv]")
def main(quick: bool, out: Path | None) -> None:
    """Print the tables and check that all rewrites together lose nothing."""
    rows: list[Row] = []
    for network, batch in QUICK if quick else NETWORKS:
        rows += measure(network, batch)
        show(rows[-len(CHOICES) :])
    if out or not quick:
        lines = ((*row[:-2], f"{row.oracle:.6f}", f"{row.ratio:.6f}") for row in rows)
        record.write(
            out or record.RESULTS / "rewrites.csv", COLUMNS, lines, f"simulated {HARDWARE}", KERNELS, OPTIMIZER
        )
    by_name = {(row.network, row.batch, row.rewrites): row[3:6] for row in rows}
    worse = [
        f"{network}({batch})"
        for network, batch, name in by_name
        if name == "all"
        and any(a > b for a, b in zip(by_name[network, batch, "all"], by_name[network, batch, "standard"], strict=True))
    ]
    raise SystemExit(f"all rewrites lose against the standard ones: {', '.join(worse)}" if worse else 0)


if __name__ == "__main__":
    main()
