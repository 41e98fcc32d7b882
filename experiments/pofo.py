"""POFO against the paper's policies and checkpointing, over budgets between the floor and what keeping all takes.

    python experiments/pofo.py [--quick] [--network vgg19 ...]       # writes experiments/results/pofo.csv

Steps are *simulated* on a Titan X with SGD, and given as multiples of the oracle's; planning is *measured*, in seconds
of this machine's CPU.  A budget of 25 % is the floor plus a quarter of what keep_all takes above it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import record

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.memory.cost import Cost, roofline
from vdnn.memory.order import order
from vdnn.memory.policy import Policy, decide
from vdnn.memory.published.pofo import pofo
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import fastest, trial
from vdnn.setting import kernels_named
from vdnn.tape import Tape

BATCHES = {"vgg19": 64, "resnet50": 32, "resnet152": 32, "densenet121": 32, "googlenet": 64, "alexnet": 128}
SHARES = (75, 50, 25, 10)  # per cent
POLICIES: tuple[str | Policy, ...] = (pofo, "vdnn_all", "vdnn_conv", "vdnn_dyn", "checkpoint")
COLUMNS = ("network", "batch", "kernels", "budget_percent", "budget_bytes", "policy", "fits", "arena_bytes")
COLUMNS = (*COLUMNS, "step_per_oracle_simulated", "planning_seconds_measured")


def figures(tape: Tape, policy: str | Policy, budget: int, cost: Cost) -> tuple[str, bool, int, str, str]:
    """(policy's name, whether it fits, its arena's bytes, step by oracle, seconds of planning)."""
    began = time.process_time()
    decided = decide(policy, tape, budget, cost, fastest(tape, cost))
    name, decisions = decided.name, decided.decisions
    took = time.process_time() - began
    plan = trial(tape, decisions, budget)
    fits = plan.arena_bytes <= budget
    step = simulate(replace(plan, steps=tuple(order(plan))), cost).step_seconds if fits else float("nan")
    return name, fits, plan.arena_bytes, f"{step / oracle_seconds(tape, cost):.4f}" if fits else "", f"{took:.3f}"


def rows(network: str, batch: int, kernels: str, cost: Cost) -> Iterator[tuple[object, ...]]:
    """The rows of one network with one kernel set."""
    tape = build(models.get(network, batch=batch), kernels_named(kernels), optimizers.get("sgd"))
    everything = figures(tape, "keep_all", 1 << 60, cost)[2]
    for share in SHARES:
        budget = tape.floor_bytes + share * (everything - tape.floor_bytes) // 100
        for policy in POLICIES:
            yield network, batch, kernels, share, budget, *figures(tape, policy, budget, cost)


@click.command()
@click.option("--quick", is_flag=True, help="AlexNet alone.")
@click.option("--network", "networks", multiple=True, type=click.Choice(list(BATCHES)), help="Default: all of them.")
@click.option("--out", type=click.Path(path_type=Path), default=record.RESULTS / "pofo.csv", show_default=True)
def main(quick: bool, networks: tuple[str, ...], out: Path) -> None:
    """Write the table, and print it as it comes."""
    chosen = ("alexnet",) if quick else networks or tuple(BATCHES)
    made = []
    for network in chosen:
        for kernels in ("numpy", "cudnn4"):
            for row in rows(network, BATCHES[network], kernels, roofline("titan-x")):
                click.echo("  ".join(map(str, row)))
                made.append(row)
    record.write(out, COLUMNS, made, "simulated titan-x", "optimizer sgd")


if __name__ == "__main__":
    main()
