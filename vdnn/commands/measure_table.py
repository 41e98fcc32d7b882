"""The part of `vdnn measure` that fills the table of this machine's times."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vdnn.memory.alone import Question
    from vdnn.memory.host import HostDevice
    from vdnn.memory.op_times import OpTimes
    from vdnn.network import Network


@dataclass(frozen=True)
class Filled:
    """What came of it: ops that were known before, that were timed now, and that were to be timed."""

    known: int
    timed: int
    asked: int

    def __str__(self) -> str:
        return f"{self.timed} of {self.asked} ops timed, {self.known} known before"


def table_of(device: HostDevice) -> OpTimes:
    """The table of this device, or a usage error."""
    from vdnn.memory.op_times import OpTimes

    table = OpTimes.of(device.kernels)
    if table is None:
        raise click.UsageError(
            "there is no folder to keep times in: VDNN_CACHE names none; --out writes them to a file"
        )
    return table


def host_device(net: Network, optimizer: str, options: dict[str, Any]) -> HostDevice:
    """The device to time on; with a learning rate of 0, so that weights stay."""
    from dataclasses import replace

    from vdnn import optimizers
    from vdnn.memory.host import HostDevice

    still = replace(optimizers.get(optimizer), learning_rate=0.0)  # type: ignore[type-var]
    return HostDevice(net, still, **options)


def fill(device: HostDevice, table: OpTimes, every: list[Question], repeats: int, again: bool) -> tuple[Filled, bool]:
    """(what came of it, whether Ctrl-C was pressed): each op is in the table as soon as its last round is over.

    every   what the table shall have
    again   whether to time what it has
    """
    from vdnn.commands.session import stop_on_interrupt
    from vdnn.memory import alone
    from vdnn.memory.op_times import Names
    from vdnn.progress import progress_bar

    known = table.load(Names.of(device.network, device.optimizer).known)
    left = [q for q in every if again or not known.get(q.key, {}).keys() >= {*q.algorithms}]
    done, forecast = 0, Forecast(left)
    with closing(device), stop_on_interrupt() as pressed:
        with progress_bar(f"{device.network.name}: ops", len(left), keep=False) as advance:
            for question in left:
                advance(f"{question.op.name}, {forecast}", 0)
                seconds = alone.timed_alone(question, device, repeats, pressed)
                if not seconds:
                    break
                table.save(question.key, seconds)
                forecast.finished(question)
                done += 1
                advance(f"{question.op.name}, {forecast}")
        return Filled(len(every) - len(left), done, len(left)), pressed()


class Forecast:
    """How long all will take: in proportion to published rates."""

    def __init__(self, questions: list[Question]) -> None:
        from vdnn.memory.cost import roofline

        rates = roofline("host")
        self.rated = {q.key: sum(rates.op_seconds(q.tape, q.op, name) for name in q.algorithms) for q in questions}
        self.begin, self.done, self.total = time.monotonic(), 0.0, sum(self.rated.values())

    def finished(self, question: Question) -> None:
        """Take a note of an op that was timed."""
        self.done += self.rated[question.key]

    def __str__(self) -> str:
        from vdnn.units import format_seconds

        if not self.done:
            return "no forecast yet"
        left = (time.monotonic() - self.begin) * (self.total / self.done - 1)
        return f"about {format_seconds(max(0.0, left))} left"
