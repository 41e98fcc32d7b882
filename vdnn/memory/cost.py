"""Cost: seconds that an op or a copy takes, from the figures of some hardware or from a table of measured times."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from vdnn.tape import Op, Tape


class CostError(ValueError):
    """Unknown hardware, or ops that have no time."""


class Cost(Protocol):
    """What the simulator, and policies that weigh time, ask."""

    @property
    def name(self) -> str:
        """The hardware, or where the times come from."""

    @property
    def memory_bytes(self) -> int:
        """Device memory: the budget unless one is given."""

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds that `op` takes by the algorithm of that name."""

    def copy_seconds(self, nbytes: int, kind: str) -> float:
        """Seconds to copy `nbytes`; `kind` is offload (device to host) or prefetch (host to device)."""


@dataclass(frozen=True)
class Roofline:
    """An op takes as long as its arithmetic or its memory traffic, whichever is longer, plus a launch.

    seconds = max(flops / (rate flops_per_second), bytes / bytes_per_second) / attained + launch_seconds, where rate is
    the algorithm's and bytes are those of all that the op reads and writes; workspaces are taken to stay in caches.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    attained: float
    copy_bytes_per_second: float
    launch_seconds: float
    copy_latency_seconds: float
    memory_bytes: int

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds that `op` takes by the algorithm of that name."""
        moved = sum(tape.tensors[name].nbytes for name in (*op.reads, *op.writes))
        arithmetic = op.flops / (op.algorithm(algorithm).rate * self.flops_per_second)
        return max(arithmetic, moved / self.bytes_per_second) / self.attained + self.launch_seconds

    def copy_seconds(self, nbytes: int, kind: str) -> float:
        """Seconds to copy `nbytes` either way."""
        return nbytes / self.copy_bytes_per_second + self.copy_latency_seconds


CORES = {70: 64, 72: 64, 75: 64, 80: 64, 86: 128, 87: 128, 89: 128, 90: 128, 100: 128, 103: 128, 120: 128, 121: 128}
ATTAINED = 0.8  # of the published rates: supposed, for ops that are not measured, and that memory bounds


@dataclass(frozen=True)
class DeviceCost:
    """Times on the very device that runs the plan: convolutions as cuDNN's search measured them on it, copies as the
    link was measured, all else by the device's published rates.
    """

    rates: Roofline
    offload_bytes_per_second: float
    prefetch_bytes_per_second: float

    @classmethod
    def of(cls, about: Mapping[str, Any], link: Any) -> DeviceCost:
        """From what a driver says of its device (see CupyDriver.describe), and a measured link."""
        cores = CORES.get(about["compute_capability"], 128) * about["multiprocessors"]
        rates = Roofline(
            name=about["name"],
            flops_per_second=2.0 * cores * about["clock_hertz"],
            bytes_per_second=about["memory_bytes_per_second"],
            attained=ATTAINED,
            copy_bytes_per_second=min(link.offload, link.prefetch),
            launch_seconds=3e-6,
            copy_latency_seconds=link.latency,
            memory_bytes=about["memory_bytes"],
        )
        return cls(rates, link.offload, link.prefetch)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.rates.name

    @property
    def memory_bytes(self) -> int:
        """All memory of the device."""
        return self.rates.memory_bytes

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """As measured, if the algorithm says; else by the rates."""
        return op.algorithm(algorithm).seconds or self.rates.op_seconds(tape, op, algorithm)

    def copy_seconds(self, nbytes: int, kind: str) -> float:
        """Seconds to copy `nbytes` that way."""
        bandwidth = self.offload_bytes_per_second if kind == "offload" else self.prefetch_bytes_per_second
        return nbytes / bandwidth + self.rates.copy_latency_seconds


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("vdnn.memory").joinpath("hardware.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def hardware_names() -> tuple[str, ...]:
    """Hardware whose figures are known."""
    return tuple(_table())


def roofline(hardware: str = "titan-x") -> Roofline:
    """The cost model of that hardware, from hardware.json.  Raises CostError with the closest names."""
    if hardware not in _table():
        near = difflib.get_close_matches(str(hardware).lower(), _table(), n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise CostError(f"no hardware is named {hardware!r}{hint}; there are {', '.join(_table())}")
    figures = {k: v["value"] for k, v in _table()[hardware].items() if k != "description"}
    return Roofline(hardware, **figures)


@dataclass(frozen=True)
class Measured:
    """Times that were measured, by op's name, or "op by algorithm" where they differ; copies as on `link`."""

    name: str
    seconds: Mapping[str, float]
    link: Cost

    @property
    def memory_bytes(self) -> int:
        """Device memory, that of `link`."""
        return self.link.memory_bytes

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """The measured time.  Raises CostError naming every op of the tape that has none."""
        found = self.seconds.get(f"{op.name} by {algorithm}", self.seconds.get(op.name))
        if found is None:
            timed = {key.partition(" by ")[0] for key in self.seconds}
            missing = [o.name for o in tape.ops if o.name not in timed] or [f"{op.name} by {algorithm}"]
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise CostError(f"{self.name} has no time for {shown}")
        return found

    def copy_seconds(self, nbytes: int, kind: str) -> float:
        """Seconds to copy `nbytes`, as `link` has it."""
        return self.link.copy_seconds(nbytes, kind)

    def to_json(self) -> str:
        """The times as one JSON object that `measured` reads."""
        return json.dumps({"format": "vdnn times 1", "name": self.name, "seconds": dict(self.seconds)}, indent=1)


def measured(table: Mapping[Any, float] | str | Path, link: str | Cost = "titan-x", name: str = "measured") -> Measured:
    """The cost model of a table {op's name or (op's name, algorithm): seconds}, or of the JSON file with one.

    link    hardware, or a cost model, that gives the time of copies and the memory
    Raises CostError for what is no such table.
    """
    if isinstance(table, (str, Path)):
        try:
            data = json.loads(Path(table).read_text(encoding="utf-8"))
            table, name = data["seconds"], data["name"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CostError(f"{table} is no table of times: {type(error).__name__}: {error}") from error
    seconds: dict[str, float] = {}
    for key, value in table.items():  # type: ignore[union-attr]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise CostError(f"{key!r} takes {value!r}: not a number of seconds")
        seconds[key if isinstance(key, str) else " by ".join(key)] = float(value)
    return Measured(name, seconds, roofline(link) if isinstance(link, str) else link)
