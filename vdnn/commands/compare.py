"""`vdnn compare`: policies and budgets side by side, as a table, a file of figures and a picture."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import (
    PICTURES,
    check_writable,
    ending,
    host_budget_option,
    leave,
    setting_of,
    share,
    usage_errors,
)
from vdnn.commands.plan import BUDGET, jitter_option, setting_options
from vdnn.commands.searching import certified, search_options, searching_as_asked

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.memory.trace import Trace
    from vdnn.setting import AnyPolicy, Setting

# Figures that follow from times as the cost model has them, or from a clock.
SIMULATED = frozenset(
    {"average_bytes", "step_seconds", "oracle_seconds", "stall_seconds", "bound_seconds", "gap", "hidden_copy_fraction"}
)
MEASURED = frozenset({"planning_seconds"})


@click.command(short_help="Policies and budgets side by side.")
@setting_options
@click.option("--policy", "names", multiple=True, help="A policy; repeat for more.  [default: all by name]")
@click.option("--budget", "budgets", multiple=True, help=f"{BUDGET}; repeat for more.  [default: all memory]")
@host_budget_option
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Write a line of figures per plan.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw time over budget: .png, .svg or .pdf.")
@jitter_option
@search_options
def compare(
    names: tuple[str, ...],
    budgets: tuple[str, ...],
    csv_path: str | None,
    picture: str | None,
    jitter: str | None,
    as_json: bool,
    seconds: float | None,
    seed: int | None,
    robust: bool,
    **options: Any,
) -> None:
    """Plan one step of NETWORK under several policies and budgets, side by side.

    Where a policy does not fit, its smallest plan is shown.  Exit status 3 if nothing fits.
    """
    from vdnn.memory.policy import POLICIES, get
    from vdnn.plot_front import new_figure

    names = names or tuple(POLICIES)

    def searching(progress: Callable[[str], None]) -> AnyPolicy:
        return searching_as_asked(names, seconds, seed, robust, jitter, progress)

    with usage_errors():
        ending("--picture", picture, *PICTURES)
        for path in (csv_path, picture):
            if path is not None:
                check_writable(path)
        for name in names:
            get(name)  # a wrong name is said before the first plan is made, and so is it if nothing can draw
        if picture is not None:
            new_figure()
        searching(print)  # what it cannot be is said as well
        found = _arena(options, names, budgets, None if jitter is None else share(jitter), searching)
        _write(found, csv_path, picture)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        from vdnn.result_tables import comparison_table

        click.echo(comparison_table(found), nl=False)
    leave("" if any(summary["fits"] for summary in found) else "nothing fits")


def _arena(
    options: dict[str, Any],
    names: Sequence[str],
    budgets: Sequence[str],
    jitter: float | None,
    searching: Callable[[Callable[[str], None]], AnyPolicy],
) -> list[dict[str, Any]]:
    """The summaries of all plans, budget by budget in the order given.

    The smallest budget comes first in fact: what a search finds there is known to it in the next.
    """
    from vdnn.budgets import budget_bytes
    from vdnn.progress import progress_bar

    setting, algorithms = setting_of(options, *names)
    allowed = [budget_bytes(text, setting, algorithms) for text in budgets or (None,)]
    known: dict[str, Known] = {name: Known() for name in names}
    found: dict[tuple[int, str], dict[str, Any]] = {}
    with progress_bar("planning", len(set(allowed)) * len(names), keep=False) as advance:
        search = searching(lambda note: advance(f"search: {note}", 0))
        for budget in sorted(set(allowed)):
            for name in names:
                policy = search if name == "search" else name
                found[budget, name] = known[name].figures(setting.with_budget(budget), policy, algorithms, jitter)
                advance(name)
    return [found[budget, name] for budget in allowed for name in names]


class Known:
    """The plans made under one policy, so that none is made twice: most policies heed no budget."""

    def __init__(self) -> None:
        self.plans: list[tuple[Plan, Trace, dict[str, float] | None]] = []
        self.smallest: Plan | None = None

    def figures(
        self, setting: Setting, policy: AnyPolicy, algorithms: Mapping[str, str], jitter: float | None
    ) -> dict[str, Any]:
        """The figures of the plan under this policy; of the smallest that is found if it does not fit."""
        from vdnn.fitting import BudgetError
        from vdnn.memory.passes import make_plan
        from vdnn.planning import summary

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
        from vdnn.memory.jitter import jittered
        from vdnn.memory.simulate import simulate
        from vdnn.memory.verify import verify

        for plan, trace, figures in self.plans:
            if plan.decisions is made.decisions:
                return trace, figures
        verify(made)
        figures = None if jitter is None else jittered(made, setting.cost, jitter).summary()
        self.plans.append((made, simulate(made, setting.cost), figures))
        return self.plans[-1][1:]


def _write(found: Sequence[dict[str, Any]], csv_path: str | None, picture: str | None) -> None:
    if csv_path:
        with open(csv_path, "w", encoding="utf-8", newline="") as file:
            file.write(to_csv(found))
    if picture:
        from vdnn.plot_front import front_picture

        front_picture(found, picture)


def to_csv(found: Sequence[Mapping[str, Any]]) -> str:
    """One line per plan with all figures of its summary; the name of each time says whether it is simulated."""
    lines = [_flat(summary) for summary in found]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
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
    flat[f"step_over_oracle_{kind}"] = summary["step_seconds"] / summary["oracle_seconds"]
    return flat
