"""Table: data in rows and named columns, which turns into CSV, JSON, a pandas DataFrame, text or HTML."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from vdnn.naming import among

Cell = str | int | float | bool | None
SHOWN = 40  # rows of a longer table that are printed


class TableError(ValueError):
    """A table that cannot be: rows of other lengths than the header, or no such column."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns, with a title that says what they are; units stand in the columns' names.

    A cell is text, a number, True, False, or None for what there is not.  Iterating gives a dict for each row.
    Raises TableError if a row is not as long as there are columns, or two columns have one name.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise TableError(f"two columns are named {twice[0]!r}; there are {', '.join(self.columns)}")
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise TableError(f"row {number} has {len(row)} cells for {len(self.columns)} columns: {row}")

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Cell]], title: str = "") -> Table:
        """A table of dicts: the columns in the order in which they first appear; None where a dict has no such key."""
        kept = list(records)
        columns = tuple(dict.fromkeys(name for record in kept for name in record))
        return cls(columns, tuple(tuple(record.get(name) for name in columns) for record in kept), title)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def column(self, name: str) -> list[Cell]:
        """The cells of one column, from the first row to the last.  Raises TableError naming near ones."""
        if name not in self.columns:
            raise TableError(f"no column {name!r}{among(name, self.columns)}")
        at = self.columns.index(name)
        return [row[at] for row in self.rows]

    # ---- what it turns into

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as CSV with a header, empty where a cell is None; written to `path` as well if there is one."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return written(out.getvalue(), path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as a JSON object of title, columns and rows; written to `path` as well if there is one."""
        data = {"title": self.title, "columns": self.columns, "rows": self.rows}
        return written(json.dumps(data), path)

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame.  Raises ImportError, with what to install, without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas; install it with: pip install pandas") from error
        return pandas.DataFrame.from_records(list(self.rows), columns=list(self.columns))

    def __str__(self) -> str:
        from vdnn.tables import render

        left = len(self.rows) - SHOWN
        rest = f"... and {left} more rows of {len(self.rows)}\n" if left > 0 else ""
        return render(self.title, self.columns, _Lines(self.rows[:SHOWN]), None, self._numbers()) + rest

    def _repr_html_(self) -> str:
        """The table for notebooks: of a long one its first and last rows."""
        from vdnn.html_tables import html_table

        return html_table(self.title, self.columns, _Lines(self.rows), right=self._numbers())

    def _numbers(self) -> set[str]:
        """The columns that hold numbers, as far as they hold anything."""
        columns = {name: {type(row[i]) for row in self.rows} - {type(None)} for i, name in enumerate(self.columns)}
        return {name for name, types in columns.items() if types and all(map(_is_number, types))}


class _Lines(Sequence[list[str]]):
    """Rows as text, made when they are looked at: of a long table few are."""

    def __init__(self, rows: Sequence[tuple[Cell, ...]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        return [_text(cell) for cell in self.rows[number]]


def _is_number(kind: type) -> bool:
    return issubclass(kind, Real) and not issubclass(kind, bool)


def written(text: str, path: str | os.PathLike[str] | None) -> str:
    """The text, which is then in the file `path` as well, if there is one.  Raises OSError."""
    if path is not None:
        Path(path).write_text(text, encoding="utf-8", newline="")
    return text


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
