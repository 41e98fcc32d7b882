"""What made results: versions, machine, commits; and digests of the code that they depend on."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vdnn
from vdnn.kernels.numpy.threads import available_threads
from vdnn.memory.op_times import processor
from vdnn.plugins import distribution, offered
from vdnn.studies.errors import StudyError
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
    networks, policies = ({cell.settings[key] for cell in study.cells} for key in ("network", "policy"))
    for name in sorted(name for name in networks if name.endswith(".onnx")):
        found[name] = _digest([(name, Path(name))])
    points = [point for name in sorted(policies) for point in offered().get(name, ())]
    found |= {point.name: f"{distribution(point)} {point.value}" for point in points}
    modules = {name.partition(":")[0] for name in networks | policies if ":" in name}
    for module in sorted(modules | {point.module for point in points}):
        found[module] = _digest([(module, _file_of(module))])
    return found


def _file_of(module: str) -> Path:
    """The file of a module.  Raises StudyError if it is in none, as what is typed into a notebook."""
    there = sys.modules.get(module)
    origin = getattr(there, "__file__", None)
    if there is None:
        spec = importlib.util.find_spec(module)
        origin = spec.origin if spec is not None else None
    if not origin or not Path(origin).is_file():
        raise StudyError(f"{module} is no file, so results cannot say which code made them: put it into a module")
    return Path(origin)


def _digest(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:LETTERS]
