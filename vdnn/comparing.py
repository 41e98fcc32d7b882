"""Plans compared: the figures of each, or of the smallest found where it does not fit, and these as columns."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from vdnn.fitting import BudgetError
from vdnn.memory.jitter import jittered
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import Trace
from vdnn.memory.verify import verify
from vdnn.planning import summary
from vdnn.setting import AnyPolicy, Setting

# Figures that follow from times as the cost model has them, or from a clock.
SIMULATED = frozenset(
    {"average_bytes", "step_seconds", "oracle_seconds", "stall_seconds", "bound_seconds", "gap", "hidden_copy_fraction"}
)
MEASURED = frozenset({"planning_seconds"})


def certified(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures, with the share by which the step is above its bound; no bound where nothing fits."""
    bound = summary["bound_seconds"]
    if not summary["fits"] or not bound or not isfinite(bound):
        return summary | {"bound_seconds": None, "gap": None}
    return summary | {"gap": summary["step_seconds"] / bound - 1}


class Known:
    """The plans made under one policy for one tape, so that none is made twice: most policies heed no budget."""

    def __init__(self) -> None:
        self.plans: list[tuple[Plan, Trace, dict[str, float] | None]] = []
        self.smallest: Plan | None = None

    def figures(
        self, setting: Setting, policy: AnyPolicy, algorithms: Mapping[str, str], jitter: float | None
    ) -> dict[str, Any]:
        """The figures of the plan under this policy; of the smallest that is found if it does not fit."""
        start = time.perf_counter()
        said = setting.decide(policy, algorithms)
        made = next(
            (plan for plan, *_ in self.plans if (plan.tape, plan.decisions) == (said.tape, said.decisions)), None
        )
        if made is None:
            made = make_plan(said.tape, said.decisions, undo=setting.undo, policy=said.name)
        made = replace(made, bound_seconds=said.bound_seconds)
        taken = time.perf_counter() - start
        if made.arena_bytes > setting.budget:
            if self.smallest is None:
                self.smallest = BudgetError(setting, policy, algorithms, made).plan
            made = min(self.smallest, made, key=lambda plan: plan.arena_bytes)
        trace, shaken = self._simulated(made, setting, jitter)
        figures = certified(summary(made, setting.cost, setting.budget, trace, setting.tape)) | {
            "planning_seconds": round(taken, 4)
        }
        return figures | ({"jitter": shaken} if shaken else {})

    def _simulated(self, made: Plan, setting: Setting, jitter: float | None) -> tuple[Trace, dict[str, float] | None]:
        """(the simulated trace of a plan that is verified, its figures under jitter if there is to be any)."""
        for plan, trace, figures in self.plans:
            if plan.decisions is made.decisions:
                return trace, figures
        verify(made)
        figures = None if jitter is None else jittered(made, setting.cost, jitter).summary()
        self.plans.append((made, simulate(made, setting.cost), figures))
        return self.plans[-1][1:]


def to_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per plan with all figures of its summary; the name of each time says whether it is simulated."""
    return csv_of([flat(summary) for summary in found])


def csv_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line for each, under all columns that any of them has, in the order in which they first come."""
    columns = list(dict.fromkeys(column for line in lines for column in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a summary by column: what follows from times says of which kind these are."""
    kind = summary["time"]
    flat: dict[str, Any] = {}
    for name, value in summary.items():
        if name == "breakdown":
            flat |= {f"peak_{role.replace(' ', '_')}_bytes": count for role, count in value.items()}
        elif name == "jitter":
            names = {part: part if part == "jitter" else f"jitter_{part}" for part in value}
            is_time = {part for part in value if part.endswith(("_seconds", "_slowdown"))}
            flat |= {f"{names[k]}_{kind}" if k in is_time else names[k]: figure for k, figure in value.items()}
        elif name in ("rewrites", "spilled"):
            flat[name] = " ".join(value)
        elif name != "time":
            flat[f"{name}_{kind}" if name in SIMULATED else f"{name}_measured" if name in MEASURED else name] = value
    if "oracle_seconds" in summary:
        flat[f"step_over_oracle_{kind}"] = summary["step_seconds"] / summary["oracle_seconds"]
    return flat
