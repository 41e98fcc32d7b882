"""A plan bound to a device's arrays: each step a call without arguments, so that nothing is looked up later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vdnn.layers.base import Array
from vdnn.layers.fused import Fused, is_split
from vdnn.memory.decisions import Fate
from vdnn.memory.measure import Access
from vdnn.memory.merging import merges
from vdnn.memory.plan import Plan, PlanError, Step, workspace_of
from vdnn.network import Role, Tensor
from vdnn.rewrites import as_on_tape
from vdnn.tape import Op

if TYPE_CHECKING:
    from vdnn.memory.device import Device


def host_view(memory: Array, offset: int, tensor: Tensor, storage: str) -> Array:
    """The tensor at `offset` of a NumPy array of bytes: logical shape, in that storage."""
    flat = memory[offset : offset + tensor.nbytes].view(tensor.dtype)
    if len(tensor.shape) != 4 or storage == "nchw":
        return flat.reshape(tensor.shape)
    n, c, h, w = tensor.shape
    return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)


class Bound:
    """A plan whose steps are bound to arrays of one device.

    actions   {step of the plan: what it does}, of those that do something, in plan order
    resident  {name: array in the arena}, of what stays on the device
    inputs    per slot {name: array on the host}, from which the step's inputs are fetched
    results   {name: array on the host}, where results arrive
    undo      {step: puts back the bytes in the arena of which that step makes an undo copy}
    accesses  of each step, the bytes of the arena that it is handed
    merged    {step: what it does where ops are merged (vdnn.memory.merging)}, of those for which that is not `actions`
    """

    def __init__(self, plan: Plan, device: Device) -> None:
        self.plan, self.device = plan, device
        self.resident: dict[str, Array] = {}
        self.inputs: list[dict[str, Array]] = [{} for _ in range(device.slots)]
        self.results: dict[str, Array] = {}
        self.undo: dict[int, Callable[[], Any]] = {}
        self.undoable: set[str] = set()
        self.accesses: list[list[Access]] = [[] for _ in plan.steps]
        self.actions: dict[int, Callable[[], Any]] = {}
        self._at: dict[str, int] = {}
        self._places = _input_places(plan, device.slots)
        for i, step in enumerate(plan.steps):
            if step.kind == "alloc":
                self._place(step)
            elif step.kind == "compute":
                self.actions[i] = self._compute(i, plan.tape.ops[plan.tape.index[step.name]], step)
            elif step.kind in ("offload", "prefetch"):
                self.actions[i] = self._copy(i, step)
        self._hold_sources()
        self.merged: dict[int, Callable[[], Any]] = {}
        for first, second in merges(plan, device.network, device.kernels):
            call: Any = self.actions[first]
            self.merged |= {first: partial(call, rectify=True), second: _nothing}

    def _place(self, step: Step) -> None:
        self._at[step.name] = step.offset
        if step.name in self.plan.tape.resident:
            for tensor in self.plan.tape.buffers[step.name].tensors:
                self.resident[tensor.name] = self.device.view(step.offset, tensor)

    def _compute(self, i: int, op: Op, step: Step) -> Callable[[], Any]:
        tape, device = self.plan.tape, self.device
        arrays: dict[str, Array] = {}
        views: dict[
            Any, Array
        ] = {}  # CuPy copies an input that shares bytes with the output, unless they are one object
        for argument, name in op.arguments.items():
            if name is None:
                arrays[argument] = None
                continue
            offset, tensor = self._at[tape.buffer_of[name]], tape.tensors[name]
            place = offset, tensor.shape, tensor.dtype
            if place not in views:
                views[place] = device.view(offset, tensor)
            arrays[argument] = views[place]
            self._note(i, views[place], name in op.reads, name in op.writes)
        nbytes = op.algorithm(step.algorithm).workspace
        workspace = None
        if nbytes:
            workspace = device.scratch(self._at[workspace_of(op.name)], nbytes)
            self._note(i, workspace, False, True)
        return call_of(op, arrays, step.algorithm, workspace, tape.batch, device)

    def _copy(self, i: int, step: Step) -> Callable[[], Any]:
        plan, device = self.plan, self.device
        nbytes, offset = plan.payload(step.name), self._at[step.name]
        on_device = device.scratch(offset, nbytes)
        self._note(i, on_device, step.kind == "offload", step.kind == "prefetch")
        buffer = plan.tape.buffers[step.name]
        is_input = buffer.role is Role.INPUT
        places = self._places[step.name] if is_input else (step.offset,) * device.slots
        if step.kind == "prefetch":
            if is_input:
                for inputs, place in zip(self.inputs, places, strict=True):
                    for tensor in buffer.tensors:
                        inputs[tensor.name] = self._on_host(place, tensor)
            return self._spill(step.kind, step) if step.tier else device.copier(step.kind, offset, places, nbytes)
        if step.name in self.resident:
            self.undo[i] = self._put_back(step, on_device)
            self.undoable.add(step.name)
        for tensor in buffer.tensors:
            if tensor.name in plan.tape.results:
                self.results[tensor.name] = self._on_host(step.offset, tensor)
        if step.tier:
            return self._spill(step.kind, step)
        return device.copier(step.kind, offset, places, nbytes)

    def _spill(self, kind: str, step: Step) -> Callable[[], Any]:
        """A copy of the step's buffer to or from its place on disk, in whole granules."""
        offset, nbytes = self._at[step.name], self.plan.size(step.name)
        return self.device.spiller(kind, offset, step.offset, nbytes, step.name)

    def _put_back(self, step: Step, on_device: Array) -> Callable[[], Any]:
        """What brings back the bytes that an undo copy was made of."""
        if step.tier:
            return self._spill("prefetch", step)
        saved = self.device.host[step.offset : step.offset + on_device.nbytes]
        return partial(self.device.put, on_device, saved)

    def _on_host(self, place: int, tensor: Tensor) -> Array:
        return host_view(self.device.host, place, tensor, self.device.kernels.storage)

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

    def _note(self, i: int, view: Array, reads: bool, writes: bool) -> None:
        start, stop = self.device.span(view)
        self.accesses[i].append(Access(start, stop, reads, writes))


