"""What commands that search share: their options, what a search says meanwhile, and the certificate of its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import share, with_options

if TYPE_CHECKING:
    from vdnn.memory.searching import Searching

seconds_option = click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="How long policy search goes on, the time of other policies not counted.  [default: 10]",
)
robust_option = click.option(
    "--robust", is_flag=True, help="Policy search: the fastest step on average if times vary by --jitter."
)
quick_search_options = with_options(
    seconds_option,
    click.option("--seed", type=click.IntRange(min=0), help="Of what policy search tries at random.  [default: 0]"),
)
search_options = with_options(quick_search_options, robust_option)  # for commands that have --jitter


@contextmanager
def telling(policy: str) -> Iterator[Callable[[str], None]]:
    """Gives a function that says on a terminal how a search stands, and nothing for other policies."""
    if policy != "search":
        yield lambda note: None
        return
    from vdnn.progress import status_line

    with status_line("searching") as tell:
        yield tell


def searching_as_asked(
    names: Sequence[str],
    seconds: float | None,
    seed: int | None,
    robust: bool,
    jitter: str | None,
    progress: Callable[[str], None],
) -> Searching:
    """The policy search with these options.  A usage error if they are given without it, or make no sense."""
    from vdnn.memory.searching import SearchError, searching

    given = {"--seconds": seconds is not None, "--seed": seed is not None, "--robust": robust}
    if any(given.values()) and "search" not in names:
        raise click.UsageError(f"{' and '.join(k for k, v in given.items() if v)}: for --policy search only")
    allowed = share(jitter) if jitter and robust else 0.0
    if robust and not allowed:
        raise click.UsageError("--robust: by how much do times vary?  Give --jitter, such as --jitter 10%")
    options: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    try:
        return searching(**options, seed=seed or 0, jitter=allowed, progress=progress)
    except SearchError as error:
        raise click.UsageError(str(error)) from error


def certificate(summary: dict[str, Any]) -> list[str]:
    """What no plan within the budget undercuts, as a search found it; nothing for other policies."""
    from vdnn.units import format_seconds

    if not summary["bound_seconds"]:
        return []
    bound, gap = format_seconds(summary["bound_seconds"]), max(0.0, 100 * summary["gap"])
    lines = [f"{'bound':<16}{bound:>10}, gap {gap:.1f} %, {summary['time']}"]
    if find_spec("scipy") is None:  # then it is the bound of unlimited memory
        lines.append("no certificate for this budget: pip install vdnn[search]")
    return lines
