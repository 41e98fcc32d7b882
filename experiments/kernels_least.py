"""What least memory costs: convolutions by the algorithm of the least workspace against PyTorch's, channels-last.

    python experiments/kernels_least.py [--quick]   # writes experiments/results/kernels_least.csv

Every convolution of the benchmarks' networks with one group, each shape once: forward and both backward passes, by an
algorithm without Winograd's roundings that takes at most 1 MiB of workspace a worker, in turn with PyTorch on the same
channels-last arrays.  Before each the machine rests for 60 ms, so that the threads of the other sleep, and one call
comes that is not timed.

What is judged are layers with planes of 28x28 and more and 32 channels and more, on both sides of the layer; others are
printed.  No side has a bias.  NumPy alone and the compiled kernels are both measured; the limits are for the compiled,
where there are any.  Exit status 1 if they are missed or a workspace is larger.  All numbers are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import record
from cpu_cases import CASES, MIB, kernels_here
from cpu_report import wide_console
from kernels_conv import PASSES, calls, torch
from rich.table import Table

from vdnn.commands.measure import processor
from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.conv import EXACT
from vdnn.layers.base import Algorithm
from vdnn.network import Network

REST = 0.06  # seconds
PLANE, CHANNELS = 28, 32  # at least, of what is judged
TYPICAL, WORST = 1.4, 2.2  # limits of the ratios of judged layers: their median, any
BLOCK, MOST = 0.05, 8  # seconds of timed calls in a row, and at most so many
COLUMNS = (
    *(
        "layer",
        "kernels",
        "algorithm",
        "pass",
        "batch",
        "channels",
        "plane",
        "filters",
        "kernel",
        "stride",
        "padding",
        "judged",
    ),
    *("workspace_bytes_a_worker", "vdnn_seconds_measured", "torch_seconds_measured", "ratio", "times"),
)

Layer = tuple[int, int, int, int, int, int, int]  # N, C, H = W, K, R = S, stride, padding


@dataclass(frozen=True)
class Row:
    """One pass of one layer; seconds of a call."""

    name: str
    kernels: str
    algorithm: str
    phase: str
    layer: Layer
    workspace: int  # bytes a worker
    ours: float
    theirs: float
    times: int

    @property
    def ratio(self) -> float:
        """Ours over PyTorch's."""
        return self.ours / self.theirs

    @property
    def is_judged(self) -> bool:
        """Whether the limits are for it."""
        return is_judged(self.layer)

    def cells(self) -> tuple[object, ...]:
        """The line of the CSV."""
        figures = f"{self.ours:.6f}", f"{self.theirs:.6f}", f"{self.ratio:.3f}"
        return (
            self.name,
            self.kernels,
            self.algorithm,
            self.phase,
            *self.layer,
            self.is_judged,
            self.workspace,
            *figures,
            self.times,
        )


def is_judged(layer: Layer) -> bool:
    """Whether planes and channels of input and output are large enough."""
    _, C, H, K, R, stride, padding = layer
    OH = (H + 2 * padding - R) // stride + 1
    return min(H, OH) >= PLANE and min(C, K) >= CHANNELS


def layers_of(networks: Sequence[Network]) -> dict[str, Layer]:
    """{"network layer": its shape} of each square convolution with one group and no dilation, each shape once."""
    found: dict[Layer, str] = {}
    for net in networks:
        for node in net.nodes:
            layer = node.layer
            if type(layer).__name__ != "Conv2d" or layer.groups != 1 or layer.dilation != (1, 1):
                continue
            if any(a != b for a, b in (layer.kernel_size, layer.stride, layer.padding)):
                continue
            N, C, H, _ = node.inputs[0].shape
            shape = N, C, H, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0]
            found.setdefault(shape, f"{net.name} {node.name}")
    return {name: shape for shape, name in found.items()}


def block(call: Callable[[], None]) -> list[float]:
    """Rest, warm up, and seconds of some calls in a row."""
    time.sleep(REST)
    began = time.perf_counter()
    call()
    count = max(2, min(MOST, round(BLOCK / max(1e-6, time.perf_counter() - began))))
    found = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def least(found: Sequence[Algorithm], threads: int) -> Algorithm:
    """Of the exact algorithms that take at most 1 MiB a worker the one that is said to be the fastest."""
    return max((a for a in found if a.name in EXACT and a.workspace <= threads * MIB), key=lambda a: a.rate)


