"""What the arena's rows say: summary, checks, tables beside what the systems' own publications say, pictures.

Everything here comes from rows alone, as experiments/arena.py wrote them; all steps and bounds are *simulated*.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from math import inf, isnan
from pathlib import Path
from statistics import median
from typing import NamedTuple

import arena_picture
import record
from arena_cells import COLUMNS, SEARCH, Row
from rich.console import Console
from rich.table import Table

GAPS = {75: 0.02, 50: 0.02, 25: 0.07}  # the largest median gap to the bound by percent of the budget
BARS = (
    ("vDNN", "Titan X, VGG-16 (256), 12 GB, cuDNN 4", "22 % slower than its oracle (0.817 of its speed)"),
    ("vDNN++", "hardware not found", "up to 60 % faster than vDNN"),
    ("Chen et al.", "Titan X, ResNet of 1000 layers, MXNet", "30 % slower, 6.9 times less memory"),
    ("Meng et al.", "M40, ResNet-50, TensorFlow", "less than 10 % slower, 4.6 times the batch"),
    ("Capuchin", "P100, TensorFlow", "less than 3 % slower at 1.2 times the batch"),
    ("POFO", "V100, PCIe at 12 GB/s, PyTorch", "10 to 20 % slower in 4 to 6 times less for activations"),
    ("SwapAdvisor", "V100, MXNet", "53 to 99 % of the speed, up to 12 times oversubscribed"),
    ("moDNN", "K40, 12 GB", "3 % slower (vDNN there 31 %)"),
    ("AutoTM", "Optane in place of 50 to 80 % of DRAM, nGraph", "27.7 % slower (geometric mean)"),
    ("Checkmate", "V100, rounding against its optimum", "within 1.06 of the optimum of recompute alone"),
)
SUMMARY_COLUMNS = (
    *("budget_percent", "policy", "cells", "fits", "median_step_over_oracle_simulated"),
    *("worst_step_over_oracle_simulated", "median_step_over_search_simulated", "worst_step_over_search_simulated"),
    *("median_gap_simulated", "worst_gap_simulated", "median_planning_seconds_measured"),
)


class Summary(NamedTuple):
    """One policy in one share of the budget, over all cells; medians and worst are of those `fits` that fit.

    over_search  the step over that of `search` in the same cell: unlike step over oracle, it does not flatter a policy
                 that fits only where it is easy
    """

    percent: int
    policy: str
    cells: int
    fits: int
    median: float
    worst: float
    median_over_search: float
    worst_over_search: float
    median_gap: float
    worst_gap: float
    planning: float

    def row(self) -> tuple[object, ...]:
        """What stands under SUMMARY_COLUMNS; nothing where nothing fits."""
        figures = (f"{figure:.4f}" if self.fits else "" for figure in self[4:10])
        return (*self[:4], *figures, f"{self.planning:.2f}")


def read(path: Path) -> list[Row]:
    """The rows of a file that the arena wrote.  Raises ValueError for another file."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(line for line in file if not line.startswith("#"))
        if tuple(next(reader, ())) != COLUMNS:
            raise ValueError(f"{path} is no file of the arena: its columns are not {', '.join(COLUMNS)}")
        return [_row(cells) for cells in reader]


def _row(cells: Sequence[str]) -> Row:
    network, batch, hardware, percent, budget, floor, policy, fits, arena, peak, step, oracle, _, bound, *rest = cells
    return Row(
        *(network, int(batch), hardware, int(percent), int(budget), int(floor), policy, fits == "1"),
        *(int(arena), int(peak), float(step), float(oracle), float(bound), float(rest[1]), rest[2]),
    )


def by_cell(rows: Iterable[Row]) -> dict[tuple[str, int, str, int], dict[str, Row]]:
    """{cell: {policy: row}}."""
    cells: dict[tuple[str, int, str, int], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, {})[row.policy] = row
    return cells


def summary(rows: Sequence[Row]) -> list[Summary]:
    """Every policy in every share of the budget, the largest budgets first, in the order in which policies stand."""
    cells = by_cell(rows)
    percents = sorted({row.percent for row in rows}, reverse=True)
    names = dict.fromkeys(row.policy for row in rows)
    return [_summary([c for c in cells.values() if next(iter(c.values())).percent == p], p, n)
            for p in percents for n in names]  # fmt: skip


def _summary(cells: Sequence[dict[str, Row]], percent: int, policy: str) -> Summary:
    there = [cell[policy] for cell in cells if policy in cell]
    fitting = [cell for cell in cells if policy in cell and cell[policy].fits]
    ratios = [cell[policy].ratio for cell in fitting]
    against = [cell[policy].step / cell[SEARCH].step for cell in fitting if SEARCH in cell and cell[SEARCH].fits]
    gaps = [gap for cell in fitting if not isnan(gap := cell[policy].gap)]
    figures = [f(of) if of else inf for of in (ratios, against, gaps) for f in (median, max)]
    planning = median(row.planning for row in there) if there else 0.0
    return Summary(percent, policy, len(there), len(fitting), *figures, planning)


