"""Worker threads that share the work of one operation, and the BLAS held to one thread meanwhile.

vdnn's own threads each make single-threaded BLAS calls: the BLAS's own threads spin after every call and slow down
whatever runs next, and a fixed split by vdnn keeps results independent of the number of threads.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy

from vdnn.kernels.numpy.blas import BLAS

# Elements per operand that NumPy's loops may buffer.  NumPy >= 2.3 allocates these buffers in every operation on
# strided arrays, used or not: with its default of 8192 elements that is 96 KiB each time, and slower.
BUFFER = 1024
WORTH_SPLITTING = 300e-6  # seconds; waking another thread and waiting for it costs about 80e-6
WORTH_HANDING_OVER = 50e-6  # to one that watches
LOOKS = 4000  # at a number, of 25 ns each: that long a thread watches before it goes to sleep
ASIDE = 300  # looks of a worker that has called others, so that they find Python's lock free

Task = Callable[[int, int], None]
# meet(rung, at, value, watched, index, seen, looks): set rung[at] = value, and return when watched[index] is another
# number than `seen`, or after so many looks; without Python's lock meanwhile
Meet = Callable[[Any, int, int, Any, int, int, int], None]
Left = tuple[Meet, Any, int]  # how, and where, a helper says that it has left a job


NOTHING = numpy.zeros(1, numpy.int64)  # a number that nobody else looks at


class Inside(threading.local):
    """What each thread is in the middle of."""

    worker: int | None = None  # the number that it works under
    has_buffers: bool = False  # whether NumPy's buffers are small in it


class Job:
    """One `parallel` call: hands out task numbers, gathers the first exception.

    meet   see Meet; None if nobody is to watch
    left   rung by each helper that has nothing more to do, at its own place
    """

    def __init__(self, function: Task, tasks: int, meet: Meet | None = None) -> None:
        self.function = function
        self.tasks = tasks
        self.meet = meet
        self.numbers = itertools.count()  # next() is atomic
        self.error: BaseException | None = None
        self.helpers = self.pending = 0
        self.left = numpy.zeros(0, numpy.int64)
        self.done = threading.Condition()

    def work(self, worker: int) -> None:
        """Run tasks until none is left or one has failed."""
        while self.error is None:
            task = next(self.numbers)
            if task >= self.tasks:
                return
            try:
                self.function(task, worker)
            except BaseException as error:
                self.error = self.error or error

    def post(self, lines: list[Line]) -> None:
        """Hand this job to helpers, and step aside for those that watch."""
        self.left = numpy.zeros(len(lines), numpy.int64)
        for place, line in enumerate(lines):
            with self.done:
                self.pending += 1
            self.helpers += 1
            line.put((self, place))
        if self.meet is not None:
            for line in lines:
                line.ring(self.meet, ASIDE if line is lines[-1] else 0)

    def finish(self) -> None:
        """Count one helper out."""
        with self.done:
            self.pending -= 1
            self.done.notify()

    def wait(self) -> None:
        """Return when no helper works on this job any more, even if interrupted meanwhile."""
        while self.pending:
            try:
                self._watch()
                with self.done:
                    self.done.wait_for(lambda: self.pending == 0)
            except BaseException as error:  # Ctrl-C: helpers still write into the caller's arrays, so stop them first
                self.error = self.error or error

    def _watch(self) -> None:
        """Watch for helpers to leave, for a while."""
        if self.meet is None:
            return
        for place in range(self.helpers):
            self.meet(NOTHING, 0, 0, self.left, place, 0, LOOKS)


def processors() -> set[int]:
    """The processors that the calling thread may use; empty where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def keeping_to(processor: int, all_of: set[int]) -> Iterator[None]:
    """Keep the calling thread to one of the processors, inside the block; not if its processors are others by now."""
    if not all_of or processors() != all_of:
        yield
        return
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of)


