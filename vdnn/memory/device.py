"""Device: what every device does alike: two slabs, what lies in them, and which plans it runs.

A device of some kind adds where memory comes from, how it is copied, and how a step runs.  It must provide:

    name, kernels        what it is called, and a kernel set for whose name, storage and threads plans are made
    _take, close         one slab of device memory, one of host memory and, where `spills`, a file: taken once for all
    arena_bytes, host    plans, and all given back by close; `host` is the host slab as bytes that NumPy can view
    limit, free_bytes    the most that it may take while plans are made, and how much it could take
    view, scratch, span  arrays over bytes of the arena, without a copy: a tensor in its logical shape and the kernels'
                         storage, or plain bytes; and which bytes such an array covers
    put, get             copies between an array of the arena and NumPy, done when the call returns
    copier, spiller      for one offload or prefetch a function that does it, or starts it on the copy's stream
    _start               a step under way, a `vdnn.memory.run.Run`, which says what is asked of it
    cost, check_idle     times to decide plans by; RuntimeError while a step is under way, and after close

and it promises what plans rely on: a step starts after all that it waits for has finished; equal plans give equal bits,
whatever the timing; nothing is written but what a step's arrays cover; what failed leaves the weights as they were.
tests/memory/test_conformance.py holds every kind of device to it.  With VDNN_DEVICE=module:function in the environment,
a function (network, optimizer, **options) that returns a device, it holds one of your own to the same.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vdnn.layers.base import Array
from vdnn.memory.bind import Bound
from vdnn.memory.cost import Cost
from vdnn.memory.measure import measured_peak
from vdnn.memory.plan import Plan, Step
from vdnn.memory.run import Run
from vdnn.memory.verify import SAFE, verify
from vdnn.micro_batches import without_round
from vdnn.network import Network, Role, Tensor

if TYPE_CHECKING:
    from vdnn.memory.spill import SpillFile

INPUTS = ("input", "labels", "clock")


class DeviceError(RuntimeError):
    """A plan that this device cannot run, a slab that is too small for it, or a device that is not there."""


class Device(ABC):
    """Runs plans: an arena of device memory, a slab of host memory and, for plans that use one, a spill file, all taken
    once.

    network         gives the layers' methods
    optimizer       gives `update`; None for plans without updates
    kernels         the kernel set; plans must be made for the same
    poison          overwrite freed bytes, so that a use after free gives NaN (default: whether VDNN_SANITIZE is 1)
    delay           seconds to wait before a step, as a function of it: to provoke races in tests
    checked         refuse plans that `verify` does, as an edited one may be; False only to see what then happens
    """

    name: ClassVar[str]
    asynchronous: ClassVar[bool] = False  # whether a step may go on after the call that began it
    slots: ClassVar[int] = 1  # places on the host for a step's inputs
    spills: ClassVar[bool] = False  # whether plans may have a spill file

    def __init__(
        self,
        network: Network,
        optimizer: Any,
        kernels: Any,
        poison: bool | None,
        delay: Callable[[Step], float] | None,
        checked: bool,
    ) -> None:
        self.network, self.optimizer, self.kernels = network, optimizer, kernels
        self.poison = os.environ.get("VDNN_SANITIZE") == "1" if poison is None else poison
        self.delay, self.checked = delay, checked
        self.timed = True  # whether steps are traced unless they are asked not to be
        self.held: dict[str, tuple[int, int]] = {}  # {resident buffer: its bytes in the arena}
        self.bytes_in_use = 0
        self.torn = False  # whether a failed step left weights that could not be put back
        self.lost = False  # whether the device failed, with all that was on it
        self.slot = 0  # which place the inputs are written to
        self.settle: Callable[[], None] = lambda: None  # whoever began a step sets what must be done before the next
        self.spill: SpillFile | None = None
        self._bound: dict[int, Bound] = {}

    # ---- what a kind of device adds

    @abstractmethod
    def _take(self, arena_bytes: int, host_bytes: int, disk_bytes: int) -> None:
        """Take both slabs and a spill file, in the place of those there are; first the file, which may fail."""

    @property
    @abstractmethod
    def arena_bytes(self) -> int:
        """Bytes that this device holds on behalf of plans."""

    @property
    @abstractmethod
    def host(self) -> Array:
        """The host slab, as bytes."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Times by which plans for this device are decided."""

    @abstractmethod
    def limit(self, budget: int) -> None:
        """Take no more than `budget` bytes of device memory while plans are made."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that the arena could take, what it has already among them."""

    @abstractmethod
    def view(self, offset: int, tensor: Tensor) -> Array:
        """The tensor at `offset` of the arena: logical shape, in the kernels' storage."""

    @abstractmethod
    def scratch(self, offset: int, nbytes: int) -> Array:
        """Bytes of the arena."""

    @abstractmethod
    def span(self, view: Array) -> tuple[int, int]:
        """Bytes [start, stop) of the arena that a view of it covers."""

    @abstractmethod
    def copier(self, kind: str, offset: int, places: tuple[int, ...], nbytes: int) -> Callable[[], Any]:
        """The action of an offload or a prefetch between byte `offset` of the arena and, for each slot, a byte of the
        host slab.
        """

    def spiller(self, kind: str, offset: int, place: int, nbytes: int, name: str) -> Callable[[], Any]:
        """The action of an offload or a prefetch between byte `offset` of the arena and byte `place` of the spill file.

        nbytes   whole granules; name: whose they are, for errors
        Raises DeviceError where the device has no such file.
        """
        raise DeviceError(f"{name} is to be on disk, and the device {self.name!r} has no spill file")

    @abstractmethod
    def put(self, view: Array, value: Array) -> None:
        """Copy a NumPy array to a view of the arena."""

    @abstractmethod
    def get(self, view: Array) -> Array:
        """A copy of a view of the arena, as a NumPy array in logical order."""

    @abstractmethod
    def _start(self, plan: Plan, bound: Bound, timed: bool, apart: bool) -> Run:
        """Begin a run of `plan`; apart: every step does what it says, none the work of two (vdnn.memory.merging)."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the device holds.  It cannot be used any more."""

    @abstractmethod
    def check_idle(self) -> None:
        """Raise RuntimeError if a step is under way, or the device was closed."""

    def stepping(self) -> AbstractContextManager[None]:
        """What holds while a step runs."""
        return nullcontext()

    # ---- memory

    @property
    def resident_bytes(self) -> tuple[int, int, int]:
        """Bytes of main memory that the arena, the host slab and staging for the spill file take."""
        return 0, int(self.host.nbytes), self.spill.staging_bytes if self.spill is not None else 0

    @property
    def disk_bytes(self) -> int:
        """Bytes of the spill file."""
        return self.spill.nbytes if self.spill is not None else 0

    def reserve(self, arena_bytes: int, host_bytes: int, disk_bytes: int = 0) -> None:
        """Take the two slabs and the spill file, once, for all plans to come.  What they held is lost."""
        self.check_idle()
        self._take(arena_bytes, host_bytes, disk_bytes)
        self._bound.clear()
        self.held.clear()
        self.torn = False  # there are no weights any more

    def grow(self, arena_bytes: int, host_bytes: int, disk_bytes: int = 0) -> None:
        """Take larger slabs, and a larger file, if these are too small; the weights and what stays with them keep their
        places.
        """
        before = self.arena_bytes, int(self.host.nbytes), self.disk_bytes
        wanted = tuple(map(max, (arena_bytes, host_bytes, disk_bytes), before))
        if wanted == before:
            return
        self.check_idle()
        if self.torn:
            raise DeviceError("a failure left no whole weights that could keep their places; load a checkpoint first")
        kept = [(start, self.get(self.scratch(start, stop - start))) for start, stop in self.held.values()]
        self.torn = True  # until the weights are back
        try:
            self._take(*wanted)
        except (DeviceError, MemoryError):
            self._take(*before)
            self._put_back(kept)
            raise
        self._put_back(kept)

    def _put_back(self, kept: list[tuple[int, Array]]) -> None:
        self._bound.clear()
        for start, value in kept:
            self.put(self.scratch(start, value.nbytes), value)
        self.torn = False

    def load(self, plan: Plan) -> Bound:
        """Bind every step of `plan` to its arrays; done once per plan.  Raises DeviceError if it cannot run here."""
        if id(plan) not in self._bound:
            self._check(plan)
            self._bound[id(plan)] = Bound(plan, self)
        return self._bound[id(plan)]

    def host_bytes_of(self, plan: Plan) -> int:
        """Bytes of the host slab that a plan takes on this device: beside its own, further slots for the inputs."""
        spare = sum(b.nbytes for b in plan.tape.buffers.values() if b.role is Role.INPUT)
        return plan.host_bytes + (self.slots - 1) * spare

    def _check(self, plan: Plan) -> None:
        mine = {"kernels": self.kernels.name, "storage": self.kernels.storage, "threads": self.kernels.threads}
        for key, value in mine.items():
            if getattr(plan.tape, key) != value:
                raise DeviceError(f"the plan is for {key} {getattr(plan.tape, key)!r}, this device has {value!r}")
        if plan.tape.count != "all":
            raise DeviceError(f"the plan counts {plan.tape.count} alone, so its arena is too small to run in")
        updates = any(op.phase == "update" for op in plan.tape.ops)
        optimizer = getattr(self.optimizer, "name", "none")
        if updates and plan.tape.optimizer != optimizer:
            raise DeviceError(f"the plan is for optimizer {plan.tape.optimizer!r}, this device has {optimizer!r}")
        if self.checked and plan not in SAFE:
            verify(plan)
        self._check_residents(plan)
        if not self.arena_bytes and not self.host.size and not self.torn:
            self.reserve(plan.arena_bytes, self.host_bytes_of(plan), plan.disk_bytes)
        for what, need, have in (
            ("arena", plan.arena_bytes, self.arena_bytes),
            ("host slab", self.host_bytes_of(plan), self.host.nbytes),
            ("spill file", plan.disk_bytes, self.disk_bytes),
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
        is_resident = name in bound.resident
        view = bound.resident[name] if is_resident else bound.inputs[self.slot].get(name)
        if view is None:
            if without_round(name) in INPUTS:
                return  # this plan does not read it
            raise KeyError(f"{name!r} is no weight, state, statistic or input of {plan.tape.network}")
        if np.shape(value) != view.shape:
            raise ValueError(f"{name} has shape {view.shape}, not {np.shape(value)}")
        if is_resident:
            self.put(view, value)
            self.held[name] = self.span(view)
        else:
            np.copyto(view, value, casting="same_kind")

    def read(self, plan: Plan, name: str) -> Array:
        """A copy, in logical order, of a resident tensor or of a result of the last step."""
        bound = self.load(plan)
        if name in bound.resident:
            return self.get(bound.resident[name])
        if name not in bound.results:
            raise KeyError(f"{name!r} stays not on the device and is no result of {plan!r}")
        return np.array(bound.results[name], order="C")  # a copy: the slab changes with the next step

    # ---- steps

    def start(self, plan: Plan, timed: bool = True, apart: bool = False) -> Run:
        """Begin a step: its streams run whatever is issued.  apart: see `execute`."""
        self.settle()
        self.check_idle()
        if self.torn:
            raise DeviceError("a failed step left the weights half updated; load them from a checkpoint first")
        bound = self.load(plan)
        return self._start(plan, bound, timed, apart)

    def restore(self, plan: Plan, run: Run) -> str:
        """Put back what a step that failed has overwritten; why not, if that fails.

        `torn` is set then, and if something that was overwritten had no undo copy.
        """
        bound = self.load(plan)
        written = {b for i, _, op in plan.computes() if run.started(i) for b in op.writes if b in bound.resident}
        self.torn |= not written <= bound.undoable
        return self._undo(bound, (i for i in bound.undo if plan.steps[i].name in written and run.finished(i)))

    def take_back(self, plan: Plan) -> str:
        """Undo a step that ended well; says what became of the weights.  Without undo copies the device is `torn`."""
        bound = self.load(plan)
        if not bound.undo:
            self.torn = True
            return "the weights were updated with it and are lost: undo=False"
        why = self._undo(bound, bound.undo)
        return f"the weights were updated with it and are lost: {why}" if why else "the weights are as before this step"

    def _undo(self, bound: Bound, steps: Iterable[int]) -> str:
        """Put back the undo copies of these steps; why not, if that fails, and the device is `torn`."""
        try:
            for i in steps:
                bound.undo[i]()
        except DeviceError as error:
            self.torn = True
            return str(error)
        return ""

    def measured_peak_bytes(self, plan: Plan) -> int:
        """Most bytes of the arena in use at one time, from the arrays that the plan's steps are really handed.

        Under network-wide lifetimes everything is held all the time, so there it is the size of the arena.
        """
        if plan.decisions.lifetimes == "network":
            return self.arena_bytes
        return measured_peak(self.load(plan).accesses, self.held.values())
