"""jitter: how long a plan takes where no op and no copy takes exactly the time that the cost model says.

A plan is safe however long its steps take: what may not overlap waits (vdnn.memory.order).  Only speed depends on
times, and a plan whose copies end just in time may be slower on a device that is not quite as regular.

Every duration is multiplied by a factor of its own, drawn independently and uniformly from [1 - jitter, 1 + jitter];
its mean is 1, so the work does not grow.  The factors of an op's n-th run and of a buffer's n-th copy each way are the
same for every plan of a tape and a seed, so that two plans are compared under the same disturbances.

    step        waits      times factor, of all samples at once
    f1          -          3 s  *  [0.93 1.07 ...]     starts when its stream is free, in each sample by itself
    offload y   after f1   4 s  *  [1.01 0.95 ...]     starts at the largest of the finishes that it waits for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.collector import collector_paused
from vdnn.memory.contention import Contention, contended
from vdnn.memory.cost import copy_of
from vdnn.memory.plan import STREAMS, Plan, Step
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import COPIES, Event, Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vdnn.memory.cost import Cost
    from vdnn.tape import Op, Tape

    Samples = NDArray[np.float64]

DRAWN = ("compute", *COPIES)  # kinds of step that take time


class JitterError(ValueError):
    """A jitter, or a number of samples, that cannot be."""


@dataclass(frozen=True, eq=False)
class Jitter:
    """Simulated seconds of one plan under many disturbances.

    jitter               the most by which a duration differs from the model's, as a share of it
    seconds              of the whole step, in each sample
    undisturbed_seconds  of the whole step, as `simulate` has it
    """

    jitter: float
    seconds: Samples
    undisturbed_seconds: float

    @cached_property
    def median(self) -> float:
        """Seconds that half of the samples do not exceed."""
        return float(np.median(self.seconds))

    @cached_property
    def mean(self) -> float:
        """Seconds on average; exactly those of the samples if these are all the same."""
        first = float(self.seconds[0])
        return first + float(np.mean(self.seconds - first))

    @cached_property
    def p95(self) -> float:
        """Seconds that 95 of 100 samples do not exceed."""
        return float(np.quantile(self.seconds, 0.95))

    @cached_property
    def worst(self) -> float:
        """Seconds of the slowest sample."""
        return float(self.seconds.max())

    def slowdown(self, seconds: float) -> float:
        """`seconds`, such as `median`, over those of the step that nothing disturbs."""
        return seconds / self.undisturbed_seconds if self.undisturbed_seconds else 1.0

    def summary(self) -> dict[str, float]:
        """The figures by name: the jitter, how many samples, simulated seconds, and slowdowns."""
        figures = {name: float(getattr(self, name)) for name in ("median", "mean", "p95", "worst")}
        return {
            "jitter": self.jitter,
            "samples": len(self.seconds),
            **{f"{name}_seconds": seconds for name, seconds in figures.items()},
            **{f"{name}_slowdown": self.slowdown(seconds) for name, seconds in figures.items()},
        }


def jittered(plan: Plan, cost: Cost, jitter: float = 0.1, samples: int = 100, seed: int = 0) -> Jitter:
    """How long the step takes, simulated, where durations differ by up to `jitter` from what `cost` says.

    jitter   0 to 1: 0.1 for at most 10 % more or less
    samples  how many times the step is simulated, all at once
    Where the cost model has contention, the samples are simulated one by one, which takes that much longer.
    Raises JitterError for a jitter or a number of samples that cannot be.
    """
    seconds = _step_seconds(plan, cost, jitter, samples, seed)
    return Jitter(jitter, seconds, simulate(plan, cost).step_seconds)


def expected_seconds(plan: Plan, cost: Cost, jitter: float = 0.1, samples: int = 100, seed: int = 0) -> float:
    """Simulated seconds of the step on average over the samples: what a search may optimise in place of `simulate`."""
    seconds = _step_seconds(plan, cost, jitter, samples, seed)
    return float(seconds[0]) + float(np.mean(seconds - seconds[0]))


def disturbed(plan: Plan, cost: Cost, jitter: float = 0.1, seed: int = 0) -> Trace:
    """The simulated trace of one step where durations differ by up to `jitter`: the first sample of `jittered`, if that
    has but one.
    """
    _check(jitter, 1)
    factors = _Factors(plan, jitter, 1, seed)
    contention = getattr(cost, "contention", None)
    if contention is not None:
        return Trace(plan, _contended(plan, cost, contention, factors, 0), "simulated")
    starts, finishes = _times(plan, _durations(plan, cost, factors))
    found = zip(plan.steps, starts, finishes, strict=True)
    return Trace(plan, [Event(i, s, s.stream, float(a[0]), float(b[0])) for i, (s, a, b) in enumerate(found)])


@collector_paused()
def _step_seconds(plan: Plan, cost: Cost, jitter: float, samples: int, seed: int) -> Samples:
    """Seconds of the whole step in each sample."""
    _check(jitter, samples)
    factors = _Factors(plan, jitter, samples, seed)
    contention = getattr(cost, "contention", None)
    if contention is not None:
        traces = (Trace(plan, _contended(plan, cost, contention, factors, k)) for k in range(samples))
        return np.array([trace.step_seconds for trace in traces])
    _, finishes = _times(plan, _durations(plan, cost, factors))
    longest = np.zeros(samples)
    for stream in STREAMS:  # a stream ends when the last of its steps does
        last = max((i for i, step in enumerate(plan.steps) if step.stream == stream), default=-1)
        longest = np.maximum(longest, finishes[last]) if last >= 0 else longest
    return longest


def _check(jitter: float, samples: int) -> None:
    if not 0 <= jitter <= 1:
        raise JitterError(f"jitter {jitter!r}: the most by which a duration differs, as a share of it, is from 0 to 1")
    if samples < 1:
        raise JitterError(f"{samples} samples: there must be at least 1")


# ---- factors


class _Factors:
    """The factor of every step in every sample, (samples,) each."""

    def __init__(self, plan: Plan, jitter: float, samples: int, seed: int) -> None:
        self._drawn: dict[tuple[int, int], Samples] = {}
        self._jitter, self._samples, self._seed = jitter, samples, seed
        rows = {name: i for i, name in enumerate(plan.tape.buffers)}
        self._rows = (plan.tape.index, rows, rows)
        self._seen: dict[tuple[str, str], int] = {}
        self.of_step = [self._next(step) for step in plan.steps]

    def _next(self, step: Step) -> Samples | None:
        """The factors of the next run or copy of that name; None for what takes no time."""
        if step.kind not in DRAWN:
            return None
        kind = DRAWN.index(step.kind)
        turn = self._seen.get((step.kind, step.name), 0)
        self._seen[step.kind, step.name] = turn + 1
        rows = self._rows[kind]
        if (kind, turn) not in self._drawn:
            random = np.random.default_rng([self._seed, kind, turn])
            low, high = 1 - self._jitter, 1 + self._jitter
            self._drawn[kind, turn] = random.uniform(low, high, (len(rows), self._samples))
        row: Samples = self._drawn[kind, turn][rows[step.name]]
        return row


def _durations(plan: Plan, cost: Cost, factors: _Factors) -> list[Samples | None]:
    """Seconds of every step, (samples,) each; None for what takes no time."""
    tape = plan.tape
    found: list[Samples | None] = []
    for step, factor in zip(plan.steps, factors.of_step, strict=True):
        if factor is None:
            found.append(None)
        elif step.kind == "compute":
            found.append(factor * cost.op_seconds(tape, tape.ops[tape.index[step.name]], step.algorithm))
        else:
            found.append(factor * copy_of(cost, plan.payload(step.name), step.kind, step.tier))
    return found


def _times(plan: Plan, durations: Sequence[Samples | None]) -> tuple[list[Samples], list[Samples]]:
    """(starts, finishes) of all steps, (samples,) each: as `simulate` has them, for all samples at once."""
    zero = np.zeros(max((len(d) for d in durations if d is not None), default=1))
    free = dict.fromkeys(STREAMS, zero)  # when each stream has done what it was given
    starts: list[Samples] = []
    finishes: list[Samples] = []
    for step, took in zip(plan.steps, durations, strict=True):
        start = free[step.stream]
        for wait in step.waits:
            start = np.maximum(start, finishes[wait])
        finish = start if took is None else start + took
        free[step.stream] = finish
        starts.append(start)
        finishes.append(finish)
    return starts, finishes


# ---- where copies and compute slow each other


def _contended(plan: Plan, cost: Cost, contention: Contention, factors: _Factors, sample: int) -> list[Event]:
    """The events of one sample."""
    return contended(plan, _Disturbed(plan, cost, factors, sample), contention)


class _Disturbed:
    """A cost model whose times are disturbed; the n-th time that one is asked for is that of the n-th run or copy.

    A buffer is known by its bytes alone here, so of buffers of the same size the factors are dealt in turn.
    """

    def __init__(self, plan: Plan, cost: Cost, factors: _Factors, sample: int) -> None:
        self.name, self.memory_bytes = cost.name, cost.memory_bytes
        self.launch_seconds = getattr(cost, "launch_seconds", 0.0)
        self._cost = cost
        self._factors: dict[Any, list[float]] = {}
        for step, factor in zip(plan.steps, factors.of_step, strict=True):
            if factor is not None:
                what = step.name if step.kind == "compute" else plan.payload(step.name)
                self._factors.setdefault((step.kind, what), []).append(float(factor[sample]))
        for dealt in self._factors.values():
            dealt.reverse()

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """Seconds of the next run of `op`."""
        return self._cost.op_seconds(tape, op, algorithm) * self._factors["compute", op.name].pop()

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "") -> float:
        """Seconds of the next copy of so many bytes that way; those of none are the latency, which nothing disturbs."""
        seconds = copy_of(self._cost, nbytes, kind, tier)
        return seconds * self._factors[kind, nbytes].pop() if nbytes else seconds
