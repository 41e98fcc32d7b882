"""Fig. 11: average and maximum memory of six networks under every policy, and what cannot train on 12 GB.

    python experiments/paper/fig11.py

Recomputed under the paper's rules.  Maxima and averages count the weights of convolutions only, as the figure's bars
do; the baselines, and what must fit the GPU, count every weight once.  The baseline is static: its average is its
maximum.  How the paper averages is not stated, so both ways are given: over the ops of feature extraction, each with
the same weight ("over layers"), and over the simulated time.  vdnn_dyn plans for 12,288 MiB.

Under (p) and dyn the maximum depends on workspaces, which the paper shows for VGG's forward pass alone (Fig. 5).  So it
stands here three times: with our modelled workspaces; without any, which is the least; and with Fig. 4's, the largest
of any layer, on top of that, which is the most.  What trains on 12 GB by one end and not by the other is undecided.

In GoogLeNet the policy leaves the 36 outputs of inception branches on the GPU: they are X of no CONV or POOL, since
only the join reads them, and stay because the backward of their ACTV, in place, reads its Y.  The joined map that is
offloaded has a copy of each.  The notes say what there would be without them: the figure's averages are close to that.

"Maximum had POOL found no X" is no rule of the paper.  It is all (m) if the X that the search of Fig. 10 finds while a
POOL computes came one op later, and it is what the figure's bars agree with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import causes
import click
from drawing import Series, grouped_bars
from published import FIGURE_4, FIGURE_11, MACHINE, MIB, RESOLUTION, Bar, Pair, bar, bars, label
from reporting import Result, console_table, write_results
from rich.console import Console
from study import SIX, TITAN_X, Run, run, setting

from vdnn.memory.plan import Plan
from vdnn.memory.trial import least_workspace, sketch

HERE = Path(__file__).parent
POLICIES = {"all": "vdnn_all", "conv": "vdnn_conv", "dyn": "vdnn_dyn", "base": "baseline"}
MEMORY = MACHINE.memory_mib
GRID = RESOLUTION["figure_11_14"]["mib"]  # MiB: what the figure can be read to
SAVINGS_GRID = RESOLUTION["figure_11_14"]["maximum_saving"]
PROMISED = 0.15  # of the maximum of all (m), beside the grid
FITS = f"trains in {MEMORY:,} MiB"
PAPERS_DYN = {
    ("vgg19", 128): "the figure's is conv (p), whose bars are the same",
    ("vgg19", 256): "the figure's seems to be all (mixed), by its height and by Fig. 14",
}  # elsewhere it does not differ from ours


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


def least_mib(plan: Plan) -> float:
    """The maximum of the same fates without any workspace, in MiB."""
    decisions = replace(plan.decisions, algorithms=least_workspace(plan.tape, TITAN_X))
    return sketch(plan.tape, decisions).peak_bytes / MIB


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
    most, least = found.plan.peak_bytes / MIB - outside, least_mib(found.plan) - outside
    kind = "exact" if each.algorithms == "m" else "simulated"
    is_promised = (each.policy, each.algorithms) == ("all", "m")
    promise = ("15 % and 39 MiB", PROMISED * each.maximum_mib + GRID) if is_promised else ()
    why = causes.of_average(found.plan, layers), causes.of_maximum(found.plan, outside)
    why = _why(why[0], pair, each, "average_mib"), _why(why[1], pair, each, "maximum_mib")
    by_time, average = f"the same plan as the {layers:,.0f} over layers", each.average_mib
    yield _row(pair, each, "average over layers", average, layers, kind, _unless_near(average, layers, why[0]))
    yield _row(pair, each, "average over time", average, time, "simulated", _unless_near(average, time, by_time))
    yield _row(
        pair, each, "maximum", each.maximum_mib, most, kind, _unless_near(each.maximum_mib, most, why[1]), *promise
    )
    if is_promised:
        other = max(moment.total - moment.found_by_pool for moment in causes.moments(found.plan)) / MIB - outside
        name = "maximum had POOL found no X"
        yield _row(pair, each, name, each.maximum_mib, other, "exact", "", f"{GRID} MiB", GRID)
    if each.algorithms != "m":
        yield from _interval(pair, each, least)
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
        note = _unless_near(each.maximum_mib, need, f"all of Fig. 4's parts: {sum(FIGURE_4[pair].parts):,.0f}")
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
    for name, paper, used in (("average", each.average_saving, average), ("maximum", each.maximum_saving, maximum)):
        ours, of_figures = 1 - used / base, 100 * (1 - used / papers)
        note = (
            f"our base (p) is {base:,.0f} MiB, the figure's {papers:,.0f}, of which {of_figures:.1f} % would be saved"
        )
        note = note if abs(ours - paper) > SAVINGS_GRID else ""
        yield Result("Fig. 11", *pair, f"{each.label}: {name} saving", "share", paper, ours, "simulated", note=note)


def _interval(pair: Pair, each: Bar, least: float) -> Iterator[Result]:
    most = least + FIGURE_4[pair].workspace_mib
    paper = each.maximum_mib
    place = (
        "inside this interval" if least - GRID <= paper <= most + GRID else "below it" if paper < least else "above it"
    )
    for name, end in (("without workspace", least), ("with Fig. 4's workspace", most)):
        note = f"the figure's {paper:,.0f} is {place}" if name == "without workspace" else ""
        yield _row(pair, each, f"maximum {name}", None, end, "exact", note)


def _needs(pair: Pair, each: Bar, least: float) -> tuple[float, float]:
    """MiB that the bar needs at least and at most, with every weight counted once."""
    if each.policy == "dyn":  # falls back on all (m), whatever the workspaces are
        return (made(pair, bars(*pair)[0]).plan.peak_bytes / MIB,) * 2
    return least, least + (FIGURE_4[pair].workspace_mib if each.algorithms == "p" and each.policy != "base" else 0)


def _verdict(pair: Pair, each: Bar, least: float) -> Result:
    """Whether the bar trains on 12 GB; where that is undecided, whether it would without any workspace."""
    low, high = _needs(pair, each, least)
    note = f"needs {low:,.0f} MiB" if low == high else f"needs {low:,.0f} to {high:,.0f} MiB"
    note = f"all (m), its last resort, {note}" if each.policy == "dyn" else note
    is_decided = (low <= MEMORY) == (high <= MEMORY)
    name, tolerance, allowed = (
        (FITS, "the figure's mark", 0.0) if is_decided else (f"{FITS} without workspace", "undecided", None)
    )
    paper, ours = float(not each.untrainable), float(low <= MEMORY)
    return Result("Fig. 11", *pair, f"{each.label}: {name}", "yes/no", paper, ours, "exact", tolerance, note, allowed)


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
    """Write fig11.png, the maxima, and fig11_average.png, the averages over layers."""
    by_name = {(r.network, r.batch, r.quantity): r for r in results()}
    for name, file in (("maximum", "fig11"), ("average over layers", "fig11_average")):
        series = []
        for k, first in enumerate(FIGURE_11[SIX[0]]):
            what = f"{first.label}: {'average and maximum' if first.policy == 'base' else name}"
            found = [by_name[*pair, what] for pair in SIX]
            marked = [FIGURE_11[pair][k].untrainable for pair in SIX]
            series.append(Series(first.label, [r.ours for r in found], [r.paper for r in found], marked))
        title = f"Fig. 11: {name}, by policy (*: cannot train, says the paper)"
        groups, line = [label(*pair) for pair in SIX], (float(MEMORY), "12 GB")
        grouped_bars(folder / f"{file}.png", title, groups, series, "MiB", kind="simulated", panels=3, line=line)


@click.command()
def main() -> None:
    """Recompute Fig. 11: print it, and write results/fig11.csv, pictures/fig11.png and pictures/fig11_average.png."""
    Console().print(console_table(results()))
    about = "Fig. 11 recomputed: paper's rules; Titan X, cuDNN 4; maxima without workspaces exact, the rest simulated"
    write_results(HERE / "results" / "fig11.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
