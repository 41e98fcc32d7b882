"""A study that is killed in the middle gives the table of one that was not, in processes and through MPI.

    python experiments/study.py [--mpi]     # 240 cells, about a minute of two cores for each way; results/study.csv

studies/offload_or_rerun.toml is computed without interruption; then again, killed by SIGKILL with all its processes
when a third of its rows are there and when two thirds are, and resumed; with --mpi a third time by mpiexec on two
processes, killed and resumed likewise.  All figures are *simulated*.  Exit status 1 if a table differs in a byte, if a
row that was there was computed again, or if a study ended before it was killed.
"""

from __future__ import annotations

import csv
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import click
import record

from vdnn.studies.results import CELLS, TABLE
from vdnn.tables import render

STUDY = Path(__file__).parent / "studies" / "offload_or_rerun.toml"
PROCESSES = (sys.executable, "-m", "vdnn", "study", "--json")
MPI = (
    str(Path(sys.executable).parent / "mpiexec"),
    "-n",
    "2",
    sys.executable,
    "-m",
    "mpi4py.futures",
    *PROCESSES[1:],
    "--mpi",
)
KEPT = (
    *("network", "policy", "budget", "hardware", "status", "floor_bytes", "budget_bytes", "arena_bytes"),
    *("step_seconds_simulated", "oracle_seconds_simulated", "step_over_oracle_simulated"),
)


def rows_there(folder: Path) -> list[bytes]:
    """The whole lines of rows in a folder of results."""
    path = folder / CELLS
    return path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []


def run(command: Sequence[str], study: Path, folder: Path, kill_at: int | None = None) -> bool:
    """Compute a study; whether it ended well.  With `kill_at`, its process group is killed once so many rows are there.

    Raises RuntimeError if it ended before.
    """
    process = subprocess.Popen([*command, str(study), "--out", str(folder)], stdout=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    while kill_at is not None and len(rows_there(folder)) < kill_at:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with status {process.returncode} before {kill_at} rows were there")
        time.sleep(0.01)
    if kill_at is not None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == 0


def killed_twice(command: Sequence[str], study: Path, folder: Path, cells: int) -> Iterator[str]:
    """Compute a study that is killed at a third and at two thirds of its rows; what went wrong."""
    whole: list[bytes] = []
    for kill_at in (cells // 3, 2 * cells // 3, None):
        ended_well = run(command, study, folder, kill_at)
        there = rows_there(folder)
        if there[: len(whole)] != whole:
            yield f"rows that were there when it was killed are others after {kill_at or 'all'}"
        whole = [line for line in there if line.endswith(b"\n")]
        click.echo(f"  {len(whole)} rows {'when it was killed' if kill_at else 'in the end'}")
    if not ended_well or len(whole) != cells:
        yield f"{len(whole)} rows for {cells} cells: some were computed twice, or never"


def summary(table: Path) -> str:
    """The median of step over oracle of each policy, by budget and hardware, where it fits."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "fits"]
    policies, machines = (list(dict.fromkeys(row[k] for row in rows)) for k in ("policy", "hardware"))
    lines = []
    for budget, policy in itertools.product(dict.fromkeys(row["budget"] for row in rows), policies):
        found = {machine: [] for machine in machines}
        for row in rows:
            if (row["budget"], row["policy"]) == (budget, policy):
                found[row["hardware"]].append(float(row["step_over_oracle_simulated"]))
        lines.append([budget, policy, *(f"{median(f):.2f} ({len(f)})" if f else "none" for f in found.values())])
    return render("step over oracle, simulated: median (networks)", ["budget", "policy", *machines], lines, None)


@click.command()
@click.option("--mpi", is_flag=True, help="Through MPI as well, by mpiexec beside this Python.")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, help="Another study; writes no file.")
def main(mpi: bool, study: Path) -> None:
    """Compute the study whole and killed, compare, and write results/study.csv."""
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        click.echo("without interruption")
        if not run(PROCESSES, study, whole):
            raise SystemExit("the study failed")
        expected = (whole / TABLE).read_bytes()
        for way, command in {"processes": PROCESSES, **({"mpi": MPI} if mpi else {})}.items():
            click.echo(f"killed and resumed, {way}")
            wrong += [
                f"{way}: {fault}" for fault in killed_twice(command, study, Path(name) / way, len(rows_there(whole)))
            ]
            same = (Path(name) / way / TABLE).read_bytes() == expected
            click.echo(f"  the table is {'the same' if same else 'ANOTHER'}, {len(expected)} bytes")
            wrong += [] if same else [f"{way}: the table differs"]
        click.echo(summary(whole / TABLE))
        if study == STUDY and not wrong:
            rows = list(csv.DictReader(expected.decode().splitlines()))
            record.write(record.RESULTS / "study.csv", KEPT, ([row[k] for k in KEPT] for row in rows), "simulated")
    for fault in wrong:
        click.echo(f"wrong: {fault}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
