"""search_cache: what searches found, on disk, so that the same search need not be done again.

    $VDNN_CACHE, or vdnn in $XDG_CACHE_HOME or ~/.cache; an empty VDNN_CACHE switches it off
      search
        <digest of the step>                          its tape, whole and in sub-batches, the costs, the planner itself
          <budget>-<objective>-<digest of the rest>.json

A file holds decisions and figures, no plan: whoever reads it makes the plan again and sees whether it is as it was.
What cannot be read is as good as absent, and where nothing can be written nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from vdnn.collector import collector_paused
from vdnn.memory.candidates import Found
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions
from vdnn.micro_batches import MARK
from vdnn.tape import Tape

FORMAT = "vdnn search 1"
DIGITS = 32  # of a digest, in the name of a folder or a file


class NotDescribedError(TypeError):
    """A value of which nothing says exactly what it is: a result that depends on it cannot be kept."""


def home() -> Path | None:
    """The folder of the cache, which need not be there; None if there is to be none."""
    given = os.environ.get("VDNN_CACHE")
    if given is not None:
        return Path(given) if given else None
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "vdnn"
    except RuntimeError:  # nobody's home
        return None


# ---- what a result depends on


def described(value: Any) -> Any:
    """The value as lists, texts and numbers: two are equal only if the values are.  Raises NotDescribedError.

    Records are those of vdnn's own classes: what others compute from their fields nobody knows.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return ["mapping", *([described(k), described(v)] for k, v in value.items())]
    if isinstance(value, (tuple, list)):
        return ["sequence", *[v if type(v) is str else described(v) for v in value]]
    kind: Any = type(value)
    title, names, allowed = _record(kind)
    if not getattr(value, "__dict__", {}).keys() <= allowed:
        raise NotDescribedError(f"this {title} has more than the fields of its class")
    return [title, *[described(getattr(value, name)) for name in names]]


@cache
def _record(kind: Any) -> tuple[str, tuple[str, ...], frozenset[str]]:
    """(name, fields, all attributes) of a class of records of vdnn's own.  Raises NotDescribedError for any other."""
    title = f"{kind.__module__}.{kind.__qualname__}"
    if not is_dataclass(kind) or kind.__module__.partition(".")[0] != "vdnn":
        raise NotDescribedError(f"nothing says exactly what a {title} is")
    names = tuple(f.name for f in fields(kind))
    return title, names, frozenset((*names, *dir(kind)))


def first_round(tape: Tape) -> list[Any]:
    """What makes a tape in sub-batches what it is: the others are as the first (vdnn.micro_batches)."""
    tensors = [t for t in tape.tensors.values() if MARK not in t.name]
    return [tape.micro_batches, tape.rewrites, tape.count, tensors, [op for op in tape.ops if MARK not in op.name]]


def digest(*values: Any) -> str:
    """A name for the values that no others have.  Raises NotDescribedError."""
    text = json.dumps([described(value) for value in values])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


@cache
def planner() -> str:
    """A digest of vdnn's version, of the code that plans and searches, and of the solver that bounds.

    Raises NotDescribedError where there is no code to be read.
    """
    from vdnn import __version__

    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    try:
        code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (*files, package.parent / "tape.py")]
    except OSError as error:
        raise NotDescribedError(f"the planner's code cannot be read: {error}") from error
    if not files:
        raise NotDescribedError(f"there is no code in {package}")
    return digest(__version__, [str(file.relative_to(package)) for file in files], code)


def _solver() -> str:
    """Which SciPy there is; without one a search has no bound."""
    try:
        return version("scipy") if find_spec("scipy") is not None else ""
    except PackageNotFoundError:
        return "unknown"


# ---- what is kept


@dataclass(frozen=True)
class Stored:
    """What a file says: the figures of Found, of a plan that fitted, with its decisions in place of the plan."""

    budget: int
    micro_batches: int
    decisions: Decisions
    arena_bytes: int
    step_seconds: float
    bound_seconds: float
    origin: str
    history: tuple[tuple[float, float], ...]


