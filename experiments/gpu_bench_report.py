"""Where gpu_bench.py puts its results: one file, written after each, and the tables that it prints.

In tables GiB are 2^30 bytes.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_bench_plan import Machine, NothingFitsError

BITS = ("weights_identical_to_keep_all", "weights_identical_to_keep_all_by_its_algorithms")


class WrongError(AssertionError):
    """A result that contradicts what vdnn promises."""


class Report:
    """All results so far, in one file."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.failed = path, False
        self.data: dict[str, Any] = {**head, "sections": {}}

    def section(self, name: str) -> dict[str, Any]:
        """What is known of a section."""
        empty: dict[str, Any] = {"rows": [], "errors": [], "not_reached": []}
        found: dict[str, Any] = self.data["sections"].setdefault(name, empty)
        return found

    def fail(self, name: str, what: str, error: BaseException) -> None:
        """Keep an error, and where it comes from."""
        self.failed = True
        where = "".join(traceback.format_exception(error))[-3000:]
        self.section(name)["errors"].append({"what": what, "error": f"{type(error).__name__}: {error}", "where": where})
        print(f"{name}, {what} FAILED: {type(error).__name__}: {error}", flush=True)
        self.save()

    def save(self) -> None:
        """Write all, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=1, default=str) + "\n")
        part.replace(self.path)


class Section:
    """One part of a run: when it must end, and where its rows go."""

    def __init__(self, name: str, machine: Machine, report: Report, seconds: float) -> None:
        self.name, self.machine, self.report = name, machine, report
        self.ends = time.monotonic() + seconds
        self.longest = 0.0  # seconds that a row took

    @property
    def dry(self) -> bool:
        """Whether this is no GPU."""
        return self.machine.dry

    def enough(self) -> bool:
        """Whether another row would probably last beyond the end."""
        return time.monotonic() + 0.7 * self.longest > self.ends

    def row(self, what: str, make: Callable[[], Any]) -> Any:
        """Run `make` and return what it gives; None if there is no time or it fails, which is noted."""
        if self.enough():
            self.report.section(self.name)["not_reached"].append(what)
            return None
        began = time.monotonic()
        try:
            return make()
        except NothingFitsError as error:
            self.add({"what": what, "fits": False, "reason": str(error)})
            return None
        except Exception as error:
            self.report.fail(self.name, what, error)
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
            print(f"{self.name}: {what}, {time.monotonic() - began:.1f} s", flush=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; one that shows vdnn to be wrong is a failure as well."""
        self.report.section(self.name)["rows"].append(row)
        self.report.save()
        wrong = [key for key in BITS if row.get(key) is False]
        if row.get("peak_bytes_difference"):
            wrong.append("peak_bytes_difference")
        if wrong:
            what = " ".join(str(row.get(key)) for key in ("network", "batch", "math", "policy", "budget_bytes"))
            self.report.fail(self.name, what, WrongError(", ".join(f"{key} is {row[key]}" for key in wrong)))

    def note(self, **facts: Any) -> None:
        """Keep facts about the section as a whole."""
        self.report.section(self.name).update(facts)
        self.report.save()


# ---- tables

Row = Mapping[str, Any]
GIB = 1 << 30


def _table(title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(show(row) for show in columns.values()))
    return table


def _number(key: str, scale: float = 1.0, form: str = ".2f") -> Callable[[Row], str]:
    """How to show the value of a key; "-" where there is none."""
    return lambda row: "-" if row.get(key) is None else format(row[key] * scale, form)


def _text(*keys: str) -> Callable[[Row], str]:
    return lambda row: " ".join(str(row.get(key, "-")) for key in keys)


def link_table(rows: Sequence[Row]) -> Any:
    """Bandwidths."""
    names = ("offload", "prefetch", "each_way_while_both_run")
    columns = {"copy, MiB": _number("copy_bytes", 1 / (1 << 20), ".0f")}
    columns |= {f"{n}, GB/s measured".replace("_", " "): _number(f"{n}_bytes_per_second_measured", 1e-9) for n in names}
    return _table("link", [row for row in rows if "copy_bytes" in row], columns)


