"""vdnn held against PyTorch on the CPU: whole-step gradients, and the losses of 50 steps.

    python experiments/torch_agreement.py [--quick]   # writes experiments/results/torch_agreement.csv and _losses.csv

Gradients: those of PyTorch in float64 are the reference.  The error of a tensor is the norm of its difference from the
reference over the reference's norm; of a network the largest and the median over its tensors.  vdnn's in float32 stands
beside PyTorch's own in float32; in float64, where rounding no longer hides a wrong rule, vdnn's must agree far better.

Losses: 50 steps on the same images from the same weights in float32.  Rounding grows from step to step in any training,
so what is looked at is whether vdnn stays as near to PyTorch's float64 losses as PyTorch's own float32 losses do.

Exit status 1 if an error is too large for rounding.  All numbers are computed, none is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import record
import torch
from cpu_cases import CASES, Case, batch_of, kernels_here, trainer_of
from cpu_report import wide_console
from cpu_torch import TorchTraining
from rich.table import Table
from torch_twin import first_weights

from vdnn.commands.measure import processor
from vdnn.network import Network

# batch and rows of an image: small, but with a few elements left in the last maps
SMALL = {
    "vgg11": (4, 64),
    "vgg16": (4, 64),
    "alexnet": (4, 96),
    "googlenet": (4, 96),
    "resnet18": (4, 64),
    "resnet50": (4, 64),
    "resnet20": (16, 32),
    "small_vgg": (16, 32),
}
QUICK = ("resnet20", "small_vgg")
# losses shall move in 50 steps, and not jump to and fro, in which differences grow whatever their cause
RATES = {"googlenet": 1e-6, "resnet18": 1e-3, "resnet50": 1e-4, "resnet20": 1e-2, "small_vgg": 1e-2}
RATE = 2e-4
DTYPES = ("float32", "float64")
FLOAT64 = 1e-9  # the most that float64 may differ, gradients' error
TIMES = 10.0  # how much larger than PyTorch's own error vdnn's may be: other orders of adding, and Winograd
GRADIENTS, LOSSES = 1e-3, 1e-4  # errors that float32 may have in any case: Winograd's larger tiles lose a digit a layer
ZERO = 1e-12  # of a float64 gradient that is 0 but for rounding
COLUMNS = ("network", "batch", "image", "side", "dtype", "largest_error", "tensor", "median_error", "loss_error")
LOSS_COLUMNS = ("network", "batch", "image", "step", "side", "dtype", "loss", "difference_from_float64_over_first_loss")


@dataclass(frozen=True)
class Gradients:
    """How far gradients are from the reference: the largest relative error and its tensor, the median, the loss's."""

    side: str
    dtype: str
    largest: float
    tensor: str
    typical: float
    loss: float

    def cells(self, case: Case) -> tuple[object, ...]:
        """The line of the CSV."""
        figures = f"{self.largest:.3e}", self.tensor, f"{self.typical:.3e}", f"{self.loss:.3e}"
        return case.network, case.batch, case.shape, self.side, self.dtype, *figures


