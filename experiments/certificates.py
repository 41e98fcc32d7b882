"""Is the lower bound below every plan?  All policies on many networks and budgets; writes results/certificates.csv.

    python experiments/certificates.py [--quick] [--seconds 3600] [--output FILE]

A pair is a network with kernels and hardware, and a budget: the arenas of the policies' own plans, and random budgets
up to that of the largest.  All times are simulated.  Exit status 1 if a bound is above a plan that its budget holds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import record

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.memory.bound import bound
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import PlanError
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import POLICIES, decide
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import fastest, least_workspace
from vdnn.setting import kernels_named

MODELS = {
    "alexnet": 8, "overfeat": 4, "vgg16": 4, "vgg19": 4, "unet": 1, "resnet18": 4, "googlenet": 2, "mobilenet_v2": 2,
    "resnet50": 2, "inception_v3": 2, "densenet121": 1,
}  # fmt: skip
NAMES = tuple(name for name in POLICIES if name != "search")  # its plans: experiments/arena.py, brute_force.py
KERNELS = ("numpy", "cudnn4")
HARDWARE = ("titan-x", "v100", "a100", "h100-sxm")
COLUMNS = (
    "network", "batch", "kernels", "hardware", "budget_bytes", "bound_simulated_s", "oracle_simulated_s",
    "best_plan_simulated_s", "best_policy", "plans", "margin", "program_columns", "program_rows", "solved_in_s",
)  # fmt: skip


def plans(tape, cost, budget):
    """[(policy, arena bytes, simulated seconds)] of every policy, with fast and with lean algorithms."""
    found = []
    for name in NAMES:
        for algorithms in (fastest(tape, cost), least_workspace(tape, cost)):
            try:
                decisions = decide(name, tape, budget, cost, algorithms).decisions
            except PlanError:
                continue  # this policy finds nothing within this budget
            plan = make_plan(tape, decisions, policy=name, effort=0)
            found.append((name, plan.arena_bytes, simulate(plan, cost).step_seconds))
    return found


def rows(name, kernels, hardware, more, rng):
    """One row per budget."""
    tape = build(models.get(name, batch=MODELS[name]), kernels_named(kernels), optimizers.get("momentum"))
    cost = roofline(hardware)
    found = plans(tape, cost, 2 * tape.floor_bytes)
    arenas = sorted({arena for _, arena, _ in found})
    budgets = sorted({*arenas, *(rng.randint(arenas[0], arenas[-1]) for _ in range(more))})
    oracle = oracle_seconds(tape, cost)
    for budget in budgets:
        fitting = [(seconds, policy) for policy, arena, seconds in found if arena <= budget]
        seconds, policy = min(fitting)
        started = time.perf_counter()
        answer = bound(tape, budget, cost)
        took = time.perf_counter() - started
        margin = seconds / answer.seconds - 1
        yield (
            name, MODELS[name], kernels, hardware, budget, answer.seconds, oracle, seconds, policy, len(fitting),
            margin, *answer.size, round(took, 3),
        )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks on one device")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further network after so many seconds")
    parser.add_argument("--output", type=Path, default=record.RESULTS / "certificates.csv")
    arguments = parser.parse_args()
    rng = random.Random(0)
    deadline = time.monotonic() + arguments.seconds
    names, hardware = (("alexnet", "resnet18"), HARDWARE[:1]) if arguments.quick else (tuple(MODELS), HARDWARE)
    found = []
    for case in [(n, k, h) for n in names for h in hardware for k in KERNELS]:
        if time.monotonic() < deadline:
            found += rows(*case, more=2 if arguments.quick else 8, rng=rng)
            print(*case, f"{len(found)} pairs, smallest margin {min(r[10] for r in found):.2e}", flush=True)
    record.write(arguments.output, COLUMNS, found, "simulated", f"policies {' '.join(NAMES)}")
    above = [row for row in found if row[10] < -1e-9]
    margins = [row[10] for row in found]
    print(f"{len(found)} pairs, {sum(row[9] for row in found)} plans compared (simulated)")
    print(f"best plan above bound: median {statistics.median(margins):.2%}, smallest {min(margins):.2e}")
    print(f"bound / oracle: median {statistics.median(row[5] / row[6] for row in found):.4f}")
    print(f"bounds above a plan: {len(above)}")
    sys.exit(1 if above else 0)


if __name__ == "__main__":
    main()
