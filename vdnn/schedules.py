"""Learning-rate schedules: functions of the step number, as values that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same rate for ever."""

    rate: float

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, ..."""
        return self.rate


@dataclass(frozen=True)
class StepDecay:
    """`rate`, multiplied by `factor` after every `every` steps (PyTorch's StepLR)."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_steps("every", self.every, 1)

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, ..."""
        return self.rate * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `rate` to `final` over `steps` steps, then `final` (PyTorch's CosineAnnealingLR)."""

    rate: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps, 1)

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, ..."""
        done = min(step / self.steps, 1.0)
        return self.final + (self.rate - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Warmup:
    """A straight rise to the first rate of `then`, reached at step `steps` - 1, and then `then` from its beginning."""

    steps: int
    then: Schedule

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps, 0)
        if not callable(self.then):
            raise ValueError(f"then={self.then!r} is no schedule; a constant rate is Constant({self.then!r})")

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, ..."""
        if step < self.steps:
            return self.then(0) * (step + 1) / self.steps
        return self.then(step - self.steps)


def _check_steps(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value} counts steps; it is at least {least}")


def as_schedule(rate: float | Schedule) -> Schedule:
    """A number as a constant schedule; a schedule as it is."""
    return rate if callable(rate) else Constant(float(rate))
