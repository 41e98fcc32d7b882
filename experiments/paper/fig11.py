"""Fig. 11: average and maximum memory of six networks under every policy, and what cannot train in 12 GiB.

    python experiments/paper/fig11.py

Recomputed under the paper's rules.  Maxima and averages count the weights of convolutions only, as the figure's bars
do; the baselines, and what must fit the GPU, count every weight once.  The baseline is static: its average is its
maximum.  How the paper averages is not stated, so both ways are given: over the ops of feature extraction, each with
the same weight ("over layers"), and over the simulated time.  vdnn_dyn plans for 12,288 MiB.

Under (p) and dyn the maximum depends on workspaces, which the paper shows for VGG's forward pass alone (Fig. 5).  So it
stands here three times: with our modelled workspaces; without any, which is the least; and with Fig. 4's, the largest
of any layer, on top of that.  That bounds our plans, not the figure: its conv (p) of VGG-16 (256), 17,198 MiB, lies
above it (16,064), unexplained.  What trains in 12 GiB without workspace and not with Fig. 4's is undecided.

In GoogLeNet the policy leaves the 36 outputs of inception branches on the GPU: they are X of no CONV or POOL, since
only the join reads them, and stay because the backward of their ACTV, in place, reads its Y.  The joined map that is
offloaded has a copy of each.  The notes say what there would be without them: the figure's averages are close to that.

"Maximum had POOL found no X" is no rule of the paper but a hypothesis, with which the figure's bars agree: from all (m)
the bytes are subtracted that the search of Fig. 10 finds while a POOL computes.  No such plan is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import causes
import click
from causes import PAPERS_DYN
from drawing import Series, grouped_bars
from published import FIGURE_4, FIGURE_11, MACHINE, MIB, RESOLUTION, Bar, Pair, bar, bars, label
from reporting import Result, console_table, write_results
from rich.console import Console
from study import SIX, Run, run, setting

HERE = Path(__file__).parent
POLICIES = {"all": "vdnn_all", "conv": "vdnn_conv", "dyn": "vdnn_dyn", "base": "baseline"}
MEMORY = MACHINE.memory_mib
GRID = RESOLUTION["figure_11_14"]["mib"]  # MiB: what the figure can be read to
SAVINGS_GRID = RESOLUTION["figure_11_14"]["maximum_saving"]
PROMISED = 0.15  # of the maximum of all (m), beside the grid
PLUS = "exact, plus Fig. 4's workspace"
FITS = f"trains in {MEMORY:,} MiB"


def made(pair: Pair, each: Bar) -> Run:
    """The run of a bar, with every weight counted once."""
    budget = MEMORY * MIB if each.policy == "dyn" else 0
    return run(*pair, POLICIES[each.policy], each.algorithms or "p", "paper", "weights", budget)


@cache
def classifier_mib(pair: Pair) -> float:
    """MiB of the weights that Fig. 11's bars do not count."""
    every, some = (setting(*pair, "paper", count).tape.resident_bytes for count in ("weights", "features"))
    return (every - some) / MIB


def average_mib(pair: Pair, each: Bar) -> dict[str, float]:
    """The average as Fig. 11 counts it, in both ways."""
    found, outside = made(pair, each), classifier_mib(pair)
    ways = {"over layers": found.average_over_layers, "over time": found.average_over_time}
    return {how: live / MIB - outside for how, live in ways.items()}


def base_mib(pair: Pair, workspace: str = "model") -> float:
    """MiB of base (p), with our modelled workspace or with Fig. 4's ("figure")."""
    plan = run(*pair, "baseline", "p", "paper", "weights").plan
    modelled = plan.peak_bytes / MIB
    if workspace == "model":
        return modelled
    return modelled - plan.breakdown.get("workspace", 0) / MIB + FIGURE_4[pair].workspace_mib


@cache
def results() -> list[Result]:
    """Network by network and bar by bar; the savings of base (p) are none, by definition, and left out."""
    found: list[Result] = []
    for pair in SIX:
        for each in bars(*pair):
            found += _base(pair, each) if each.policy == "base" else _bar(pair, each)
    return found


