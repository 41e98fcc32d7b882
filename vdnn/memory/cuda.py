"""CudaDevice: a GPU: one slab of device memory, one page-locked slab on the host, three streams.

A step is issued as a whole and runs by itself.  Its order is the plan's: an event for every wait, and nothing else.
Steps do not overlap: the undo copies of one take the place of the one before, so one place is enough for results too.
What overlaps is the host's work for the next step, whose inputs are written to a second place meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np

from vdnn.kernels.cuda import CudaKernels
from vdnn.kernels.cuda.driver import Block, CudaError, CupyDriver
from vdnn.kernels.cuda.link import SIZE, link_of
from vdnn.layers.base import Array
from vdnn.memory.bind import Bound, host_view
from vdnn.memory.cost import Cost, DeviceCost
from vdnn.memory.cuda_run import CudaRun, Schedule
from vdnn.memory.device import INPUTS, Device, DeviceError
from vdnn.memory.plan import STREAMS, Plan, Step
from vdnn.micro_batches import without_round
from vdnn.network import Network, Tensor
from vdnn.units import format_bytes

NOTHING = Block(0, 0, None)
MIB = 1 << 20


class CudaDevice(Device):
    """Runs plans on a GPU.

    network         gives the layers' methods
    optimizer       gives `update`; None for plans without updates
    math, storage, deterministic   see vdnn.kernels.cuda.CudaKernels
    timed           trace every step, with an event before and after each of the plan's steps; takes some time itself
    graphs          capture a step that is not timed as a CUDA graph and replay it; `graph_refusal` says why not, if so
    poison          overwrite freed bytes, so that a use after free gives NaN (default: whether VDNN_SANITIZE is 1)
    delay           seconds to spin on a stream before a step, as a function of it: to provoke races in tests
    checked         refuse plans that `verify` does, as an edited one may be; False only to see what then happens
    driver, kernels   what stands for CUDA and its libraries; others than the real ones are for tests

    Outside the slab, and not counted, are the CUDA context, the libraries' handles, cuBLAS's workspace and the graphs.
    Raises DeviceError where there is no GPU, no CuPy or no cuDNN 9, with the reason.
    """

    name = "cuda"
    asynchronous = True
    slots = 2  # the next step's inputs are written while this step runs
    kernels: CudaKernels

    def __init__(
        self,
        network: Network,
        optimizer: Any = None,
        *,
        math: str = "fp32",
        storage: str | None = None,
        deterministic: bool = True,
        timed: bool = False,
        graphs: bool = True,
        poison: bool | None = None,
        delay: Callable[[Step], float] | None = None,
        checked: bool = True,
        driver: Any = None,
        kernels: Callable[..., CudaKernels] | None = None,
    ) -> None:
        try:
            self.driver = CupyDriver() if driver is None else driver
            self.streams = {name: self.driver.new_stream() for name in STREAMS}
            make = kernels or CudaKernels.on
            made = make(self.driver, self.streams["compute"], math, storage, deterministic)
        except RuntimeError as error:  # CudaError, or CuPy's own
            raise DeviceError(f"no GPU can be used: {error}") from error
        super().__init__(network, optimizer, made, poison, delay, checked)
        self.timed = timed
        self.graphs = graphs and not self.poison and delay is None
        self.graph_refusal = ""
        self.running: CudaRun | None = None  # what the GPU works on
        self.latest: CudaRun | None = None  # what was begun last; open until whoever began it has seen its end
        self.closed = False
        self.block = NOTHING
        self._host: Array = np.zeros(0, np.uint8)
        self._schedules: dict[int, Schedule] = {}
        self._cost: Cost | None = None
        self._budget: int | None = None

    # ---- memory

    def _take(self, arena_bytes: int, host_bytes: int, disk_bytes: int) -> None:
        if disk_bytes:
            raise DeviceError(
                f"the plan needs a spill file of {disk_bytes} bytes, and plans with one run on the host only; plan "
                "without a host budget, or in a larger one"
            )
        self._let_go()
        gc.collect()  # trainers that nobody uses any more may hold slabs
        free, total = self.driver.memory_info()
        if arena_bytes > free:
            raise DeviceError(
                f"the plan needs {format_bytes(arena_bytes)} ({arena_bytes} bytes) of device memory; "
                f"{format_bytes(free)} ({free} bytes) of {format_bytes(total)} are free on {self.driver.name}, "
                f"the rest is in use, by other processes too; budget={free} or less would fit"
            )
        try:
            self.block = self.driver.allocate(arena_bytes)
            self._host = self.driver.allocate_pinned(host_bytes)
            self._share_budget()
        except CudaError as error:
            self.block = NOTHING
            raise DeviceError(
                f"no slabs of {arena_bytes} bytes on the device, {host_bytes} page-locked on the host: {error}"
            ) from error

    def _let_go(self) -> None:
        """Give both slabs back: whatever has an array of theirs would keep them."""
        self._schedules.clear()
        self._bound.clear()
        self.running = self.latest = None
        self.block, self._host = NOTHING, np.zeros(0, np.uint8)

    @property
    def arena_bytes(self) -> int:
        """Bytes that this device holds on behalf of plans."""
        return self.block.nbytes

    @property
    def host(self) -> Array:
        """The page-locked slab, as bytes."""
        return self._host

    @property
    def cost(self) -> Cost:
        """This GPU's published rates, the link as measured, and convolutions as cuDNN found them."""
        if self._cost is None:
            room = self.driver.memory_info()[0] if self._budget is None else self._budget
            try:
                link = link_of(self.driver, self.streams, min(SIZE, max(MIB, room // 4)))
            except CudaError as error:
                raise DeviceError(f"there is no room to measure the link to the GPU: {error}") from error
            self._cost = DeviceCost.of(self.driver.describe(), link)
        return self._cost

    def free_bytes(self) -> int:
        """Bytes that the arena could take: what is free now, and what it has already, less a margin for CUDA itself."""
        gc.collect()
        return max(0, int(self.driver.memory_info()[0]) + self.arena_bytes - self.driver.margin_bytes)

    def limit(self, budget: int) -> None:
        """Convolutions are measured within the budget too."""
        self._budget = budget
        self._share_budget()

    def _share_budget(self) -> None:
        """What the arena has is not there for measuring."""
        if self._budget is not None:
            self.kernels.find_limit = max(0, self._budget - self.arena_bytes)

    def view(self, offset: int, tensor: Tensor) -> Array:
        """The tensor at `offset` of the arena: logical shape, in the kernels' storage."""
        strides = None
        if len(tensor.shape) == 4 and self.kernels.storage == "nhwc":
            _, C, H, W = tensor.shape
            strides = tuple(s * np.dtype(tensor.dtype).itemsize for s in (H * W * C, 1, W * C, C))
        return self.driver.array(self.block, offset, tensor.shape, tensor.dtype, strides)

    def scratch(self, offset: int, nbytes: int) -> Array:
        """Bytes of the arena."""
        return self.driver.array(self.block, offset, (nbytes,), np.uint8)

    def span(self, view: Array) -> tuple[int, int]:
        """Bytes [start, stop) of the arena that a view of it covers; every view is dense."""
        start = self.driver.address(view) - self.block.address
        return start, start + int(view.size) * int(view.itemsize)

    def copier(self, kind: str, offset: int, places: tuple[int, ...], nbytes: int) -> Callable[[], Any]:
        """Starts the copy on its stream; for inputs, from the slot that the step runs with."""
        there, here = self.block.address + offset, int(self._host.ctypes.data)
        copy, stream = self.driver.copy, self.streams[kind]
        if kind == "offload":
            return lambda: copy(here + places[0], there, nbytes, kind, stream)
        return lambda: copy(there, here + places[self.running.slot if self.running else 0], nbytes, kind, stream)

    def put(self, view: Array, value: Array) -> None:
        """Copy a NumPy array to a view of the arena, and wait for it."""
        self.finish()
        stored = _like(view)
        np.copyto(stored, value, casting="same_kind")
        stream = self.streams["compute"]
        self.driver.copy(self.driver.address(view), stored.ctypes.data, stored.nbytes, "prefetch", stream)
        self._synchronize(stream)

    def get(self, view: Array) -> Array:
        """A copy of a view of the arena, as a NumPy array in logical order."""
        self.finish()
        stored = _like(view)
        stream = self.streams["compute"]
        self.driver.copy(stored.ctypes.data, self.driver.address(view), stored.nbytes, "offload", stream)
        self._synchronize(stream)
        return np.ascontiguousarray(stored)

    def write(self, plan: Plan, name: str, value: Array) -> None:
        """As on any device; inputs may be written while a step runs, if the next one is of the same plan."""
        running = self.running
        if running is not None and running.plan is not plan:
            self.finish()
        elif running is not None and without_round(name) in INPUTS and self.slot == running.slot:
            self.slot = 1 - running.slot
        super().write(plan, name, value)

    def read(self, plan: Plan, name: str) -> Array:
        """As on any device, after the end of the step that runs."""
        self.finish()
        return super().read(plan, name)

    # ---- steps

    def check_idle(self) -> None:
        """Raise RuntimeError if a step is under way or the device was closed, DeviceError if it is lost."""
        if self.closed:
            raise RuntimeError("this device was closed")
        if self.lost:
            raise DeviceError(
                "the GPU failed and what was on it is lost; start again, in a new process, from a checkpoint"
            )
        if self.latest is not None and self.latest.is_open:
            raise RuntimeError("the step before is still running; exhaust or close its walk first")

    def finish(self) -> None:
        """Return when no step runs any more."""
        if self.running is not None and self.running.issued_all:
            self.running.wait()

    def _start(self, plan: Plan, bound: Bound, timed: bool, apart: bool) -> CudaRun:
        if id(plan) not in self._schedules:
            self._schedules[id(plan)] = Schedule(bound, self)
        try:
            self.running = self.latest = CudaRun(self._schedules[id(plan)], self.slot, timed)
        except Exception:
            self._synchronize(self.streams["compute"])  # says so if the GPU failed before
            raise
        return self.running

    def _synchronize(self, what: Any) -> None:
        try:
            self.driver.synchronize(what)
        except CudaError as error:
            self.lost = self.torn = True
            raise DeviceError(f"the GPU failed: {error}") from error

    def restore(self, plan: Plan, run: Any) -> str:
        """As on any device; a GPU that failed cannot be restored."""
        return "" if self.lost else super().restore(plan, run)

    def rescued(self, plan: Plan) -> dict[str, Array]:
        """After the GPU was lost: {name: its undo copy} of everything that steps of `plan` update.

        Each array is as it was before the step that failed, or before the one before that, or, if its copy was cut
        off, partly both: nothing can tell any more which copies of the last step arrived.  Empty if no step of the plan
        ever ended.
        """
        schedule = self._schedules.get(id(plan))
        if schedule is None or not schedule.completed:
            return {}
        found = {}
        for i in schedule.bound.undo:
            place = plan.steps[i].offset
            for tensor in plan.tape.buffers[plan.steps[i].name].tensors:
                view = host_view(self._host, place, tensor, self.kernels.storage)
                found[tensor.name] = np.array(view, order="C")
        return found

    def close(self) -> None:
        """Wait for what runs, and give everything back.  The device cannot be used any more."""
        if self.closed:
            return
        try:
            if not self.lost:
                self.finish()
        finally:
            self.closed = True
            self._let_go()
            with suppress(CudaError) if self.lost else nullcontext():
                self.kernels.close()


def _like(view: Array) -> Array:
    """A new NumPy array with the shape and the strides of a dense array on the device."""
    raw = np.empty(int(view.size) * int(view.itemsize), np.uint8)
    return np.ndarray(view.shape, np.dtype(view.dtype), buffer=raw, strides=view.strides)
