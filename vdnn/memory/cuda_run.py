"""A step on a GPU: what is issued to which stream, which events order it, and when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdnn.kernels.cuda.driver import CudaError
from vdnn.memory.bind import Bound
from vdnn.memory.cuda_poison import CudaPoison
from vdnn.memory.plan import STREAMS

if TYPE_CHECKING:
    from vdnn.memory.cuda import CudaDevice


class Schedule:
    """A bound plan with its events: one for each step that another stream waits for, made once."""

    def __init__(self, bound: Bound, device: CudaDevice) -> None:
        self.bound, self.device, self.plan = bound, device, bound.plan
        self.order = list(bound.actions)
        self.place = {i: n for n, i in enumerate(self.order)}
        actions = bound.actions.keys()
        steps = self.plan.steps
        # a wait for what is not issued yet would be worth nothing, and one on the same stream is kept anyway
        self.waits = {
            i: tuple(w for w in steps[i].waits if w in actions and w < i and steps[w].stream != steps[i].stream)
            for i in self.order
        }
        awaited = {w for waits in self.waits.values() for w in waits}
        self.events = {i: device.driver.new_event() for i in awaited}
        self.begin = device.driver.new_event()
        self.ends = {name: device.driver.new_event() for name in STREAMS}
        self.timers: dict[int, tuple[Any, Any]] = {}
        self.origin: Any = None
        self.poison = CudaPoison(self.plan, device) if device.poison else None
        self.graphs: dict[int, Any] = {}  # {slot: a captured step}
        self.completed = 0  # steps that ended well; the first warms the libraries up, which no capture would allow

    def timer(self, i: int) -> tuple[Any, Any]:
        """Events with timing, before and after step `i`."""
        if i not in self.timers:
            self.timers[i] = self.device.driver.new_event(timing=True), self.device.driver.new_event(timing=True)
        return self.timers[i]


class CudaRun:
    """One step under way.  `start` and `finish`: seconds from its beginning, per step of the plan, if it is timed."""

    def __init__(self, schedule: Schedule, slot: int, timed: bool) -> None:
        self.schedule, self.slot, self.timed = schedule, slot, timed
        self.plan = schedule.plan
        self.device = schedule.device
        self.start: list[float | None] = [None] * len(self.plan.steps)
        self.finish: list[float | None] = [None] * len(self.plan.steps)
        self.error: BaseException | None = None
        self.failed_at = -1
        self.is_open = True
        self.active = True
        self.count = 0  # how many of the schedule's steps were issued
        self.is_graph = False
        self._fork()

    @property
    def issued_all(self) -> bool:
        """Whether nothing more will be issued."""
        return self.count >= len(self.schedule.order) or not self.active

    def started(self, index: int) -> bool:
        """Whether this step of the plan was issued."""
        return self.schedule.place.get(index, self.count) < self.count

    def finished(self, index: int) -> bool:
        """Whether this step has ended: what was issued whole has, once the run was waited for."""
        return not self.active and not self.device.lost and self.started(index) and index != self.failed_at

    # ---- issuing

    def _fork(self) -> None:
        """All streams begin after whatever `compute` was given before."""
        driver, schedule, streams = self.device.driver, self.schedule, self.device.streams
        if schedule.poison:
            schedule.poison.reset()
        if self.timed:
            schedule.origin = schedule.origin or driver.new_event(timing=True)
            driver.record(schedule.origin, streams["compute"])
        driver.record(schedule.begin, streams["compute"])
        for name in STREAMS[1:]:
            driver.wait(streams[name], schedule.begin)

    def issue(self, stream: str) -> None:
        """Issue the next step of the plan; it is on `stream`."""
        with self.device.driver.using(self.device.streams["compute"]):
            self._issue_next()

    def issue_all(self) -> None:
        """Issue all steps: as a graph, if one can be had, else one by one."""
        schedule, device = self.schedule, self.device
        if device.graphs and not self.timed and schedule.completed and not device.graph_refusal:
            self._issue_graph()
        if not self.is_graph:
            with device.driver.using(device.streams["compute"]):
                while self.count < len(schedule.order):
                    self._issue_next()

    def _issue_next(self) -> None:
        schedule, device = self.schedule, self.device
        driver = device.driver
        i = schedule.order[self.count]
        step = self.plan.steps[i]
        stream = device.streams[step.stream]
        try:
            for w in schedule.waits[i]:
                driver.wait(stream, schedule.events[w])
            if device.delay is not None:
                driver.launch("spin", "float32", (1,), 1, [int(1e9 * max(0.0, device.delay(step)))], stream)
            if self.timed:
                driver.record(schedule.timer(i)[0], stream)
            driver.range_push(step.name)
            try:
                schedule.bound.actions[i]()
            finally:
                driver.range_pop()
            if self.timed:
                driver.record(schedule.timer(i)[1], stream)
            if schedule.poison:
                schedule.poison.after(i, stream)
            if i in schedule.events:
                driver.record(schedule.events[i], stream)
        except BaseException as error:
            self.error, self.failed_at = error, i
            self.count += 1  # part of it may have been issued
            raise
        self.count += 1

    def _issue_graph(self) -> None:
        """Launch this plan's graph, captured now if this is its first time."""
        schedule, device = self.schedule, self.device
        if self.slot not in schedule.graphs:
            graph = self._capture()
            if graph is None:
                return
            schedule.graphs[self.slot] = graph
        device.driver.launch_graph(schedule.graphs[self.slot], device.streams["compute"])
        self.count, self.is_graph = len(schedule.order), True

    def _capture(self) -> Any:
        """The whole step as a graph, or None if the driver or a library refuses; then all goes on without."""
        driver, streams, compute = self.device.driver, self.device.streams, self.device.streams["compute"]
        schedule, graph = self.schedule, None
        driver.begin_capture(compute)
        try:
            driver.record(schedule.begin, compute)
            for name in STREAMS[1:]:
                driver.wait(streams[name], schedule.begin)
            with driver.using(compute):
                while self.count < len(schedule.order):
                    self._issue_next()
            for name in STREAMS[1:]:
                driver.record(schedule.ends[name], streams[name])
                driver.wait(compute, schedule.ends[name])
        except Exception as error:
            self.device.graph_refusal = f"{type(error).__name__}: {error}"
        finally:
            self.count, self.error, self.failed_at = 0, None, -1
            try:
                graph = driver.end_capture(compute)
            except Exception as error:
                self.device.graph_refusal = self.device.graph_refusal or f"{type(error).__name__}: {error}"
        return None if self.device.graph_refusal else graph

    # ---- the end

    def cancel(self) -> None:
        """Nothing more is issued; what was, goes on to its end."""

    def wait(self) -> None:
        """Return when everything that was issued has ended; then raise what failed."""
        if not self.active:
            if self.error is not None:  # somebody else has waited, and seen it
                raise self.error
            return
        device = self.device
        try:
            for name in STREAMS:
                device.driver.synchronize(device.streams[name])
        except CudaError as error:
            device.lost = device.torn = True
            self.error = self.error or error
            raise
        finally:
            self.active = False
            if device.running is self:
                device.running = None
        self.schedule.completed += self.error is None and self.count == len(self.schedule.order)
        if self.timed:
            self._read_timers()

    def _read_timers(self) -> None:
        driver, schedule = self.device.driver, self.schedule
        for i in schedule.order[: self.count - (self.error is not None)]:
            first, last = schedule.timers[i]
            self.start[i] = driver.elapsed_seconds(schedule.origin, first)
            self.finish[i] = driver.elapsed_seconds(schedule.origin, last)
