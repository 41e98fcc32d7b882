"""A plan bound to a host device's arrays: each step a call without arguments, so that nothing is looked up later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.layers.base import Array
from vdnn.memory.decisions import Fate
from vdnn.memory.measure import Access
from vdnn.memory.plan import Plan, PlanError, Step, workspace_of
from vdnn.memory.poison import Poison
from vdnn.memory.streams import Entry, Program
from vdnn.network import Role, Tensor
from vdnn.tape import Op

if TYPE_CHECKING:
    from vdnn.memory.host import HostDevice

PAGE = 4096  # bytes


def slab(nbytes: int) -> Any:
    """Bytes, all 0, that begin on a page; the system gives a page when it is first written to."""
    raw = np.zeros(nbytes + PAGE, np.uint8)
    first = -raw.ctypes.data % PAGE
    return raw[first : first + nbytes]


def view_of(memory: Any, offset: int, tensor: Tensor) -> Array:
    """The tensor at `offset` of a slab: logical shape, stored channels-last."""
    flat = memory[offset : offset + tensor.nbytes].view(tensor.dtype)
    if len(tensor.shape) != 4:
        return flat.reshape(tensor.shape)
    n, c, h, w = tensor.shape
    return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def span(view: Array, memory: Any) -> tuple[int, int]:
    """Bytes [start, stop) of a slab that a view of it covers."""
    low, high = np.lib.array_utils.byte_bounds(view)
    return low - memory.ctypes.data, high - memory.ctypes.data


class Bound:
    """A plan whose steps are bound to arrays of one device: nothing is looked up while it runs."""

    def __init__(self, plan: Plan, device: HostDevice) -> None:
        self.plan, self.device = plan, device
        self.resident: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}
        self.results: dict[str, Array] = {}
        self.undo: dict[int, tuple[Array, Array]] = {}  # {step: (the buffer's bytes, its copy's)}
        self.undoable: set[str] = set()
        self.accesses: list[list[Access]] = [[] for _ in plan.steps]
        self.at: dict[str, int] = {}
        actions: dict[int, Callable[[], Any]] = {}
        for i, step in enumerate(plan.steps):
            if step.kind == "alloc":
                self._place(step)
            elif step.kind == "compute":
                actions[i] = self._compute(i, plan.tape.ops[plan.tape.index[step.name]], step)
            elif step.kind in ("offload", "prefetch"):
                actions[i] = self._copy(i, step)
        self._hold_sources()
        self.poison = Poison(plan, device.arena) if device.poison else None
        if self.poison:
            actions = {i: self.poison.after(i, action) for i, action in actions.items()}
        self.program = self._program(actions)

    def _place(self, step: Step) -> None:
        self.at[step.name] = step.offset
        if step.name in self.plan.tape.resident:
            for tensor in self.plan.tape.buffers[step.name].tensors:
                self.resident[tensor.name] = view_of(self.device.arena, step.offset, tensor)

    def _compute(self, i: int, op: Op, step: Step) -> Callable[[], Any]:
        tape, device = self.plan.tape, self.device
        arrays: dict[str, Array] = {}
        for argument, name in op.arguments.items():
            if name is None:
                arrays[argument] = None
                continue
            view = view_of(device.arena, self.at[tape.buffer_of[name]], tape.tensors[name])
            arrays[argument] = view
            self._note(i, view, name in op.reads, name in op.writes)
        nbytes = op.algorithm(step.algorithm).workspace
        workspace = None
        if nbytes:
            first = self.at[workspace_of(op.name)]
            workspace = device.arena[first : first + nbytes]
            self._note(i, workspace, False, True)
        return call_of(op, arrays, step.algorithm, workspace, device)

    def _copy(self, i: int, step: Step) -> Callable[[], Any]:
        plan, device = self.plan, self.device
        nbytes = plan.payload(step.name)
        first = self.at[step.name]
        on_device = device.arena[first : first + nbytes]
        on_host = device.host[step.offset : step.offset + nbytes]
        self._note(i, on_device, step.kind == "offload", step.kind == "prefetch")
        buffer = plan.tape.buffers[step.name]
        if step.kind == "prefetch":
            if buffer.role is Role.INPUT:
                for tensor in buffer.tensors:
                    self.inputs[tensor.name] = view_of(device.host, step.offset, tensor)
            return self._move(on_device, on_host)
        if step.name in self.resident:
            self.undo[i] = (on_device, on_host)
            self.undoable.add(step.name)
        for tensor in buffer.tensors:
            if tensor.name in plan.tape.results:
                self.results[tensor.name] = view_of(device.host, step.offset, tensor)
        return self._move(on_host, on_device)

    def _hold_sources(self) -> None:
        """Count each step within the slack of an offloaded buffer as reading it, since its copy may still run."""
        held: dict[str, tuple[int, Access]] = {}  # {buffer: for how many more ops, its bytes}
        for i, step in enumerate(self.plan.steps):
            if step.kind in ("alloc", "free"):
                continue
            is_op = step.kind == "compute"
            k = self.plan.tape.index[step.name] if is_op else -1
            reads, makes = (self.plan.tape.reads[k], self.plan.tape.writes[k]) if is_op else ((), (step.name,))
            for name, (ops, access) in list(held.items()):
                if name in reads:
                    continue  # the last forward use
                if not ops or name in makes:
                    del held[name]
                    continue
                self.accesses[i].append(access)
                held[name] = (ops - is_op, access)
            if step.kind == "offload" and self.plan.fate(step.name) is Fate.OFFLOAD:
                held[step.name] = (self.plan.decisions.slack_of(step.name), self.accesses[i][0])

    def _move(self, target: Array, source: Array) -> Callable[[], Any]:
        bandwidth = self.device.link_bandwidth
        if bandwidth is None:
            return partial(np.copyto, target, source)
        return partial(_throttled, target, source, source.nbytes / bandwidth)

    def _note(self, i: int, view: Array, reads: bool, writes: bool) -> None:
        start, stop = span(view, self.device.arena)
        self.accesses[i].append(Access(start, stop, reads, writes))

    def _program(self, actions: Mapping[int, Callable[[], Any]]) -> Program:
        place: dict[int, tuple[str, int]] = {}  # {step: (its stream, how many of that stream are done when it is)}
        lanes: dict[str, list[Entry]] = {"compute": [], "offload": [], "prefetch": []}
        for i, action in actions.items():
            step = self.plan.steps[i]
            # a wait for what is not issued yet would be worth nothing on a GPU, so it is nothing here
            waits = tuple(place[w] for w in step.waits if w in place)
            lanes[step.stream].append(Entry(i, action, waits))
            place[i] = (step.stream, len(lanes[step.stream]))
            if self.device.delay is not None:
                lanes[step.stream][-1] = Entry(i, partial(_delayed, self.device.delay, step, action), waits)
        return Program(lanes, len(self.plan.steps))


def call_of(
    op: Op, arrays: Mapping[str, Array], algorithm: str, workspace: Array, device: HostDevice
) -> Callable[[], Any]:
    """The op as a call without arguments."""
    kernels = device.kernels
    if op.phase == "sum":
        return partial(kernels.add, **arrays)
    if op.phase == "update":
        if device.optimizer is None:
            raise PlanError(f"{op.name} needs an optimizer, and the device was made without one")
        return partial(device.optimizer.update, kernels=kernels, workspace=workspace, **arrays)
    layer = device.network[op.layer].layer
    method = layer.method(op.phase)
    if method is None:
        raise PlanError(f"{op.name}: {layer} has no method for {op.phase}")
    services = {"xp": kernels.xp, "kernels": kernels, "algorithm": algorithm, "workspace": workspace}
    named = layer.needs(op.phase, len(device.network[op.layer].inputs))
    return partial(method, **arrays, **{k: v for k, v in services.items() if k in named})


def _throttled(target: Array, source: Array, seconds: float) -> None:
    """Copy, and take at least `seconds`, as a slower link would; the sleep leaves the processor to compute."""
    until = time.perf_counter() + seconds
    np.copyto(target, source)
    time.sleep(max(0.0, until - time.perf_counter()))


def _delayed(delay: Callable[[Step], float], step: Step, action: Callable[[], Any]) -> None:
    time.sleep(max(0.0, delay(step)))
    action()
