"""`vdnn compare`: policies and budgets side by side, as a table, a file of figures and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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
from vdnn.commands.searching import search_options, searching_as_asked

if TYPE_CHECKING:
    from vdnn.comparing import Comparison
    from vdnn.memory.searching import Searching


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

    def searching(progress: Callable[[str], None]) -> Searching:
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
        found = _compared(options, names, budgets, None if jitter is None else share(jitter), searching)
        _write(found, csv_path, picture)
    if as_json:
        click.echo(json.dumps(found.summaries, indent=2))
    else:
        click.echo(found.table(), nl=False)
    leave("" if any(summary["fits"] for summary in found) else "nothing fits")


def _compared(
    options: dict[str, Any],
    names: Sequence[str],
    budgets: Sequence[str],
    jitter: float | None,
    searching: Callable[[Callable[[str], None]], Searching],
) -> Comparison:
    """The comparison that was asked for, with its progress on standard error."""
    from vdnn.comparing import compared
    from vdnn.progress import progress_bar

    setting, algorithms = setting_of(options, *names)
    plans = len(set(budgets) or (None,)) * len(names)
    with progress_bar("planning", plans, keep=False) as advance:
        search = searching(lambda note: advance(f"search: {note}", 0))
        policies = [search if name == "search" else name for name in names]
        return compared(setting, algorithms, policies, budgets or (None,), jitter, advance)


def _write(found: Comparison, csv_path: str | None, picture: str | None) -> None:
    if csv_path:
        with open(csv_path, "w", encoding="utf-8", newline="") as file:
            file.write(found.to_csv())
    if picture:
        found.picture(picture)
