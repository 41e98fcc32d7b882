"""HostDevice: the CPU as a device with a memory of its own: one arena, one host slab, one thread per stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers.base import Array
from vdnn.memory.bind import Bound, slab, span
from vdnn.memory.measure import measured_peak
from vdnn.memory.plan import Plan, Step
from vdnn.memory.streams import Run, Streams
from vdnn.memory.verify import SAFE, verify
from vdnn.network import Network

INPUTS = ("input", "labels", "clock")


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


class DeviceError(RuntimeError):
    """A plan that this device cannot run, or a slab that is too small for it."""


class HostDevice:
    """Runs plans on the CPU.

    The arena stands for device memory and the host slab for pinned memory; copies between them run on threads of
    their own beside compute, as copy engines do, and wait only where the plan says so.

    network         gives the layers' methods
    optimizer       gives `update`; None for plans without updates
    threads         workers that share one operation; plans must be made for the same number
    link_bandwidth  bytes per second each way; None: as fast as memory copies are.  Lower, it lets overlap be studied
    poison          overwrite freed bytes, so that a use after free gives NaN (default: whether VDNN_SANITIZE is 1)
    delay           seconds to sleep before a step, as a function of it: to provoke races in tests
    checked         refuse plans that `verify` does, as an edited one may be; False only to see what then happens
    """

    name = "host"

    def __init__(
        self,
        network: Network,
        optimizer: Any = None,
        *,
        threads: int | None = None,
        link_bandwidth: float | None = None,
        poison: bool | None = None,
        delay: Callable[[Step], float] | None = None,
        checked: bool = True,
    ) -> None:
        if link_bandwidth is not None and link_bandwidth <= 0:
            raise ValueError(f"link_bandwidth={link_bandwidth}: bytes per second, more than 0")
        self.network = network
        self.optimizer = optimizer
        self.kernels = NumpyKernels(threads)
        self.link_bandwidth = link_bandwidth
        self.poison = os.environ.get("VDNN_SANITIZE") == "1" if poison is None else poison
        self.delay = delay
        self.checked = checked
        self.arena = slab(0)
        self.host = slab(0)
        self.held: dict[str, tuple[int, int]] = {}  # {resident buffer: its bytes in the arena}
        self.bytes_in_use = 0
        self.torn = False  # whether a failed step left weights that could not be put back
        self.streams = Streams()
        self._bound: dict[int, Bound] = {}

    # ---- memory

    def reserve(self, arena_bytes: int, host_bytes: int) -> None:
        """Take the two slabs, once, for all plans to come.  What they held is lost."""
        self.streams.check_idle()
        self.arena, self.host = slab(arena_bytes), slab(host_bytes)
        self._bound.clear()
        self.held.clear()
        self.torn = False  # there are no weights any more

    def grow(self, arena_bytes: int, host_bytes: int) -> None:
        """Take larger slabs if these are too small; the weights and what stays with them keep their places."""
        if arena_bytes <= self.arena.nbytes and host_bytes <= self.host.nbytes:
            return
        self.streams.check_idle()
        before = self.arena
        self.arena = slab(max(arena_bytes, before.nbytes))
        self.host = slab(max(host_bytes, self.host.nbytes))
        for start, stop in self.held.values():
            self.arena[start:stop] = before[start:stop]
        self._bound.clear()

    @property
    def arena_bytes(self) -> int:
        """Bytes that this device holds on behalf of plans."""
        return int(self.arena.nbytes)

    @staticmethod
    def free_bytes() -> int:
        """Bytes of memory that this process could still take: what is available, within its control group's limit."""
        return free_memory()

    def load(self, plan: Plan) -> Bound:
        """Bind every step of `plan` to its arrays; done once per plan.  Raises DeviceError if it cannot run here."""
        if id(plan) not in self._bound:
            self._check(plan)
            self._bound[id(plan)] = Bound(plan, self)
        return self._bound[id(plan)]

    def _check(self, plan: Plan) -> None:
        mine = {"kernels": self.kernels.name, "storage": self.kernels.storage, "threads": self.kernels.threads}
        for key, value in mine.items():
            if getattr(plan.tape, key) != value:
                raise DeviceError(f"the plan is for {key} {getattr(plan.tape, key)!r}, this device has {value!r}")
        updates = any(op.phase == "update" for op in plan.tape.ops)
        optimizer = getattr(self.optimizer, "name", "none")
        if updates and plan.tape.optimizer != optimizer:
            raise DeviceError(f"the plan is for optimizer {plan.tape.optimizer!r}, this device has {optimizer!r}")
        if self.checked and plan not in SAFE:
            verify(plan)
        self._check_residents(plan)
        if not self.arena.size and not self.host.size:
            self.reserve(plan.arena_bytes, plan.host_bytes)
        for what, need, have in (
            ("arena", plan.arena_bytes, self.arena.nbytes),
            ("host slab", plan.host_bytes, self.host.nbytes),
        ):
            if need > have:
                raise DeviceError(f"the plan needs a {what} of {need} bytes, this device has reserved {have}")

    def _check_residents(self, plan: Plan) -> None:
        """A plan must find the weights where they are, and move no others."""
        if not self.held:
            return
        at = {s.name: s.offset for s in plan.steps if s.kind == "alloc" and s.name in plan.tape.resident}
        for name in sorted(at.keys() | self.held.keys()):
            if name not in self.held or name not in at or at[name] != self.held[name][0]:
                raise DeviceError(
                    f"the plan is not for the weights on this device: {name} lies at {at.get(name, 'no')} in the plan, "
                    f"at {self.held.get(name, ('no',))[0]} on the device"
                )

    # ---- data in and out

    def write(self, plan: Plan, name: str, value: Array) -> None:
        """Copy `value` into a resident tensor, or into the place on the host from which an input is fetched."""
        bound = self.load(plan)
        view = bound.resident[name] if name in bound.resident else bound.inputs.get(name)
        if view is None:
            if name in INPUTS:
                return  # this plan does not read it
            raise KeyError(f"{name!r} is no weight, state, statistic or input of {plan.tape.network}")
        if np.shape(value) != view.shape:
            raise ValueError(f"{name} has shape {view.shape}, not {np.shape(value)}")
        np.copyto(view, value, casting="same_kind")
        if name in bound.resident:
            self.held[name] = span(view, self.arena)

    def read(self, plan: Plan, name: str) -> Array:
        """A copy, in logical order, of a resident tensor or of a result of the last step."""
        bound = self.load(plan)
        view = bound.resident[name] if name in bound.resident else bound.results.get(name)
        if view is None:
            raise KeyError(f"{name!r} stays not on the device and is no result of {plan!r}")
        return np.array(view, order="C")  # a copy, always: the slab changes with the next step

    def stepping(self) -> AbstractContextManager[None]:
        """What holds while a step runs: the BLAS has one thread, since vdnn's own threads share the work."""
        return self.kernels.step()

    def start(self, plan: Plan) -> Run:
        """Begin a step: its streams run whatever is issued."""
        if self.torn:
            raise DeviceError("a failed step left the weights half updated; load them from a checkpoint first")
        bound = self.load(plan)
        self.streams.check_idle()
        if bound.poison:
            bound.poison.reset()
        return self.streams.start(bound.program)

    def restore(self, plan: Plan, run: Run) -> None:
        """Put back what a step that failed has overwritten; `torn` is set if something had no undo copy."""
        bound = self.load(plan)
        for i, (target, saved) in bound.undo.items():
            if run.finish[i] is not None:
                np.copyto(target, saved)
        for i, _, op in plan.computes():
            if run.start[i] is not None and any(b in bound.resident and b not in bound.undoable for b in op.writes):
                self.torn = True

    def take_back(self, plan: Plan) -> str:
        """Undo a step that ended well; says what became of the weights.  Without undo copies the device is `torn`."""
        bound = self.load(plan)
        if not bound.undo:
            self.torn = True
            return "the weights were updated with it and are lost: undo=False"
        for target, saved in bound.undo.values():
            np.copyto(target, saved)
        return "the weights are as before this step"

    def measured_peak_bytes(self, plan: Plan) -> int:
        """Most bytes of the arena in use at one time, from the arrays that the plan's steps are really handed.

        Under network-wide lifetimes everything is held all the time, so there it is the size of the arena.
        """
        if plan.decisions.lifetimes == "network":
            return self.arena_bytes
        return measured_peak(self.load(plan).accesses, self.held.values())

    def close(self) -> None:
        """End the threads.  The device cannot be used any more."""
        self.streams.close()
        self.kernels.close()
