"""HostDevice: the CPU as a device with a memory of its own: one arena, one host slab, one thread per stream."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers.base import Array
from vdnn.memory.bind import Bound, host_view
from vdnn.memory.cost import Cost
from vdnn.memory.device import Device
from vdnn.memory.host_cost import host_cost
from vdnn.memory.pages import slab
from vdnn.memory.plan import Plan, Step
from vdnn.memory.poison import Poison
from vdnn.memory.spill import SpillFile
from vdnn.memory.streams import Entry, Program, Run, Streams
from vdnn.network import Network, Tensor

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes available to this process: Linux's own estimate, which counts caches, and the control group's limit."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int((CGROUP / f"memory.{what}").read_text()) for what in ("max", "current"))
        free = min(free, max(0, limit - used))
    return free


class HostDevice(Device):
    """Runs plans on the CPU.

    The arena stands for device memory and the host slab for pinned memory; copies between them, and between the arena
    and the spill file, run on threads of their own beside compute, as copy engines do, and wait only where the plan
    says so.

    network         gives the layers' methods
    optimizer       gives `update`; None for plans without updates
    threads         workers that share one operation; plans must be made for the same number
    exact           convolve by plain products alone (vdnn.kernels.numpy.conv); plans must be made for the same
    fast            run kernels that Numba compiles; None: where it is installed, and VDNN_FAST is not 0
    link_bandwidth  bytes per second each way; None: as fast as memory copies are.  Lower, it lets overlap be studied.
                    Copies to and from disk take the time that the disk takes
    spill           folder of the spill file, if a plan has one; None: VDNN_SPILL, else that for temporary files
    poison          overwrite freed bytes, so that a use after free gives NaN (default: whether VDNN_SANITIZE is 1)
    delay           seconds to sleep before a step, as a function of it: to provoke races in tests
    checked         refuse plans that `verify` does, as an edited one may be; False only to see what then happens
    """

    name = "host"
    spills = True
    kernels: NumpyKernels

    def __init__(
        self,
        network: Network,
        optimizer: Any = None,
        *,
        threads: int | None = None,
        exact: bool = False,
        fast: bool | None = None,
        link_bandwidth: float | None = None,
        spill: str | os.PathLike[str] | None = None,
        poison: bool | None = None,
        delay: Callable[[Step], float] | None = None,
        checked: bool = True,
    ) -> None:
        if link_bandwidth is not None and link_bandwidth <= 0:
            raise ValueError(f"link_bandwidth={link_bandwidth}: bytes per second, more than 0")
        kernels = NumpyKernels(threads, fast, exact)
        _ = kernels.routines  # what they import is there before the first step, and before memory is counted
        super().__init__(network, optimizer, kernels, poison, delay, checked)
        self.link_bandwidth, self.folder = link_bandwidth, spill
        self.streams = Streams()
        self._cost: tuple[Any, Cost] | None = None  # of which optimizer
        self._programs: dict[tuple[int, bool], tuple[Program, Poison | None]] = {}
        self._take(0, 0, 0)

    # ---- memory

    def _take(self, arena_bytes: int, host_bytes: int, disk_bytes: int) -> None:
        if self.spill is not None:
            self.spill.resize(disk_bytes)
        elif disk_bytes:
            self.spill = SpillFile(disk_bytes, self.folder)
        self.arena, self._host = slab(arena_bytes), slab(host_bytes)
        self._programs.clear()

    @property
    def arena_bytes(self) -> int:
        """Bytes that this device holds on behalf of plans."""
        return int(self.arena.nbytes)

    @property
    def resident_bytes(self) -> tuple[int, int, int]:
        """As on any device; here the arena is main memory, too."""
        return self.arena_bytes, *super().resident_bytes[1:]

    @property
    def host(self) -> Array:
        """The host slab, as bytes."""
        return self._host

    @property
    def cost(self) -> Cost:
        """The times of `vdnn measure` on this machine; the published figures of a CPU for what was not timed.

        The table is read once, so that a device always decides alike.
        """
        if self._cost is None or self._cost[0] is not self.optimizer:
            self._cost = self.optimizer, host_cost(self.network, self.kernels, self.optimizer)
        return self._cost[1]

    def limit(self, budget: int) -> None:
        """Nothing to do: making a plan takes no memory of the arena's kind."""

    def free_bytes(self) -> int:
        """Bytes of memory that this process could still take: what is available, within its control group's limit."""
        return free_memory()

    def view(self, offset: int, tensor: Tensor) -> Array:
        """The tensor at `offset` of the arena: logical shape, stored channels-last."""
        return host_view(self.arena, offset, tensor, self.kernels.storage)

    def scratch(self, offset: int, nbytes: int) -> Array:
        """Bytes of the arena."""
        return self.arena[offset : offset + nbytes]

    def span(self, view: Array) -> tuple[int, int]:
        """Bytes [start, stop) of the arena that a view of it covers."""
        low, high = np.lib.array_utils.byte_bounds(view)
        return low - self.arena.ctypes.data, high - self.arena.ctypes.data

    def copier(self, kind: str, offset: int, places: tuple[int, ...], nbytes: int) -> Callable[[], Any]:
        """The copy itself; with a `link_bandwidth` it takes as long as that link would."""
        on_device, on_host = self.scratch(offset, nbytes), self.host[places[0] : places[0] + nbytes]
        target, source = (on_host, on_device) if kind == "offload" else (on_device, on_host)
        if self.link_bandwidth is None:
            return partial(np.copyto, target, source)
        return partial(_throttled, target, source, nbytes / self.link_bandwidth)

    def spiller(self, kind: str, offset: int, place: int, nbytes: int, name: str) -> Callable[[], Any]:
        """The read or write itself; Python's other threads run meanwhile."""
        on_device = self.scratch(offset, nbytes)

        def copy() -> None:
            assert self.spill is not None
            (self.spill.write if kind == "offload" else self.spill.read)(on_device, place, name)

        return copy

    def put(self, view: Array, value: Array) -> None:
        """Copy a NumPy array to a view of the arena."""
        np.copyto(view, value, casting="same_kind")

    def get(self, view: Array) -> Array:
        """A copy of a view of the arena, in logical order."""
        return np.array(view, order="C")

    # ---- steps

    def check_idle(self) -> None:
        """Raise RuntimeError if a step is under way, or the device was closed."""
        self.streams.check_idle()

    def stepping(self) -> AbstractContextManager[None]:
        """What holds while a step runs: see the kernels' `step`."""
        return self.kernels.step()

    def _start(self, plan: Plan, bound: Bound, timed: bool, apart: bool) -> Run:
        key = id(plan), apart
        if key not in self._programs:
            self._programs[key] = self._program(bound, bound.actions if apart else bound.actions | bound.merged)
        if self.spill is not None:
            self.spill.mend()
        program, poison = self._programs[key]
        if poison:
            poison.reset()
        return self.streams.start(program)

    def _program(self, bound: Bound, actions: Mapping[int, Callable[[], Any]]) -> tuple[Program, Poison | None]:
        """What each thread does in a step."""
        poison = Poison(bound.plan, self.arena) if self.poison else None
        place: dict[int, tuple[str, int]] = {}  # {step: (its stream, how many of that stream are done when it is)}
        lanes: dict[str, list[Entry]] = {"compute": [], "offload": [], "prefetch": []}
        for i, action in actions.items():
            step = bound.plan.steps[i]
            if poison:
                action = poison.after(i, action)
            if self.delay is not None:
                action = partial(_delayed, self.delay, step, action)
            # a wait for what is not issued yet would be worth nothing on a GPU, so it is nothing here
            waits = tuple(place[w] for w in step.waits if w in place)
            lanes[step.stream].append(Entry(i, action, waits))
            place[i] = (step.stream, len(lanes[step.stream]))
        return Program(lanes, len(bound.plan.steps), self.stepping), poison

    def close(self) -> None:
        """End the threads.  The device cannot be used any more."""
        self.streams.close()
        self.kernels.close()
        if self.spill is not None:
            self.spill.close()


def _throttled(target: Array, source: Array, seconds: float) -> None:
    """Copy, and take at least `seconds`, as a slower link would; the sleep leaves the processor to compute."""
    until = time.perf_counter() + seconds
    np.copyto(target, source)
    time.sleep(max(0.0, until - time.perf_counter()))


def _delayed(delay: Callable[[Step], float], step: Step, action: Callable[[], Any]) -> None:
    time.sleep(max(0.0, delay(step)))
    action()
