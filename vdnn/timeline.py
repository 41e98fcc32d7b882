"""A page to look at in a browser: memory over a step under the budget, what the streams do below it; or two of them.

The page is one file that needs no network: Bokeh's drawing code (1.3 MB) is in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vdnn.plot import COLOURS, PlotError
from vdnn.timeline_data import STACK, stream_bars, waited_for
from vdnn.timeline_drawing import HEIGHTS, WORKS, Drawing
from vdnn.timeline_figures import figures
from vdnn.units import format_seconds, parse_bytes

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace

STALLS = 8  # the longest that are listed


def save_page(
    path: str | os.PathLike[str], traces: Sequence[Trace], budget: int | str | None = None, title: str | None = None
) -> Path:
    """Write the page of one trace, or of two, one above the other; its path.

    Raises PlotError if Bokeh is not there, UnitError for a budget that is none, OSError.
    """
    data = page(traces, budget, title).encode("utf-8", "replace")  # before the file that there is goes
    Path(path).write_bytes(data)
    return Path(path)


def page(traces: Sequence[Trace], budget: int | str | None = None, title: str | None = None) -> str:
    """The page as text; see `save_page`."""
    require_bokeh()
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment
    from markupsafe import Markup

    if len(traces) not in HEIGHTS:
        raise PlotError(f"a timeline page is of one trace or of two, not of {len(traces)}")
    limit = None if budget is None else parse_bytes(budget)
    script, places = components(Drawing(traces, limit).parts())
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("vdnn").joinpath("timeline.html").read_text(encoding="utf-8")
    )
    works = {bar.work for trace in traces for bar in stream_bars(trace)}
    roles = {role for trace in traces for role, values in trace.timeline.bytes.items() if any(values)}
    text: str = template.render(
        title=title or _title(traces),
        kinds=" and ".join(dict.fromkeys(trace.kind for trace in traces)),
        drawing=Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        script=Markup(script),
        plans=[
            {"name": _name(trace), "kind": trace.kind, "place": Markup(places[number]), "stalls": _longest(trace)}
            for number, trace in enumerate(traces)
        ],
        figures=_beside([figures(trace, limit) for trace in traces]),
        roles=[(role, COLOURS[role]) for role in STACK if role in roles],
        works=[(work, colour) for work, colour in WORKS.items() if work in works],
    )
    return text


def require_bokeh() -> None:
    """Nothing.  Raises PlotError, with what to install, if Bokeh or what it needs is not there."""
    try:
        import bokeh.embed  # noqa: F401
        import jinja2  # noqa: F401
    except ImportError as error:
        raise PlotError("timeline pages need Bokeh; install it with: pip install 'vdnn[view]'") from error


def _step(trace: Trace) -> str:
    return f"{trace.plan.tape.network}, {trace.plan.tape.batch_label}"


def _policy(trace: Trace) -> str:
    return trace.plan.policy or "own decisions"


def _name(trace: Trace) -> str:
    return f"{_step(trace)}, {_policy(trace)}"


def _title(traces: Sequence[Trace]) -> str:
    """What is drawn: of two, the step once if it is the same."""
    if len({_step(trace) for trace in traces}) > 1:
        return " against ".join(map(_name, traces))
    named = [_policy(trace) for trace in traces]
    if len(named) == 2 and named[0] == named[1]:
        named = [f"{_policy(trace)} ({trace.kind})" for trace in traces]
    return f"{_step(traces[0])}: {' against '.join(dict.fromkeys(named))}"


def _beside(told: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for one in told for name in one)
    return [(name, [one.get(name, "-") for one in told]) for name in names]


def _longest(trace: Trace) -> list[tuple[str, ...]]:
    """The longest stalls: (op, when, how long, what it waited for)."""
    stalls = sorted(trace.stalls, key=lambda stall: -stall.seconds)[:STALLS]
    return [
        (
            stall.op,
            format_seconds(trace.starts[stall.index] - stall.seconds),
            format_seconds(stall.seconds),
            waited_for(trace, stall.copy, stall.cause),
        )
        for stall in stalls
    ]
