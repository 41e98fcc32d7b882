"""compute: one cell of a study, in whatever process it is called; what goes wrong is said in its row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vdnn.studies.grid import Cell, Settings
from vdnn.studies.keys import ANY, BY_POLICY, OWN, bytes_per_second

if TYPE_CHECKING:
    from vdnn.network import Network
    from vdnn.setting import Setting

Row = dict[str, Any]
Figures = dict[str, Any]
FITS, TOO_LARGE, FAILED = "fits", "does not fit", "failed"


def compute(cell: Cell) -> Row:
    """The row of a cell, of plain numbers and texts:

    index, settings   the cell's
    status            "fits"; "does not fit", with the figures of the smallest plan found; or "failed"
    figures           those of vdnn.planning.summary that its mode has; {} if it failed
    error             why it failed, or what would fit; ""
    computing_seconds  measured; no column of the table, which is the same whenever it is computed
    """
    from threadpoolctl import threadpool_limits

    began = time.perf_counter()
    figures: dict[str, Any] = {}
    error = ""
    try:
        with threadpool_limits(1, "blas"):  # cells side by side share the cores; a step of a run has its own threads
            figures, error = _function(cell.mode)(cell.settings)
    except Exception as fault:
        notes = "".join(f"; {note}" for note in getattr(fault, "__notes__", ()))
        error = f"{type(fault).__name__}: {fault}{notes}"
    status = FAILED if not figures else FITS if figures["fits"] else TOO_LARGE
    if cell.mode == "plan":
        figures = without_times(figures)
    row = failed_row(cell, error) | {"status": status, "figures": _finite(figures)}
    return as_read(row | {"computing_seconds": round(time.perf_counter() - began, 4)})


def as_read(row: Row) -> Row:
    """The row as it is read from a file, so that all are alike."""
    read: Row = json.loads(json.dumps(row, allow_nan=False))
    return read


def _function(mode: str) -> Callable[[Settings], tuple[Figures, str]]:
    """What gives (figures, why they do not fit or "") of the settings of a cell."""
    if mode != "run":
        return _plan
    from vdnn.studies.steps import run

    return run


def failed_row(cell: Cell, error: str) -> Row:
    """The row of a cell that failed."""
    return {"index": cell.index, "settings": dict(cell.settings), "status": FAILED, "figures": {}, "error": error}


def without_times(figures: Figures) -> Figures:
    """The figures that do not follow from times."""
    from vdnn.comparing import SIMULATED

    left = {k: v for k, v in figures.items() if k not in SIMULATED}
    return left | {"time": "planned"} if left else left


def _finite(value: Any) -> Any:
    """The value with None for what is no number, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- planned and simulated


def _plan(settings: Settings) -> tuple[dict[str, Any], str]:
    """(figures, "" or how much is needed)."""
    from vdnn import models
    from vdnn.budgets import budget_bytes
    from vdnn.comparing import MEASURED, Known
    from vdnn.memory.cost import roofline
    from vdnn.setting import choose_algorithms

    net = models.get(settings["network"], settings["batch"], rules=settings["rules"])
    rate = settings["link_bandwidth"]
    directions = ("offload_bytes_per_second", "prefetch_bytes_per_second")
    link = {} if rate == OWN else dict.fromkeys(directions, bytes_per_second(rate))
    given = {k: settings[k] for k in ("optimizer", "purpose", "rules", "count")}
    made = setting(net, settings, _kernels(settings), cost=roofline(settings["hardware"], **link), **given)
    algorithms = choose_algorithms(made.tape, made.cost, settings["algorithms"])
    made = made.with_budget(budget_bytes(settings["budget"], made, algorithms))
    figures = Known().figures(made, policy(settings), algorithms, settings.get("jitter"))
    figures = {k: v for k, v in figures.items() if k not in MEASURED}
    return figures, "" if figures["fits"] else needed(figures)


def setting(net: Network, settings: Settings, kernels: Any, **given: Any) -> Setting:
    """What the cell's plan is made for, but for its budget."""
    from vdnn.setting import make_setting

    return make_setting(net, kernels=kernels, **given, **parts(settings))


def parts(settings: Settings) -> dict[str, Any]:
    """Arguments that planning and the Trainer have alike."""
    parts, host = settings["micro_batches"], settings["host_budget"]
    return {
        "rewrites": settings["rewrites"],
        "micro_batches": None if parts == BY_POLICY else parts,
        "allow_coupled": settings["allow_coupled"],
        "host_budget": None if host == ANY else host,
    }


def _kernels(settings: Settings) -> Any:
    from vdnn.kernels.numpy import NumpyKernels
    from vdnn.setting import kernels_named

    if settings["kernels"] == "numpy":
        return NumpyKernels(settings["threads"], settings["fast"], settings["exact"])
    return kernels_named(settings["kernels"], settings["threads"])


def policy(settings: Settings) -> Any:
    """The policy; a search by itself, without what other cells found, so that no cell depends on another."""
    from vdnn.memory.searching import searching

    if settings["policy"] != "search":
        return settings["policy"]
    return searching(seconds=settings["search_seconds"], seed=settings["seed"], cache=False)


def needed(figures: Mapping[str, Any]) -> str:
    """Why a plan does not fit, with the numbers."""
    takes, allowed = figures["arena_bytes"], figures["budget_bytes"]
    if takes > allowed:
        return (
            f"the smallest plan found takes {takes} bytes, of {allowed} allowed; the floor is {figures['floor_bytes']}"
        )
    if figures["host_budget_bytes"] is not None:
        return f"the host slab takes {figures['host_bytes']} bytes, of {figures['host_budget_bytes']} allowed"
    return f"a plan takes {takes} bytes, of {allowed} allowed, but it is not what the policy makes for so many"