def _bar(pair: Pair, each: Bar) -> Iterator[Result]:
    """The rows of a policy that moves maps, or may."""
    found, outside = made(pair, each), classifier_mib(pair)
    layers, time = average_mib(pair, each).values()
    most, least = found.plan.peak_bytes / MIB - outside, causes.least_mib(found.plan) - outside
    kind = "exact" if each.algorithms == "m" else "simulated"
    is_promised = (each.policy, each.algorithms) == ("all", "m")
    promise = ("15 % and 39 MiB", PROMISED * each.maximum_mib + GRID) if is_promised else ()
    why = causes.of_average(found.plan, layers), causes.of_maximum(found.plan, outside)
    why = _why(why[0], pair, each, "average_mib"), _why(why[1], pair, each, "maximum_mib")
    average = each.average_mib
    by_time = causes.over_time(layers, time, average)
    yield _row(pair, each, "average over layers", average, layers, kind, _unless_near(average, layers, why[0]))
    yield _row(pair, each, "average over time", average, time, "simulated", _unless_near(average, time, by_time))
    yield _row(
        pair, each, "maximum", each.maximum_mib, most, kind, _unless_near(each.maximum_mib, most, why[1]), *promise
    )
    if is_promised:
        other = max(moment.total - moment.found_by_pool for moment in causes.moments(found.plan)) / MIB - outside
        name = "maximum had POOL found no X"
        yield _row(pair, each, name, each.maximum_mib, other, "exact", "a hypothesis, no rule of the paper")
    if each.algorithms != "m":
        yield from _interval(pair, each, least, "simulated" if each.policy == "dyn" else "exact")
    yield from _savings(pair, each, layers, most)
    yield _verdict(pair, each, least + outside)
    yield from _undecided(pair, each, least + outside)


def _base(pair: Pair, each: Bar) -> Iterator[Result]:
    """The rows of a baseline."""
    if each.algorithms == "p":
        ours, need = base_mib(pair), base_mib(pair, "figure")
        scratch = made(pair, each).plan.breakdown.get("workspace", 0) / MIB
        note = f"the workspace: {scratch:,.0f} MiB by our model, {FIGURE_4[pair].workspace_mib:,.0f} in Fig. 4"
        yield _row(pair, each, "average and maximum", each.maximum_mib, ours, "simulated", note)
        note = f"{PLUS}; all of Fig. 4's parts: {sum(FIGURE_4[pair].parts):,.0f}"
        yield _row(pair, each, "maximum with Fig. 4's workspace", each.maximum_mib, need, "exact", note)
    else:
        ours = need = made(pair, each).plan.peak_bytes / MIB
        note = f"Fig. 4's own weights, feature maps and gradient maps: {sum(FIGURE_4[pair].parts[:3]):,.0f}"
        note = _unless_near(each.maximum_mib, ours, note)
        yield _row(pair, each, "average and maximum", each.maximum_mib, ours, "exact", note)
        yield from _savings(pair, each, ours, ours)
    yield _verdict(pair, each, need)


def _savings(pair: Pair, each: Bar, average: float, maximum: float) -> Iterator[Result]:
    base, papers = base_mib(pair), bars(*pair)[-1].maximum_mib
    savings = (each.average_saving, average), (each.maximum_saving, maximum)
    for name, (paper, used) in zip(("average saving (over layers)", "maximum saving"), savings, strict=True):
        ours, of_figures = 1 - used / base, 100 * (1 - used / papers)
        note = (
            f"our base (p) is {base:,.0f} MiB, the figure's {papers:,.0f}, of which {of_figures:.1f} % would be saved"
        )
        note = note if abs(ours - paper) > SAVINGS_GRID else ""
        yield Result("Fig. 11", *pair, f"{each.label}: {name}", "share", paper, ours, "simulated", note=note)


def _interval(pair: Pair, each: Bar, least: float, kind: str) -> Iterator[Result]:
    most = least + FIGURE_4[pair].workspace_mib
    place = causes.place(each.maximum_mib, least, most, GRID)
    yield _row(pair, each, "maximum without workspace", None, least, kind, place)
    yield _row(pair, each, "maximum with Fig. 4's workspace", None, most, kind, PLUS)


def _needs(pair: Pair, each: Bar, least: float) -> tuple[float, float]:
    """MiB that the bar needs without workspace and with Fig. 4's, with every weight counted once."""
    if each.policy == "dyn":  # falls back on all (m), whatever the workspaces are
        return (made(pair, bars(*pair)[0]).plan.peak_bytes / MIB,) * 2
    return least, least + (FIGURE_4[pair].workspace_mib if each.algorithms == "p" and each.policy != "base" else 0)


