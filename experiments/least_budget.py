"""One real training step under the least budget that plans, against everything kept: bits, bytes, allocations.

    python experiments/least_budget.py vgg16 --batch 32        # about 6 GiB of RAM and two minutes on 2 cores

Bytes and times are measured; the floor is what no plan of the network can undercut.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import models
from vdnn.data import synthetic
from vdnn.fitting import least_plan
from vdnn.units import format_bytes

OUTSIDE = 2 << 20  # bytes that Python and NumPy may allocate outside the arena during a step


def digest(trainer: vdnn.Trainer) -> str:
    """A hash of every weight, optimizer state and statistic."""
    total = hashlib.sha256()
    for group in (trainer.weights, trainer.state, trainer.statistics):
        for name in group:
            total.update(name.encode())
            total.update(group[name].tobytes())
    return total.hexdigest()


def one_step(network: str, batch: int, policy: Any, algorithms: Any, budget: int | None, steps: int) -> dict[str, Any]:
    net = models.get(network, batch=batch)
    trainer = vdnn.Trainer(net, policy, budget, algorithms=algorithms, seed=0)
    images, labels = synthetic(net.input.shape[1:], net.scores.shape[1], batch)
    seconds = []
    for step in range(steps):
        if step == steps - 1:  # the last one, under the eyes of tracemalloc
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
        loss = trainer.step(images, labels)
        assert trainer.trace is not None
        seconds.append(trainer.trace.step_seconds)
    outside = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    result = {
        "arena_bytes": trainer.plan.arena_bytes,
        "predicted_peak_bytes": trainer.plan.peak_bytes,
        "measured_peak_bytes": trainer.measured_peak_bytes,
        "floor_bytes": trainer.plan.floor_bytes,
        "host_bytes": trainer.plan.host_bytes,
        "outside_arena_bytes": outside,
        "step_seconds": min(seconds),
        "loss": loss,
        "sha256": digest(trainer),
    }
    trainer.close()
    return result


@click.command()
@click.argument("network", default="vgg16")
@click.option("--batch", default=32, show_default=True)
@click.option("--steps", default=1, show_default=True, help="Training steps to compare.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/least_budget.json"), show_default=True)
def main(network: str, batch: int, steps: int, out: Path) -> None:
    """Run NETWORK for a step under the least budget and with everything kept, with equal algorithms."""
    began = time.perf_counter()
    least = least_plan(models.get(network, batch=batch), hardware="host", undo=True)
    rows = {
        "least": one_step(network, batch, least.decisions, "memory", least.arena_bytes, steps),
        "keep_all": {},
    }
    gc.collect()
    rows["keep_all"] = one_step(network, batch, "keep_all", least, None, steps)
    a, b = rows["least"], rows["keep_all"]
    table = Table(title=f"{network}, batch {batch}, {steps} step(s), measured")
    for column in ("", "least budget", "keep_all"):
        table.add_column(column, justify="left" if not column else "right")
    for key in a:
        values = (str(r[key])[:12] if key == "sha256" else f"{r[key]:,}" for r in (a, b))
        table.add_row(key, *values)
    same = a["sha256"] == b["sha256"] and a["loss"] == b["loss"]
    exact = all(r["measured_peak_bytes"] == r["predicted_peak_bytes"] for r in (a, b))
    Console().print(table)
    lean = all(r["outside_arena_bytes"] < OUTSIDE for r in (a, b))
    Console().print(
        f"{format_bytes(a['arena_bytes'])} is {a['arena_bytes'] / a['floor_bytes']:.3f} of the floor and "
        f"{a['arena_bytes'] / b['arena_bytes']:.3f} of keep_all; bits {'equal' if same else 'DIFFER'}; measured peak "
        f"{'equal to' if exact else 'NOT'} predicted; outside the arena {'less' if lean else 'MORE'} than "
        f"{format_bytes(OUTSIDE)} (tracemalloc); {time.perf_counter() - began:.0f} s in all",
        highlight=False,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"network": network, "batch": batch, "bits_equal": same, **rows}, indent=2) + "\n")
    raise SystemExit(0 if same and exact and lean else 1)


if __name__ == "__main__":
    main()
