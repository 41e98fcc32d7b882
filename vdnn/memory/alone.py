"""alone: each op of a step timed by itself, on arrays of its own: little memory, and each shape once.

All algorithms of an op take turns, so that a machine that is slow for a while is so for all of them; the first run of
each does not count.  The BLAS has one thread and vdnn's workers share the work, as in a step.  Unlike in a step,
nothing else has used the caches between two runs: small ops look a little faster than they are, by all
algorithms alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from vdnn import clock as clocks
from vdnn.arrays import initial
from vdnn.building import build
from vdnn.layers.base import Array
from vdnn.memory.bind import call_of, host_view
from vdnn.memory.host import HostDevice
from vdnn.memory.op_times import Names, key_of
from vdnn.memory.pages import slab
from vdnn.network import Role, Tensor
from vdnn.rewrites import ALL, STANDARD
from vdnn.tape import Op, Tape

ROLES = (Role.INPUT, Role.FEATURE, Role.GRADIENT, Role.WEIGHT_GRADIENT)  # of arrays that hold random numbers


@dataclass(frozen=True)
class Question:
    """An op to time, and its key in a table (vdnn.memory.op_times)."""

    key: str
    tape: Tape
    op: Op

    @property
    def algorithms(self) -> tuple[str, ...]:
        """All that the op has."""
        return tuple(a.name for a in self.op.algorithms)


def questions(device: HostDevice) -> list[Question]:
    """The ops of a training step of the device's network, as policies plan it, each shape once."""
    names, found = Names.of(device.network, device.optimizer), dict[str, Question]()
    for rewrites in (STANDARD, ALL):
        tape = build(device.network, device.kernels, device.optimizer, rewrites=rewrites)
        for op in tape.ops:
            key = key_of(tape, op, names)
            if key:
                found.setdefault(key, Question(key, tape, op))
    return list(found.values())


def timed_alone(question: Question, device: HostDevice, rounds: int, stop: Callable[[], bool]) -> dict[str, float]:
    """{algorithm: the median of its seconds in so many rounds}; empty if `stop` said so before the last."""
    op = Alone(question.tape, question.op, device)
    samples: dict[str, list[float]] = {name: [] for name in question.algorithms}
    with device.stepping(), np.errstate(all="ignore"):
        op.prepare()
        for count in range(rounds + 1):
            for name, taken in samples.items():
                if stop():
                    return {}
                seconds = op.run(name)
                if count:
                    taken.append(seconds)
    return {name: max(median(taken), 1e-9) for name, taken in samples.items()}  # a clock may stand still


class Alone:
    """One op of a tape with arrays of its own; those that its forward op makes for it have been made by that."""

    def __init__(self, tape: Tape, op: Op, device: HostDevice) -> None:
        self.tape, self.op, self.device = tape, op, device
        is_backward = op.layer and not op.is_forward
        alike = (o for o in tape.ops if o.layer == op.layer and o.is_forward)
        self.before = next(alike, None) if is_backward else None
        self.ops = (op,) if self.before is None else (self.before, op)
        self.views = self._views()
        most = max(a.workspace for each in self.ops for a in each.algorithms)
        self.space = slab(most)
        # what an op changes that it also reads is put back before each run, or values would grow from run to run
        changed = {tape.buffer_of[name] for name in op.writes} & {tape.buffer_of[name] for name in op.reads}
        self.changed = [] if op.phase == "update" else [n for n in self.views if tape.buffer_of[n] in changed]
        self.kept: list[tuple[Array, Array]] = []

    def _views(self) -> dict[str, Array]:
        """{tensor: its array} of both ops; tensors share bytes as on the tape."""
        tape, largest = self.tape, dict[str, int]()
        names = dict.fromkeys(n for op in self.ops for n in op.arguments.values() if n is not None)
        for name in names:
            buffer = tape.buffer_of[name]
            largest[buffer] = max(largest.get(buffer, 0), tape.tensors[name].nbytes)
        memory = {buffer: slab(nbytes) for buffer, nbytes in largest.items()}
        storage = self.device.kernels.storage
        return {n: host_view(memory[tape.buffer_of[n]], 0, tape.tensors[n], storage) for n in names}

    def prepare(self) -> None:
        """Fill the arrays that are read, and let the forward op make what backward reads of it."""
        random = np.random.default_rng(0)
        for name, view in self.views.items():
            self._fill(self.tape.tensors[name], view, random)
        if self.before is not None:
            self._call(self.before, self.before.algorithms[0].name)()
        self.kept = [(self.views[name], self.views[name].copy()) for name in self.changed]

    def _fill(self, tensor: Tensor, view: Array, random: np.random.Generator) -> None:
        network = self.device.network
        owned: Mapping[str, Any] = {**network.parameters, **network.statistics}
        if tensor.name in owned:
            parameter, spec = owned[tensor.name]
            np.copyto(view, initial(parameter, spec, 0), casting="same_kind")
        elif tensor.name.startswith("clock"):
            view[[clocks.BIAS_1, clocks.BIAS_2]] = 1  # the learning rate is 0, so that weights stay
        elif tensor.role in ROLES and view.dtype.kind == "f":
            np.copyto(view, random.standard_normal(view.shape, view.dtype))

    def _call(self, op: Op, algorithm: str) -> Callable[[], Any]:
        arrays = {argument: None if n is None else self.views[n] for argument, n in op.arguments.items()}
        nbytes = op.algorithm(algorithm).workspace
        workspace = self.space[:nbytes] if nbytes else None
        return call_of(op, arrays, algorithm, workspace, self.tape.batch, self.device)

    def run(self, algorithm: str) -> float:
        """Run the op by that algorithm; its seconds."""
        call = self._call(self.op, algorithm)
        for view, value in self.kept:
            np.copyto(view, value)
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
