"""comparing: policies and budgets side by side, every plan simulated for the same step, costs and budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import isfinite
from typing import Any

from vdnn.budgets import budget_bytes
from vdnn.fitting import BudgetError
from vdnn.memory.decisions import Decisions
from vdnn.memory.jitter import jittered
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan
from vdnn.memory.policy import OWN, get, rewrites_of
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import Trace
from vdnn.memory.verify import verify
from vdnn.naming import check_options
from vdnn.network import Network
from vdnn.planning import summary
from vdnn.records import Table
from vdnn.setting import AnyPolicy, Choice, Setting, choose_algorithms, make_setting
from vdnn.tape import Tape

# Figures that follow from times as the cost model has them, or from a clock.
SIMULATED = frozenset(
    {"average_bytes", "step_seconds", "oracle_seconds", "stall_seconds", "bound_seconds", "gap", "hidden_copy_fraction"}
)
MEASURED = frozenset({"planning_seconds"})
OPTIONS = tuple(name for name in signature(make_setting).parameters if name not in ("network", "budget"))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Plans side by side: the figures of each (vdnn.planning.summary), budget by budget in the order asked for.

    Where a policy does not fit a budget they are those of its smallest plan, and "fits" is False.
    """

    summaries: tuple[Mapping[str, Any], ...]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.summaries[number]

    def table(self, width: int | None = None) -> str:
        """The comparison as text."""
        from vdnn.result_tables import comparison_table

        return comparison_table(self.summaries, width)

    def to_csv(self) -> str:
        """One line per plan with all its figures; the name of each time says whether it is simulated."""
        return to_csv(self.summaries)

    def picture(self, path: str) -> None:
        """Draw step time over budget into a .png, .svg or .pdf.  Raises PlotError without Matplotlib."""
        from vdnn.plot_front import front_picture

        front_picture(self.summaries, path)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        from vdnn.result_tables import comparison_html

        return comparison_html(self.summaries)

    def __repr__(self) -> str:
        if not self.summaries:
            return "Comparison(no plans)"
        fitting = [s for s in self.summaries if s["fits"]]
        best = min(fitting, key=lambda s: s["step_seconds"], default=None)
        said = f"fastest {best['policy']}, {best['step_seconds']:.6g} s {best['time']}" if best else "nothing fits"
        return f"Comparison({self.summaries[0]['network']}, {len(self)} plans, {len(fitting)} fit, {said})"


def compare(
    network: Network | Tape,
    policies: AnyPolicy | Iterable[AnyPolicy] = tuple(OWN),
    budgets: int | str | Iterable[int | str | None] | None = (None,),
    *,
    algorithms: Choice = "performance",
    jitter: float | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Comparison:
    """One step of a network planned under several policies and budgets, side by side, all times simulated.

    policies    one or several: names, "module:function", functions of one's own; by default vdnn's own quick ones
    budgets     one or several: bytes or text, also relative to the step, "floor+25%" (vdnn.budgets); None: all memory
    algorithms  as `vdnn.plan` takes them
    jitter      share by which durations differ at random in further simulations: 0.1
    progress    called with the policy's name after each plan
    options     of `vdnn.plan`: batch, hardware, cost, optimizer, kernels, rules, count, rewrites, micro_batches, ...
    Raises what the policies raise, and what `vdnn.plan` raises but BudgetError.
    """
    check_options("compare", options, OPTIONS)
    chosen = [policies] if isinstance(policies, (str, Mapping, Decisions)) or callable(policies) else list(policies)
    budgets = [budgets] if isinstance(budgets, (int, str)) or budgets is None else budgets
    if isinstance(network, Network) and options.get("rewrites") is None and options.get("rules", "ours") == "ours":
        wanted = [name for policy in chosen for name in rewrites_of(policy)]
        options = options | {"rewrites": wanted or None}
    setting = make_setting(network, **options)
    return compared(
        setting, choose_algorithms(setting.tape, setting.cost, algorithms), chosen, budgets, jitter, progress
    )


def compared(
    setting: Setting,
    algorithms: Mapping[str, str],
    policies: Sequence[AnyPolicy],
    budgets: Iterable[int | str | None] = (None,),
    jitter: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """The comparison for one setting.

    The smallest budget comes first in fact: what a search finds there is known to it in the next.
    """
    names = [_name(policy) for policy in policies]  # a wrong one is said before the first plan is made
    allowed = [budget_bytes(budget, setting, algorithms) for budget in budgets]
    known = [Known() for _ in policies]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for budget in sorted(set(allowed)):
        for number, policy in enumerate(policies):
            figures = known[number].figures(setting.with_budget(budget), policy, algorithms, jitter)
            found[budget, number] = figures
            if progress:
                progress(names[number])
    return Comparison(tuple(found[budget, number] for budget in allowed for number in range(len(names))))


def _name(policy: AnyPolicy) -> str:
    """What the policy is called; fates that are given as they are have no name.  Raises PolicyError."""
    return get(policy)[0] if isinstance(policy, str) or callable(policy) else "own decisions"


class Known:
    """The plans made under one policy, so that none is made twice: most policies heed no budget."""

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
        trace, jittered = self._simulated(made, setting, jitter)
        figures = certified(summary(made, setting.cost, setting.budget, trace, setting.tape)) | {
            "planning_seconds": round(taken, 4)
        }
        return figures | ({"jitter": jittered} if jittered else {})

    def _simulated(self, made: Plan, setting: Setting, jitter: float | None) -> tuple[Trace, dict[str, float] | None]:
        """(the simulated trace of a plan that is verified, its figures under jitter if there is to be any)."""
        for plan, trace, figures in self.plans:
            if plan.decisions is made.decisions:
                return trace, figures
        verify(made)
        figures = None if jitter is None else jittered(made, setting.cost, jitter).summary()
        self.plans.append((made, simulate(made, setting.cost), figures))
        return self.plans[-1][1:]


def certified(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures, with the share by which the step is above its bound; no bound where nothing fits."""
    bound = summary["bound_seconds"]
    if not summary["fits"] or not bound or not isfinite(bound):
        return summary | {"bound_seconds": None, "gap": None}
    return summary | {"gap": summary["step_seconds"] / bound - 1}


def to_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per plan with all figures of its summary; the name of each time says whether it is simulated."""
    return Table.of(flat(summary) for summary in found).to_csv()


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
        elif name not in ("time", "notes"):  # is_idle and the bytes say what the notes do
            flat[f"{name}_{kind}" if name in SIMULATED else f"{name}_measured" if name in MEASURED else name] = value
    if "oracle_seconds" in summary:
        flat[f"step_over_oracle_{kind}"] = summary["step_seconds"] / summary["oracle_seconds"]
    return flat
