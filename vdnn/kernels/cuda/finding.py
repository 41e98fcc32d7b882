"""Convolutions as questions, algorithms as answers, and the measured ones on disk: measuring takes seconds.

On disk is one file for each question, written at once under its final name: processes that write at the same time do
not disturb each other, and a file that cannot be read or written is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vdnn.kernels.cuda.libraries import AlgoPerf
from vdnn.kernels.numpy.geometry import Pair
from vdnn.layers.base import Shape

FORMAT = 1  # of a file; another number is another question


@dataclass(frozen=True)
class Problem:
    """One convolution: x (N, C, H, W), w (K, C / groups, R, S), y (N, K, OH, OW).

    dtype    "float32" or "float64"
    storage  "nchw" or "nhwc", of all three arrays
    math     "fp32" or "tf32"
    """

    x: Shape
    w: Shape
    y: Shape
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    dtype: str
    storage: str
    math: str


@dataclass(frozen=True)
class Candidate:
    """One way to solve it: exact workspace in bytes, measured seconds (0: not measured), equal bits from run to run."""

    name: str
    workspace: int
    seconds: float
    deterministic: bool


@dataclass(frozen=True)
class Phase:
    """One of the three products: cuDNN's word for it, what it reads and writes, its algorithms by cuDNN's numbers.

    Algorithms of `racing` add with atomics, so that their bits differ from run to run.
    """

    title: str
    operands: str  # first, second, result
    algorithms: list[str]
    racing: tuple[str, ...] = ()


_FORWARD = "implicit_gemm implicit_precomp_gemm gemm direct fft fft_tiling winograd winograd_nonfused"
_DATA = "algo_0 algo_1 fft fft_tiling winograd winograd_nonfused"
_WEIGHTS = "algo_0 algo_1 fft algo_3 winograd winograd_nonfused fft_tiling"
PHASES = {
    "forward": Phase("Forward", "xwy", _FORWARD.split()),
    "backward_data": Phase("BackwardData", "wyx", _DATA.split(), ("algo_0",)),
    "backward_weights": Phase("BackwardFilter", "xyw", _WEIGHTS.split(), ("algo_0", "algo_3")),
}
DEFAULT, TENSOR_OP, CONVERTING, FMA = range(4)  # cuDNN's math types; the default one may use TF32 for float32
ON_TENSOR_CORES = ".tensor_op"  # ends an algorithm's name where it has that math type instead of the problem's


def maths(problem: Problem) -> dict[str, int]:
    """{what ends an algorithm's name: its math type}: one for each math type worth having."""
    if problem.dtype == "float64":
        return {"": DEFAULT}
    return {"": DEFAULT, ON_TENSOR_CORES: TENSOR_OP} if problem.math == "tf32" else {"": FMA}


def answers(
    phase: Phase, problem: Problem, needs: Mapping[str, int], records: Iterable[AlgoPerf], measured: bool
) -> Iterator[Candidate]:
    """The candidates that cuDNN's records speak of, each once, among those whose workspace is in `needs`.

    A record tells which math type was tried.  A name that ends with one runs with it, any other with the problem's own.
    """
    # a record of the default type may be of tensor cores, which run() does not use then: one without counts first
    records = sorted(records, key=lambda record: record.mathType != FMA)
    endings = {DEFAULT: "", FMA: ""}
    if problem.math == "tf32" or problem.dtype == "float64":
        endings[TENSOR_OP] = next((e for e, math in maths(problem).items() if math == TENSOR_OP), "")
    seen = set()
    for record in records:
        known = record.status == 0 and record.mathType in endings and record.algo < len(phase.algorithms)
        name = phase.algorithms[record.algo] if known else ""
        algorithm = name + endings[record.mathType] if known else ""
        if algorithm in seen or algorithm not in needs or (measured and not record.time > 0):
            continue
        seen.add(algorithm)
        steady = bool(record.determinism) and name not in phase.racing
        yield Candidate(algorithm, needs[algorithm], record.time / 1e3 if measured else 0.0, steady)


def default_folder() -> Path | None:
    """$VDNN_CACHE, or vdnn in $XDG_CACHE_HOME, or in ~/.cache; None where there is no home."""
    if os.environ.get("VDNN_CACHE"):
        return Path(os.environ["VDNN_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "vdnn"
    try:
        return Path.home() / ".cache" / "vdnn"
    except RuntimeError:
        return None


class Findings:
    """Measured candidates on disk, for one device, cuDNN version and driver version.

    `folder` None: the user's (`default_folder`), asked for at each use.
    """

    def __init__(self, device: str, cudnn: str, driver: str, folder: Path | None = None) -> None:
        self.device, self.cudnn, self.driver, self.folder = device, cudnn, driver, folder

    def load(self, phase: str, problem: Problem) -> tuple[int, list[Candidate]] | None:
        """(bytes of workspace that measuring had, what it found), or None."""
        key = self._key(phase, problem)
        try:
            text = self._file(key).read_text(encoding="utf-8")
            entry = json.loads(text)
            if entry["key"] != key:
                return None
            return _bytes(entry["workspace"]), [_candidate(c) for c in entry["candidates"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def save(self, phase: str, problem: Problem, workspace: int, candidates: Sequence[Candidate]) -> None:
        """Keep what measuring with so many bytes of workspace found; no error if that cannot be written."""
        key = self._key(phase, problem)
        entry = {"key": key, "workspace": workspace, "candidates": [asdict(c) for c in candidates]}
        with suppress(OSError):
            _write(self._file(key), json.dumps(entry, indent=1))

    def _key(self, phase: str, problem: Problem) -> dict[str, Any]:
        """The question as JSON gives it back: lists, not tuples."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(problem).items()}
        versions = {"format": FORMAT, "device": self.device, "cudnn": self.cudnn, "driver": self.driver}
        return {**versions, "phase": phase, **plain}

    def _file(self, key: dict[str, Any]) -> Path:
        folder = self.folder or default_folder()
        if folder is None:
            raise FileNotFoundError("no home folder")
        device = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.device} cudnn {self.cudnn} driver {self.driver}")
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return folder / "convolutions" / device / f"{digest}.json"


def _bytes(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _candidate(entry: Any) -> Candidate:
    """A candidate from a file, if it is one.  Raises ValueError, KeyError or TypeError."""
    name, seconds, deterministic = entry["name"], entry["seconds"], entry["deterministic"]
    good = type(name) is str and type(seconds) is float and type(deterministic) is bool
    if not good or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(entry)
    return Candidate(name, _bytes(entry["workspace"]), seconds, deterministic)


def _write(path: Path, text: str) -> None:
    """Write a file so that nobody sees half of it.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).replace(path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
