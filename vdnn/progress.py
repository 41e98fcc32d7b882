"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between lines where there is no terminal


@contextmanager
def progress_bar(title: str, total: int, keep: bool = True) -> Iterator[Callable[[str], None]]:
    """Gives a function to call with a short note after each of `total` pieces of work; it writes to standard error.

    keep   whether the bar stays when the work is over, and the last line is said in any case
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(console, title, total, keep)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=not keep) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda note: progress.update(task, advance=1, note=note)


def _lines(console: Console, title: str, total: int, keep: bool) -> Callable[[str], None]:
    done, said = 0, time.monotonic()

    def advance(note: str) -> None:
        nonlocal done, said
        done += 1
        if (done == total and keep) or time.monotonic() - said >= EVERY:
            said = time.monotonic()
            console.print(f"{title}: {done}/{total}, {note}", highlight=False, soft_wrap=True)

    return advance
