"""A real limit on the memory of a child process: a control group's where one can be made, else RLIMIT_DATA.

cgroup       version 2: memory.max of a group of its own, without swap.  What the system counts is RAM, and a process
             that wants more is killed.
RLIMIT_DATA  what a process may map to write to and does not share, touched or not: memory of malloc and of NumPy's
             arrays, not files nor libraries' code.  What goes beyond fails as an allocation, so that PyTorch says so.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Limit:
    """`nbytes` for a process that calls `enter`; `group` is the control group's folder, "" where there is none."""

    nbytes: int
    group: str = ""

    @property
    def kind(self) -> str:
        """What enforces it."""
        return "cgroup" if self.group else "RLIMIT_DATA"

    def enter(self) -> None:
        """Put this process, and what it starts, under the limit; a process cannot leave it."""
        if self.group:
            (Path(self.group) / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (self.nbytes, self.nbytes))


def own_group(text: str) -> Path | None:
    """The folder of this process's group, from the text of /proc/self/cgroup; None without version 2's own line."""
    for line in text.splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return CGROUPS / path.lstrip("/")
    return None


@contextmanager
def limited(nbytes: int, kind: str = "any") -> Iterator[Limit]:
    """A limit to give to a child; its control group, if it has one, is removed when the block ends.

    kind  "any", "cgroup", or "rlimit".  Raises OSError for "cgroup" where no group can be made.
    """
    if kind not in ("any", "cgroup", "rlimit"):
        raise ValueError(f"limit {kind!r} is none of any, cgroup, rlimit")
    group = None if kind == "rlimit" else _new_group(nbytes)
    if group is None:
        if kind == "cgroup":
            raise OSError(f"no control group with a limit on memory can be made under {CGROUPS}")
        yield Limit(nbytes)
        return
    try:
        yield Limit(nbytes, str(group))
    finally:
        with suppress(OSError):  # a process of it that has not ended keeps it
            group.rmdir()


def _new_group(nbytes: int) -> Path | None:
    """A group with that limit below this process's own; None where there cannot be one."""
    try:
        parent = own_group(OWN.read_text())
        if parent is None or not (parent / "cgroup.controllers").exists():
            return None
        group = parent / f"vdnn-bench-{os.getpid()}"
        group.mkdir()
    except OSError:
        return None
    try:
        (group / "memory.max").write_text(str(nbytes))
        with suppress(OSError):  # where there is no swap there is no such file
            (group / "memory.swap.max").write_text("0")
    except OSError:
        group.rmdir()
        return None
    return group
