"""What made results: versions, machine, commits; and digests of the code that they depend on."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vdnn
from vdnn.kernels.numpy.threads import available_threads
from vdnn.memory.op_times import processor
from vdnn.studies.grid import Study

PACKAGES = ("numpy", "scipy", "numba", "mpi4py", "dask")  # those that computing may use, where they are
LETTERS = 12  # of a digest


def made_by(folder: Path) -> dict[str, Any]:
    """Facts of this process: when it began, versions, the machine, the commits of vdnn and of what is in `folder`."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "commits": {"vdnn": commit(Path(vdnn.__file__).parent), "study": commit(folder)},
    }


def versions() -> dict[str, str]:
    """Of vdnn, Python, and of packages that are installed."""
    found = {"vdnn": vdnn.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """The system, the processor and how much there is of each."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": available_threads(),
        "memory_bytes": memory,
    }


def commit(folder: Path) -> str | None:
    """The commit of the repository that a folder is in, "-dirty" where files were changed; None if it is in none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError):
        said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        return said.stdout.strip() or None if said.returncode == 0 else None
    return None


def sources(study: Study) -> dict[str, str]:
    """{module: a digest} of the code that the rows of a study depend on: vdnn's, and that of module:function."""
    package = Path(vdnn.__file__).parent
    files = sorted((*package.rglob("*.py"), *package.rglob("*.json"), *package.rglob("*.npz")))
    found = {"vdnn": _digest([(str(file.relative_to(package)), file) for file in files])}
    for module in sorted({_module(cell.settings[key]) for cell in study.cells for key in ("network", "policy")}):
        spec = importlib.util.find_spec(module) if module else None
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            found[module] = _digest([(module, Path(spec.origin))])
    return found


def _module(name: str) -> str:
    module, colon, _ = name.partition(":")
    return module if colon else ""


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:LETTERS]