def _nothing() -> None:
    """What a step does whose work another one has done."""


def _input_places(plan: Plan, slots: int) -> dict[str, tuple[int, ...]]:
    """{input: where it lies on the host, per slot}: first where the plan has it, then one after the other behind the
    plan's own bytes.
    """
    homes = {s.name: s.offset for s in plan.steps if s.kind == "prefetch" and plan.role(s.name) is Role.INPUT}
    sizes = [plan.size(name) for name in homes]
    starts = list(accumulate(sizes, initial=plan.host_bytes))
    total = starts.pop() - plan.host_bytes
    return {
        name: (home, *(start + k * total for k in range(slots - 1)))
        for (name, home), start in zip(homes.items(), starts, strict=True)
    }


def call_of(
    op: Op, arrays: Mapping[str, Array], algorithm: str, workspace: Array, samples: int, device: Device
) -> Callable[[], Any]:
    """The op as a call without arguments; `samples` are those of the whole step."""
    kernels = device.kernels
    if op.phase == "sum":
        return partial(kernels.add, **arrays)
    if op.phase == "update":
        if device.optimizer is None:
            raise PlanError(f"{op.name} needs an optimizer, and the device was made without one")
        return partial(device.optimizer.update, kernels=kernels, workspace=workspace, **arrays)
    layer = as_on_tape(device.network[op.layer].layer, op.arguments)
    services: dict[str, Any] = {"xp": kernels.xp, "kernels": kernels, "algorithm": algorithm, "workspace": workspace}
    services["samples"] = samples
    inputs = len(device.network[op.layer].inputs)
    if op.phase == "backward" and is_split(layer):
        whole = Fused(layer)
        return partial(whole.backward, inputs, **arrays, **services)
    method = layer.method(op.phase)
    if method is None:
        raise PlanError(f"{op.name}: {layer} has no method for {op.phase}")
    named = layer.needs(op.phase, inputs)
    return partial(method, **arrays, **{k: v for k, v in services.items() if k in named})
