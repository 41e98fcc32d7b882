"""The cells of a study: lists are axes of a grid, `include` adds cells to it, `exclude` takes some away."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from vdnn.kernels.numpy.routines import are_wanted
from vdnn.memory.policy import rewrites_of
from vdnn.naming import among
from vdnn.rewrites import ALL, PAPER, title
from vdnn.studies.errors import StudyError
from vdnn.studies.keys import KEYS, MODES, checked

OTHERS = ("title", "mode", "include", "exclude")  # keys of a study that are none of its cells
MOST = 100_000  # cells

Settings = Mapping[str, Any]
Axes = dict[str, list[Any]]


@dataclass(frozen=True)
class Cell:
    """One computation of a study, all it takes written out: nothing of it depends on where it is computed.

    index     its place in the study
    mode      "plan", "simulate" or "run"
    settings  {key: value}, for each key that has a bearing on it; None where it has none
    """

    index: int
    mode: str
    settings: Settings

    @property
    def label(self) -> str:
        """A few words for progress: alexnet 128 vdnn_dyn 4GiB titan-x."""
        return " ".join(str(self.settings[k]) for k in LABEL if self.settings.get(k) is not None)


LABEL = ("network", "batch", "policy", "budget", "hardware")


@dataclass(frozen=True)
class Study:
    """What a study computes.

    title  for people
    mode   "plan": bytes; "simulate": bytes, and simulated seconds; "run": real steps on this machine, measured
    cells  in the order of its table, each once
    """

    title: str
    mode: str
    cells: tuple[Cell, ...]

    @property
    def common(self) -> Settings:
        """The settings that all cells share."""
        first = self.cells[0].settings
        return {k: v for k, v in first.items() if all(cell.settings[k] == v for cell in self.cells)}

    @property
    def varying(self) -> tuple[str, ...]:
        """The keys whose values are not those of all cells, as ordered in KEYS."""
        return tuple(k for k in self.cells[0].settings if k not in self.common)


def resolve(given: Mapping[str, Any], threads: int | None, title: str = "study") -> Study:
    """The study that a mapping stands for, as it is read from TOML, with every default written out.

    threads  of cells that say nothing of them: of one operation on a CPU; None: they must say it

    Raises StudyError for unknown keys, bad values, and whatever would be without effect.
    """
    for name in given:
        if name not in KEYS and name not in OTHERS:
            raise StudyError(f"no key of a study is named {name!r}{among(name, (*KEYS, *OTHERS))}")
    mode, title = given.get("mode", "simulate"), given.get("title", title)
    if mode not in MODES:
        raise StudyError(f"mode = {mode!r}: none of these{among(mode, MODES)}")
    if not isinstance(title, str):
        raise StudyError(f"title = {title!r}: a text")
    base = _axes({k: v for k, v in given.items() if k not in OTHERS}, mode, "the study")
    tables = {name: _tables(given, name) for name in ("include", "exclude")}
    grids = [("the study", base)] if "network" in base else []
    for number, table in enumerate(tables["include"], start=1):
        where = f"include {number}"
        grids.append((where, base | _axes(table, mode, where)))
    if not grids:
        raise StudyError("network is missing: a name, or a list of them, here or in each [[include]]")
    settled = _settled(grids, mode, threads)
    _check_effect(grids, settled)
    kept = _without(settled, tables["exclude"], mode)
    return Study(title, mode, tuple(Cell(i, mode, settings) for i, settings in enumerate(kept)))


def _tables(given: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = given.get(name, [])
    tables = [found] if isinstance(found, Mapping) else found
    if not isinstance(tables, Sequence) or not all(isinstance(table, Mapping) and table for table in tables):
        raise StudyError(f"{name} = {found!r:.60}: tables with keys of a cell, in TOML [[{name}]]")
    return list(tables)


def _axes(given: Mapping[str, Any], mode: str, where: str) -> Axes:
    """{key: its values, one or several}."""
    axes: Axes = {}
    for name, value in given.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise StudyError(f"{where}: {name} is an empty list, so there would be no cell")
        axes[name] = []
        for one in values:
            found = checked(name, one, mode, where)
            if found in axes[name]:
                raise StudyError(f"{where}: {name} has {one!r} twice")
            axes[name].append(found)
    return axes


# ---- defaults


def _settled(grids: Sequence[tuple[str, Axes]], mode: str, threads: int | None) -> list[Settings]:
    """The settings of all cells, each once."""
    policies = dict.fromkeys(p for _, axes in grids for p in axes.get("policy", [KEYS["policy"].default]))
    rewrites = [name for name in ALL if any(name in rewrites_of(policy) for policy in policies)]
    fast = are_wanted()  # said once for all cells, wherever they are computed
    found: dict[tuple[Any, ...], Settings] = {}
    for where, axes in grids:
        _check_grid(where, axes)
        before = len(found)
        for values in itertools.product(*axes.values()):
            settings = _settle(dict(zip(axes, values, strict=True)), mode, threads, fast, tuple(rewrites))
            found.setdefault(tuple(settings.values()), settings)
        if len(found) == before:
            raise StudyError(f"{where} adds no cell: all of its cells are there without it")
    return list(found.values())


def _check_grid(where: str, axes: Axes) -> None:
    if "network" not in axes:
        raise StudyError(f"{where}: network is missing, and the study has none")
    if prod(map(len, axes.values())) > MOST:
        raise StudyError(f"{where}: {prod(map(len, axes.values())):,} cells; at most {MOST:,} can be")


def _settle(given: Settings, mode: str, threads: int | None, fast: bool, rewrites: tuple[str, ...]) -> Settings:
    """The settings of a cell with all defaults; None where a key has no bearing on it."""
    cell = {k: given.get(k, key.default) for k, key in KEYS.items() if mode in key.modes}
    is_paper = cell.get("rules") == "paper"
    cell["rewrites"] = cell["rewrites"] or title(PAPER if is_paper else rewrites)
    if mode == "run":
        _settle_run(cell)
    else:
        cell["kernels"] = cell["kernels"] or ("cudnn4" if is_paper else "numpy")
    is_gpu = cell.get("kernels") == "cudnn4"
    if is_gpu and (cell["exact"] or cell["fast"] or cell["threads"] not in (None, 1)):
        raise StudyError("exact, fast and threads are for kernels numpy, on a CPU, not for cudnn4")
    if cell["fast"] is None and not is_gpu:
        cell["fast"] = fast
    cell["threads"] = cell["threads"] or (1 if is_gpu else threads)
    if cell["threads"] is None:
        raise StudyError("threads is missing: this executor does not say how many cells it computes at a time")
    if cell["policy"] != "search":
        cell["search_seconds"] = None
    if mode != "run" and cell["search_seconds"] is None:
        cell["seed"] = None
    return cell


def _settle_run(cell: dict[str, Any]) -> None:
    from vdnn import optimizers

    if cell["learning_rate"] is None:
        cell["learning_rate"] = optimizers.get(cell["optimizer"]).learning_rate


def _check_effect(grids: Sequence[tuple[str, Axes]], settled: Sequence[Settings]) -> None:
    for where, axes in grids:
        for name in axes:
            if all(settings[name] is None for settings in settled):
                raise StudyError(f"{where}: {name} has no effect: it is for policy search, and no cell has that")


# ---- exclusions


def _without(settled: list[Settings], tables: Sequence[Mapping[str, Any]], mode: str) -> list[Settings]:
    """The settings that no table excludes: one that has, of each key of a table, one of its values."""
    kept = settled
    for number, table in enumerate(tables, start=1):
        where = f"exclude {number}"
        axes = _axes(table, mode, where)
        for name, value in _strangers(axes, settled):
            there = ", ".join(str(v) for v in dict.fromkeys(settings[name] for settings in settled))
            raise StudyError(f"{where}: {name} = {value!r} is that of no cell; there are {there}")
        left = [s for s in kept if not all(s[name] in values for name, values in axes.items())]
        if len(left) == len(kept):
            raise StudyError(f"{where} excludes nothing: no cell has all of {dict(table)}")
        kept = left
    if not kept:
        raise StudyError("all cells are excluded")
    return kept


def _strangers(axes: Axes, settled: Sequence[Settings]) -> Iterator[tuple[str, Any]]:
    for name, values in axes.items():
        there = {settings[name] for settings in settled}
        yield from ((name, value) for value in values if value not in there)
