"""What the arena plans and simulates: every policy, and then `search`, on the same tape, costs, budget and layout.

A cell is a network and batch on a hardware in a budget.  Its tape is the same for every policy: cuDNN 4's workspaces
and times at rates relative to the Titan X's, SGD with momentum, all rewrites, everything counted.  All steps and bounds
are *simulated* seconds; bytes are exact; planning seconds are *measured* on the machine that plans.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import inf, nan
from typing import Any, NamedTuple

from paper.study import TEN

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.memory import policy as policies
from vdnn.memory.cost import Cost, roofline
from vdnn.memory.decisions import Decisions
from vdnn.memory.passes import make_plan
from vdnn.memory.search import find
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import fastest, least_workspace
from vdnn.memory.variants import Variant
from vdnn.memory.verify import verify
from vdnn.network import Network
from vdnn.setting import kernels_named, make_setting
from vdnn.tape import Tape

WIDER = (("resnet50", 64), ("resnet152", 32), ("densenet121", 64), ("inception_v4", 32), ("unet", 16))
NETWORKS = TEN + WIDER
HARDWARE = ("titan-x", "v100", "a100", "h100-sxm")
PERCENTS = (75, 50, 25, 10, 0)  # of what keep_all's arena is above the floor
SEARCH = "search"
MOST_KNOWN = 4
COLUMNS = (
    *("network", "batch", "hardware", "budget_percent", "budget_bytes", "floor_bytes", "policy", "fits"),
    *("arena_bytes", "peak_bytes", "step_seconds_simulated", "oracle_seconds_simulated", "step_over_oracle_simulated"),
    *("bound_seconds_simulated", "gap_simulated", "planning_seconds_measured", "origin"),
)

Pair = tuple[str, int]


def least_memory(tape: Tape, cost: Cost) -> Decisions:
    """`least` with the algorithms of the least workspace: mostly the smallest plan there is."""
    return replace(policies.least(tape), algorithms=least_workspace(tape, cost))


POLICIES: Mapping[str, Callable[..., Any]] = {
    name: function for name, function in (policies.POLICIES | {"least_memory": least_memory}).items() if name != SEARCH
}


class Row(NamedTuple):
    """One policy in one cell.

    percent   of what keep_all's arena is above the floor; the budget is so much above the floor
    bound     seconds that no plan of the cell undercuts: inf if none fits, 0 if unknown
    planning  seconds that the policy and its layout took; once per network and hardware if it looks at no budget
    origin    what `search` found its plan from; sub-batches, where there are several
    """

    network: str
    batch: int
    hardware: str
    percent: int
    budget: int
    floor: int
    policy: str
    fits: bool
    arena: int
    peak: int
    step: float
    oracle: float
    bound: float
    planning: float
    origin: str = ""

    @property
    def ratio(self) -> float:
        """The step over the oracle's."""
        return self.step / self.oracle

    @property
    def gap(self) -> float:
        """By which share of the bound the step is above it; inf without a bound, NaN where nothing can fit."""
        if self.bound == inf:
            return nan
        return self.step / self.bound - 1 if self.bound else inf

    @property
    def cell(self) -> tuple[str, int, str, int]:
        """What the row shares with those that it is compared with."""
        return self.network, self.batch, self.hardware, self.percent

    def cells(self) -> tuple[object, ...]:
        """What stands under COLUMNS: seconds with 9 digits."""
        return (
            *(self.network, self.batch, self.hardware, self.percent, self.budget, self.floor, self.policy),
            *(int(self.fits), self.arena, self.peak, f"{self.step:.9g}", f"{self.oracle:.9g}", f"{self.ratio:.5f}"),
            *(f"{self.bound:.9g}", f"{self.gap:.5f}" if self.fits else "", f"{self.planning:.2f}", self.origin),
        )


class Entry(NamedTuple):
    """What a policy decided, laid out and simulated."""

    policy: str
    decisions: Decisions
    tape: Tape
    arena: int
    peak: int
    step: float
    planning: float


def network(name: str, batch: int) -> Network:
    """A network by name; the paper's in its variant (GoogLeNet without LRN)."""
    return models.get(name, batch=batch, **models.PAPER_OPTIONS.get(name, {}))


def build_with_rewrites(net: Network, optimizer: str = "momentum", rewrites: str = "all") -> Tape:
    """The tape with the workspaces of cuDNN 4 and rewrites by name (vdnn.rewrites): "all", "standard"."""
    return build(net, kernels_named("cudnn4"), optimizers.get(optimizer), rewrites=rewrites)


