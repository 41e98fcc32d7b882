"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between lines where there is no terminal


class Advance(Protocol):
    """What a piece of work that is done, or how it stands, is told."""

    def __call__(self, note: str, pieces: int = 1, /) -> None:
        """Take a note of so many pieces, 1 or 0."""


@contextmanager
def status_line(title: str) -> Iterator[Callable[[str], None]]:
    """Gives a function to call with a short note of how work stands, of which nobody knows how much there is.

    The last note is a line on standard error as long as the work takes; nothing where that is no terminal.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda note: None
        return
    with console.status(escape(title)) as status:
        yield lambda note: status.update(escape(f"{title}: {note}"))


@contextmanager
def progress_bar(title: str, total: int, keep: bool = True) -> Iterator[Advance]:
    """Gives a function to call with a short note after each of `total` pieces of work; it writes to standard error.

    Called with a note and 0 it says how the next one stands, on a terminal.
    keep   whether the bar stays when the work is over, and the last line is said in any case
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(console, title, total, keep)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=not keep) as progress:
        task = progress.add_task(escape(title), total=total, note="")
        yield lambda note, pieces=1: progress.update(task, advance=pieces, note=escape(note))


def _lines(console: Console, title: str, total: int, keep: bool) -> Advance:
    done, began = 0, time.monotonic()
    said = began

    def advance(note: str, pieces: int = 1) -> None:
        nonlocal done, said
        done += pieces
        if pieces and ((done == total and keep) or time.monotonic() - said >= EVERY):
            said = time.monotonic()
            left = timedelta(seconds=round((said - began) * (total - done) / done))
            said_now = f"{title}: {done}/{total}, about {left} left, {note}"
            console.print(said_now, highlight=False, markup=False, soft_wrap=True)

    return advance
