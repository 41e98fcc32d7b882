"""Layers that only say what they read and write, for plans that are looked at and never run.

Every image has 64 numbers of 4 bytes a channel, so with a batch of 2 a channel takes one granule of 512 bytes.
"""

from __future__ import annotations

from vdnn.building import build
from vdnn.layers.base import Algorithm, Layer, Shapes, Spec
from vdnn.memory.decisions import resolve
from vdnn.network import Network


class Kernels:
    name, storage, threads = "stub", "nhwc", 1


class Optimizer:
    name, state = "momentum", ("v",)

    def workspace(self, kernels, shape, dtype):
        return 0


class Conv(Layer):
    """`scratch` granules of workspace for the algorithm "roomy"."""

    def __init__(self, filters=1, scratch=1):
        self.filters, self.scratch = filters, scratch

    def shapes(self, x):
        return Shapes((x[0], self.filters, *x[2:]), {"w": Spec((self.filters, x[1]))})

    def algorithms(self, kernels, phase, dtype, *x):
        return (Algorithm("plain", 0), Algorithm("roomy", 512 * self.scratch))

    def forward(self, x, w, y, algorithm, workspace): ...
    def backward_weights(self, x, dy, dw, algorithm, workspace): ...
    def backward_data(self, w, dy, dx, algorithm, workspace): ...


class ReLU(Layer):
    inplace = {"y": "x", "dx": "dy"}

    def forward(self, x, y): ...
    def backward(self, y, dy, dx): ...


class Square(Layer):
    """Backward reads x."""

    def forward(self, x, y): ...
    def backward(self, x, dy, dx): ...


class Norm(Layer):
    kind = "bn"

    def shapes(self, x):
        each = Spec((x[1],))
        return Shapes(x, {"w": each}, {"m": each}, {"mean": each})

    def forward(self, x, w, y, m): ...
    def update_statistics(self, m, mean): ...
    def evaluate(self, x, w, y, mean): ...
    def backward(self, x, w, m, dy, dx, dw): ...


class Add(Layer):
    inputs = None
    passes_gradient = True
    inplace = {"y": "x0"}

    def forward(self, y, **x): ...


class Loss(Layer):
    is_loss = True

    def shapes(self, x):
        return Shapes((1,), saved={"p": Spec(x)}, labels=Spec((x[0],), "int64"))

    def forward(self, x, labels, y, p): ...
    def backward(self, p, labels, dx): ...


def network(*layers, batch=2):
    """The layers one after the other on (batch, 1, 8, 8), and a loss."""
    net = Network((batch, 1, 8, 8), name="net")
    x = net.input
    for layer in (*layers, Loss()):
        x = net.add(layer, x)
    return net


def squares(count):
    """A chain of layers without parameters whose backward reads their input."""
    return network(Conv(), *(Square() for _ in range(count)))


def tape_of(net, purpose="step", optimizer=None):
    return build(net, Kernels(), optimizer or Optimizer(), purpose)


def decided(tape, decisions=None, **algorithms):
    return resolve(decisions or {}, tape, algorithms)


def short(steps):
    """One line a step: an op by its name, anything else with its kind; offsets and waits where there are any."""
    out = []
    for s in steps:
        text = s.name if s.kind == "compute" else f"{s.kind} {s.name}"
        text += f" @{s.offset}" if s.offset >= 0 else ""
        out.append(text + (f" after {' '.join(map(str, s.waits))}" if s.waits else ""))
    return out


def text(block):
    """The lines of an expected text, without indentation."""
    return [line.strip() for line in block.strip().splitlines()]
