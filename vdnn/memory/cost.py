"""Cost: seconds that an op or a copy takes, from the figures of some hardware or from a table of measured times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vdnn.memory.hardware import Contention as Contention
from vdnn.memory.hardware import Copies as Copies
from vdnn.memory.hardware import CostError as CostError
from vdnn.memory.hardware import Roofline as Roofline
from vdnn.memory.hardware import hardware_names as hardware_names
from vdnn.memory.hardware import hardware_table as hardware_table
from vdnn.memory.hardware import is_number, require, require_bytes
from vdnn.memory.hardware import roofline as roofline
from vdnn.tape import Op, Tape

FORMAT = "vdnn times 1"


class Cost(Protocol):
    """What the simulator, and policies that weigh time, ask.

    A model may also have `contention` (Contention or None) and `launch_seconds`, the part of an op's time that nothing
    slows; the simulator looks for them.
    """

    @property
    def name(self) -> str:
        """The hardware, or where the times come from."""

    @property
    def memory_bytes(self) -> int:
        """Device memory: the budget unless one is given."""

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds that `op` takes by the algorithm of that name."""

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes`; `kind` is offload (from the device) or prefetch (to it), `tier` is host (to or from
        host memory) or disk (the spill file).  A model of one's own need not take `tier` where nothing goes to disk.
        """


def copy_of(cost: Cost, nbytes: int, kind: str, tier: str = "") -> float:
    """Seconds of a copy; `tier` as a plan's step has it, "" being host memory."""
    return cost.copy_seconds(nbytes, kind, tier) if tier == "disk" else cost.copy_seconds(nbytes, kind)


@dataclass(frozen=True)
class FastestTier:
    """The same times, but every copy goes where it is the fastest: no plan's copies take less."""

    cost: Cost

    @property
    def name(self) -> str:
        """That of the times."""
        return self.cost.name

    @property
    def memory_bytes(self) -> int:
        """Device memory."""
        return self.cost.memory_bytes

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds that `op` takes."""
        return self.cost.op_seconds(tape, op, algorithm)

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes` that way, whatever the tier."""
        return min(copy_of(self.cost, nbytes, kind, tier) for tier in ("host", "disk"))


def is_measured(cost: Cost, tape: Tape, op: Op, algorithm: str) -> bool:
    """Whether the time of an op was measured on the device that the model is of: its kernels say so, or the model."""
    asked = getattr(cost, "is_measured", None)
    return op.algorithm(algorithm).seconds > 0 or (asked is not None and bool(asked(tape, op, algorithm)))


CORES = {70: 64, 72: 64, 75: 64, 80: 64, 86: 128, 87: 128, 89: 128, 90: 128, 100: 128, 103: 128, 120: 128, 121: 128}
ATTAINED = 0.8  # of the published rates: supposed, for ops that are not measured, and that memory bounds


@dataclass(frozen=True)
class DeviceCost:
    """Times on the very device that runs the plan: convolutions as cuDNN's search measured them on it, copies as the
    link was measured, all else by the device's published rates.
    """

    rates: Roofline

    @classmethod
    def of(cls, about: Mapping[str, Any], link: Any) -> DeviceCost:
        """From what a driver says of its device (see CupyDriver.describe), and a measured link."""
        cores = CORES.get(about["compute_capability"], 128) * about["multiprocessors"]
        rates = Roofline(
            name=about["name"],
            flops_per_second=2.0 * cores * about["clock_hertz"],
            bytes_per_second=about["memory_bytes_per_second"],
            attained=ATTAINED,
            offload_bytes_per_second=link.offload,
            prefetch_bytes_per_second=link.prefetch,
            launch_seconds=3e-6,
            copy_latency_seconds=link.latency,
            memory_bytes=about["memory_bytes"],
        )
        return cls(rates)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.rates.name

    @property
    def memory_bytes(self) -> int:
        """All memory of the device."""
        return self.rates.memory_bytes

    @property
    def offload_bytes_per_second(self) -> float:
        """The link's rate from device to host."""
        return self.rates.offload_bytes_per_second

    @property
    def prefetch_bytes_per_second(self) -> float:
        """The link's rate from host to device."""
        return self.rates.prefetch_bytes_per_second

    @property
    def launch_seconds(self) -> float:
        """The part of an op's time that nothing slows."""
        return self.rates.launch_seconds

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """As measured, if the algorithm says; else by the rates."""
        return op.algorithm(algorithm).seconds or self.rates.op_seconds(tape, op, algorithm)

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes` that way; to or from disk as the rates suppose."""
        return self.rates.copy_seconds(nbytes, kind, tier)


# Facts that must be those of a tape, where they are known
RECORDED = ("network", "batch", "micro_batches", "kernels", "threads")


@dataclass(frozen=True)
class Measured:
    """Times that were measured, by op's name, or "op by algorithm" where they differ.

    link     gives what was not measured: the time of copies, the memory, the contention
    copies   the link as measured, in place of `link`'s
    disk     the drive with the spill file as measured, in place of `link`'s
    memory   bytes of the device, in place of `link`'s
    slowing  what copies and compute at one time cost each other, in place of `link`'s contention
    about    facts in free text: device, versions, date, threads
    """

    name: str
    seconds: Mapping[str, float]
    link: Cost
    copies: Copies | None = None
    memory: int | None = None
    slowing: Contention | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    disk: Copies | None = None

    @property
    def memory_bytes(self) -> int:
        """Device memory: as measured, or that of `link`."""
        return self.link.memory_bytes if self.memory is None else self.memory

    @property
    def contention(self) -> Contention | None:
        """As measured, or that of `link`; None if there is none."""
        found: Contention | None = getattr(self.link, "contention", None) if self.slowing is None else self.slowing
        return found

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """The measured time.  Raises CostError naming every op of the tape that has none, or what the times are of."""
        about = {"micro_batches": 1, **self.about} if "batch" in self.about else self.about
        for fact in RECORDED:
            if about.get(fact, getattr(tape, fact)) != getattr(tape, fact):
                raise CostError(f"{self.name}: recorded for {fact} {about[fact]}, and asked for {getattr(tape, fact)}")
        found = self.seconds.get(f"{op.name} by {algorithm}", self.seconds.get(op.name))
        if found is None:
            timed = {key.partition(" by ")[0] for key in self.seconds}
            missing = [o.name for o in tape.ops if o.name not in timed] or [f"{op.name} by {algorithm}"]
            shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise CostError(f"{self.name} has no time for {shown}")
        return found

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes`: by the measured rates, or as `link` has it."""
        measured = self.disk if tier == "disk" else self.copies
        return measured.seconds(nbytes, kind) if measured else copy_of(self.link, nbytes, kind, tier)

    def to_json(self) -> str:
        """The times, and what else was measured, as one JSON object that `measured` reads."""
        data: dict[str, Any] = {"format": FORMAT, "name": self.name, "seconds": dict(self.seconds)}
        if self.copies:
            data["copy"] = asdict(self.copies)
        if self.disk:
            data["disk"] = asdict(self.disk)
        if self.memory is not None:
            data["memory_bytes"] = self.memory
        if self.slowing:
            data["contention"] = asdict(self.slowing)
        if self.about:
            data["about"] = dict(self.about)
        return json.dumps(data, indent=1)


def measured(
    table: Mapping[Any, float] | str | Path,
    link: str | Cost = "titan-x",
    name: str = "measured",
    *,
    copy: Copies | Mapping[str, Any] | None = None,
    memory_bytes: int | None = None,
    contention: Contention | Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    disk: Copies | Mapping[str, Any] | None = None,
) -> Measured:
    """The cost model of a table {op's name or (op's name, algorithm): seconds}, or of the JSON file with one.

    link    hardware, or a cost model, that gives what was not measured
    copy, memory_bytes, contention, about, disk   what was measured besides, see Measured; they replace those of a file
    Raises CostError for what is no such table, and for figures that cannot be.
    """
    given = {"copy": copy, "memory_bytes": memory_bytes, "contention": contention, "about": about, "disk": disk}
    if isinstance(table, (str, Path)):
        data = _read(Path(table))
        times, name = data["seconds"], data["name"]
        given = {k: data.get(k) if v is None else v for k, v in given.items()}
    else:
        times = table
    seconds: dict[str, float] = {}
    for key, value in times.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise CostError(f"{key!r} takes {value!r}: not a number of seconds")
        seconds[key if isinstance(key, str) else " by ".join(key)] = float(value)
    return Measured(name, seconds, roofline(link) if isinstance(link, str) else link, *_figures(given))


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file of times.  Raises CostError if it is none."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("format", FORMAT), data["name"], data["seconds"]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CostError(f"{path} is no table of times: {type(error).__name__}: {error}") from error
    if found[0] != FORMAT or not isinstance(found[1], str) or not isinstance(found[2], dict):
        raise CostError(f"{path} is no table of times: format {found[0]!r}, name {found[1]!r:.60}")
    return data


def _figures(
    given: Mapping[str, Any],
) -> tuple[Copies | None, int | None, Contention | None, Mapping[str, Any], Copies | None]:
    memory, about = given["memory_bytes"], given["about"] or {}
    if memory is not None:
        require_bytes(memory)
    require(isinstance(about, Mapping), "about", about, "an object of facts")
    for fact, value in about.items():
        require(isinstance(fact, str), "a fact's name", fact, "text")
        require(isinstance(value, (str, bool)) or is_number(value), fact, value, "text or a number")
    copies, disk = (_record(Copies, given[name], name) for name in ("copy", "disk"))
    return copies, memory, _record(Contention, given["contention"], "contention"), about, disk


Record = TypeVar("Record", Copies, Contention)


def _record(kind: type[Record], data: Any, name: str) -> Record | None:
    """The dataclass from its fields in JSON, or as it is.  Raises CostError."""
    if data is None or isinstance(data, kind):
        return data
    try:
        return kind(**data)
    except TypeError as error:
        wanted = ", ".join(f.name for f in fields(kind))
        raise CostError(f"{name} is {data!r:.200}: not an object of {wanted}") from error
