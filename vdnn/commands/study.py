"""`vdnn study` computes a grid of networks, batches, policies, budgets and hardware, and goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import INTERRUPTED, leave, refuse_given

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from vdnn.studies import Study, StudyResult

IDLE = "has no effect with {}, which computes nothing"
START_MPI = "mpiexec -n 2 python -m mpi4py.futures -m vdnn study STUDY.toml --mpi"
EXAMPLE = """\b
    title = "Which policy, in how much memory?"
    mode = "simulate"                        # or "plan": bytes only; or "run": real steps on this machine
    network = ["alexnet", "vgg16"]           # a list is an axis of the grid
    batch = [32, 64]
    policy = ["vdnn_all", "capuchin"]
    budget = ["keep_all", "floor+25%"]
    hardware = ["titan-x", "h100-sxm"]
    optimizer = "sgd"
    [[exclude]]                              # no such cells
    network = "vgg16"
    batch = 64
    [[include]]                              # and these as well
    network = "resnet50"
    batch = 16
"""


@click.command(
    short_help="Compute a grid of networks, policies, budgets and more.",
    help=f"""Compute all cells of the grid in STUDY.toml, such as

    {EXAMPLE}

    Each row is added to a file as it comes: the same command goes on after whatever ended it.  A cell that does not
    fit, or fails, has a row that says so.  --keys lists all keys.

    Exit status: 0 done; 1 a cell failed, or the executor did; 2 the study is wrong, or the results are another's; 3
    nothing fits; 130 Ctrl-C.""",
)
@click.argument("path", metavar="STUDY.toml", type=click.Path(dir_okay=False), required=False)
@click.option("--out", type=click.Path(file_okay=False), help="Folder of results.  [default: STUDY.results beside it]")
@click.option("--processes", type=int, help="Cells computed at a time.  [default: all cores; where steps are run 1]")
@click.option("--mpi", is_flag=True, help=f"Compute by MPI: {START_MPI}")
@click.option("--fresh", is_flag=True, help="Forget results that are there.")
@click.option("--retry", is_flag=True, help="Compute cells again that failed.")
@click.option("--list", "only_list", is_flag=True, help="List the cells, with every default, and compute none.")
@click.option("--keys", is_flag=True, help="List the keys of a study, and what they are by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def study(
    path: str | None,
    out: str | None,
    processes: int | None,
    mpi: bool,
    fresh: bool,
    retry: bool,
    only_list: bool,
    keys: bool,
    as_json: bool,
) -> None:
    """Compute a study (see above)."""
    if keys:
        refuse_given(lambda name: name != "keys", IDLE.format("--keys"))
        click.echo(_keys(), nl=False)
        return
    if only_list:
        refuse_given(lambda name: name in ("out", "fresh", "retry"), IDLE.format("--list"))
    if path is None:
        raise click.UsageError("Missing argument 'STUDY.toml'")
    if mpi and processes is not None:
        raise click.UsageError("--processes is for this machine's own; mpiexec -n says how many --mpi has")
    with _failures(), _executor(mpi) as (is_worker, executor):
        if is_worker:
            return
        from vdnn.studies import load

        if executor is None and processes is None:
            processes = _default_processes(path)
        if only_list:
            click.echo(_listed(load(path, executor, processes), as_json), nl=False)
            return
        import vdnn

        found = vdnn.study(path, out=out, executor=executor, processes=processes, fresh=fresh, retry=retry)
    click.echo(found.to_json() if as_json else found.table(), nl=False)
    _leave(found)


@contextmanager
def _failures() -> Iterator[None]:
    from vdnn.studies import StudyError, StudyStopped

    try:
        yield
    except (OSError, StudyError) as error:
        said = str(error).replace("fresh and retry", "--fresh and --retry")
        raise click.UsageError(said) from error
    except StudyStopped as error:
        raise click.ClickException(f"{error}\nwhat was computed is kept; the same command goes on") from error
    except KeyboardInterrupt:
        leave("stopped; what was computed is kept, and the same command goes on", INTERRUPTED)


@contextmanager
def _executor(mpi: bool) -> Iterator[tuple[bool, Executor | None]]:
    """(whether this process only computes cells for another, the executor of MPI or None)."""
    if not mpi:
        yield False, None
        return
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:  # the latter where mpi4py finds no MPI
        raise click.ClickException(f"--mpi needs mpi4py and an MPI: pip install 'vdnn[mpi]' mpich ({error})") from error
    if MPI.COMM_WORLD.Get_size() == 1:
        raise click.UsageError(f"--mpi: there is one process, and it takes two; start them with\n  {START_MPI}")
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield executor is None, executor  # type: ignore[misc,unused-ignore]  # typed only where mpi4py is installed


def _default_processes(path: str) -> int:
    """As many processes as cores; 1 where steps are run, which then have all cores."""
    from vdnn.kernels.numpy.threads import available_threads
    from vdnn.studies import load

    return 1 if load(path, processes=1).mode == "run" else available_threads()


def _leave(found: StudyResult) -> None:
    from vdnn.studies.result import first_failures

    counts = found.counts
    if counts["failed"]:
        leave(f"{counts['failed']} cells failed\n{first_failures(found.rows)}", 1)
    leave("" if counts["fits"] else "nothing fits")


# ---- what there is


def _keys() -> str:
    from vdnn.studies.keys import KEYS, MODES
    from vdnn.tables import render

    said = {"kernels": "numpy; cudnn4 by rules paper", "threads": "all cores", "learning_rate": "the optimizer's"}
    said |= {"network": "", "fast": "whether there is Numba", "jitter": "none"}
    said |= {"rewrites": "those of any policy of the study"}
    lines = [
        [name, _toml(key.default) if name not in said else said[name], _modes(key.modes, MODES), key.about]
        for name, key in KEYS.items()
    ]
    title = "keys of a study's cells; besides these there are title, mode, [[include]] and [[exclude]]"
    return render(title, ("key", "default", "modes", "what"), lines, None)


def _modes(modes: tuple[str, ...], every: tuple[str, ...]) -> str:
    return "all" if modes == every else ", ".join(modes)


def _toml(value: Any) -> str:
    return json.dumps(value)


def _listed(made: Study, as_json: bool) -> str:
    """The cells of a study, with every default."""
    from vdnn.tables import render

    if as_json:
        return json.dumps([dict(cell.settings) for cell in made.cells], indent=1) + "\n"
    common = ", ".join(f"{k} {v}" for k, v in made.common.items() if v is not None)
    columns = [name.replace("_", " ") for name in made.varying]
    lines = [
        [str(cell.index), *("" if (v := cell.settings[k]) is None else str(v) for k in made.varying)]
        for cell in made.cells
    ]
    title = f"{made.title}: {len(made.cells)} cells to {made.mode}\n{common}"
    return f"{title}\n\n{render('', ['cell', *columns], lines, None)}"