def algorithms_table(rows: Sequence[Row]) -> Any:
    """The fastest of each layer and pass."""
    best: dict[Any, Row] = {}
    for row in rows:
        key = (row["layer"], row["phase"], row["math"], row["storage"])
        if row.get("seconds_measured") and (key not in best or row["seconds_measured"] < best[key]["seconds_measured"]):
            best[key] = row
    columns = {
        "convolution": _text("layer", "phase"),
        "math": _text("math", "storage"),
        "fastest": _text("algorithm"),
        "deterministic": _text("deterministic"),
        "ms measured": _number("seconds_measured", 1e3, ".3f"),
        "workspace, MiB": _number("workspace_bytes", 1 / (1 << 20), ".1f"),
    }
    return _table("fastest algorithms", list(best.values()), columns)


def steps_table(rows: Sequence[Row]) -> Any:
    """Steps under policies and budgets."""
    columns = {
        "network": _text("network", "batch", "math"),
        "way": lambda row: (
            str(row.get("way", row["policy"])) + (f" = {row['same_plan_as']}" if "same_plan_as" in row else "")
        ),
        "policy": _text("policy"),
        "step, ms measured": _number("step_seconds_measured", 1e3),
        "inputs placed, ms": _number("plan_seconds_measured", 1e3),
        "predicted, ms": _number("step_seconds_predicted", 1e3),
        "error": _number("prediction_error_of_plan_seconds", 1, "+.1%"),
        "images/s": _number("images_per_second_measured", 1, ".0f"),
        "arena, GiB": _number("arena_bytes_measured", 1 / GIB),
        "peak - predicted": _text("peak_bytes_difference"),
        "offloaded, GiB": _number("offloaded_bytes_predicted", 1 / GIB),
        "hidden": _number("hidden_copy_fraction_measured", 1, ".0%"),
        "same bits": _text("weights_identical_to_keep_all"),
        "loss of speed": _number("loss_of_speed_measured", 1, ".1%"),
    }
    return _table("steps", rows, columns)


def torch_table(rows: Sequence[Row]) -> Any:
    """Against PyTorch."""
    columns = {
        "network": _text("network", "batch", "math"),
        "torch": lambda row: row["torch_variant"] + (", channels last" if row["torch_channels_last"] else ""),
        "vdnn": _text("vdnn"),
        "policy": _text("policy"),
        "torch, ms measured": _number("torch_step_seconds_measured", 1e3),
        "vdnn, inputs placed": _number("plan_seconds_measured", 1e3),
        "by trainer.step": _number("step_seconds_measured", 1e3),
        "vdnn's speed": _number("speed_over_torch_with_inputs_in_place_measured", 1, ".3f"),
        "torch, GiB": _number("torch_peak_bytes_allocated_measured", 1 / GIB),
        "reserved, GiB": _number("torch_peak_bytes_reserved_measured", 1 / GIB),
        "vdnn, GiB": _number("arena_bytes_measured", 1 / GIB),
        "losses differ": _number("first_loss_relative_difference_measured", 1, ".1e"),
    }
    return _table("against PyTorch", rows, columns)


TABLES: Mapping[str, Callable[[Sequence[Row]], Any]] = {
    "link": link_table,
    "algorithms": algorithms_table,
    "steps": steps_table,
    "vgg_in_12_gib": steps_table,
    "against_torch": torch_table,
}


def show(table: Callable[[Sequence[Row]], Any], rows: Sequence[Row]) -> None:
    """Print rows as a table, or, where rich is not installed, as they are in the file."""
    try:
        from rich.console import Console
    except ImportError:
        for row in rows:
            print(json.dumps(row, default=str))
    else:
        Console(width=170).print(table(rows))
