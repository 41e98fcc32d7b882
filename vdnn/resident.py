"""The resident set of the whole process: what is planned of it, and what the system says it was."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vdnn.memory.device import Device

STATUS = Path("/proc/self/status")
SCRATCH = 16 << 20  # bytes that each thread may touch besides: its stack, and what a BLAS packs matrices into


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not say."""
    return _status("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most that it ever held; None where the system does not say."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
    return None


@dataclass(frozen=True)
class Resident:
    """What this process was planned to hold at most, bytes.

    before    what it held before its slabs were taken: interpreter, libraries, plans, and data that were loaded by then
    arena     the device slab, where that is main memory
    host      the host slab, as far as training uses it; `gradients` needs more
    staging   for what goes to disk and is not aligned
    scratch   what threads touch besides: an estimate

    To save a checkpoint takes as much again as the weights and what stays with them, for a moment.
    """

    before: int
    arena: int
    host: int
    staging: int
    scratch: int

    @classmethod
    def of(cls, device: Device, before: int, host_bytes: int) -> Resident:
        """That of a process which held `before` bytes when this device took its slabs; training uses so many of the
        host's.
        """
        arena, host, staging = device.resident_bytes
        return cls(before, arena, min(host, host_bytes), staging, SCRATCH * device.kernels.threads)

    @property
    def planned(self) -> int:
        """All of it: the most that training is to hold."""
        return self.before + self.arena + self.host + self.staging + self.scratch

    @property
    def measured(self) -> int | None:
        """The most that this process has held so far, whatever it was doing; None where the system does not say."""
        return peak_resident_bytes()
