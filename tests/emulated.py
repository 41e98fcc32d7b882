"""CUDA as a test double: a driver whose device memory is the process's own, and whose streams really are asynchronous.

What a stream is given waits in a queue.  When somebody synchronises, the queues are worked off in an order drawn from
`seed`, restricted by events alone, so that a missing wait shows in the results.  Kernels are those of vdnn's source,
run by the emulator.  Nothing here is a GPU, and no test that uses it says anything about one's speed.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from contextlib import contextmanager
from functools import cache

import numpy as np
from emulator import Emulator

from vdnn.kernels.cuda.driver import Block, CudaError


@cache
def emulator(dtype):
    return Emulator(dtype)


class Stream:
    """Work in order; each entry is a function, or an event to record or to wait for."""

    def __init__(self, name):
        self.name, self.queue = name, deque()

    def __repr__(self):
        return self.name


class Event:
    def __init__(self):
        self.recorded = 0  # how often it was recorded
        self.happened = 0  # of these, how many are over
        self.seconds = 0.0


class Graph:
    """Work that was captured, as a list of (stream, entry)."""

    def __init__(self, entries):
        self.entries = entries


class Xp:
    """NumPy, each call put into the current stream's queue."""

    def __init__(self, driver):
        self._driver = driver

    def __getattr__(self, name):
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type):
            return function

        def call(*arguments, **keywords):
            stream = self._driver.current
            assert stream is not None, f"xp.{name} outside of a stream"
            self._driver.enqueue(stream, lambda: function(*arguments, **keywords))

        return call


class EmulatedDriver:
    """See above.  `eager`: do everything at once, for tests of single kernels."""

    name = "emulated"
    multiprocessors = 2
    margin_bytes = 0

    def __init__(self, seed=0, eager=False, total=1 << 30, backwards=False):
        self.random = random.Random(seed)
        self.eager, self.total, self.backwards = eager, total, backwards
        self.xp = Xp(self)
        self.streams, self.current, self.captured = [], None, None
        self.capturing = set()
        self.allocated = 0
        self.time = 0.0
        self.failing = None  # an exception that the next synchronize raises

    # ---- the device

    def versions(self):
        return {"driver": "none", "runtime": "none", "cupy": "none"}

    def describe(self):
        figures = {"compute_capability": 0, "multiprocessors": 2, "clock_hertz": 1e9, "memory_bytes_per_second": 1e10}
        return {"name": self.name, "memory_bytes": self.total, **figures}

    def memory_info(self):
        return self.total - self.allocated, self.total

    def allocate(self, nbytes):
        if nbytes > self.total - self.allocated:
            raise CudaError(f"{nbytes} bytes of device memory were refused")
        raw = np.full(nbytes + 512, 0xFF, np.uint8)
        self.allocated += nbytes
        return Block(raw.ctypes.data + -raw.ctypes.data % 512, nbytes, _Owner(raw, self, nbytes))

    def allocate_pinned(self, nbytes):
        return np.zeros(nbytes, np.uint8)

    def array(self, block, offset, shape, dtype, strides=None):
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        assert 0 <= offset <= offset + nbytes <= block.nbytes, (offset, nbytes, block.nbytes)
        raw = (ctypes.c_ubyte * max(1, nbytes)).from_address(block.address + offset)
        raw.owner = block.owner  # as CuPy's arrays, this one keeps the memory
        array = np.frombuffer(raw, np.uint8, nbytes).view(dtype)
        if strides is None:
            return array.reshape(shape)
        return np.lib.stride_tricks.as_strided(array, shape, strides)

    @staticmethod
    def address(array):
        return array.ctypes.data

    # ---- streams and events

    def new_stream(self):
        self.streams.append(Stream(f"stream{len(self.streams)}"))
        return self.streams[-1]

    def handle(self, stream):
        return 1 + self.streams.index(stream)

    def new_event(self, timing=False):
        return Event()

    def record(self, event, stream):
        event.recorded += 1
        number = event.recorded

        def happen():
            event.happened = max(event.happened, number)
            event.seconds = self.time

        self.enqueue(stream, happen, ("record", event, number))

    def wait(self, stream, event):
        self.enqueue(stream, None, ("wait", event, event.recorded))

    def synchronize(self, what):
        if self.failing is not None:
            error, self.failing = self.failing, None
            raise error
        assert not self.capturing, "synchronised while capturing"
        self._run(lambda: not what.queue if isinstance(what, Stream) else what.happened >= what.recorded)

    def elapsed_seconds(self, first, last):
        return last.seconds - first.seconds

    # ---- work

    def enqueue(self, stream, function, mark=None):
        """Put an entry into a queue, or into the graph that is captured."""
        if mark and mark[0] == "wait" and self.capturing:
            origin = next((s for s, _, m in self.captured if m and m[:2] == ("record", mark[1])), None)
            if origin in self.capturing:
                self.capturing.add(stream)  # it joins by waiting for an event that was captured
        if stream in self.capturing:
            self.captured.append((stream, function, mark))
            return
        stream.queue.append((function, mark))
        if self.eager:
            self._run(lambda: not stream.queue)

    def _run(self, done):
        """Work off queues until `done`; in which order is drawn."""
        while not done():
            ready = [s for s in self.streams if s.queue and self._may_run(s.queue[0][1])]
            if not ready:
                raise AssertionError(f"deadlock: {[(s, s.queue[0][1]) for s in self.streams if s.queue]}")
            stream = self.random.choice(ready)
            function, _ = stream.queue.popleft()
            self.time += 1e-6
            if function is not None:
                with np.errstate(all="ignore"):
                    function()

    @staticmethod
    def _may_run(mark):
        return not mark or mark[0] != "wait" or mark[1].happened >= mark[2]

    def copy(self, target, source, nbytes, kind, stream):
        assert kind in ("offload", "prefetch", "device")
        self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes))

    def fill(self, target, byte, nbytes, stream):
        self.enqueue(stream, lambda: ctypes.memset(target, byte, nbytes))

    def launch(self, name, dtype, grid, block, arguments, stream):
        kernels = emulator(np.dtype(dtype).name)
        values = list(arguments)
        self.enqueue(stream, lambda: kernels.launch(name, grid, block, values, self.backwards))

    @contextmanager
    def using(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def borrow(self, arrays, stream):
        yield arrays
        self.synchronize(stream)

    # ---- graphs

    def begin_capture(self, stream):
        assert not self.capturing
        self.capturing, self.captured = {stream}, []

    def end_capture(self, stream):
        assert stream in self.capturing
        self.capturing = set()
        return Graph(self.captured)

    def launch_graph(self, graph, stream):
        """Events of a graph are its own: they are recorded anew each time it is launched."""
        inside = {}
        begin = Event()
        self.record(begin, stream)
        others = [s for s in dict.fromkeys(s for s, _, _ in graph.entries) if s is not stream]
        for other in others:
            self.wait(other, begin)
        for where, function, mark in graph.entries:
            if mark and mark[0] == "record":
                self.record(inside.setdefault((mark[1], mark[2]), Event()), where)
            elif mark:
                if (mark[1], mark[2]) in inside:
                    self.wait(where, inside[mark[1], mark[2]])
            else:
                self.enqueue(where, function)
        for other in others:
            end = Event()
            self.record(end, other)
            self.wait(stream, end)

    def range_push(self, name):
        pass

    def range_pop(self):
        pass


class _Owner:
    """Keeps a block's bytes, and gives them back to the driver's count."""

    def __init__(self, raw, driver, nbytes):
        self.raw, self.driver, self.nbytes = raw, driver, nbytes

    def __del__(self):
        self.driver.allocated -= self.nbytes