def rows_of(kernels: NumpyKernels, kind: str, name: str, layer: Layer, rounds: int) -> Iterator[Row]:
    """Every pass that the layer has; the first layer of a network has no backward to its data."""
    for phase in PASSES:
        if phase == "backward_data" and layer[1] == 3:
            continue
        found, _ = calls(kernels, layer, phase)
        options = {"stride": (layer[5],) * 2, "padding": (layer[6],) * 2, "dilation": (1, 1), "groups": 1}
        shapes = layer[:3] + layer[2:3], (layer[3], layer[1], layer[4], layer[4])
        algorithm = least(kernels.conv2d_algorithms(phase, *shapes, dtype="float32", **options), kernels.threads)
        label = next(label for label in found if label.startswith(f"{algorithm.name} "))
        ours, theirs = [], []
        for _ in range(rounds):
            with kernels.step():  # as in a training step: the BLAS has one thread
                ours += block(found[label])
            theirs += block(found["torch"])
        space = algorithm.workspace // kernels.threads
        yield Row(name, kind, algorithm.name, phase, layer, space, median(ours), median(theirs), len(ours))


def table_of(rows: Sequence[Row]) -> Table:
    """What is printed: the judged layers first, the slowest of them on top."""
    table = Table(title=f"vdnn {rows[0].kernels} in at most 1 MiB a worker against PyTorch channels_last, measured")
    shape_head = "N, C, H, K, R, stride, padding"
    for column in ("layer", shape_head, "pass", "algorithm", "KiB a worker", "ms", "torch ms", "ratio", "judged"):
        table.add_column(column, justify="left" if column in ("layer", "pass", "algorithm") else "right")
    for row in sorted(rows, key=lambda row: (not row.is_judged, -row.ratio)):
        times = f"{1e3 * row.ours:.2f}", f"{1e3 * row.theirs:.2f}", f"{row.ratio:.2f}"
        shape = ", ".join(map(str, row.layer))
        about = row.name, shape, row.phase, row.algorithm, str(row.workspace >> 10)
        table.add_row(*about, *times, "yes" if row.is_judged else "")
    return table


def faults(rows: Sequence[Row]) -> list[str]:
    """What misses the limits."""
    judged = [row for row in rows if row.is_judged]
    wrong = [
        f"{row.name} {row.phase}: {row.workspace} bytes of workspace a worker" for row in rows if row.workspace > MIB
    ]
    if not judged:
        return wrong
    typical, worst = median(row.ratio for row in judged), max(judged, key=lambda row: row.ratio)
    if typical > TYPICAL:
        wrong.append(f"the median ratio is {typical:.2f}, at most {TYPICAL} wanted")
    if worst.ratio > WORST:
        wrong.append(f"the worst ratio is {worst.ratio:.2f}, {worst.name} {worst.phase}, at most {WORST} wanted")
    return wrong


def summary(rows: Sequence[Row]) -> str:
    """Median and worst of the judged layers, of each pass and of all."""
    parts = []
    for phase in (*PASSES, ""):
        ratios = [row.ratio for row in rows if row.is_judged and phase in ("", row.phase)]
        if ratios:
            parts.append(f"{phase or 'all'} median {median(ratios):.2f}, worst {max(ratios):.2f} of {len(ratios)}")
    return "; ".join(parts) or "no layer is judged"


@click.command()
@click.option("--quick", is_flag=True, help="One small network, one round; judges nothing, writes only to --out.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/kernels_least.csv]")
def main(quick: bool, threads: int, rounds: int, batch: int, out: Path | None) -> None:
    """Measure, print, write the CSV and check the limits."""
    if torch is None:
        raise click.ClickException("PyTorch is not installed, and there is nothing to compare with")
    cases = [case.smaller(1 if quick else batch) for case in CASES if not quick or case.network == "resnet20"]
    shapes = layers_of([case.make() for case in cases])
    rows: dict[str, list[Row]] = {}
    for kind in kernels_here():
        kernels = NumpyKernels(threads, fast=kind == "fast")
        _ = kernels.routines  # Numba starts here
        torch.set_num_threads(threads)  # after Numba, whose first parallel launch would set all
        rounds = 1 if quick else rounds
        rows[kind] = [row for name, layer in shapes.items() for row in rows_of(kernels, kind, name, layer, rounds)]
        wide_console().print(table_of(rows[kind]))
        click.echo(f"{kind}: {summary(rows[kind])}")
    out = out or (None if quick else record.RESULTS / "kernels_least.csv")
    if out:
        facts = processor(), f"{threads} threads", f"PyTorch {torch.__version__}"
        record.write(out, COLUMNS, [row.cells() for found in rows.values() for row in found], *facts)
    wrong = [] if quick else faults(list(rows.values())[-1])
    for fault in wrong:
        click.echo(fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