def relative_errors(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """{tensor: norm of the difference over the reference's norm}; the norm itself where the reference is 0."""
    errors = {}
    for name, expected in reference.items():
        difference = float(np.linalg.norm((found[name].astype(np.float64) - expected).ravel()))
        errors[name] = difference / (float(np.linalg.norm(expected.ravel())) or 1.0)
    return errors


def compared(
    side: str, dtype: str, found: tuple[float, Mapping[str, Any]], reference: tuple[float, Mapping[str, Any]]
) -> Gradients:
    """What is said of one side's (loss, gradients).  Gradients that batch norm makes 0 do not count."""
    expected = {name: value for name, value in reference[1].items() if np.abs(value).max() > ZERO}
    errors = relative_errors(found[1], expected)
    worst = max(errors, key=errors.__getitem__)
    loss = abs(found[0] / reference[0] - 1)
    return Gradients(side, dtype, errors[worst], worst, median(errors.values()), loss)


def torch_training(net: Network, layout: str, rate: float) -> TorchTraining:
    """PyTorch's side with vdnn's first weights and the batch of all sides, in the network's type."""
    return TorchTraining(net, first_weights(net), batch_of(net), layout, rate)


def gradients_of(case: Case, threads: int) -> list[Gradients]:
    """Every side's, the first of which is PyTorch's in float32."""
    nets = {dtype: case.make(dtype) for dtype in DTYPES}
    reference = torch_training(nets["float64"], "contiguous", case.rate).gradients()
    own = torch_training(nets["float32"], "channels_last", case.rate).gradients()
    found = [compared("torch", "float32", own, reference)]
    for kernels in kernels_here():
        for dtype, net in nets.items():
            with closing(trainer_of(case, threads, kernels, net=net)) as trainer:
                found.append(compared(f"vdnn {kernels}", dtype, trainer.gradients(*batch_of(net)), reference))
    return found


def losses_of(case: Case, threads: int, steps: int) -> dict[tuple[str, str], list[float]]:
    """{(side, dtype): the loss before every step}; PyTorch's in float64 among them."""
    found = {}
    for dtype in DTYPES:
        theirs = torch_training(case.make(dtype), "channels_last", case.rate)
        found["torch", dtype] = [theirs.step() for _ in range(steps)]
    net = case.make()
    batch = batch_of(net)
    for kernels in kernels_here():
        with closing(trainer_of(case, threads, kernels, net=net)) as trainer:
            found[f"vdnn {kernels}", "float32"] = [float(trainer.step(*batch)) for _ in range(steps)]
    return found


def differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Of every step, over the first loss: a curve that falls to 0 has no scale of its own there."""
    return [abs(a - b) / reference[0] for a, b in zip(losses, reference, strict=True)]


def faults(case: Case, found: Sequence[Gradients], losses: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    """What rounding does not explain."""
    own, wrong = found[0], []
    for one in found[1:]:
        limit = FLOAT64 if one.dtype == "float64" else max(GRADIENTS, TIMES * own.largest)
        if not one.largest <= limit:
            what = f"{one.side} {one.dtype}: gradient of {one.tensor}"
            wrong.append(f"{what} is {one.largest:.2e} off, limit {limit:.2e}")
    reference = losses["torch", "float64"]
    rounding = differences(losses["torch", "float32"], reference)
    for (side, dtype), values in losses.items():
        far = max(differences(values, reference))
        limit = max(LOSSES, TIMES * max(rounding))
        if side != "torch" and not far <= limit:
            wrong.append(f"{side} {dtype}: losses are up to {far:.2e} off, limit {limit:.2e}")
    return [f"{case.network}: {text}" for text in wrong]


def table_of(case: Case, found: Sequence[Gradients], losses: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    """What is printed of one network."""
    reference = losses["torch", "float64"]
    about = f"{case.network}, batch {case.batch} of {case.shape}"
    table = Table(title=f"{about}: relative errors against PyTorch in float64")
    curve_head = f"losses of {len(reference)} steps"
    for column in ("side", "dtype", "gradients: largest", "of", "median", curve_head, "last loss"):
        table.add_column(column, justify="left" if column in ("side", "dtype", "of") else "right")
    for one in found:
        values = losses.get((one.side, one.dtype))
        curve = (f"{max(differences(values, reference)):.1e}", f"{values[-1]:.6f}") if values else ("", "")
        table.add_row(one.side, one.dtype, f"{one.largest:.1e}", one.tensor, f"{one.typical:.1e}", *curve)
    table.add_row("torch", "float64", "reference", "", "", f"from {reference[0]:.6f}", f"{reference[-1]:.6f}")
    return table


def loss_rows(case: Case, losses: Mapping[tuple[str, str], Sequence[float]]) -> list[tuple[object, ...]]:
    """Lines of the CSV of losses."""
    reference, about = losses["torch", "float64"], (case.network, case.batch, case.shape)
    return [
        (*about, step, side, dtype, f"{values[step]:.9g}", f"{differences(values, reference)[step]:.3e}")
        for (side, dtype), values in losses.items()
        for step in range(len(values))
    ]


@click.command()
@click.option("--quick", is_flag=True, help="Two networks, 5 steps; writes no file unless --out.")
@click.option("--only", multiple=True, help="Of the networks only the one of that name; may be given again.")
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/torch_agreement.csv]")
def main(quick: bool, only: tuple[str, ...], threads: int, steps: int, out: Path | None) -> None:
    """Print errors beside PyTorch's own, write both tables, and check them."""
    rows, curves, wrong, console = [], [], [], wide_console()
    torch.set_num_threads(threads)
    for plain in CASES:
        if (only and plain.network not in only) or (quick and plain.network not in QUICK):
            continue
        case = plain.smaller(*SMALL[plain.network]).at_rate(RATES.get(plain.network, RATE))
        found, losses = gradients_of(case, threads), losses_of(case, threads, 5 if quick else steps)
        rows += [one.cells(case) for one in found]
        curves += loss_rows(case, losses)
        wrong += faults(case, found, losses)
        console.print(table_of(case, found, losses))
    out = out or (None if quick else record.RESULTS / "torch_agreement.csv")
    if out:
        facts = processor(), f"{threads} threads", f"PyTorch {torch.__version__}"
        record.write(out, COLUMNS, rows, *facts)
        record.write(out.with_name(f"{out.stem}_losses.csv"), LOSS_COLUMNS, curves, *facts)
    for fault in wrong:
        click.echo(fault)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
