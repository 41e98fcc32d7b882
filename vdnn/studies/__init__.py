"""studies: a grid of networks, batches, policies, budgets, hardware and more, planned, simulated or run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from vdnn.progress import progress_bar
from vdnn.studies.cell import FAILED
from vdnn.studies.errors import StudyError, StudyStopped
from vdnn.studies.grid import Study, resolve
from vdnn.studies.result import StudyResult
from vdnn.studies.results import TABLE, Results, open_results, write_whole
from vdnn.studies.running import rows_of, threads_of

__all__ = ["Study", "StudyError", "StudyResult", "StudyStopped", "load", "study"]

Given = str | PathLike[str] | Mapping[str, Any]


def load(given: Given, executor: Executor | None = None, processes: int | None = None) -> Study:
    """The study in a TOML file, or in a mapping of the same keys, with every default; nothing is computed.

    executor, processes   as in `study`; how many threads a step that is run has by default depends on them
    Raises StudyError for what is no study.
    """
    title, data = "study", given
    if not isinstance(given, Mapping):
        path = Path(given)
        title = path.stem
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StudyError(f"{path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StudyError(f"{path} is no TOML: {error}") from error
    assert isinstance(data, Mapping)
    return resolve(data, threads_of(executor, processes, data.get("mode") == "run"), title)


def study(
    given: Given,
    *,
    out: str | PathLike[str] | None = None,
    executor: Executor | None = None,
    processes: int | None = None,
    fresh: bool = False,
    retry: bool = False,
    progress: bool = True,
) -> StudyResult:
    """Compute all cells of a study, those that were computed before excepted.

    given      a TOML file, or a mapping of the same keys, of which `vdnn study --keys` has a list.  A list of values
               is an axis of the grid
    out        folder of results, to which every row is added as it comes, and from which the same study goes on after
               whatever ended it.  Default: STUDY.results beside STUDY.toml; for a mapping none, rows are only returned
    executor   any of concurrent.futures computes the cells: mpi4py.futures.MPIPoolExecutor(), Dask's
               client.get_executor().  Its processes import vdnn themselves, and each should have one cell at a time
    processes  without an executor: so many processes of this machine.  None: this process, cell by cell
    fresh      forget results that are there
    retry      compute cells again that failed
    progress   say on standard error how far it is, and how long it may take

    A cell that does not fit, or fails, has a row that says so.  Rows of plans and simulations do not depend on when and
    where they are computed, but for policy search, which does what it can in its seconds; it uses no result of other
    cells.  Raises StudyError, before anything is computed, for what is no study and for results of another one;
    StudyStopped if the executor fails: all rows are kept.
    """
    if executor is not None and processes is not None:
        raise StudyError("executor and processes exclude each other: cells are computed by one of the two")
    made = load(given, executor, processes)
    beside = Path() if isinstance(given, Mapping) else Path(given).parent
    if out is None and not isinstance(given, Mapping):
        out = Path(given).with_suffix(".results")
    if out is None and (fresh or retry):
        raise StudyError("fresh and retry are for results in a folder; give out=")
    opened: AbstractContextManager[Results | None] = nullcontext()
    if out is not None:
        opened = open_results(Path(out), made, beside, fresh)
    with opened as results:
        there = dict(results.rows) if results else {}
        kept = {i: row for i, row in there.items() if not (retry and row["status"] == FAILED)}
        missing = [cell for cell in made.cells if cell.index not in kept]
        kept |= _computed(made, missing, results, executor, processes, progress)
        found = StudyResult(made, tuple(kept[cell.index] for cell in made.cells))
        if out is not None:
            write_whole(Path(out) / TABLE, found.to_csv())
    return found


def _computed(
    made: Study,
    missing: list[Any],
    results: Results | None,
    executor: Executor | None,
    processes: int | None,
    progress: bool,
) -> dict[int, Any]:
    """The rows of the cells that are missing, each written down as it comes."""
    total = len(made.cells)
    title = f"{made.title}, {total - len(missing)} of {total} cells there" if len(missing) < total else made.title
    found: dict[int, Any] = {}
    if not missing:
        return found
    labels = {cell.index: cell.label for cell in missing}
    if processes is not None:
        processes = min(processes, len(missing))
    with progress_bar(title, len(missing), keep=False) if progress else nullcontext(_say_nothing) as advance:
        for row in rows_of(missing, executor, processes, made.mode == "run"):
            if results is not None:
                results.append(row)
            found[row["index"]] = row
            advance(f"{labels[row['index']]} {row['status']}")
    return found


def _say_nothing(note: str, pieces: int = 1, /) -> None:
    """What progress is told where nobody wants to know."""
