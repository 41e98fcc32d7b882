"""What planning and running a plan cost, measured on this machine.

    python experiments/bench.py            # two tables: planning, and a plan against a bare loop over the same kernels

Ratios come from runs in turn (A B A B ...) in one process; medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import models
from vdnn.building import build
from vdnn.data import synthetic
from vdnn.kernels.numpy import NumpyKernels
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import decide
from vdnn.planning import choose_algorithms

PLANNED = (("vgg16", "vdnn_all"), ("vgg16", "keep_all"), ("resnet50", "vdnn_all"), ("vgg416", "vdnn_all"))
RUN = (("digits_vgg", 128, None), ("resnet18", 8, (3, 112, 112)), ("vgg11", 4, (3, 128, 128)))


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def planning(repeats: int) -> Table:
    """Time of tape, passes and verifier for each network and policy."""
    table = Table(title="planning, milliseconds, measured (median)")
    for column in ("network", "policy", "steps", "tape", "plan", "verify", "plan + verify", "simulate"):
        table.add_column(column, justify="right" if column not in ("network", "policy") else "left")
    cost = vdnn.roofline("titan-x")
    for name, policy in PLANNED:
        net, kernels, optimizer = models.get(name), NumpyKernels(2), vdnn.SGD(0.01, momentum=0.9)
        times: list[tuple[float, ...]] = []
        for _ in range(repeats):
            began = time.perf_counter()
            tape = build(net, kernels, optimizer)
            built = time.perf_counter()
            chosen = choose_algorithms(tape, cost, "performance")
            decisions = decide(policy, tape, cost.memory_bytes, cost, chosen).decisions
            plan = make_plan(tape, decisions)
            made = time.perf_counter()
            vdnn.verify(plan)
            verified = time.perf_counter()
            vdnn.simulate(plan, cost)
            simulated = time.perf_counter()
            times.append((built - began, made - built, verified - made, verified - built, simulated - verified))
        row = [f"{1e3 * median(column):.1f}" for column in zip(*times, strict=True)]
        table.add_row(name, policy, str(len(plan.steps)), *row)
    return table


def without_kernels(net: vdnn.Network) -> float:
    """Seconds to run a plan whose steps all do nothing: what running one costs beside the kernels."""
    trainer = vdnn.Trainer(net, "keep_all", optimizer="momentum", undo=False)
    bound = trainer.device.load(trainer.plan)
    for i in bound.actions:
        bound.actions[i] = int
    took = median(seconds(lambda: vdnn.execute(trainer.plan, trainer.device)) for _ in range(100))
    trainer.close()
    return took


def running(repeats: int) -> Table:
    """A step through the plan against the same bound kernel calls in a plain loop."""
    table = Table(title="one step, milliseconds, measured in turn (median)")
    for column in ("network", "N", "calls", "bare loop", "plan", "plan / loop", "empty plan", "of a step"):
        table.add_column(column, justify="right" if column != "network" else "left")
    for name, batch, image in RUN:
        net = models.get(name, batch=batch, **({"image": image} if image else {}))
        trainer = vdnn.Trainer(net, "keep_all", optimizer="momentum", undo=False)
        images, labels = synthetic(net.input.shape[1:], net.scores.shape[1], batch)
        trainer.step(images, labels)
        calls = list(trainer.device.load(trainer.plan).actions.values())
        kernels = trainer.device.kernels

        def loop(kernels: NumpyKernels = kernels, calls: list[Callable[[], object]] = calls) -> None:
            with kernels.step(), np.errstate(all="ignore"):
                for call in calls:
                    call()

        def plan(trainer: vdnn.Trainer = trainer) -> None:
            vdnn.execute(trainer.plan, trainer.device)

        times = [(seconds(loop), seconds(plan)) for _ in range(repeats)]
        bare, planned = (median(column) for column in zip(*times, strict=True))
        ratio = median(p / b for b, p in times)
        empty = without_kernels(net)
        figures = [f"{1e3 * bare:.2f}", f"{1e3 * planned:.2f}", f"{ratio:.3f}", f"{1e3 * empty:.2f}"]
        table.add_row(name, str(batch), str(len(calls)), *figures, f"{empty / planned:.2%}")
        trainer.close()
    return table


@click.command()
@click.option("--repeats", default=15, show_default=True)
def main(repeats: int) -> None:
    """Print both tables."""
    console = Console()
    console.print(planning(min(repeats, 7)))
    console.print(running(repeats))


if __name__ == "__main__":
    main()
