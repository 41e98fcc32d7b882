"""run: a cell whose steps are real ones, on this machine; their times are measured."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vdnn.studies.cell import Figures, needed, parts, policy, setting, without_times
from vdnn.studies.grid import Settings
from vdnn.studies.keys import OWN, bytes_per_second

if TYPE_CHECKING:
    from vdnn.layers.base import Array
    from vdnn.memory.host import HostDevice
    from vdnn.network import Network
    from vdnn.train import Trainer


def run(settings: Settings) -> tuple[Figures, str]:
    """(figures, "" or how much is needed) of real steps on this machine."""
    figures, leaner = _tried(settings, settings["algorithms"])
    if leaner is not None and figures["fits"]:  # not the plan that was asked for, but one by other algorithms
        figures, leaner = _tried(settings, leaner)
    if leaner is None:
        return figures, ""
    figures = without_times(figures | {"fits": False})
    return figures, needed(figures)


def _tried(settings: Settings, algorithms: Any) -> tuple[Figures, dict[str, str] | None]:
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
        fast=settings["fast"],
        link_bandwidth=None if rate == OWN else bytes_per_second(rate),
    )
    device.timed = True
    return device


def _trainer(device: HostDevice, settings: Settings, algorithms: Any) -> Trainer:
    from vdnn.train import Trainer

    given = {"algorithms": algorithms, **parts(settings)}
    budget = _run_budget(device, settings)
    return Trainer(device.network, policy(settings), budget, device, device.optimizer, settings["seed"], **given)


def _run_budget(device: HostDevice, settings: Settings) -> int | str:
    """The budget as a Trainer takes it: one that is relative to the tape in bytes."""
    from vdnn.budgets import budget_bytes, is_relative
    from vdnn.setting import choose_algorithms

    if not is_relative(settings["budget"]):
        return settings["budget"]  # type: ignore[no-any-return]
    made = setting(device.network, settings, device.kernels, optimizer=device.optimizer, cost=device.cost)
    return budget_bytes(settings["budget"], made, choose_algorithms(made.tape, made.cost, settings["algorithms"]))


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