def budgets(tape: Tape, cost: Cost, percents: Iterable[int] = PERCENTS) -> dict[int, int]:
    """{percent: budget in bytes}, so much of the way from the floor to keep_all's arena with the fastest algorithms."""
    largest = enter("keep_all", policies.keep_all, tape, cost, 0).arena
    return {percent: tape.floor_bytes + percent * (largest - tape.floor_bytes) // 100 for percent in percents}


def looks_at_budget(policy: Callable[..., Any]) -> bool:
    """Whether what the policy decides may depend on the budget."""
    return "budget" in inspect.signature(policy).parameters


def enter(
    name: str, policy: Callable[..., Any], tape: Tape, cost: Cost, budget: int, variant: Variant | None = None
) -> Entry:
    """A policy's decisions in this budget, laid out and simulated, whether they fit or not.

    Raises whatever the policy raises, with its name.
    """
    began = time.perf_counter()
    said = policies.decide(policy, tape, budget, cost, fastest(tape, cost), variant=variant)
    plan = make_plan(said.tape, said.decisions, policy=name)
    planning = time.perf_counter() - began
    step = simulate(plan, cost).step_seconds
    return Entry(name, said.decisions, said.tape, plan.arena_bytes, plan.peak_bytes, step, planning)


def contest(
    tape: Tape,
    cost: Cost,
    label: tuple[str, int, str],
    percents: Sequence[int] = PERCENTS,
    seconds: float = 10.0,
    contestants: Mapping[str, Callable[..., Any]] = POLICIES,
    variant: Variant | None = None,
) -> list[Row]:
    """The rows of one network, batch and hardware (`label`), budget by budget from the smallest up, `search` last.

    What `search` found in a smaller budget is known to it in a larger one, as all policies' decisions are.  Its plans
    are verified.  Raises PlanError for one that is not safe.  `variant` gives the tape in so many sub-batches.
    """
    limits = budgets(tape, cost, sorted(percents))
    oracle = oracle_seconds(tape, cost)
    fixed = {n: enter(n, p, tape, cost, 0) for n, p in contestants.items() if not looks_at_budget(p)}
    below: list[tuple[str, Decisions, Tape]] = []
    rows: list[Row] = []
    for percent, budget in limits.items():
        entries = [fixed.get(n) or enter(n, p, tape, cost, budget, variant) for n, p in contestants.items()]
        began = time.perf_counter()
        known = [*((e.policy, e.decisions, e.tape) for e in promising(entries, budget)), *below]
        found = find(tape, budget, cost, seconds=seconds, known=known, variant=variant)
        planning = time.perf_counter() - began
        verify(found.plan)
        if found.fits:
            below.append((f"{percent} %: {found.origin}", found.plan.decisions, found.plan.tape))
        common = *label, percent, budget, tape.floor_bytes
        for e in entries:
            fits = e.arena <= budget
            figures = fits, e.arena, e.peak, e.step, oracle, found.bound_seconds, e.planning
            rows.append(Row(*common, e.policy, *figures, parts_in_words(e.tape)))
        plan = found.plan
        figures = (
            found.fits,
            plan.arena_bytes,
            plan.peak_bytes,
            found.step_seconds,
            oracle,
            found.bound_seconds,
            planning,
        )
        rows.append(Row(*common, SEARCH, *figures, found.origin))
    return rows


def promising(entries: Sequence[Entry], budget: int) -> list[Entry]:
    """Those that fit, the fastest first, or if none does the smallest: no more than search would improve.

    It lays them out again, so the slower ones would only take its time.
    """
    fitting = sorted((e for e in entries if e.arena <= budget), key=lambda e: e.step)
    return fitting[:MOST_KNOWN] or sorted(entries, key=lambda e: e.arena)[:1]


def parts_in_words(tape: Tape) -> str:
    """In how many sub-batches the tape is; "" if in one."""
    return f"{tape.micro_batches} sub-batches" if tape.micro_batches > 1 else ""


def part(pair: Pair, hardware: str, seconds: float) -> list[Row]:
    """All rows of one network and batch on one hardware."""
    cost = roofline(hardware)
    try:
        setting = make_setting(network(*pair), kernels="cudnn4", optimizer="momentum", rewrites="all", cost=cost)
        return contest(setting.tape, cost, (*pair, hardware), seconds=seconds, variant=cache(setting.in_parts))
    except Exception as error:
        error.add_note(f"in the arena: {pair[0]}({pair[1]}) on {hardware}")
        raise
