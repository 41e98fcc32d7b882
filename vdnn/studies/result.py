"""StudyResult: the rows of a study as a table for people, as CSV, JSON or a DataFrame."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vdnn.comparing import flat
from vdnn.html_tables import html_table
from vdnn.records import Table, written
from vdnn.studies.cell import FAILED, FITS, TOO_LARGE, Row
from vdnn.studies.grid import Study
from vdnn.studies.keys import KEYS
from vdnn.tables import render
from vdnn.units import format_bytes, format_seconds

KINDS = {"plan": "planned", "simulate": "simulated", "run": "measured"}
# Figures that are measured where steps are run, besides those that are times everywhere
MEASURED_IN_RUNS = ("copy_seconds", "fastest_step_seconds", "slowest_step_seconds")
RENAMED = {"algorithms": "planned_algorithms", "micro_batches": "planned_micro_batches"}
SHOWN: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "planned with": ("algorithms", str),
    "floor": ("floor_bytes", format_bytes),
    "allowed": ("budget_bytes", format_bytes),
    "peak": ("peak_bytes", format_bytes),
    "arena": ("arena_bytes", format_bytes),
    "host": ("host_bytes", format_bytes),
    "disk": ("disk_bytes", lambda count: format_bytes(count) if count else ""),
    "moved": ("offloaded_bytes", format_bytes),
    "step": ("step_seconds", format_seconds),
    "p95": ("p95_seconds", format_seconds),
    "of oracle": ("speed", lambda ratio: f"{ratio:.1%}"),
    "gap": ("gap", lambda gap: f"{gap:.1%}"),
    "loss": ("last_loss", lambda loss: f"{loss:.4f}"),
}
TOLD = ("network", "batch", "policy", "budget", "hardware", "algorithms", "optimizer")  # even if they are the defaults
STATUS = {FITS: "yes", TOO_LARGE: "no", FAILED: "failed"}


@dataclass(frozen=True)
class StudyResult:
    """What a study found: `rows` in the order of its cells, each with index, settings, status, figures and error."""

    study: Study
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        return self.table()

    @property
    def counts(self) -> dict[str, int]:
        """How many cells fit, do not fit, and failed."""
        found = Counter(row["status"] for row in self.rows)
        return {status: found[status] for status in STATUS}

    # ---- as data

    @property
    def records(self) -> list[dict[str, Any]]:
        """A flat mapping for each row: its settings, status and figures.

        The names of what follows from times end in _simulated or _measured; bytes are exact.  Algorithms and
        sub-batches as they were planned are planned_algorithms and planned_micro_batches.
        """
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
        record = {**row["settings"], "status": row["status"]}
        if row["figures"]:
            columns = flat({RENAMED.get(name, name): value for name, value in row["figures"].items()})
            named = {f"{k}_measured" if k in MEASURED_IN_RUNS else k: v for k, v in columns.items()}
            record |= {k: v for k, v in named.items() if k not in record}
        return record | {"error": row["error"]}

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """A line for each row, as text; written to `path` if that is given."""
        return Table.of(self.records).to_csv(path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """A list of `records`, as JSON; written to `path` if that is given."""
        return written(json.dumps(self.records, indent=1) + "\n", path)

    def to_pandas(self) -> Any:
        """A DataFrame of `records`.  Raises ImportError, saying what to install, where pandas is not."""
        return Table.of(self.records).to_pandas()

    # ---- for people

    def table(self, width: int | None = None) -> str:
        """The rows as text, no wider than the terminal: what varies among the cells, and their main figures."""
        return render(self._title, *self._cells(), width)

    def _repr_html_(self) -> str:
        return html_table(self._title, *self._cells(), rows="cells")

    @property
    def _title(self) -> str:
        common = {k: v for k, v in self.study.common.items() if k in TOLD or v not in (None, KEYS[k].default)}
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        said = ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in common.items())
        times = "no times" if self.study.mode == "plan" else f"times {KINDS[self.study.mode]}"
        smallest = (
            "\nwhere it does not fit, figures are those of the smallest plan found" if self.counts[TOO_LARGE] else ""
        )
        return f"{self.study.title}: {len(self.rows)} cells, {counts}; bytes planned, {times}\n{said}{smallest}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """(columns, lines): a figure is a column if any row has it."""
        keys = [key for key in self.study.varying if any(row["settings"][key] is not None for row in self.rows)]
        figures = [_with_speed(row["figures"]) for row in self.rows]
        shown = {
            name: (key, show)
            for name, (key, show) in SHOWN.items()
            if any(f.get(key) is not None for f in figures) and (name != "disk" or any(f.get(key) for f in figures))
        }
        columns = [*(key.replace("_", " ") for key in keys), "fits", *shown]
        errors = any(row["status"] == FAILED for row in self.rows)
        lines = [
            [
                *(_text(row["settings"][key]) for key in keys),
                STATUS[row["status"]],
                *("" if f.get(key) is None else show(f[key]) for key, show in shown.values()),
                *([row["error"] if row["status"] == FAILED else ""] if errors else []),
            ]
            for row, f in zip(self.rows, figures, strict=True)
        ]
        return ([*columns, "why"] if errors else columns), lines


def _with_speed(figures: Mapping[str, Any]) -> dict[str, Any]:
    step, oracle = figures.get("step_seconds"), figures.get("oracle_seconds")
    p95 = figures.get("jitter", {}).get("p95_seconds")
    return {**figures, "speed": oracle / step if step and oracle else None, "p95_seconds": p95}


def _text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def first_failures(rows: Sequence[Row], most: int = 3) -> str:
    """In words, why the first cells failed that did."""
    failed = [row for row in rows if row["status"] == FAILED]
    return "\n".join(f"cell {row['index']}: {row['error']}" for row in failed[:most])