def _verdict(pair: Pair, each: Bar, least: float) -> Result:
    """Whether the bar trains in 12 GiB; where that is undecided, whether it would without any workspace."""
    low, high = _needs(pair, each, least)
    note = f"needs {low:,.0f} MiB" if low == high else f"needs {low:,.0f} to {high:,.0f} MiB"
    note = f"all (m), its last resort, {note}" if each.policy == "dyn" else note + _decided_by(pair, each)
    is_decided = (low <= MEMORY) == (high <= MEMORY)
    name, tolerance, allowed = (
        (FITS, "the figure's mark", 0.0) if is_decided else (f"{FITS} without workspace", "undecided", None)
    )
    paper, ours = float(not each.untrainable), float(low <= MEMORY)
    return Result("Fig. 11", *pair, f"{each.label}: {name}", "yes/no", paper, ours, "exact", tolerance, note, allowed)


def _decided_by(pair: Pair, each: Bar) -> str:
    """Whether the mark of base (p) hangs on its workspace."""
    need, scratch = base_mib(pair, "figure"), FIGURE_4[pair].workspace_mib
    is_so = each.label == "base (p)" and need - scratch <= MEMORY < need
    text = f", of which Fig. 4's own workspace of {scratch:,.0f} decides the mark; by our model {base_mib(pair):,.0f}"
    return text if is_so else ""


def _undecided(pair: Pair, each: Bar, least: float) -> Iterator[Result]:
    """The other end of what is undecided."""
    low, high = _needs(pair, each, least)
    if (low <= MEMORY) == (high <= MEMORY):
        return
    name, paper = f"{each.label}: {FITS} with Fig. 4's workspace", float(not each.untrainable)
    yield Result("Fig. 11", *pair, name, "yes/no", paper, float(high <= MEMORY), "exact", "undecided")


# ---- why


def _why(text: str, pair: Pair, each: Bar, of: str) -> str:
    """The cause, and what the figure's bar at half the batch says of it."""
    if each.policy == "dyn":
        choice, papers = causes.chosen(made(pair, each).plan), PAPERS_DYN.get(pair)
        return f"ours is {choice}, {papers}; {text}" if papers else f"{choice}; {text}"
    half = (pair[0], pair[1] // 2)
    if half not in FIGURE_11:
        return text
    weights = setting(*pair, "paper", "features").tape.resident_bytes / MIB
    doubled = 2 * getattr(bar(*half, each.policy, each.algorithms), of) - weights
    return f"{text}; the figure's bar of {label(*half)}, with twice the maps and workspaces, would be {doubled:,.0f}"


def _unless_near(paper: float, ours: float, note: str) -> str:
    """The note, if ours is not what can be read from the figure."""
    return note if abs(ours - paper) > GRID else ""


def _row(
    pair: Pair, each: Bar, what: str, paper: float | None, ours: float, kind: str,
    note: str = "", tolerance: str = "", allowed: float | None = None,
) -> Result:  # fmt: skip
    return Result("Fig. 11", *pair, f"{each.label}: {what}", "MiB", paper, ours, kind, tolerance, note, allowed)


# ---- picture


def draw(folder: Path) -> None:
    """Write fig11.png, the maxima, and fig11_average.png, the averages over layers.

    There is no line at 12 GiB: that is for all weights, and the bars but base leave out the classifier's.
    """
    by_name = {(r.network, r.batch, r.quantity): r for r in results()}
    for name, file in (("maximum", "fig11"), ("average over layers", "fig11_average")):
        series = []
        for k, first in enumerate(FIGURE_11[SIX[0]]):
            what = f"{first.label}: {'average and maximum' if first.policy == 'base' else name}"
            found = [by_name[*pair, what] for pair in SIX]
            marked = [FIGURE_11[pair][k].untrainable for pair in SIX]
            series.append(Series(first.label, [r.ours for r in found], [r.paper for r in found], marked))
        title = f"Fig. 11: {name}, by policy (*: cannot train, says the paper)"
        groups = [label(*pair) for pair in SIX]
        grouped_bars(folder / f"{file}.png", title, groups, series, "MiB", kind="simulated", panels=3)


@click.command()
def main() -> None:
    """Recompute Fig. 11: print it, and write results/fig11.csv, pictures/fig11.png and pictures/fig11_average.png."""
    Console().print(console_table(results()))
    about = "Fig. 11 recomputed: paper's rules; Titan X, cuDNN 4; maxima without workspaces exact, the rest simulated"
    write_results(HERE / "results" / "fig11.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
