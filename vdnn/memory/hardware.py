"""Figures of hardware: arithmetic, memory and link, from hardware.json; and what things at one time cost each other."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from numbers import Real
from typing import Any

from vdnn.naming import among
from vdnn.tape import Op, Tape


class CostError(ValueError):
    """Unknown hardware, figures that cannot be, or ops that have no time."""


def require(holds: bool, name: str, value: Any, what: str) -> None:
    """Nothing.  Raises CostError "`name` is `value`: not `what`" unless `holds`."""
    if not holds:
        raise CostError(f"{name} is {value!r}: not {what}")


def require_bytes(memory: Any) -> None:
    """Nothing.  Raises CostError unless that may be the size of a device's memory."""
    whole = isinstance(memory, int) and not isinstance(memory, bool)
    require(whole and memory > 0, "memory_bytes", memory, "a number of bytes")


def is_number(value: Any) -> bool:
    """Whether that is a real number; True, False and NaN are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


@dataclass(frozen=True)
class Contention:
    """How what runs at one time slows each other; as it is by default, not at all.  Latencies are never slowed.

    duplex            whether both directions of the link run at full rate at once; if not, copies that run at one time
                      share it evenly
    link_share        the share of the link that is ours while other devices use it too: above 0, at most 1
    compute_slowdown  the share of its rate that compute loses while a copy runs: at least 0, below 1
    copy_slowdown     the share of its rate that a copy loses while compute runs: at least 0, below 1

    Raises CostError for anything else.
    """

    duplex: bool = True
    link_share: float = 1.0
    compute_slowdown: float = 0.0
    copy_slowdown: float = 0.0

    def __post_init__(self) -> None:
        require(isinstance(self.duplex, bool), "duplex", self.duplex, "true or false")
        share = self.link_share
        require(is_number(share) and 0 < share <= 1, "link_share", share, "a number above 0 and at most 1")
        for name in ("compute_slowdown", "copy_slowdown"):
            lost = getattr(self, name)
            require(is_number(lost) and 0 <= lost < 1, name, lost, "a number of at least 0 and below 1")


@dataclass(frozen=True)
class Copies:
    """A link, or a drive with a spill file, as it was measured: its rate each way (a drive's of writing and of
    reading), and the seconds that a copy of next to nothing takes.

    Raises CostError for what is no rate or no time.
    """

    offload_bytes_per_second: float
    prefetch_bytes_per_second: float
    latency_seconds: float

    def __post_init__(self) -> None:
        for name in ("offload_bytes_per_second", "prefetch_bytes_per_second"):
            rate = getattr(self, name)
            require(is_number(rate) and 0 < rate < float("inf"), name, rate, "a number of bytes per second")
        latency = self.latency_seconds
        require(is_number(latency) and 0 <= latency < float("inf"), "latency_seconds", latency, "a number of seconds")

    def seconds(self, nbytes: int, kind: str) -> float:
        """Seconds to copy `nbytes`; `kind` is offload or prefetch."""
        bandwidth = self.offload_bytes_per_second if kind == "offload" else self.prefetch_bytes_per_second
        return nbytes / bandwidth + self.latency_seconds


@dataclass(frozen=True)
class Roofline:
    """An op takes as long as its arithmetic or its memory traffic, whichever is longer, plus its launch or launches.

    seconds = max(flops / (rate flops_per_second), bytes / bytes_per_second) / attained + launches launch_seconds, where
    rate is the algorithm's and bytes are those of all that the op reads and writes; workspaces are taken to stay in
    caches.
    flops_per_second is that of plain fp32 arithmetic, in which everything is computed here; tensor cores do not count.

    A copy takes copy_latency_seconds and its bytes at the rate of its direction, offload being device to host; `duplex`
    says whether both directions run at full rate at once.  A copy to or from the spill file takes disk_latency_seconds
    and its bytes at the drive's rate, all the way from the device or to it.  Raises CostError for figures that cannot
    be.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    attained: float
    offload_bytes_per_second: float
    prefetch_bytes_per_second: float
    launch_seconds: float
    copy_latency_seconds: float
    memory_bytes: int
    duplex: bool = True
    disk_write_bytes_per_second: float = 1.8e9  # of the host in hardware.json, as its source there says
    disk_read_bytes_per_second: float = 3.2e9
    disk_latency_seconds: float = 1e-4

    def __post_init__(self) -> None:
        for name in _RATES:
            value = getattr(self, name)
            require(is_number(value) and value > 0, name, value, "a number above 0")
        for name in ("launch_seconds", "copy_latency_seconds", "disk_latency_seconds"):
            value = getattr(self, name)
            require(is_number(value) and 0 <= value < float("inf"), name, value, "a number of seconds")
        require_bytes(self.memory_bytes)
        require(isinstance(self.duplex, bool), "duplex", self.duplex, "true or false")

    @property
    def contention(self) -> Contention | None:
        """That of a link whose directions share its rate; else None."""
        return None if self.duplex else Contention(duplex=False)

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds that `op` takes by the algorithm of that name."""
        moved = sum(tape.tensors[name].nbytes for name in (*op.reads, *op.writes))
        arithmetic = op.flops / (op.algorithm(algorithm).rate * self.flops_per_second)
        return max(arithmetic, moved / self.bytes_per_second) / self.attained + op.launches * self.launch_seconds

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes`; `kind` is offload (to the host) or prefetch (back), `tier` host or disk."""
        if tier == "disk":
            rate = self.disk_write_bytes_per_second if kind == "offload" else self.disk_read_bytes_per_second
            return nbytes / rate + self.disk_latency_seconds
        bandwidth = self.offload_bytes_per_second if kind == "offload" else self.prefetch_bytes_per_second
        return nbytes / bandwidth + self.copy_latency_seconds


_RATES = (
    "flops_per_second",
    "bytes_per_second",
    "attained",
    "offload_bytes_per_second",
    "prefetch_bytes_per_second",
    "disk_write_bytes_per_second",
    "disk_read_bytes_per_second",
)


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("vdnn.memory").joinpath("hardware.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def hardware_table() -> dict[str, dict[str, Any]]:
    """All figures: {hardware: {field of Roofline: {"value", "source"}, "description": text}}; a copy of one's own."""
    return deepcopy(_table())


def hardware_names() -> tuple[str, ...]:
    """Hardware whose figures are known."""
    return tuple(_table())


def roofline(hardware: str = "titan-x", **figures: Any) -> Roofline:
    """The cost model of that hardware, from hardware.json, with the given fields of Roofline in place of its own.

    Raises CostError with the closest names for hardware or a field that there is not, and for figures that cannot be.
    """
    if hardware not in _table():
        raise CostError(f"no hardware is named {hardware!r}{among(hardware, _table())}")
    known = {"name": hardware} | {k: v["value"] for k, v in _table()[hardware].items() if k != "description"}
    for name in figures:
        if name not in known:
            raise CostError(f"{hardware} has no figure {name!r}{among(name, known)}")
    return Roofline(**(known | figures))
