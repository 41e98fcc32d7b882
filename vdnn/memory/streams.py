"""Streams: threads that each run their own list of actions in order, and wait for each other where told to."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np

NAMES = ("compute", "offload", "prefetch")


@dataclass(frozen=True, slots=True)
class Entry:
    """An action of one stream.  `waits`: (stream, how many of its actions must be done first)."""

    index: int
    action: Callable[[], Any]
    waits: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Program:
    """What each stream does in one step.

    size       the number of steps in the plan
    computing  what holds on the thread that computes, from the first of its actions to the last
    """

    lanes: Mapping[str, list[Entry]]
    size: int
    computing: Callable[[], AbstractContextManager[None]] = nullcontext


class Run:
    """One step under way.  A stream runs an action once it has been issued and its waits are over.

    `start` and `finish` are seconds since the run began, per step of the plan; None for what has not happened.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.issued = dict.fromkeys(NAMES, 0)
        self.done = dict.fromkeys(NAMES, 0)
        self.start: list[float | None] = [None] * program.size
        self.finish: list[float | None] = [None] * program.size
        self.error: BaseException | None = None
        self.failed_at = -1
        self.cancelled = False
        self.is_open = True  # until whoever issues its actions has let go of it
        self.active = len(NAMES)
        self.lock = threading.Lock()
        self.sleeping: dict[threading.Semaphore, Callable[[], bool]] = {}  # who waits, and until what
        self.began = time.perf_counter()

    def started(self, index: int) -> bool:
        """Whether this step of the plan has begun."""
        return self.start[index] is not None

    def finished(self, index: int) -> bool:
        """Whether this step of the plan has ended."""
        return self.finish[index] is not None

    def issue(self, stream: str) -> None:
        """Let `stream` run one more action."""
        self.issued[stream] += 1
        self._wake()

    def issue_all(self) -> None:
        """Let every stream run all of its actions."""
        self.issued = {stream: len(lane) for stream, lane in self.program.lanes.items()}
        self._wake()

    def wait(self) -> None:
        """Return when every stream has ended, even if interrupted meanwhile; then raise what a step raised."""
        interrupt: BaseException | None = None
        while self.active:
            try:
                self._sleep_until(lambda: not self.active)
            except BaseException as error:  # a stream still writes into the slabs, so it must end first
                interrupt = error
                self.cancel()
        if self.error is not None:
            raise self.error
        if interrupt is not None:
            raise interrupt

    def cancel(self) -> None:
        """Make every stream end after the action that it is in."""
        self.cancelled = True
        self._wake()

    def follow(self, stream: str) -> None:
        """Body of a stream: run its actions in order."""
        try:
            around = self.program.computing if stream == "compute" else nullcontext
            with around(), np.errstate(all="ignore"):  # infinities are data, as on a GPU; the trainer looks at the loss
                for number, entry in enumerate(self.program.lanes[stream]):
                    if not self._may_start(stream, number, entry):
                        return
                    self.start[entry.index] = time.perf_counter() - self.began
                    entry.action()
                    self.finish[entry.index] = time.perf_counter() - self.began
                    self.done[stream] = number + 1
                    self._wake()
        except BaseException as error:
            with self.lock:
                if self.error is None:  # the first failure is the cause
                    self.error, self.failed_at = error, entry.index
            self.cancel()
        finally:
            with self.lock:
                self.active -= 1
            self._wake()

    def _may_start(self, stream: str, number: int, entry: Entry) -> bool:
        """Wait until the action may start; False if it never may."""
        done = self.done

        def ready() -> bool:
            return self.cancelled or (self.issued[stream] > number and all(done[s] >= n for s, n in entry.waits))

        self._sleep_until(ready)
        return not self.cancelled

    def _sleep_until(self, ready: Callable[[], bool]) -> None:
        if ready():
            return
        bell = threading.Semaphore(0)
        with self.lock:
            if ready():
                return
            self.sleeping[bell] = ready
        try:
            bell.acquire()
        finally:
            with self.lock:
                self.sleeping.pop(bell, None)

    def _wake(self) -> None:
        """Wake those, and only those, who can go on: a thread that wakes in vain takes time from compute."""
        with self.lock:
            for bell in [bell for bell, ready in self.sleeping.items() if ready()]:
                bell.release()
                del self.sleeping[bell]


class Streams:
    """One daemon thread per stream, started at the first run."""

    def __init__(self) -> None:
        self.queues: dict[str, SimpleQueue[Run | None]] = {}
        self.run: Run | None = None
        self.closed = False
        weakref.finalize(self, _stop, self.queues)

    def check_idle(self) -> None:
        """Raise RuntimeError if a step is under way, or the streams were closed."""
        if self.closed:
            raise RuntimeError("this device was closed")
        if self.run is not None and (self.run.is_open or self.run.active):
            raise RuntimeError("the step before is still running; exhaust or close its walk first")

    def start(self, program: Program) -> Run:
        """Begin a run; the one before must be over."""
        self.check_idle()
        for name in () if self.queues else NAMES:
            self.queues[name] = SimpleQueue()
            threading.Thread(target=_serve, args=(name, self.queues[name]), name=f"vdnn-{name}", daemon=True).start()
        self.run = Run(program)
        for runs in self.queues.values():
            runs.put(self.run)
        return self.run

    def close(self) -> None:
        """End the threads; a step under way is cancelled."""
        self.closed = True
        if self.run is not None:
            self.run.cancel()
        _stop(self.queues)


def _serve(stream: str, runs: SimpleQueue[Run | None]) -> None:
    """Body of a thread; between runs it holds no reference to the device, so that a forgotten one can be collected."""
    while (run := runs.get()) is not None:
        run.follow(stream)
        del run


def _stop(queues: Mapping[str, SimpleQueue[Run | None]]) -> None:
    for runs in queues.values():
        runs.put(None)
