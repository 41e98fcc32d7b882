"""Train a small VGG on handwritten digits in half the memory that it would take with everything kept.

    python experiments/demo.py            # writes runs/demo/: summary.json, memory.png, plan.txt, digits.safetensors

All times are measured on this machine's CPU; bytes are those of the slab that stands for device memory.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import click
from rich.console import Console

import vdnn
from vdnn import models
from vdnn.data import digits
from vdnn.plot import memory_picture
from vdnn.progress import progress_bar
from vdnn.schedules import Cosine
from vdnn.units import format_bytes

BATCH, EPOCHS = 128, 16


def trainer(policy: str, budget: int | None, algorithms: Any, seed: int) -> vdnn.Trainer:
    net = models.digits_vgg(batch=BATCH)
    steps = EPOCHS * -(-len(digits().train_images) // BATCH)
    optimizer = vdnn.Adam(Cosine(2e-3, steps))
    return vdnn.Trainer(net, policy, budget, optimizer=optimizer, algorithms=algorithms, seed=seed)


def train(run: vdnn.Trainer, title: str) -> dict[str, list[Any]]:
    """Train and record each step's loss, copy seconds and share of the copying that was hidden; the last full trace."""
    data = digits()
    record: dict[str, list[Any]] = {"loss": [], "copy": [], "hidden": [], "trace": []}
    total = EPOCHS * -(-len(data.train_images) // BATCH)
    with progress_bar(title, total) as advance:

        def note(run: vdnn.Trainer, loss: float) -> None:
            assert run.trace is not None
            record["loss"].append(loss)
            record["copy"].append(run.trace.copy_seconds)
            record["hidden"].append(run.trace.hidden_copy_fraction)
            if run.trace.plan is run.plan:  # the last batch of an epoch is smaller and has a plan of its own
                record["trace"] = [run.trace]
            advance(f"epoch {run.epoch + 1}/{EPOCHS}, loss {loss:.3f}")

        run.fit(data.train_images, data.train_labels, EPOCHS, progress=note)
    return record


def everything(run: vdnn.Trainer) -> dict[str, bytes]:
    """Every weight, optimizer state and running statistic, to the bit."""
    return {n: a.tobytes() for group in (run.weights, run.state, run.statistics) for n, a in group.items()}


@click.command()
@click.option("--seed", default=0, show_default=True, help="Of weights and order of the data.")
@click.option("--out", default="runs/demo", show_default=True, type=click.Path(path_type=Path))
def main(seed: int, out: Path) -> None:
    """Train under a budget and without one, compare every bit, show the plan and its memory."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    lean = trainer("keep_all", None, "memory", seed)
    budget = lean.plan.arena_bytes // 2
    run = trainer("vdnn_dyn", budget, "mixed", seed)
    kept = trainer("keep_all", None, run.plan, seed)
    record = train(run, "within the budget")
    (trace,) = record["trace"]
    reference = train(kept, "everything kept")
    same = record["loss"] == reference["loss"] and everything(run) == everything(kept)

    data = digits()
    result = run.evaluate(data.test_images, data.test_labels)
    summary = {
        "test_accuracy": result.accuracy,
        "budget_bytes": budget,
        "keep_all_bytes": kept.plan.arena_bytes,
        "arena_bytes": run.device.arena_bytes,
        "floor_bytes": run.plan.floor_bytes,
        "predicted_peak_bytes": run.plan.peak_bytes,
        "measured_peak_bytes": run.measured_peak_bytes,
        "offloaded_bytes": run.plan.offloaded_bytes,
        "copy_seconds": mean(record["copy"]),
        "hidden_copy_fraction": mean(record["hidden"]),
        "identical_to_keep_all": same,
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "times": "measured on the CPU; copy_seconds per step",
    }
    console.print(run.plan.table(trace), soft_wrap=True, highlight=False)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (out / "plan.txt").write_text(str(run.plan))
    run.save(str(out / "digits.safetensors"))
    memory_picture(trace, out / "memory.png", budget=budget, title="digits_vgg, one step within half the memory")
    console.print(
        f"{result.accuracy:.2%} of the test set right, trained in {format_bytes(run.device.arena_bytes)} where keeping "
        f"everything takes {format_bytes(kept.plan.arena_bytes)}; "
        f"losses and weights {'equal to the last bit' if same else 'DIFFER'}.  See {out}/",
        highlight=False,
    )


if __name__ == "__main__":
    main()
