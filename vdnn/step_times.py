"""StepTimes: what was measured of a trainer's steps, beside the figures of its plan."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from vdnn.memory.trace import Trace
from vdnn.planning import summary

if TYPE_CHECKING:
    from vdnn.train import Trainer


class StepTimes:
    """The times of steps, in seconds, a number for each; all are measured."""

    def __init__(self) -> None:
        self.trace: Trace | None = None  # of the last step
        self.step_seconds: list[float] = []
        self.copy_seconds: list[float] = []
        self.exposed_seconds: list[float] = []  # of the copies of each step

    def add(self, trace: Trace | None) -> None:
        """Take the times of one more step, which a device with `timed` traces."""
        assert trace is not None
        self.trace = trace
        self.step_seconds.append(trace.step_seconds)
        self.copy_seconds.append(trace.copy_seconds)
        self.exposed_seconds.append(trace.copy_seconds * (1 - trace.hidden_copy_fraction))

    def figures(self, trainer: Trainer) -> dict[str, Any]:
        """The figures of the trainer's plan, what was measured of its memory, and the medians of the steps' times."""
        arena = trainer.device.arena_bytes
        figures = summary(trainer.plan, trainer.device.cost, trainer.budget_bytes, self.trace)
        del figures["oracle_seconds"], figures["stall_seconds"], figures["average_bytes"]
        figures |= {"arena_bytes": arena, "fits": arena <= trainer.budget_bytes, "time": "measured"}
        copies, resident = sum(self.copy_seconds), trainer.resident
        return figures | {
            "ops": len(trainer.plan.tape.ops),
            "measured_ops": trainer.measured_ops,
            "algorithms_by": trainer.algorithms_by,
            "disk_bytes": trainer.device.disk_bytes,
            "measured_peak_bytes": trainer.measured_peak_bytes,
            "resident_planned_bytes": resident.planned if resident else None,
            "resident_measured_bytes": resident.measured if resident else None,
            "step_seconds": median(self.step_seconds) if self.step_seconds else None,
            "copy_seconds": median(self.copy_seconds) if self.copy_seconds else None,
            "hidden_copy_fraction": 1 - sum(self.exposed_seconds) / copies if copies else 1.0,
        }
