"""Results as CSV, under a line that says what made them: commit, date, versions, and what else matters."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import vdnn

RESULTS = Path(__file__).parent / "results"


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *facts: str) -> None:
    """Write rows to `path`, whose folder is made if there is none."""
    commit = _git("describe", "--always")
    if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)experiments/results"):
        commit += "-dirty"
    versions = f"vdnn {vdnn.__version__}", f"Python {platform.python_version()}", f"NumPy {np.__version__}"
    made_by = ", ".join((f"commit {commit or 'unknown'}", str(datetime.date.today()), *versions, *facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {made_by}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip()