class SearchCache:
    """The results of searches of one step, of which one kind is asked for.

    folder     of all results of the step
    kind       what else the result depends on, but for the budget
    objective  by what plans were compared: times of others say nothing
    """

    def __init__(self, folder: Path, kind: str, objective: str) -> None:
        self.folder, self.kind, self.objective = folder, kind, objective

    def path(self, budget: int) -> Path:
        """The file of the result in this budget."""
        return self.folder / f"{budget}-{self.objective[:8]}-{self.kind}.json"

    def get(self, budget: int) -> Stored | None:
        """The result in this budget, if it was kept."""
        return self._read(self.path(budget))

    def below(self, budget: int) -> list[Stored]:
        """What is known of smaller budgets by the same objective, the fastest first."""
        try:
            names = sorted(file.name for file in self.folder.iterdir())
        except OSError:
            return []
        found = []
        for name in names:
            size, _, rest = name.partition("-")
            smallest = rest.endswith("-smallest.json")  # was found for less than its size
            if size.isdecimal() and int(size) < budget + smallest and rest.startswith(self.objective[:8]):
                found.append(self._read(self.folder / name))
        return sorted(filter(None, found), key=lambda stored: (stored.step_seconds, stored.budget))

    def put(self, found: Found) -> None:
        """Keep a result; nothing where that is not possible.

        The smallest plan, where none fits, is known to searches in the budgets in which it does, but no result of one.
        """
        path = self.path(found.budget)
        if not found.fits:
            found = replace(found, budget=found.plan.arena_bytes, bound_seconds=0.0)
            path = self.folder / f"{found.budget}-{self.objective[:8]}-smallest.json"
        data = {"format": FORMAT, "step": self.folder.name, "objective": self.objective, **_to_json(found)}
        with suppress(OSError, ValueError, TypeError):
            replace_file(path, json.dumps(data, allow_nan=False))

    def _read(self, path: Path) -> Stored | None:
        """What the file says; None if there is none, or if it is none of this step and objective."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            wanted = (FORMAT, self.folder.name, self.objective)
            if tuple(data[key] for key in ("format", "step", "objective")) != wanted:
                return None
            stored = _from_json(data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return stored if path.name.startswith(f"{stored.budget}-") else None


@collector_paused()
def opened(
    tape: Tape,
    variants: Sequence[Tape] | None,
    cost: Cost,
    rules: Any,
    settings: Mapping[str, Any],
    objective: Mapping[str, Any],
) -> SearchCache | None:
    """The cache for searches of this step; None if there is none, or if the step or the costs cannot be described.

    variants   the same step in sub-batches, as they are offered to the search; None if they are not
    rules      how decisions are carried out: text and numbers
    settings   all else that a result depends on, but for the budget
    objective  by what plans are compared
    """
    folder = home()
    if folder is None:
        return None
    try:
        rounds = None if variants is None else [first_round(t) for t in variants]
        step = digest(planner(), _solver(), tape, rounds, cost, rules)
        return SearchCache(folder / "search" / step, digest(settings), digest(objective))
    except NotDescribedError:
        return None


def _to_json(found: Found) -> dict[str, Any]:
    plan = found.plan
    return {
        "budget": found.budget,
        "micro_batches": plan.tape.micro_batches,
        "decisions": {f.name: getattr(plan.decisions, f.name) for f in fields(Decisions)},
        "arena_bytes": plan.arena_bytes,
        "step_seconds": found.step_seconds,
        "bound_seconds": found.bound_seconds,
        "origin": found.origin,
        "history": found.history,
    }


def _from_json(data: Mapping[str, Any]) -> Stored:
    """What was stored.  Raises KeyError, TypeError or ValueError if it is something else."""
    named: dict[str, Any] = {n: _checked(data[n], int) for n in ("budget", "micro_batches", "arena_bytes")}
    named |= {n: _checked(data[n], float) for n in ("step_seconds", "bound_seconds")}
    history = tuple((_checked(at, float), _checked(step, float)) for at, step in data["history"])
    decisions = Decisions(**data["decisions"])
    return Stored(**named, decisions=decisions, origin=_checked(data["origin"], str), history=history)


def _checked(value: Any, kind: Callable[[Any], Any]) -> Any:
    """The value, of that type; a number is finite and at least 0.  Raises TypeError or ValueError."""
    if isinstance(value, bool) or (kind is int and type(value) is not int) or (kind is str) != isinstance(value, str):
        raise TypeError(f"{value!r} is no {kind}")
    if kind is not str and not (isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no number of at least 0")
    return kind(value)


def replace_file(path: Path, text: str) -> None:
    """Put a file in its place at once, so that nobody reads half of it.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
