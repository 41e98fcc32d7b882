"""op_times: what ops took on this machine, on disk, so that each shape is timed once.

    $VDNN_CACHE, or vdnn in $XDG_CACHE_HOME or ~/.cache; an empty VDNN_CACHE switches it off
      times
        <digest of the machine>       the processor, the number of threads, the kernels, NumPy and its BLAS
          <digest of what computes>   a layer's kind and settings, or an optimizer's; or sums
            <digest of the op>.json   {algorithm: median seconds}

One file holds one op: processes that write at one time do not disturb each other, and a file that cannot be read is as
good as none.  Layers and optimizers that are not vdnn's own have no times: their code may change under the same name.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.layers.base import Layer
from vdnn.memory.search_cache import home, replace_file
from vdnn.network import Network
from vdnn.tape import Op, Tape

FORMAT = "vdnn op times 1"
DIGITS = 32  # of a digest, in the name of a folder or a file
IRRELEVANT = frozenset({"name", "init"})  # of a layer's settings, for its time
SUM = "sum"
Seconds = Mapping[str, float]  # by algorithm


# ---- the machine


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(kernels: Any) -> dict[str, Any]:
    """All that times depend on besides the op: the processor, its threads, and the code.  Raises OSError."""
    fast = bool(getattr(kernels, "fast", False))  # whether compiled kernels run
    return {
        "processor": processor(),
        "threads": kernels.threads,
        "kernels": kernels.name,
        "code": _code(),
        "numpy": np.__version__,
        "blas": _blas(),
        "fast": _version("numba") if fast else "",
    }


@cache
def _code() -> str:
    """A digest of the code that runs in a step.  Raises OSError."""
    package = Path(__file__).parent.parent
    folders = (package / "kernels" / "numpy", package / "layers")
    files = [package / "optimizers.py", *(file for folder in folders for file in sorted(folder.rglob("*.py")))]
    return _digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])


def _blas() -> str:
    """NumPy's BLAS, and how it was built."""
    with suppress(KeyError, TypeError, AttributeError):
        found: Any = np.show_config(mode="dicts")  # type: ignore[call-arg,func-returns-value,unused-ignore]
        about = found["Build Dependencies"]["blas"]
        return " ".join(str(about.get(key, "")) for key in ("name", "version", "openblas configuration")).strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# ---- what an op is


@dataclass(frozen=True)
class Names:
    """What computes the ops of a network: {layer: its kind and settings}, and the optimizer's; "" where unknown."""

    layers: Mapping[str, str]
    optimizer: str

    @classmethod
    def of(cls, network: Network, optimizer: Any = None) -> Names:
        """Those of a network and an optimizer."""
        return cls({node.name: _layer(node.layer) for node in network.nodes}, _optimizer(optimizer))

    def of_op(self, op: Op) -> str:
        """What computes an op; "" if it has no times."""
        if op.layer:
            return self.layers.get(op.layer, "")
        return SUM if op.phase == SUM else self.optimizer

    @property
    def known(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(name for name in (*self.layers.values(), self.optimizer, SUM) if name))


def _is_own(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "vdnn"


def _layer(layer: Layer) -> str:
    settings = sorted((name, value) for name, value in layer.config().items() if name not in IRRELEVANT)
    return _title(layer, settings) if _is_own(layer) else ""


def _optimizer(optimizer: Any) -> str:
    if optimizer is None or not _is_own(optimizer):
        return ""
    names = [f.name for f in fields(optimizer) if f.name != "learning_rate"]
    return _title(optimizer, [(name, getattr(optimizer, name)) for name in names])


def _title(value: Any, settings: Iterable[tuple[str, Any]]) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(f'{name}={v!r}' for name, v in settings)})"


def key_of(tape: Tape, op: Op, names: Names) -> str:
    """The op as text: what computes it, its phase, and its arguments' shapes, types and shared bytes; "" if it has no
    times.
    """
    title = names.of_op(op)
    if not title:
        return ""
    arguments: list[Any] = []
    first: dict[str, str] = {}  # {buffer: the first argument that lies in it}
    for argument, name in op.arguments.items():
        if name is None:
            arguments.append([argument, None])
            continue
        tensor, owner = tape.tensors[name], first.setdefault(tape.buffer_of[name], argument)
        arguments.append([argument, list(tensor.shape), tensor.dtype, "" if owner == argument else owner])
    return json.dumps([title, op.phase, tape.storage, arguments])


# ---- the table


@dataclass(frozen=True)
class OpTimes:
    """The table of one machine.

    folder   of all its files, which need not be there
    machine  what its times depend on besides the op
    """

    folder: Path
    machine: Mapping[str, Any]

    @classmethod
    def of(cls, kernels: Any, folder: Path | None = None) -> OpTimes | None:
        """The table of these kernels on this machine, in the user's folder unless another is given; None if there can
        be none.
        """
        base = home() if folder is None else folder
        try:
            about = machine(kernels)
        except OSError:
            return None
        return None if base is None else cls(base / "times" / _digest(about), about)

    def load(self, titles: Iterable[str]) -> dict[str, Seconds]:
        """{op: its seconds} of all ops that are computed by one of these."""
        found = {}
        for title in titles:
            for path in _files(self.folder / _digest(title)):
                entry = self._read(path)
                if entry is not None:
                    found[entry[0]] = entry[1]
        return found

    def save(self, key: str, seconds: Seconds) -> None:
        """Keep the times of an op beside those of its other algorithms.  Raises OSError."""
        path = self.path(key)
        known = self._read(path)
        merged = {**(known[1] if known else {}), **seconds}
        entry = {"format": FORMAT, "machine": self.machine, "op": key, "seconds": merged}
        replace_file(path, json.dumps(entry, indent=1, allow_nan=False))

    def path(self, key: str) -> Path:
        """The file of an op."""
        return self.folder / _digest(json.loads(key)[0]) / f"{_digest(key)}.json"

    def _read(self, path: Path) -> tuple[str, Seconds] | None:
        """(op, its seconds) of a file; None if it is none of this table."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            key, seconds = data["op"], data["seconds"]
            is_one = data["format"] == FORMAT and data["machine"] == self.machine and self.path(key) == path
            return (key, {_text(name): _positive(value) for name, value in seconds.items()}) if is_one else None
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return None


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except OSError:
        return []


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _positive(value: Any) -> float:
    if type(value) is not float or not isfinite(value) or value <= 0:
        raise ValueError(value)
    return value
