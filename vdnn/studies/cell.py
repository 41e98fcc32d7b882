"""compute: one cell of a study, in whatever process it is called; what goes wrong is said in its row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vdnn.studies.grid import Cell, Settings
from vdnn.studies.keys import ANY, BY_POLICY, OWN

if TYPE_CHECKING:
    from vdnn.layers.base import Array
    from vdnn.memory.host import HostDevice
    from vdnn.network import Network
    from vdnn.setting import Setting
    from vdnn.train import Trainer

Row = dict[str, Any]
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
            figures, error = (_run if cell.mode == "run" else _plan)(cell.settings)
    except Exception as fault:
        notes = "".join(f"; {note}" for note in getattr(fault, "__notes__", ()))
        error = f"{type(fault).__name__}: {fault}{notes}"
    status = FAILED if not figures else FITS if figures["fits"] else TOO_LARGE
    if cell.mode == "plan":
        figures = _without_times(figures)
    row = failed_row(cell, error) | {"status": status, "figures": _finite(figures)}
    return as_read(row | {"computing_seconds": round(time.perf_counter() - began, 4)})


def as_read(row: Row) -> Row:
    """The row as it is read from a file, so that all are alike."""
    read: Row = json.loads(json.dumps(row, allow_nan=False))
    return read


def failed_row(cell: Cell, error: str) -> Row:
    """The row of a cell that failed."""
    return {"index": cell.index, "settings": dict(cell.settings), "status": FAILED, "figures": {}, "error": error}


def _without_times(figures: dict[str, Any]) -> dict[str, Any]:
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
    link = {} if rate == OWN else {"offload_bytes_per_second": rate, "prefetch_bytes_per_second": rate}
    given = {k: settings[k] for k in ("optimizer", "purpose", "rules", "count")}
    setting = _setting(net, settings, _kernels(settings), cost=roofline(settings["hardware"], **link), **given)
    algorithms = choose_algorithms(setting.tape, setting.cost, settings["algorithms"])
    setting = setting.with_budget(budget_bytes(settings["budget"], setting, algorithms))
    figures = Known().figures(setting, _policy(settings), algorithms, settings.get("jitter"))
    figures = {k: v for k, v in figures.items() if k not in MEASURED}
    return figures, "" if figures["fits"] else _needed(figures)


def _setting(net: Network, settings: Settings, kernels: Any, **given: Any) -> Setting:
    """What the cell's plan is made for, but for its budget."""
    from vdnn.setting import make_setting

    return make_setting(net, kernels=kernels, **given, **_parts(settings))


def _parts(settings: Settings) -> dict[str, Any]:
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
        return NumpyKernels(settings["threads"], exact=settings["exact"])
    return kernels_named(settings["kernels"], settings["threads"])


def _policy(settings: Settings) -> Any:
    """The policy; a search by itself, without what other cells found, so that no cell depends on another."""
    from vdnn.memory.searching import searching

    if settings["policy"] != "search":
        return settings["policy"]
    return searching(seconds=settings["search_seconds"], seed=settings["seed"], cache=False)


def _needed(figures: Mapping[str, Any]) -> str:
    needed, allowed = figures["arena_bytes"], figures["budget_bytes"]
    if needed <= allowed:
        needed, allowed = figures["host_bytes"], figures["host_budget_bytes"]
        return f"the host slab takes {needed} bytes, of {allowed} allowed"
    return f"the smallest plan found takes {needed} bytes, of {allowed} allowed; no plan takes less than the floor"


# ---- run


def _run(settings: Settings) -> tuple[dict[str, Any], str]:
    """(figures, "" or how much is needed) of real steps on this machine."""
    figures, leaner = _tried(settings, settings["algorithms"])
    if leaner is not None and figures["fits"]:  # not the plan that was asked for, but one by other algorithms
        figures, leaner = _tried(settings, leaner)
    if leaner is None:
        return figures, ""
    figures = _without_times(figures | {"fits": False})
    return figures, _needed(figures)


def _tried(settings: Settings, algorithms: Any) -> tuple[dict[str, Any], dict[str, str] | None]:
    """(figures, None) of the steps; if they do not fit, (those of the smallest plan found, its algorithms)."""
    from vdnn.comparing import certified
    from vdnn.planning import BudgetError, HostBudgetError, summary

    device = _device(settings)
    try:
        with closing(_trainer(device, settings, algorithms)) as trainer:
            return _steps(trainer, settings), None
    except BudgetError as error:
        plan, allowed = error.plan, error.budget_bytes
    except HostBudgetError as error:
        plan, allowed = error.plan, device.free_bytes()
    return certified(summary(plan, device.cost, allowed)), dict(plan.decisions.algorithms)


def _device(settings: Settings) -> HostDevice:
    """This machine, without plans or memory."""
    from vdnn import models, optimizers
    from vdnn.memory.host import HostDevice

    net = models.get(settings["network"], settings["batch"])
    optimizer: Any = optimizers.get(settings["optimizer"])
    rate = settings["link_bandwidth"]
    device = HostDevice(
        net,
        replace(optimizer, learning_rate=settings["learning_rate"]),
        threads=settings["threads"],
        exact=settings["exact"],
        link_bandwidth=None if rate == OWN else rate,
    )
    device.timed = True
    return device


def _trainer(device: HostDevice, settings: Settings, algorithms: Any) -> Trainer:
    from vdnn.train import Trainer

    given = {"algorithms": algorithms, **_parts(settings)}
    budget = _run_budget(device, settings)
    return Trainer(device.network, _policy(settings), budget, device, device.optimizer, settings["seed"], **given)


def _run_budget(device: HostDevice, settings: Settings) -> int | str:
    """The budget as a Trainer takes it: one that is relative to the tape in bytes."""
    from vdnn.budgets import budget_bytes, is_relative
    from vdnn.setting import choose_algorithms

    if not is_relative(settings["budget"]):
        return settings["budget"]  # type: ignore[no-any-return]
    setting = _setting(device.network, settings, device.kernels, optimizer=device.optimizer, cost=device.cost)
    return budget_bytes(
        settings["budget"], setting, choose_algorithms(setting.tape, setting.cost, settings["algorithms"])
    )


def _steps(trainer: Trainer, settings: Settings) -> dict[str, Any]:
    """The figures of the steps that are measured; all see the same batch of synthetic data."""
    from vdnn.step_times import StepTimes

    images, labels = _batch(trainer.net, settings["seed"])
    for _ in range(settings["warm_up"]):
        trainer.step(images, labels)
    times, losses = StepTimes(), []
    for _ in range(settings["steps"]):
        losses.append(float(trainer.step(images, labels)))
        times.add(trainer.trace)
    seconds = times.step_seconds
    spread = {"fastest_step_seconds": min(seconds), "slowest_step_seconds": max(seconds)}
    return times.figures(trainer) | spread | {"first_loss": losses[0], "last_loss": losses[-1]}


def _batch(net: Network, seed: int) -> tuple[Array, Array]:
    """A batch of synthetic images (N, C, H, W), and labels as the network's loss takes them."""
    import numpy as np

    from vdnn.data import synthetic

    assert net.labels is not None
    is_classes = net.labels.dtype.startswith("int")
    classes = net.scores.shape[1] if is_classes else 2
    images, labels = synthetic(net.input.shape[1:], classes, net.batch, seed)
    images = images.astype(net.input.dtype, copy=False)
    if is_classes:
        return images, labels
    wanted = np.random.default_rng(seed).standard_normal(net.labels.shape)
    return images, wanted.astype(net.labels.dtype)
