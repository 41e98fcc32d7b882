"""The one table of results: what the paper says, what we find, and whether the two agree; as CSV, Markdown and text."""

from __future__ import annotations

import csv
import math
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from published import label

import vdnn

KINDS = ("simulated", "exact")  # exact: follows from shapes and plans alone, no model of time
YES_NO = {True: "yes", False: "no", None: "–"}
COLUMNS = ("network", "quantity", "paper", "ours", "deviation", "within", "why")


class ReportError(ValueError):
    """A result or a file of results that cannot be right; the message says which value."""


@dataclass(frozen=True)
class Result:
    """One number of the paper beside ours.

    network, batch  vdnn's name and the batch; batch None where it is about several networks
    unit            "MiB", "ms", "ratio", "share" (0 to 1, shown in per cent), "yes/no" (1 or 0), or any other word
    paper           None where the paper has no such number
    kind            "simulated" or "exact", which is said of ours
    tolerance       how far ours may be, in words; `allowed` is that in `unit`, None where agreement is not claimed;
                    "input ..." where the paper's number is the model's own input, so that agreement proves nothing
    note            why it deviates, or what else to know
    Raises ReportError for another kind and for what is no finite number.
    """

    figure: str
    network: str
    batch: int | None
    quantity: str
    unit: str
    paper: float | None
    ours: float
    kind: str
    tolerance: str = ""
    note: str = ""
    allowed: float | None = None

    def __post_init__(self) -> None:
        where = f"{self.figure}, {self.name}, {self.quantity}"
        if self.kind not in KINDS:
            raise ReportError(f"{where}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        for name in ("paper", "ours", "allowed"):
            value = getattr(self, name)
            if value is None and name != "ours":
                continue
            if value is None or not math.isfinite(value):
                raise ReportError(f"{where}: {name} is {value}, not a number")
        if self.allowed is not None and self.allowed < 0:
            raise ReportError(f"{where}: allowed is {self.allowed}, below 0")

    @property
    def name(self) -> str:
        """The paper's name of the network."""
        return self.network if self.batch is None else label(self.network, self.batch)

    @property
    def deviation(self) -> float | None:
        """Ours less the paper's, in `unit`."""
        return None if self.paper is None else self.ours - self.paper

    @property
    def relative(self) -> float | None:
        """The deviation over the paper's number."""
        return (self.ours - self.paper) / abs(self.paper) if self.paper else None

    @property
    def is_input(self) -> bool:
        """Whether ours is the paper's own number, which the model was given."""
        return self.tolerance.startswith("input")

    @property
    def within(self) -> bool | None:
        """Whether the deviation is allowed; None where nothing is claimed.  At the limit, rounding counts as within."""
        if self.paper is None or self.allowed is None:
            return None
        rounding = 1e-9 * max(abs(self.paper), abs(self.ours))
        return abs(self.ours - self.paper) <= self.allowed + rounding


# ---- CSV


def commit() -> str:
    """The commit that this file belongs to, with "-dirty" where files were changed; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:
        return "unknown"
    return ended.stdout.strip() or "unknown"


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], about: str) -> Path:
    """Write rows, whole or not at all, below a comment with `about`, the commit and vdnn's version; return the path.

    No date and no time of this machine are written, so the same code and arguments give the same file.
    Raises ReportError if a row has other columns, or `about` more than one line.
    """
    if len(about.splitlines()) != 1:
        raise ReportError(f"about is {len(about.splitlines())} lines, not 1: {about!r}")
    lines = [_cells(row, columns, number) for number, row in enumerate(rows, 1)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {about}; commit {commit()}, vdnn {vdnn.__version__}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
    part.replace(path)
    return path


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file that `write_csv` wrote, as text by column.  Raises ReportError if a row has other cells."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        first = file.readline()
        if not first.startswith("# "):
            raise ReportError(f"{path} begins with {first[:40]!r}, not with the comment that write_csv writes")
        columns, *rows = csv.reader(file)
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise ReportError(f"{path}: row {number} has {len(row)} cells, the header {len(columns)}")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def write_results(path: str | Path, results: Iterable[Result], about: str) -> Path:
    """Write results as CSV, a column for each field."""
    names = [field.name for field in fields(Result)]
    return write_csv(path, ({name: getattr(each, name) for name in names} for each in results), names, about)


def read_results(path: str | Path) -> list[Result]:
    """The results that `write_results` wrote."""
    return [_result(row) for row in read_csv(path)]


def _cells(row: Mapping[str, Any], columns: Sequence[str], number: int) -> list[str]:
    if set(row) != set(columns):
        raise ReportError(f"row {number} has the columns {', '.join(row)}; wanted are {', '.join(columns)}")
    return [_cell(row[column]) for column in columns]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return YES_NO[value]
    return repr(float(value)) if isinstance(value, float) else str(value)


def _result(row: Mapping[str, str]) -> Result:
    numbers = {name: float(row[name]) if row[name] else None for name in ("paper", "ours", "allowed")}
    return Result(**{**row, **numbers, "batch": int(row["batch"]) if row["batch"] else None})  # type: ignore[arg-type]


# ---- tables for people


def markdown(results: Iterable[Result]) -> str:
    """Tables in GitHub's Markdown, one under a heading for each figure, in the order in which figures come first."""
    parts = []
    for figure, group in _by_figure(results).items():
        lines = [f"### {figure}", "", _line(_header(group)), _line(["---", "---", "--:", "--:", "--:", "---", "---"])]
        parts.append("\n".join(lines + [_line(_texts(each, _is_mixed(group))) for each in group]) + "\n")
    return "\n".join(parts)


def console_table(results: Iterable[Result]) -> Any:
    """A rich table for the terminal: print it with rich."""
    from rich.table import Table
    from rich.text import Text

    results = list(results)
    table = Table("figure", *_header(results), title=summary(results))
    for column in table.columns[3:6]:
        column.justify = "right"
    for figure, group in _by_figure(results).items():
        for each in group:
            cells = [figure, *_texts(each, _is_mixed(results))]
            style = "bold red" if each.within is False else ""
            table.add_row(*(Text(cell) for cell in cells), style=style, end_section=each is group[-1])
    return table


def summary(results: Iterable[Result]) -> str:
    """How many results are within their tolerance; inputs that are reproduced count apart."""
    results = list(results)
    verdicts = [each.within for each in results if not each.is_input or each.within is False]
    inputs, compared = len(results) - len(verdicts), sum(verdict is not None for verdict in verdicts)
    text = f"{verdicts.count(True)} of {compared} within tolerance, {verdicts.count(None)} without one"
    return f"{text}, {inputs} inputs reproduced" if inputs else text


def number(value: float | None, unit: str, signed: bool = False) -> str:
    """A number as its unit is read: "12,412" MiB, "0.841" for a ratio, "89.5 %" for a share; "–" for None."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if unit == "yes/no":
        return YES_NO[bool(value)]
    if unit == "share":
        return f"{100 * value:{sign}z.1f} %"
    if unit == "ratio":
        return f"{value:{sign}z.3f}"
    if unit == "MiB":
        return f"{value:{sign}z,.{0 if abs(value) >= 100 else 1}f}"
    return f"{value:{sign}z,.1f}" if value % 1 else f"{value:{sign}z,.0f}"


def _by_figure(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for each in results:
        groups.setdefault(each.figure, []).append(each)
    return groups


def _is_mixed(results: Sequence[Result]) -> bool:
    return len({each.kind for each in results}) > 1


def _header(results: Sequence[Result]) -> list[str]:
    """The columns; the kind stands beside "ours" where it is the same for all, else beside each number."""
    ours = "ours" if _is_mixed(results) or not results else f"ours ({results[0].kind})"
    return [ours if column == "ours" else column for column in COLUMNS]


def _texts(result: Result, is_mixed: bool) -> list[str]:
    unit = result.unit
    shown = "" if unit in ("ratio", "share", "yes/no", "") else f", {unit}"
    kind = f" ({result.kind})" if is_mixed else ""
    change = None if unit == "yes/no" else result.deviation
    deviation = number(change, unit, signed=True).replace("%", "points")
    if result.relative is not None and unit not in ("share", "yes/no"):
        deviation += f" ({100 * result.relative:+.1f} %)"
    within = YES_NO[result.within] + (f" ({result.tolerance})" if result.tolerance else "")
    paper, ours = number(result.paper, unit), number(result.ours, unit)
    return [result.name, result.quantity + shown, paper, ours + kind, deviation, within, result.note]


def _line(cells: Iterable[str]) -> str:
    """One line of a Markdown table: what would end a cell is escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
