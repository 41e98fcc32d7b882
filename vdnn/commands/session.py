"""One run of `vdnn train`: its data, its loop with progress and Ctrl-C, and what it reports."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import byte_lines
from vdnn.progress import progress_bar
from vdnn.step_times import StepTimes
from vdnn.tape import batch_label
from vdnn.units import format_seconds

if TYPE_CHECKING:
    from vdnn.commands.datasets import Data
    from vdnn.losses import Loss
    from vdnn.train import Epoch, Trainer

RESIDENT = ("planned", "measured")


class Stopped(Exception):  # noqa: N818 (no error)
    """Ctrl-C was pressed; the step is complete."""


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed.  Pressed again, it is a KeyboardInterrupt as ever."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


class Session:
    """Trains until `epochs` epochs are done in all, or Ctrl-C, and records every step's time.

    Afterwards `stopped` says whether it was Ctrl-C; if it was and `save` is given, the trainer is saved there.
    """

    def __init__(self, trainer: Trainer, data: Data, epochs: int, save: str | None, say_to_stderr: bool) -> None:
        self.trainer, self.data, self.epochs, self.save = trainer, data, epochs, save
        self.say_to_stderr = say_to_stderr
        self.stopped = False
        self.history: list[Epoch] = []
        self.times = StepTimes()

    @property
    def epochs_done(self) -> int:
        """Epochs completed, in this run and before."""
        return self.trainer.epoch

    def run(self) -> None:
        """Train, and say after each epoch how it went."""
        with stop_on_interrupt() as pressed:
            try:
                while self.trainer.epoch < self.epochs:
                    self._epoch(pressed)
                    self._say(self.history[-1])
                    if pressed() and self.trainer.epoch < self.epochs:
                        raise Stopped
            except Stopped:
                self.stopped = True
                if self.save:
                    self.trainer.save(self.save)

    def _epoch(self, pressed: Callable[[], bool]) -> None:
        trainer, data, number = self.trainer, self.data, self.trainer.epoch + 1
        batches = len(data.train) - trainer.position
        with progress_bar(f"epoch {number}/{self.epochs}", batches, keep=False) as advance:

            def after_step(trainer: Trainer, loss: float | Loss) -> None:
                value = float(loss)  # waits for the step
                self.times.add(trainer.trace)
                advance(f"loss {value:.4f}, {format_seconds(self.times.step_seconds[-1])} a step")
                if pressed():
                    raise Stopped

            self.history += trainer.fit(data.train, epochs=number, test=data.test, save=self.save, progress=after_step)

    def _say(self, epoch: Epoch) -> None:
        assert epoch.test is not None
        tested = f"test loss {epoch.test.loss:.4f}, {epoch.test.accuracy:.1%} right"
        click.echo(f"epoch {epoch.epoch}/{self.epochs}: loss {epoch.loss:.4f}, {tested}", err=self.say_to_stderr)

    # ---- what it reports

    def figures(self) -> dict[str, Any]:
        """What `--json` prints: the figures of the plan, and what was measured.  Times are measured."""
        return self.times.figures(self.trainer) | {
            "data": self.data.kind,
            "train_samples": self.data.train.shape[0],
            "test_samples": self.data.test.shape[0],
            "seed": self.trainer.seed,
            "steps": self.trainer.steps_done,
            "epochs": [_epoch_figures(epoch) for epoch in self.history],
            "test_accuracy": _epoch_figures(self.history[-1])["test_accuracy"] if self.history else None,
            "stopped": self.stopped,
            "saved": self.save,
        }


def _epoch_figures(epoch: Epoch) -> dict[str, Any]:
    assert epoch.test is not None
    loss = epoch.loss if math.isfinite(epoch.loss) else None  # no step of this epoch was in this run
    rate = {"epoch": epoch.epoch, "loss": loss, "learning_rate": epoch.learning_rate}
    return {**rate, "test_loss": epoch.test.loss, "test_accuracy": epoch.test.accuracy}


def _chosen(figures: dict[str, Any]) -> str:
    """By what the algorithms were chosen."""
    timed = f"measured times of {figures['measured_ops']} of {figures['ops']} ops"
    by = {"given": "as they were given", "published": "chosen by published rates", "measured": f"chosen by {timed}"}
    return by[figures["algorithms_by"]]


def _resident_lines(figures: dict[str, Any]) -> list[str]:
    """What the whole process was planned to hold and held; nothing where the system does not say."""
    if figures["resident_measured_bytes"] is None:
        return []
    return ["", "resident set of the whole process", *byte_lines({k: figures[f"resident_{k}_bytes"] for k in RESIDENT})]


def report(figures: dict[str, Any]) -> str:
    """The figures for people."""
    accuracy = figures["test_accuracy"]
    tested = [] if accuracy is None else [f"{accuracy:.1%} of the test images right"]
    where = "this machine" if figures["hardware"] == "host" else figures["hardware"]
    batch = batch_label(figures["batch"], figures["micro_batches"])
    lines = [
        "",
        f"{figures['network']}, {batch}, {figures['optimizer']}, on {where}",
        f"{figures['policy']} with algorithms {figures['algorithms']}",
        f"algorithms {_chosen(figures)}",
        f"steps {figures['steps']}, threads {figures['threads']}, times measured",
        *tested,
        "",
        *byte_lines(
            {
                "budget": figures["budget_bytes"],
                "arena": figures["arena_bytes"],
                "predicted peak": figures["peak_bytes"],
                "measured peak": figures["measured_peak_bytes"],
                "floor": figures["floor_bytes"],
                "host": figures["host_bytes"],
                "offloaded": figures["offloaded_bytes"],
            }
            | ({"disk": figures["disk_bytes"]} if figures["disk_bytes"] else {})
        ),
        *_resident_lines(figures),
    ]
    if figures["step_seconds"] is not None:
        lines += [f"{key:<16}{format_seconds(figures[f'{key}_seconds']):>10}" for key in ("step", "copy")]
        lines.append(f"{'copies hidden':<16}{figures['hidden_copy_fraction']:>10.1%}")
    if figures["saved"]:
        lines += ["", f"saved to {figures['saved']}"]
    return "\n".join(lines)
