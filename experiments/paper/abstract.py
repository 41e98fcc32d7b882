"""Abstract and text: the claims that the paper makes in words.

    python experiments/paper/abstract.py

Recomputed under the paper's rules from the same plans as the figures: averages and maxima as in Fig. 11, which counts
convolutions' weights for what vDNN uses and every weight for base (p); performance as in Fig. 14, over the oracle.
Averages are given over layers and over time, since the paper does not say which it means, and savings of base (p) with
our modelled workspace and, where it matters, with Fig. 4's.  vdnn_dyn plans for 12,288 MiB.

Our dyn is not the paper's for VGG-16 (256), see Fig. 11.  The paper's seems to be all with a mix of algorithms, which
is between all (m) and all (p); so all (p) stands beside it.  Reuse distances are with Fig. 6, what the deep networks
offload is with Fig. 15.  Power (section V-D) is not recomputed: the model has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean

import causes
import click
from causes import PAPERS_DYN
from drawing import Series, grouped_bars
from fig11 import MEMORY, average_mib, base_mib, classifier_mib, made
from published import CLAIMS, FIGURE_4, MACHINE, MIB, PAPER_GB, Bar, Pair, bar, label
from reporting import Result, console_table, write_results
from rich.console import Console
from study import DEEP, SIX, TEN, TITAN_X, run

HERE = Path(__file__).parent
GB = PAPER_GB / MIB
ELSEWHERE = {"alexnet_first_reuse": "Fig. 6", "vgg_64_first_reuse": "Fig. 6", "deep_cpu_share": "Fig. 15"}
NOT_RECOMPUTED = ("power",)
DYN = Bar("dyn", "", 0, 0, 0, 0, 0, False)  # of networks that Fig. 11 does not have
BASE = Bar("base", "p", 0, 0, 0, 0, 0, False)
HOWS = ("over layers", "over time")
BASES = {"figure": "Fig. 4's", "model": "our"}  # workspace
VGG_128, VGG_256 = ("vgg19", 128), ("vgg19", 256)
Claimed = Iterator[tuple[str, Result]]  # a claim's name, and ours beside it


def saving(pair: Pair, each: Bar, how: str) -> float:
    """The share of base (p), with our workspace, that a policy saves: on average, or ("maximum") of the maximum."""
    if how == "maximum":
        return 1 - (made(pair, each).plan.peak_bytes / MIB - classifier_mib(pair)) / base_mib(pair)
    return 1 - average_mib(pair, each)[how] / base_mib(pair)


@cache
def claimed() -> list[tuple[str, Result]]:
    """(the claim's name, ours beside it), the abstract's claims first."""
    return [*_small(), *_vgg_256(), *_untrainable(), *_baseline(), *_policies(), *_rates(), *_deep()]


@cache
def results() -> list[Result]:
    """Claim by claim."""
    return [result for _, result in claimed()]


def _small() -> Claimed:
    """Average savings of AlexNet, OverFeat and GoogLeNet."""
    for pair in SIX[:3]:
        yield from _savings(f"{pair[0]}_average_saving", pair, bar(*pair, "all", "m"))


def _savings(name: str, pair: Pair, each: Bar, note: str = "") -> Claimed:
    """A claim of an average saving: both averages, both workspaces."""
    ends = causes.averages(made(pair, each).plan)["ends"]
    for how, average in average_mib(pair, each).items():
        for which, whose in BASES.items():
            base = base_mib(pair, which)
            text = f"{average:,.0f} of {base:,.0f} MiB" + (f"; {note}" if note else "")
            if ends and how == "over layers":
                text += (
                    f"; without outputs of inception branches, see Fig. 11, {100 * (1 - (average - ends) / base):.1f} %"
                )
            what = f"{each.label}: average saving {how} of base (p) with {whose} workspace"
            yield _row(name, what, 1 - average / base, note=text, pair=pair)


def _vgg_256() -> Claimed:
    """VGG-16 (256): whether it trains, what it saves and what it loses, under dyn and under all (p)."""
    for each in (bar(*VGG_256, "dyn"), bar(*VGG_256, "all", "p")):
        found = made(VGG_256, each)
        need, note = found.plan.arena_bytes / MIB, ""
        if each.policy == "dyn":
            note = f"ours is {causes.chosen(found.plan)}, {PAPERS_DYN[VGG_256]}"
        what = f"{each.label}: trains in {MEMORY:,} MiB with our workspaces"
        text = f"needs {need:,.0f} MiB" + (f"; {note}" if note else "; with Fig. 4's workspace undecided, see Fig. 11")
        trains = Result(
            "Abstract and text", *VGG_256, what, "yes/no", 1.0, float(need <= MEMORY), "simulated", note=text
        )
        yield "vgg_256_average_saving", trains
        yield from _savings("vgg_256_average_saving", VGG_256, each, note)
        loss = 1 - found.performance
        text = note or "see Fig. 14"
        yield _row("vgg_256_performance_loss", f"{each.label}: performance loss", loss, note=text, pair=VGG_256)


def _untrainable() -> Claimed:
    """Six networks of ten cannot train with the baseline, and can with dyn."""
    cannot = [pair for pair in TEN if base_mib(pair) > MEMORY]
    yield _row("networks", "networks planned", float(len(TEN)), "exact")
    names = ", ".join(label(*pair) for pair in cannot)
    yield _row("untrainable_networks", f"base (p) needs more than {MEMORY:,} MiB", float(len(cannot)), note=names)
    fits = sum(made(pair, DYN).plan.arena_bytes <= MEMORY * MIB for pair in cannot)
    yield _row("untrainable_networks", "of these, trainable under dyn", float(fits))
    note = f"with our workspaces; VGG-16 (128) with Fig. 4's: {base_mib(VGG_128, 'figure') / GB:.1f}"
    yield from _range("untrainable_baseline", "base (p) of these", {pair: base_mib(pair) / GB for pair in cannot}, note)
    choices = ", ".join(f"{label(*pair)} {causes.chosen(made(pair, DYN).plan)}" for pair in cannot)
    for how in HOWS:
        found = {pair: saving(pair, DYN, how) for pair in cannot}
        yield from _range(
            "untrainable_average_saving", f"dyn on these: average saving {how}", found, f"ours: {choices}"
        )
    losses = {pair: 1 - made(pair, DYN).performance for pair in cannot}
    yield from _range("untrainable_performance_loss", "dyn on these: performance loss", losses, f"ours: {choices}")


def _baseline() -> Claimed:
    """What base (p) holds."""
    unused = {pair: 1 - causes.largest_share(made(pair, BASE).plan) for pair in SIX}
    yield from _range(
        "never_used_at_once", "base (p): not used by the op that uses most", unused, "with our workspaces"
    )
    sizes = {pair: base_mib(pair) / GB for pair in SIX}
    yield from _range("baseline_range", "base (p) of six", sizes, "with our workspaces, see Fig. 1")
    for name, pair in (("alexnet", SIX[0]), ("vgg_256", VGG_256)):
        base = base_mib(pair, "figure")
        classifier = classifier_mib(pair) + causes.outputs(made(pair, BASE).plan, "linear")
        note = f"exact, plus Fig. 4's workspace; {classifier:,.0f} of {base:,.0f} MiB are the classifier's"
        what = "base (p) with Fig. 4's workspace: share of feature extraction"
        yield _row(f"{name}_feature_extraction_share", what, 1 - classifier / base, "exact", note, pair)


def _policies() -> Claimed:
    """Means over the six networks."""
    for policy, algorithms in (("all", "m"), ("all", "p"), ("conv", "p"), ("dyn", "")):
        six = [(pair, bar(*pair, policy, algorithms)) for pair in SIX]
        name, what = f"{policy}_{algorithms}".strip("_"), six[0][1].label
        for which, hows in (("maximum", ("maximum",)), ("average", HOWS)):
            papers = fmean(getattr(each, f"{which}_saving") for _, each in six)
            note = f"the mean of the figure's own bars is {100 * papers:.0f} %"
            for how in hows:
                how_named = "maximum saving" if how == "maximum" else f"average saving {how}"
                ours = fmean(saving(*each, how) for each in six)
                yield _row(f"{name}_{which}_saving", f"{what}: {how_named}, mean of six", ours, note=note)
    for policy in ("all", "conv"):
        losses = [1 - made(pair, bar(*pair, policy, "m")).performance for pair in SIX]
        note = "the paper's implicit GEMM is slower than our model can know, see Fig. 14"
        yield _row(
            f"{policy}_m_performance_loss", f"{policy} (m): performance loss, mean of six", fmean(losses), note=note
        )
        yield _row(
            f"{policy}_m_worst_performance_loss",
            f"{policy} (m): performance loss, worst of six",
            max(losses),
            note=note,
        )
    found = [made(pair, bar(*pair, "dyn")).performance for pair in SIX]
    note = f"VGG-16 (256): ours is {causes.chosen(made(VGG_256, bar(*VGG_256, 'dyn')).plan)}, {PAPERS_DYN[VGG_256]}"
    yield _row("dyn_performance", "dyn: performance, mean of six", fmean(found), note=note)
    yield _row("dyn_worst_performance", "dyn: performance, worst of six", min(found), note=note)


def _rates() -> Claimed:
    """Where time and bandwidth go."""
    shares = {pair: causes.convolution_share(made(pair, BASE)) for pair in SIX}
    note = "the claim is 70 to 80 %, or more; times but VGG's are a model"
    yield from _range("convolution_time", "base (p): convolutions in computing time", shares, note)
    rate = 1e9 / TITAN_X.copy_seconds(10**9, "offload") / MACHINE.memory_bandwidth
    note = f"ours is with the measured {MACHINE.link_bandwidth / 1e9:g} GB/s, the claim with the link's peak of 16"
    yield _row("interference_bound", "copies' share of the GPU's memory bandwidth", rate, note=note)


def _deep() -> Claimed:
    """VGG with 116 to 416 convolutions, batch 32."""
    shallow, deep = (run(name, 32, "baseline", "p", "paper", "weights").plan for name in ("vgg19", "vgg416"))
    bar_216, sizes = FIGURE_4["vgg216", 32].workspace_mib, []
    other = "exact, plus Fig. 4's workspace of VGG-216; of this network it shows none"
    for name, plan in (("vgg_32_baseline", shallow), ("vgg_416_baseline", deep)):
        scratch = plan.breakdown["workspace"] / MIB
        note = f"{scratch:,.0f} MiB of it are our workspace; Fig. 4's, for VGG-216 (32), is {bar_216:,.0f}"
        sizes.append(plan.peak_bytes / MIB - scratch + bar_216)
        yield _row(name, f"base (p) of {plan.tape.network} (32)", plan.peak_bytes / PAPER_GB, note=note)
        yield _row(name, f"base (p) of {plan.tape.network} (32), VGG-216's workspace", sizes[-1] / GB, "exact", other)
    note = f"with VGG-216's workspace {sizes[1] / sizes[0]:.1f}"
    yield _row(
        "vgg_416_growth", "base (p) of vgg416 (32) over vgg19 (32)", deep.peak_bytes / shallow.peak_bytes, note=note
    )
    largest = max(made(pair, DYN).plan.peak_bytes for pair in DEEP) / PAPER_GB
    yield _row("deep_gpu_memory", "dyn: largest maximum of the deep four", largest, note="every weight; see Fig. 15")


def _range(name: str, what: str, found: dict[Pair, float], note: str) -> Claimed:
    """Both ends of a claim that is a range."""
    for end, pick in (("least", min), ("most", max)):
        pair = pick(found, key=found.__getitem__)
        text = f"{label(*pair)}; {note}" if end == "least" else label(*pair)
        yield _row(name, f"{what}: {end}", found[pair], note=text, is_end=end == "most")


def _row(
    name: str,
    what: str,
    ours: float,
    kind: str = "simulated",
    note: str = "",
    pair: Pair | None = None,
    is_end: bool = False,
) -> tuple[str, Result]:
    claim = CLAIMS[name]
    network, batch = pair or ("several", None)
    paper = claim.to if is_end else claim.value
    return name, Result("Abstract and text", network, batch, what, claim.unit, paper, ours, kind, note=note)


def draw(folder: Path) -> None:
    """Write abstract.png: the average savings that the abstract claims, and the loss."""
    by_name = {(r.network, r.batch, r.quantity): r for r in results()}
    shown = [*((pair, "all (m)") for pair in SIX[:3]), (VGG_256, "dyn"), (VGG_256, "all (p)")]
    way = "average saving over layers of base (p) with Fig. 4's workspace"
    saved = [by_name[*pair, f"{what}: {way}"] for pair, what in shown]
    lost = [by_name.get((*pair, f"{what}: performance loss")) for pair, what in shown]
    series = [
        Series("average saving, over layers", [100 * r.ours for r in saved], [100 * r.paper for r in saved]),
        Series("performance loss", [r and 100 * r.ours for r in lost], [r and 100 * r.paper for r in lost]),
    ]
    names = [f"{label(*pair)}\n{what}" for pair, what in shown]
    title = "The abstract: average memory saved (averaged over layers), and performance lost"
    grouped_bars(folder / "abstract.png", title, names, series, "per cent", kind="simulated")


@click.command()
def main() -> None:
    """Recompute the claims in words: print them, and write results/abstract.csv and pictures/abstract.png."""
    Console().print(console_table(results()))
    about = (
        f"Claims of the paper's abstract and text recomputed: paper's rules, dyn for {MEMORY:,} MiB; Titan X, cuDNN 4"
    )
    write_results(HERE / "results" / "abstract.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