def check(rows: Sequence[Row]) -> list[str]:
    """What in these rows should not be, in words.  Raises ValueError if there are none."""
    if not rows:
        raise ValueError("there are no rows to check")
    wrong = []
    for (name, batch, hardware, percent), cell in by_cell(rows).items():
        where = f"{name}({batch}) on {hardware}, {percent} %"
        wrong += [f"{where}: {reason}" for reason in _wrong_in(cell)]
    for percent, most in GAPS.items():
        gaps = [row.gap for row in rows if row.policy == SEARCH and row.percent == percent and row.fits]
        if gaps and not median(gaps) <= most:
            wrong.append(f"{percent} %: the median gap to the bound is {median(gaps):.2%}, at most {most:.0%} wanted")
    return wrong


def _wrong_in(cell: dict[str, Row]) -> list[str]:
    """What in one cell should not be."""
    if SEARCH not in cell:
        return ["search is missing"]
    search, wrong = cell[SEARCH], []
    for row in cell.values():
        if row.fits != (row.arena <= row.budget):
            wrong.append(f"{row.policy} has {row.arena} bytes of {row.budget}, and fits={row.fits}")
        if not row.fits:
            continue
        if not search.fits:
            wrong.append(f"{row.policy} fits in {row.arena} bytes, search needs {search.arena} of {row.budget}")
        elif search.step > row.step:
            wrong.append(f"search takes {search.step:.6g} s, {row.policy} {row.step:.6g} s")
        if row.bound > row.step:
            wrong.append(f"the bound is {row.bound:.9g} s, {row.policy} takes {row.step:.9g} s")
    return wrong


def report(rows: Sequence[Row], path: Path | None) -> list[str]:
    """Print tables and checks, and return what is wrong; beside `path`, if given, write summary and pictures."""
    console = Console(width=140)
    summaries = summary(rows)
    wrong = check(rows)
    console.print(steps_table(summaries, "median"))
    console.print(steps_table(summaries, "over search"))
    console.print(bounds_table(summaries))
    console.print(published_table())
    for reason in wrong:
        console.print(f"wrong: {reason}", highlight=False, soft_wrap=True)
    if path is not None:
        record.write(path.with_name(f"{path.stem}_summary.csv"), SUMMARY_COLUMNS, (s.row() for s in summaries))
        arena_picture.draw(rows, path.with_suffix(".png"))
        arena_picture.draw_fronts(rows, path.with_name(f"{path.stem}_fronts.png"))
    return wrong


def steps_table(summaries: Sequence[Summary], kind: str) -> Table:
    """Policies by budget: median and worst step over the oracle ("median"), or over that of search, and what fits."""
    against = "the oracle's" if kind == "median" else "that of search in the same cell"
    table = Table(title=f"simulated step over {against}: median / worst of the cells that fit (cells that fit)")
    table.add_column("policy", no_wrap=True)
    percents = list(dict.fromkeys(s.percent for s in summaries))
    for percent in percents:
        table.add_column(f"floor + {percent} %", justify="right", no_wrap=True)
    for name in _ranked(summaries):
        found = {s.percent: s for s in summaries if s.policy == name}
        cells = [_figures(found[percent], kind) for percent in percents]
        table.add_row(name, *cells, style="bold" if name == SEARCH else "")
    return table


def _ranked(summaries: Sequence[Summary]) -> list[str]:
    """Policies, those that fit the most cells first; of these, those nearest to search."""
    names = list(dict.fromkeys(s.policy for s in summaries))

    def key(name: str) -> tuple[float, float]:
        own = [s for s in summaries if s.policy == name]
        return -sum(s.fits for s in own), sum(min(s.median_over_search, 10.0) for s in own)

    return sorted(names, key=lambda name: (name != SEARCH, key(name)))


def _figures(found: Summary, kind: str) -> str:
    if not found.fits:
        return f"- (0/{found.cells})"
    pair = (found.median, found.worst) if kind == "median" else (found.median_over_search, found.worst_over_search)
    return f"{pair[0]:.3f} / {pair[1]:.2f} ({found.fits}/{found.cells})"


def bounds_table(summaries: Sequence[Summary]) -> Table:
    """How far search is above the bound, by budget, and what is wanted."""
    table = Table(title="search: simulated step above the lower bound")
    for column in ("budget", "median", "at most wanted", "worst", "cells that fit"):
        table.add_column(column, justify="right")
    for s in (s for s in summaries if s.policy == SEARCH):
        most = f"{GAPS[s.percent]:.0%}" if s.percent in GAPS else "-"
        gaps = f"{s.median_gap:.2%}", most, f"{s.worst_gap:.2%}"
        table.add_row(f"floor + {s.percent} %", *gaps, f"{s.fits}/{s.cells}")
    return table


def published_table() -> Table:
    """What publications say of their own systems: nothing of it was measured or simulated here."""
    table = Table(
        title="as published, on other hardware, in other frameworks and against other baselines: no rows of ours"
    )
    for column in ("system", "where", "what"):
        table.add_column(column)
    for bar in BARS:
        table.add_row(*bar)
    return table
