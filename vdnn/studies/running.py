"""Who computes the cells: this process, a pool of processes, or any executor of concurrent.futures."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from queue import SimpleQueue
from typing import Any

from vdnn.kernels.numpy.threads import available_threads, processors
from vdnn.studies.cell import Row, compute, failed_row
from vdnn.studies.errors import StudyError, StudyStopped
from vdnn.studies.grid import Cell

AHEAD = 2  # cells for each process of a pool that are handed over: one that it computes, and the next
KILLED = "the process that computed it ended by itself or was killed, perhaps for want of memory"

Outcome = tuple[Cell, Row | BaseException]


def rows_of(cells: Iterable[Cell], executor: Executor | None, processes: int | None, is_run: bool) -> Iterator[Row]:
    """The rows of cells, as they come.

    executor   where they are computed; None: in as many processes of this machine, and for None of these in this one
    is_run     whether they are real steps, so that each process of a pool has processors of its own
    Raises StudyStopped if the executor fails, when all is said that it did.
    """
    if executor is not None:
        return _in_executor(cells, executor)
    return map(compute, cells) if processes is None else _in_processes(cells, processes, is_run)


def threads_of(executor: Executor | None, processes: int | None, is_run: bool) -> int | None:
    """Threads that share one operation of a cell which says nothing of them.

    As many as this machine has cores where they are planned for, as in `vdnn plan`; where steps are run, as many as
    there are for each cell that is computed at a time.  None for an executor that does not say how many these are.
    Raises StudyError for more processes than cores.
    """
    cores = available_threads()
    if processes is not None and not 1 <= processes <= cores:
        raise StudyError(f"processes={processes}: this machine has {cores} cores for them, so 1 to {cores}")
    if not is_run:
        return cores
    at_a_time = getattr(executor, "num_workers", None) if executor is not None else processes or 1
    return max(1, cores // at_a_time) if at_a_time else None


def outcomes(cells: Iterator[Cell], executor: Executor, most: int | None = None) -> Iterator[Outcome]:
    """(cell, its row, or why the executor has none), as they come; after the first that failed no more are submitted.

    most  how many cells the executor has at a time; None: all
    """
    done: SimpleQueue[Future[Row]] = SimpleQueue()
    handed: dict[Future[Row], Cell] = {}

    def hand_over(count: int | None) -> None:
        for cell in islice(cells, count):
            try:
                future = executor.submit(compute, cell)
            except BrokenExecutor as error:  # since the last outcome: the cell is not lost, but said
                future = Future()
                future.set_exception(error)
            handed[future] = cell
            future.add_done_callback(done.put)

    has_failed = False
    try:
        hand_over(most)
        while handed:
            future = done.get()
            cell, fault = handed.pop(future), _fault(future)
            has_failed = has_failed or fault is not None
            yield cell, future.result() if fault is None else fault
            if not has_failed:
                hand_over(1)
    finally:
        for future in handed:
            future.cancel()


def _fault(future: Future[Row]) -> BaseException | None:
    """Why there is no row; None if there is one."""
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _in_executor(cells: Iterable[Cell], executor: Executor) -> Iterator[Row]:
    lost: list[tuple[Cell, BaseException]] = []
    try:
        for cell, outcome in outcomes(iter(cells), executor):
            if isinstance(outcome, BaseException):
                lost.append((cell, outcome))
            else:
                yield outcome
    except RuntimeError as error:  # what was shut down, or broke, takes no more
        raise StudyStopped(f"the executor takes no cells: {error}") from error
    if lost:
        cell, fault = lost[0]
        why = f"{type(fault).__name__}: {fault}"
        raise StudyStopped(f"the executor failed for {len(lost)} cells, first for {cell.label}: {why}") from fault


# ---- a pool of one's own


def _in_processes(cells: Iterable[Cell], processes: int, is_run: bool) -> Iterator[Row]:
    """The rows as a pool computes them.  If it breaks, those that were handed over are computed again one by one, each
    in a process of its own, so that it is known which of them ends it.
    """
    left = iter(cells)
    while True:
        suspects: list[Cell] = []
        with _pool(processes, is_run) as pool:
            for cell, outcome in _surviving(left, pool, AHEAD * processes):
                if isinstance(outcome, BaseException):
                    suspects.append(cell)
                else:
                    yield outcome
        if not suspects:
            return
        for cell in suspects:
            yield _alone(cell, is_run)


def _surviving(cells: Iterator[Cell], pool: Executor, most: int) -> Iterator[Outcome]:
    """The outcomes, of which one may be that the pool broke; other exceptions are raised."""
    for cell, outcome in outcomes(cells, pool, most):
        if isinstance(outcome, BaseException) and not isinstance(outcome, BrokenExecutor):
            raise outcome
        yield cell, outcome


def _alone(cell: Cell, is_run: bool) -> Row:
    with _pool(1, is_run) as pool:
        try:
            return pool.submit(compute, cell).result()
        except BrokenExecutor:
            return failed_row(cell, KILLED)


@contextmanager
def _pool(processes: int, is_run: bool) -> Iterator[Executor]:
    """A pool of new processes, which end with this one.  On leaving early, cells that have not begun are forgotten."""
    context = get_context("spawn")
    count = context.Value("i", 0)
    pool = ProcessPoolExecutor(processes, context, _begin, (count, processes if is_run else 0))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(count: Any, shares: int) -> None:
    """Begin a process of a pool: Ctrl-C ends it, and so does the end of the process that made it.

    shares  how many processes share the processors, each with its own; 0: all may use all
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    there = sorted(processors())
    with count.get_lock():
        number, count.value = count.value, count.value + 1
    if shares and there:
        each = len(there) // shares
        first = number % shares * each
        os.sched_setaffinity(0, there[first : first + each])


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
