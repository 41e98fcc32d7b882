"""Beyond the paper: the same networks, hardware, algorithms and budget by the paper's rules and by ours.

    python experiments/paper/beyond.py

Ours: every wait from the bytes that steps share, a stream for either direction, copies that start and end tensor by
tensor as the cost model has it, backward in two ops with updates right behind, and no copy of the images to the host.
Pooling saves the places of its maxima or its input, whichever takes the lower peak under that policy: where its X
leaves the device the places do, and where all is kept anyway they come on top.

Both sides count alike (convolution weights only; for vdnn_dyn, in 12 GiB, every weight once), and both are laid out
statically: beside the peak stands what the layout takes.  Bytes are exact, times simulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
from drawing import Series, grouped_bars
from published import FIGURE_11, MIB, Pair, label, policy_label
from reporting import Result, write_csv
from rich.console import Console
from rich.table import Table
from study import SIX, TEN, Run, run

HERE = Path(__file__).parent
BUDGET = 12 << 30
CASES = (("all", "m"), ("all", "p"), ("conv", "m"), ("conv", "p"), ("dyn", ""))
EQUAL = 1e-9  # relative: times that differ in the order of additions alone
COLUMNS = (
    "network",
    "batch",
    "policy",
    "count",
    "rules",
    "pooling saves",
    "peak_bytes",
    "arena_bytes",
    "average_bytes",
    "offloaded_bytes",
    "step_seconds_simulated",
    "performance_simulated",
)


@dataclass(frozen=True)
class Case:
    """One policy on one network by both rules; `saves` is what pooling saves under ours."""

    pair: Pair
    policy: str
    algorithms: str
    paper: Run
    ours: Run
    saves: str

    @property
    def label(self) -> str:
        """The policy as the paper's figures name it."""
        return policy_label(self.policy, self.algorithms)

    @property
    def peak_ratio(self) -> float:
        """Our peak over that by the paper's rules."""
        return self.ours.plan.peak_bytes / self.paper.plan.peak_bytes

    @property
    def time_ratio(self) -> float:
        """Our step over that by the paper's rules."""
        return self.ours.trace.step_seconds / self.paper.trace.step_seconds

    @property
    def is_no_worse(self) -> bool:
        """Whether ours takes no more memory and no more time."""
        return self.peak_ratio <= 1 and self.time_ratio <= 1 + EQUAL


@cache
def case(pair: Pair, policy: str, algorithms: str) -> Case:
    """One row of the table."""
    count, budget = ("weights", BUDGET) if policy == "dyn" else ("features", 0)
    options = (f"vdnn_{policy}", algorithms or "p")
    paper = run(*pair, *options, "paper", count, budget)
    ours = {saves: run(*pair, *options, "ours", count, budget, saves) for saves in ("indices", "input")}
    saves = min(ours, key=lambda each: (ours[each].plan.peak_bytes, ours[each].trace.step_seconds))
    return Case(pair, policy, algorithms, paper, ours[saves], saves)


@cache
def cases() -> tuple[Case, ...]:
    """Every network and policy."""
    return tuple(case(pair, *each) for pair in TEN for each in CASES)


@cache
def results() -> list[Result]:
    """Ours beside what the paper published; what its rules give here stands in the note."""
    return [result for each in cases() for result in _results(each)]


def _results(each: Case) -> Iterator[Result]:
    bars = {(b.policy, b.algorithms): b for b in FIGURE_11.get(each.pair, ())}
    bar = bars.get((each.policy, each.algorithms))
    ours, paper = each.ours, each.paper

    def row(what: str, unit: str, published: float | None, found: float, by_rules: str, kind: str) -> Result:
        note = f"our rules; by the paper's rules, recomputed: {by_rules}"
        return Result("Beyond", *each.pair, f"{each.label}, {what}", unit, published, found, kind, note=note)

    peaks = ours.plan.peak_bytes / MIB, f"{paper.plan.peak_bytes / MIB:,.1f}"
    yield row("peak", "MiB", bar and bar.maximum_mib, *peaks, "exact")
    averages = ours.average_over_time / MIB, f"{paper.average_over_time / MIB:,.1f}"
    yield row("average over time", "MiB", bar and bar.average_mib, *averages, "simulated")
    speeds = ours.performance, f"{paper.performance:.3f}"
    yield row("performance", "ratio", bar and bar.performance, *speeds, "simulated")
    seconds = each.time_ratio, f"{paper.trace.step_seconds:.4f} s against {ours.trace.step_seconds:.4f} s"
    yield row("step over that by the paper's rules", "ratio", None, *seconds, "simulated")


def table() -> Table:
    """Both rules side by side."""
    shown = Table(title="The paper's rules and ours: bytes exact, MiB; times simulated")
    for name in (
        "network",
        "policy",
        "count",
        "peak",
        "ours",
        "arena",
        "ours",
        "average",
        "ours",
        "step s",
        "ours",
        "of oracle",
        "ours",
        "pooling saves",
        "no worse",
    ):
        shown.add_column(name, justify="left" if name in ("network", "policy", "count", "pooling saves") else "right")
    for each in cases():
        both = each.paper, each.ours
        sizes = [f"{getattr(r.plan, k) / MIB:,.0f}" for k in ("peak_bytes", "arena_bytes") for r in both]
        sizes += [f"{r.average_over_time / MIB:,.0f}" for r in both]
        times = [f"{r.trace.step_seconds:.4f}" for r in both] + [f"{r.performance:.3f}" for r in both]
        verdict = "yes" if each.is_no_worse else "NO"
        shown.add_row(label(*each.pair), each.label, each.ours.plan.tape.count, *sizes, *times, each.saves, verdict)
    return shown


def rows() -> Iterator[dict[str, object]]:
    """The table as rows of a CSV, one for either rules."""
    for each in cases():
        for rules, found, saves in (("paper", each.paper, "input"), ("ours", each.ours, each.saves)):
            plan = found.plan
            values = (
                *each.pair,
                each.label,
                plan.tape.count,
                rules,
                saves,
                plan.peak_bytes,
                plan.arena_bytes,
                found.average_over_time,
                plan.offloaded_bytes,
                found.trace.step_seconds,
                found.performance,
            )
            yield dict(zip(COLUMNS, values, strict=True))


def draw(folder: Path) -> None:
    """Write beyond.png: performance on the six networks by both rules, ours filled, the paper's hatched."""
    series = []
    for policy, algorithms in CASES:
        found = [case(pair, policy, algorithms) for pair in SIX]
        name = policy_label(policy, algorithms)
        series.append(Series(name, [c.ours.performance for c in found], [c.paper.performance for c in found]))
    title = "Offloading by our rules and by the paper's"
    names = [label(*pair) for pair in SIX]
    grouped_bars(
        folder / "beyond.png",
        title,
        names,
        series,
        "performance over the oracle",
        kind="simulated",
        beside="the paper's rules (simulated)",
    )


def write(folder: Path) -> None:
    """Write beyond.csv."""
    write_csv(folder / "beyond.csv", rows(), COLUMNS, "the paper's rules and ours: bytes exact, times simulated")


@click.command()
def main() -> None:
    """Print both rules side by side; write results/beyond.csv and pictures/beyond.png.  Status 1 if ours are worse."""
    Console(width=200).print(table())
    write(HERE / "results")
    draw(HERE / "pictures")
    raise SystemExit(not all(each.is_no_worse for each in cases()))


if __name__ == "__main__":
    main()
