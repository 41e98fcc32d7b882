"""A driver that writes down every call, and a plan read back from such a record: what was really asked of CUDA.

The record knows nothing of the plan: streams, events, addresses and the names of profiler ranges are all there is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from emulated import EmulatedDriver

from vdnn.kernels.cuda.driver import Block

LOGGED = ("record", "wait", "copy", "fill", "launch", "range_push", "range_pop", "synchronize", "allocate")


def logging(name):
    def call(self, *arguments):
        self.log.append((name, *arguments))
        return getattr(super(Recording, self), name)(*arguments)

    return call


class Recording(EmulatedDriver):
    """The emulated driver, with a log of (call, arguments)."""

    def __init__(self, **options):
        self.log = []
        super().__init__(**options)

    def library(self, addresses, stream):
        self.log.append(("library", addresses, stream))


for _name in LOGGED:
    setattr(Recording, _name, logging(_name))


class FakeAddresses(Recording):
    """A driver without memory: real CuPy arrays over addresses that nobody may follow; nothing is ever done."""

    FIRST = 0x7F0000000000

    def __init__(self, cupy):
        super().__init__()
        self.xp, self.next = cupy, self.FIRST

    def allocate(self, nbytes):
        address, self.next = self.next, self.next + -(-nbytes // 512) * 512
        return Block(address, nbytes, self)

    def array(self, block, offset, shape, dtype, strides=None):
        memory = self.xp.cuda.UnownedMemory(block.address, max(1, block.nbytes), block.owner, 0)
        return self.xp.ndarray(shape, np.dtype(dtype), self.xp.cuda.MemoryPointer(memory, offset), strides)

    @staticmethod
    def address(array):
        return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr

    def enqueue(self, stream, function, mark=None):
        pass

    def synchronize(self, what):
        pass

    def elapsed_seconds(self, first, last):
        return 0.0


def read_back(log, plan, device):
    """The plan that a record of one step amounts to: the steps of `plan` in the order in which they were issued, with
    the waits that events made and the places that copies really used.

    Raises AssertionError for calls that belong to no step, or for a kernel that was handed bytes outside its op's
    buffers.
    """
    streams = {stream: name for name, stream in device.streams.items()}
    arena, host = device.block.address, device.host.ctypes.data
    expected = [i for i, s in enumerate(plan.steps) if s.kind not in ("alloc", "free")]
    ranges = _ranges(plan)
    last = {}  # {stream: the last step issued on it}
    recorded = {}  # {event: the last step before it on its stream}
    waiting = {name: set() for name in streams.values()}
    steps = list(plan.steps)
    number, current = 0, None
    for call, *arguments in log:
        if call == "record":
            event, stream = arguments
            recorded[event] = last.get(streams[stream])
        elif call == "wait":
            stream, event = arguments
            if recorded[event] is not None:
                waiting[streams[stream]].add(recorded[event])
        elif call == "range_push":
            i = expected[number]
            assert current is None
            assert plan.steps[i].name == arguments[0]
            current, number, used = i, number + 1, set()
        elif call in ("copy", "launch", "library"):
            stream = streams[arguments[-1]]
            assert current is not None, f"{call} outside of every step"
            used.add(stream)
            if call == "copy":
                steps[current] = _copied(steps[current], arguments, arena, host, plan, device)
            else:
                values = arguments[4] if call == "launch" else arguments[0]
                for value in values:
                    if type(value) is int and arena <= value < arena + device.arena_bytes:
                        assert any(a <= value - arena < b for a, b in ranges[current]), (
                            plan.steps[current],
                            value - arena,
                        )
        elif call == "range_pop":
            (stream,) = used or {plan.steps[current].stream}
            waits = tuple(sorted(waiting[stream]))
            waiting[stream] = set()
            steps[current] = replace(steps[current], stream=stream, waits=waits)
            last[stream] = current
            current = None
        else:
            raise AssertionError(f"{call} within a step")
    assert number == len(expected), "steps were left out"
    return replace(plan, steps=tuple(steps))


def _copied(step, arguments, arena, host, plan, device):
    """The step as its copy call has it."""
    target, source, nbytes, kind, _ = arguments
    on_device, on_host = (source, target) if kind == "offload" else (target, source)
    assert nbytes == plan.payload(step.name)
    place = on_host - host
    inputs = device.load(plan).inputs[1]
    if step.name in inputs and place >= plan.host_bytes:  # the other slot for inputs
        assert place == inputs[step.name].ctypes.data - host
        place = step.offset
    return replace(step, kind=kind, offset=place, name=_owner(step, plan, on_device - arena))


def _owner(step, plan, offset):
    """The step's own buffer, if that is where the copy goes."""
    index = plan.steps.index(step)
    at = next(s.offset for s in reversed(plan.steps[:index]) if s.kind == "alloc" and s.name == step.name)
    assert at == offset, f"{step} copies at {offset}, its buffer is at {at}"
    return step.name


def _ranges(plan):
    """{compute step: the bytes [start, stop) of the arena that its op may touch}."""
    at, ranges = {}, {}
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            at[step.name] = step.offset
        elif step.kind == "compute":
            k = plan.tape.index[step.name]
            names = {*plan.tape.reads[k], *plan.tape.writes[k], f"{step.name}.workspace"} & at.keys()
            ranges[i] = [(at[n], at[n] + plan.size(n)) for n in names]
    return ranges
