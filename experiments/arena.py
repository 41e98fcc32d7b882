"""The arena: `search` against every published policy, on the same tapes, costs, budgets and layout.

    python experiments/arena.py [--processes 2]     # about two hours of one core; results/arena*.csv and .png
    python experiments/arena.py --report            # tables, checks and pictures from results/arena.csv alone

Fifteen networks (the paper's ten, and five wider ones), four machines, five budgets between the floor, which no policy
undercuts, and the arena of keep_all.  Everything is *simulated*: steps by the cost model of the machine, with cuDNN 4's
kernels; planning seconds are measured.  What is left out of each published system says its policy's text.

Each network on each machine is a part.  Parts are written one by one to a working folder, so that a run that was
interrupted goes on where it was; one made by other code, or with other seconds, is never taken for one of these.

Exit status 1 if somewhere `search` is slower than a policy that fits, or fits not where another does, if a bound is
above a plan, if the median gap to the bound is above its limit, or if a part failed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

import arena_cells
import arena_report
import click
import record
from arena_cells import COLUMNS, HARDWARE, NETWORKS, Pair, Row

import vdnn
from vdnn.progress import progress_bar

QUICK = ((("alexnet", 128), "titan-x"), (("googlenet", 128), "h100-sxm"))

Part = tuple[Pair, str]


def label(part: Part) -> str:
    """A part's name: vgg19-64/titan-x."""
    (name, batch), hardware = part
    return f"{name}-{batch}/{hardware}"


def wanted(only: Sequence[str]) -> list[Part]:
    """The parts that one of the patterns names, as vgg19/titan-x, vgg19-64/* or */v100; all without a pattern.

    Raises click.BadParameter for a pattern that names none.
    """
    parts = [(pair, hardware) for pair in NETWORKS for hardware in HARDWARE]
    chosen = {pattern: [p for p in parts if _is_named(p, pattern)] for pattern in only}
    for pattern, found in chosen.items():
        if not found:
            raise click.BadParameter(f"{pattern!r} names no part; there are {', '.join(map(label, parts))}")
    return [p for p in parts if not only or any(p in found for found in chosen.values())]


def _is_named(part: Part, pattern: str) -> bool:
    (name, _), hardware = part
    return fnmatch(label(part), pattern) or fnmatch(f"{name}/{hardware}", pattern)


def fingerprint() -> str:
    """Eight letters that change with the sources of vdnn and of the cells, and with the figures of hardware."""
    digest = hashlib.sha256()
    root = Path(vdnn.__file__).parent
    sources = [*root.rglob("*.py"), *root.rglob("*.json"), Path(arena_cells.__file__)]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def plan_part(part: Part, seconds: float, folder: Path) -> str:
    """The part's name, when its rows are written to the folder; that is done at once or not at all."""
    rows = arena_cells.part(*part, seconds)
    path = path_of(part, folder)
    unfinished = path.with_suffix(".unfinished")
    record.write(unfinished, COLUMNS, (row.cells() for row in rows))
    unfinished.replace(path)
    return label(part)


def path_of(part: Part, folder: Path) -> Path:
    """Where a part is kept."""
    return folder / f"{label(part).replace('/', '-')}.csv"


def plan_parts(parts: Sequence[Part], seconds: float, folder: Path, processes: int) -> list[str]:
    """Plan the parts that the folder has not got; what failed, in words."""
    missing = [part for part in parts if not path_of(part, folder).exists()]
    failed = []
    with progress_bar(f"arena, {len(parts) - len(missing)} parts there", len(missing)) as advance:
        for part, finish in _running(missing, seconds, folder, processes):
            try:
                advance(finish())
            except Exception as error:
                advance(f"{label(part)} failed")
                failed.append(f"{label(part)}: {error!r}, {', '.join(getattr(error, '__notes__', ()))}")
    return failed


def _running(
    parts: Sequence[Part], seconds: float, folder: Path, processes: int
) -> Iterator[tuple[Part, Callable[[], str]]]:
    """(part, function that returns when it is there, or raises), as they get there."""
    if processes == 1:
        for part in parts:
            yield part, lambda part=part: plan_part(part, seconds, folder)  # type: ignore[misc]
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(plan_part, part, seconds, folder): part for part in parts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result
        finally:
            pool.shutdown(cancel_futures=True)


def merged(parts: Sequence[Part], folder: Path) -> list[Row]:
    """The rows of all parts that are there, in the order of the parts."""
    paths = [path_of(part, folder) for part in parts]
    return [row for path in paths if path.exists() for row in arena_report.read(path)]


@click.command()
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Parts planned at one time.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(0), help="Of each search.")
@click.option("--only", multiple=True, help="NETWORK/HARDWARE, with * for any; writes no file unless --out.")
@click.option("--quick", is_flag=True, help="Two parts, searches of a second; writes no file unless --out.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of parts  [default: a temporary one by code]")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/arena.csv]")
@click.option("--report", is_flag=True, help="Plan nothing: summary, checks and pictures of the file that is there.")
def main(
    processes: int,
    seconds: float,
    only: tuple[str, ...],
    quick: bool,
    work: Path | None,
    out: Path | None,
    report: bool,
) -> None:
    """Plan and simulate all cells that are missing; print the tables, check them, draw them."""
    path = out or record.RESULTS / "arena.csv"
    if report:
        raise SystemExit(bool(arena_report.report(arena_report.read(path), path)))
    seconds = min(seconds, 1.0) if quick else seconds
    parts = list(QUICK) if quick else wanted(only)
    folder = work or Path(tempfile.gettempdir()) / f"vdnn-arena-{fingerprint()}-{seconds:g}s"
    failed = plan_parts(parts, seconds, folder, processes)
    rows = merged(parts, folder)
    is_written = bool(out) or not (only or quick)
    if is_written and rows:
        record.write(path, COLUMNS, (row.cells() for row in rows), f"searches of {seconds:g} s", "simulated")
    for reason in failed:
        click.echo(f"failed: {reason}")
    wrong = arena_report.report(rows, path if is_written else None) if rows else []
    raise SystemExit(bool(failed or wrong))


if __name__ == "__main__":
    main()
