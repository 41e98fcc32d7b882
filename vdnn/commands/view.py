"""`vdnn view` draws a step for a browser: a plan that is simulated, or a trace that was saved."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import check_writable, ending, leave, refuse_given, usage_errors
from vdnn.commands.plan import planned, policy_options, setting_options
from vdnn.commands.searching import quick_search_options, searching_as_asked, telling

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace

SAVED = ".json"
DRAWING = ("network", "against", "budget", "out", "title", "as_json")  # what counts for a saved trace as well


@click.command(short_help="Draw one training step for a browser.")
@setting_options
@policy_options
@click.option("--against", help="A second policy, or a saved trace, to draw below on the same axes.")
@click.option(
    *("-o", "--out"), type=click.Path(dir_okay=False), default="timeline.html", show_default=True, help="The page."
)
@click.option("--title", help="Of the page.  [default: the names of network and policies]")
@quick_search_options
def view(
    network: str,
    policy: str,
    budget: str | None,
    against: str | None,
    out: str,
    title: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw one training step of NETWORK: memory over time under the budget, and what the streams do below it, as a page
    that a browser opens without a network.

    NETWORK is a name, such as vgg16, or module:function, and its step is simulated; or it is a .json file that
    trace.to_json(path) wrote, of a step that was simulated or measured.
    """
    from vdnn.timeline import require_bokeh, save_page

    with usage_errors():
        require_bokeh()  # said before planning
        _check_search([policy, against], options)
        ending("--out", out, ".html", ".htm")
        check_writable(out)
        is_saved = _is_saved(network)
        if is_saved:
            refuse_given(lambda name: name not in DRAWING, "is about planning, but a saved trace was planned before")
        given = {"network": network, **options}
        first = _loaded(network, budget) if is_saved else _simulated(policy, budget, given)
        drawn = [first]
        if against is not None and _is_saved(against):
            drawn.append(_loaded(against, None))
        elif against is not None and is_saved:
            raise click.UsageError(f"--against {against}: beside a saved trace there can be only another, a .json file")
        elif against is not None:
            drawn.append(_simulated(against, budget, given))
        limit = first[1]
        traces = [trace for trace, _, _ in drawn]
        save_page(out, traces, limit, title)
    _say(out, traces, limit, as_json)
    leave("\n".join(message for _, _, message in drawn if message))


def _check_search(policies: list[str | None], options: dict[str, Any]) -> None:
    """A usage error if options of policy search were given, but neither policy is one."""
    names = [policy for policy in policies if policy is not None]
    searching_as_asked(names, options["seconds"], options["seed"], False, None, lambda note: None)


def _is_saved(name: str) -> bool:
    return name.lower().endswith(SAVED)


def _loaded(path: str, budget: str | None) -> tuple[Trace, int | None, str]:
    """(the trace in that file, the budget to draw, no message)."""
    from vdnn.memory.trace import Trace
    from vdnn.trace_files import TraceError
    from vdnn.units import parse_bytes

    try:
        trace = Trace.from_json(Path(path).read_text(encoding="utf-8"))
    except (TraceError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from error
    return trace, None if budget is None else parse_bytes(budget), ""


def _simulated(policy: str, budget: str | None, options: dict[str, Any]) -> tuple[Trace, int | None, str]:
    """(the simulated step, its budget in bytes, why it does not fit or "")."""
    from vdnn.memory.simulate import simulate

    others = {name: value for name, value in options.items() if name not in ("seconds", "seed")}
    seconds, seed = (options["seconds"], options["seed"]) if policy == "search" else (None, None)
    with telling(policy) as tell:
        asked = searching_as_asked([policy], seconds, seed, False, None, tell)
        made, cost, summary, message = planned(asked if policy == "search" else policy, budget, None, others)
    return simulate(made, cost), summary["budget_bytes"], message


def _say(out: str, traces: list[Trace], limit: int | None, as_json: bool) -> None:
    """What was written, and what it shows."""
    from vdnn.tables import headline
    from vdnn.units import format_bytes, format_seconds

    size = os.path.getsize(out)
    told = [
        {
            "network": trace.plan.tape.network,
            "batch": trace.plan.tape.batch,
            "policy": trace.plan.policy,
            "time": trace.kind,
            "step_seconds": trace.step_seconds,
            "arena_bytes": trace.plan.arena_bytes,
        }
        for trace in traces
    ]
    if as_json:
        click.echo(json.dumps({"page": out, "page_bytes": size, "budget_bytes": limit, "traces": told}, indent=2))
        return
    for trace in traces:
        click.echo(f"{headline(trace.plan)}; {format_seconds(trace.step_seconds)} a step, {trace.kind}")
    click.echo(f"wrote {out}, {format_bytes(size)}: open it in a browser")