class Line:
    """The jobs that are waiting for one helper, each with the helper's place in it; None ends it."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[Job, int] | None] = queue.SimpleQueue()
        self.rings = numpy.zeros(1, numpy.int64)
        self.count = 0
        self.is_watched = False

    def put(self, job: tuple[Job, int] | None) -> None:
        """Hand it over."""
        self.jobs.put(job)

    def ring(self, meet: Meet, looks: int) -> None:
        """Call the helper if it watches, and stay aside for so many looks."""
        self.count += 1
        meet(self.rings, 0, self.count, NOTHING, 0, 0, looks if self.is_watched else 0)

    def get(self, left: Left | None) -> tuple[Job, int] | None:
        """The next one, watched for before the thread goes to sleep; says first that the one before is left."""
        if left is not None:
            (meet, rung, place), heard = left, int(self.rings[0])
            self.is_watched = self.jobs.empty()
            meet(rung, place, 1, self.rings, 0, heard, LOOKS if self.is_watched else 0)
            self.is_watched = False
        return self.jobs.get()


def _serve(line: Line, worker: int, inside: Inside, own: set[int]) -> None:
    """Body of a helper thread; it holds no reference to its Workers, so that those can be collected."""
    if own:
        os.sched_setaffinity(0, own)
    inside.worker = worker
    numpy.setbufsize(BUFFER)  # a setting of each thread
    BLAS.hold()
    left: Left | None = None
    while (found := line.get(left)) is not None:
        job, place = found
        job.work(worker)
        job.finish()
        left = None if job.meet is None else (job.meet, job.left, place)
        del job, found  # the job holds its caller's arrays


def _stop(lines: list[Line]) -> None:
    for line in lines:
        line.put(None)


def available_threads() -> int:
    """The number of processors that this process may use."""
    return len(processors()) or os.cpu_count() or 1


class Workers:
    """`threads` workers: the caller (worker 0) and threads - 1 daemon threads, started at first use.

    Where there are as many workers as processors, each keeps to one of its own while they share an operation: woken for
    a millisecond, two threads often land on one processor, and the other idles until the system notices.
    """

    _meet: Meet | None = None  # within a step, where the next operation is soon to come

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads={threads!r}: a whole number, at least 1, is needed")
        self.threads = threads if threads is not None else available_threads()
        self._lines: list[Line] = []
        self._helpers: list[threading.Thread] = []
        self._inside = Inside()
        self._one_job = threading.Lock()
        self._fit = False  # whether no worker is in another's way when it watches
        self._processors: list[int] = []  # one for each worker; empty if they go where the system puts them
        weakref.finalize(self, _stop, self._lines)

    def parallel(self, function: Task, tasks: int, seconds: float = float("inf")) -> None:
        """Call function(task, worker) for task = 0 .. tasks - 1; workers take tasks in turn as they get free.

        No two tasks run at one time with the same worker number (0 .. threads - 1), so scratch may be per worker.
        `seconds` is a rough estimate of all the work: too little is not split.  An exception stops the sharing out
        and is raised here, after all workers have stopped.  Inside a task, `parallel` is a plain loop.
        """
        worker = self._inside.worker
        if worker is not None:
            for task in range(tasks):
                function(task, worker)
            return
        BLAS.enter()
        try:
            with self._one_job:
                least = WORTH_HANDING_OVER if self._watches() else WORTH_SPLITTING
                self._run(function, 1 if seconds < least else self.threads, tasks)
        finally:
            BLAS.leave()

    def _run(self, function: Task, threads: int, tasks: int) -> None:
        """Run the tasks as worker 0, with helpers if there are several threads and tasks."""
        inside = self._inside
        before = None if inside.has_buffers else numpy.setbufsize(BUFFER)
        inside.worker = 0
        try:
            if threads == 1 or tasks < 2:
                for task in range(tasks):
                    function(task, 0)
            else:
                self._share(function, tasks)
        finally:
            inside.worker = None
            if before is not None:
                numpy.setbufsize(before)

    def _share(self, function: Task, tasks: int) -> None:
        self._start()
        lines = self._lines[: tasks - 1]
        job = Job(function, tasks, self._meet if self._watches() else None)
        try:
            job.post(lines)
            with nullcontext() if self._inside.has_buffers else self._keeping():  # kept already within a step
                job.work(0)
        finally:
            job.wait()
        if job.error is not None:
            raise job.error

    def _watches(self) -> bool:
        """Whether workers watch for what comes next: in a step it comes soon, and none is in another's way."""
        return self._meet is not None and self._inside.has_buffers and self._fit

    def _keeping(self) -> AbstractContextManager[None]:
        """What keeps the calling thread to the first processor, if each worker has one."""
        return keeping_to(self._processors[0] if self._processors else 0, set(self._processors))

    def _start(self) -> None:
        if self._helpers:
            return
        found = sorted(processors(), key=lambda processor: (processor + os.getpid()) % available_threads())
        self._fit = self.threads <= len(found)
        self._processors = found if len(found) == self.threads else []
        for worker in range(1, self.threads):
            own = set(self._processors[worker : worker + 1])
            line = Line()
            arguments = (line, worker, self._inside, own)
            thread = threading.Thread(target=_serve, args=arguments, name=f"vdnn-{worker}", daemon=True)
            thread.start()
            self._lines.append(line)
            self._helpers.append(thread)

    @contextmanager
    def step(self) -> Iterator[None]:
        """What holds on the calling thread for the block, a training step; blocks may nest.

        The BLAS has one thread, NumPy's buffers are small, helpers watch for the next operation, and, where there are
        as many workers as processors, the thread keeps to one.
        """
        outer = self._inside.has_buffers
        if self.threads > 1:
            with self._one_job:
                self._start()
        with BLAS.single(), self._keeping():
            before = numpy.setbufsize(BUFFER)
            self._inside.has_buffers = True
            try:
                yield
            finally:
                self._inside.has_buffers = outer
                numpy.setbufsize(before)

    def close(self) -> None:
        """Stop the threads; a later `parallel` starts new ones."""
        with self._one_job:
            _stop(self._lines)
            for thread in self._helpers:
                thread.join()
            self._lines.clear()
            self._helpers.clear()
