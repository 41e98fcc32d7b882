"""Results: the file that rows are appended to as they come, so that a study that ended early goes on where it was.

A folder has `cells.jsonl`, a header and then a line for each row in the order in which they came; `study.json`, the
resolved study and what made the rows, for people; and at the end `table.csv`.  A line is written at once and flushed:
what a process that was killed leaves is whole lines and at most the beginning of one, which is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vdnn.studies.about import machine, made_by, sources
from vdnn.studies.cell import Row
from vdnn.studies.errors import StudyError
from vdnn.studies.grid import Study

FORMAT, VERSION = "vdnn study", 1
CELLS, ABOUT, TABLE = "cells.jsonl", "study.json", "table.csv"


def resolved(study: Study) -> dict[str, Any]:
    """All that the rows depend on, as JSON has it: the cells with every default, the code, for a run the machine.

    Settings that all cells share are said once, in `common`.
    """
    varying = study.varying
    facts = {
        "mode": study.mode,
        "common": dict(study.common),
        "cells": [{name: cell.settings[name] for name in varying} for cell in study.cells],
        "sources": sources(study),
    }
    if study.mode == "run":
        facts["machine"] = {k: v for k, v in machine().items() if k in ("processor", "cores")}
    return facts


class Results:
    """The rows of a study in a file that is open for more; `rows` are those that there are, by index."""

    def __init__(self, file: IO[bytes], rows: dict[int, Row]) -> None:
        self.file, self.rows = file, rows

    def append(self, row: Row) -> None:
        """Write a row; from then on it is not computed again."""
        self.file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self.file.flush()
        self.rows[row["index"]] = row


@contextmanager
def open_results(folder: Path, study: Study, beside: Path, fresh: bool = False) -> Iterator[Results]:
    """The results of a study in a folder, which is made if there is none; no other process has them open meanwhile.

    beside  the folder of the study, whose commit is noted
    fresh   forget what is there
    Raises StudyError for results of another study or other code, which are left as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts, path = resolved(study), folder / CELLS
    with path.open("a+b") as file:
        _lock(file, path)
        if fresh:
            file.truncate(0)
        file.seek(0)
        rows = _read(file, path, facts)
        if file.tell() == 0:
            (folder / TABLE).unlink(missing_ok=True)
            _begin(file, facts)
        _write_about(folder / ABOUT, study, facts, made_by(beside), len(rows))
        yield Results(file, rows)


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep the file to this process until it is closed, or the process ends in whatever way."""
    try:
        import fcntl
    except ImportError:  # a system without it
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StudyError(f"{path} is being written by another process: wait for it, or give another --out") from error


def _begin(file: IO[bytes], facts: Mapping[str, Any]) -> None:
    file.write(_header(facts))
    file.flush()


def _header(facts: Mapping[str, Any]) -> bytes:
    """The first line."""
    header = {"format": FORMAT, "version": VERSION, "study": facts}
    return json.dumps(header, allow_nan=False).encode() + b"\n"


def _read(file: IO[bytes], path: Path, facts: Mapping[str, Any]) -> dict[int, Row]:
    """The rows of a file; it is left at its end, and without a last line that was not finished."""
    lines = file.read().splitlines(keepends=True)
    unfinished = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
    if not lines and not _header(facts).startswith(unfinished):
        raise StudyError(f"{path} is no file of results; give another --out")
    rows = _rows(lines, path, facts) if lines else {}
    file.truncate(sum(map(len, lines)))
    file.seek(0, os.SEEK_END)
    return rows


def _rows(lines: list[bytes], path: Path, facts: Mapping[str, Any]) -> dict[int, Row]:
    """The rows of whole lines, of which the first is the header."""
    header = _parsed(lines[0], path, 1, ("format", "version", "study"))
    if (header["format"], header["version"]) != (FORMAT, VERSION):
        raise StudyError(f"{path} is no file of results of this version, {FORMAT} {VERSION}; give another --out")
    _check_same(header["study"], json.loads(json.dumps(facts)), path)
    rows = {}
    for number, line in enumerate(lines[1:], start=2):
        row = _parsed(line, path, number, ("index", "settings", "status", "figures", "error"))
        if row["index"] not in range(len(facts["cells"])):
            raise StudyError(f"{path}, line {number}: index {row['index']!r} is that of no cell of this study")
        rows[row["index"]] = row
    return rows


def _parsed(line: bytes, path: Path, number: int, names: Sequence[str]) -> Any:
    """The object of a line, which has these names."""
    end = "mend it, or begin anew with --fresh"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path}, line {number} is no JSON ({error}); {end}") from error
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing:
        raise StudyError(f"{path}, line {number} has no {', '.join(missing)}, so it is none of results; {end}")
    return found


# ---- whether results are this study's


def _check_same(there: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    if there == now:
        return
    said = "\n".join(f"  {line}" for line in differences(there, now))
    raise StudyError(
        f"{path} has results of another study:\n{said}\ngive another --out, or --fresh to forget those results"
    )


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words, where a resolved study differs from that of the results, setting by setting."""
    missing = [name for name in ("mode", "common", "cells", "sources") if name not in there]
    if missing:
        yield f"its header has no {', '.join(missing)}"
        return
    if there["mode"] != now["mode"]:
        yield f"mode: {there['mode']} in the results, {now['mode']} now"
        return
    before, after = ([facts["common"] | cell for cell in facts["cells"]] for facts in (there, now))
    names = list(dict.fromkeys(name for cell in (*before, *after) for name in cell))
    found = [line for name in names if (line := _difference(name, before, after))]
    yield from found
    if not found and before != after:
        yield f"which combinations: {len(before)} cells in the results, {len(after)} now, or in another order"
    for part in ("sources", "machine"):
        yield from _facts(part, there.get(part, {}), now.get(part, {}))


def _difference(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    old, new = (list(dict.fromkeys(cell.get(name) for cell in cells)) for cells in (before, after))
    if set(old) == set(new):
        return ""
    return f"{name}: {_listed(old)} in the results, {_listed(new)} now"


def _facts(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    what = "the code of " if part == "sources" else ""
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield f"{what}{name}: {old.get(name, 'none')} in the results, {new.get(name, 'none')} now"


def _listed(values: list[Any]) -> str:
    return ", ".join("none" if value is None else str(value) for value in values)


# ---- for people


def _write_about(path: Path, study: Study, facts: Mapping[str, Any], made: dict[str, Any], there: int) -> None:
    """Write the resolved study, and add this process to those that computed rows; at once or not at all."""
    before: list[Any] = []
    if there:
        with suppress(OSError, ValueError, KeyError):
            before = json.loads(path.read_text(encoding="utf-8"))["made_by"]
    about = {"format": FORMAT, "version": VERSION, "title": study.title, **facts}
    write_whole(path, json.dumps(about | {"made_by": [*before, made | {"rows_there": there}]}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="")
    unfinished.replace(path)
