"""contended: the times of a plan's steps where copies share a link, and copies and compute slow each other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdnn.memory.cost import copy_of
from vdnn.memory.hardware import Contention as Contention
from vdnn.memory.plan import DISK, STREAMS, Plan, PlanError
from vdnn.memory.trace import COPIES, Event

if TYPE_CHECKING:
    from vdnn.memory.cost import Cost


def contended(plan: Plan, cost: Cost, contention: Contention) -> list[Event]:
    """The events of `plan`, in its order, where each step takes the time that `cost` says or, under `contention`, more.

    A step has a latency, that of a copy of no bytes or of a launch, and then work.  Only work is slowed, and only work
    slows: what is done of it grows linearly, by a rate that changes when other work begins or ends.  The time between
    two such changes is found exactly, so the cost is that of steps times streams, whatever the times are.

    A copy to or from disk neither slows nor is slowed: direct I/O is the drive's work, and takes neither a core nor
    much of a link.

    Raises PlanError if steps wait for each other, so that none of them can begin.
    """
    return _Simulation(plan, cost, contention).run()


@dataclass(slots=True)
class _Task:
    """A step under way.

    kind    that of the step, or disk for a copy to or from there
    work    seconds of work that follow the latency; None once it has begun
    left    seconds at full rate that remained of the latency, or of the work, at time `since`
    rate    what is done per second from then on
    """

    index: int
    kind: str
    work: float | None
    left: float
    since: float
    rate: float = 1.0

    @property
    def end(self) -> float:
        """When the latency or the work is over unless the rate changes."""
        return self.since + self.left / self.rate

    def change(self, now: float, rate: float) -> None:
        """Go on at another rate."""
        if rate != self.rate:
            self.left = max(0.0, self.left - (now - self.since) * self.rate)
            self.since, self.rate = now, rate


class _Simulation:
    """Streams that each run their steps in order; `now` jumps from one end of a latency or of work to the next."""

    def __init__(self, plan: Plan, cost: Cost, contention: Contention) -> None:
        self.plan, self.cost, self.contention = plan, cost, contention
        self.latency: dict[tuple[str, str], float] = {}  # of a copy, {(kind, tier): seconds}
        self.launch = getattr(cost, "launch_seconds", 0.0)
        self.now = 0.0
        self.start = [0.0] * len(plan.steps)
        self.finish: list[float | None] = [None] * len(plan.steps)
        self.running: dict[str, _Task] = {}  # {stream: what it does now}
        self.queues: dict[str, deque[int]] = {stream: deque() for stream in STREAMS}
        for i, step in enumerate(plan.steps):
            self.queues[step.stream].append(i)

    def run(self) -> list[Event]:
        """The events of all steps."""
        self._begin()
        while self.running:
            self._set_rates()
            self.now = min(task.end for task in self.running.values())
            self._end()
            self._begin()
        stuck = min((queue[0] for queue in self.queues.values() if queue), default=-1)
        if stuck >= 0:
            raise PlanError(f"step {stuck} waits for a step that waits for it\n{self.plan.excerpt(stuck)}")
        steps = enumerate(self.plan.steps)
        return [Event(i, step, step.stream, self.start[i], self.finish[i]) for i, step in steps]

    def _begin(self) -> None:
        """Start whatever may start now.  Alloc and free are over at once, which may let others start."""
        begun = True
        while begun:
            begun = False
            for stream, queue in self.queues.items():
                while queue and stream not in self.running and self._ready(queue[0]):
                    self._start(queue.popleft())
                    begun = True

    def _ready(self, index: int) -> bool:
        return all(self.finish[wait] is not None for wait in self.plan.steps[index].waits)

    def _start(self, index: int) -> None:
        plan, step = self.plan, self.plan.steps[index]
        self.start[index] = self.now
        if step.kind == "compute":
            op = plan.tape.ops[plan.tape.index[step.name]]
            took = self.cost.op_seconds(plan.tape, op, step.algorithm)
            latency = min(op.launches * self.launch, took)
        elif step.kind in COPIES:
            took = copy_of(self.cost, plan.payload(step.name), step.kind, step.tier)
            how = step.kind, step.tier
            if how not in self.latency:
                self.latency[how] = copy_of(self.cost, 0, *how)
            latency = min(self.latency[how], took)
        else:
            self.finish[index] = self.now
            return
        kind = DISK if step.tier == DISK else step.kind
        self.running[step.stream] = _Task(index, kind, took - latency, latency, self.now)

    def _end(self) -> None:
        """Finish what ends now; of a step whose latency is over, begin the work."""
        for stream, task in list(self.running.items()):
            if task.end > self.now:
                continue
            if task.work is None:
                self.finish[task.index] = self.now
                del self.running[stream]
            else:
                task.left, task.work, task.since, task.rate = task.work, None, self.now, 1.0

    def _set_rates(self) -> None:
        rules = self.contention
        working = [task for task in self.running.values() if task.work is None and task.kind != DISK]
        copies = sum(task.kind in COPIES for task in working)
        computes = copies < len(working)
        sharers = 1 if rules.duplex else copies
        beside_compute = 1 - rules.copy_slowdown if computes else 1.0
        beside_copies = 1 - rules.compute_slowdown if copies else 1.0
        for task in working:
            is_copy = task.kind in COPIES
            task.change(self.now, rules.link_share * beside_compute / sharers if is_copy else beside_copies)
