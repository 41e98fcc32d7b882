"""Small networks of every shape that plans must cope with, and what it takes to run a step of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from vdnn import clock as clocks
from vdnn import optimizers
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import (
    Add,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    SoftmaxCrossEntropy,
)
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, resolve
from vdnn.memory.execute import execute
from vdnn.memory.host import HostDevice
from vdnn.memory.passes import make_plan
from vdnn.network import Network, Role

CLASSES = 5
THREADS = 2


def finish(net, x):
    net.add(SoftmaxCrossEntropy(), net.add(Linear(CLASSES), net.add(Flatten(), x)))
    return net


def chain(batch=4):
    """Convolutions, in-place ReLU, pooling, one hidden layer; the last pooling reads its input again in backward."""
    net = Network((batch, 3, 8, 8), name="chain")
    x = net.input
    for filters, saves in ((6, "indices"), (8, "input")):
        x = net.add(ReLU(), net.add(Conv2d(filters, 3, padding=1), x))
        x = net.add(MaxPool2d(2, saves=saves), x)
    x = net.add(ReLU(), net.add(Linear(10), net.add(Flatten(), x)))
    return finish(net, x)


def residual(batch=4):
    """Two blocks with a skip; batch norm, add and ReLU work in place."""
    net = Network((batch, 3, 6, 6), name="residual")
    x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(6, 3, padding=1), net.input)))
    for _ in range(2):
        skip = x
        x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(6, 3, padding=1), x)))
        x = net.add(BatchNorm2d(), net.add(Conv2d(6, 3, padding=1), x))
        x = net.add(ReLU(), net.add(Add(), x, skip))
    return finish(net, net.add(GlobalAvgPool2d(), x))


def inception(batch=4):
    """Four branches from one tensor, so three sums of its gradient, and a join along channels."""
    net = Network((batch, 3, 6, 6), name="inception")
    x = net.add(LocalResponseNorm(3), net.add(ReLU(), net.add(Conv2d(6, 3, padding=1), net.input)))
    branches = [
        net.add(ReLU(), net.add(Conv2d(4, 1), x)),
        net.add(Conv2d(4, 3, padding=1), net.add(ReLU(), net.add(Conv2d(2, 1), x))),
        net.add(Conv2d(2, 1), net.add(MaxPool2d(3, 1, padding=1), x)),
        x,
    ]
    return finish(net, net.add(AvgPool2d(2), net.add(Concat(), *branches)))


def norm_dropout(batch=4):
    """Batch norm and dropout: running statistics, and random numbers that a rerun must have again."""
    net = Network((batch, 3, 6, 6), name="norm_dropout")
    x = net.add(Dropout(0.2), net.input)
    for filters in (6, 8):
        x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(filters, 3, padding=1), x)))
        x = net.add(Dropout(0.3), x)
    return finish(net, x)


NETWORKS = (chain, residual, inception, norm_dropout)

# ---- decisions by name


def alternate(tape):
    """Keep, offload and drop in turn."""
    droppable = (KEEP, OFFLOAD, DROP)
    fixed = (KEEP, OFFLOAD, OFFLOAD)
    return {t: (fixed if t.role is Role.INPUT else droppable)[i % 3] for i, t in enumerate(tape.saved)}


FATES = {
    "keep": lambda tape: {},
    "offload": lambda tape: dict.fromkeys(tape.saved, OFFLOAD),
    "drop": lambda tape: {t: KEEP if t.role is Role.INPUT else DROP for t in tape.saved},
    "alternate": alternate,
}

# ---- running them


def tape_of(net, purpose="step", optimizer="momentum", **options):
    return build(net, NumpyKernels(THREADS), optimizers.get(optimizer), purpose, **options)


def plan_of(net, decisions=None, *, undo=True, purpose="step", optimizer="momentum"):
    """`decisions`: Decisions, fates, or a function of the tape that gives either."""
    tape = tape_of(net, purpose, optimizer)
    given = decisions(tape) if callable(decisions) else decisions or {}
    return make_plan(tape, resolve(given, tape, {}), undo=undo)


@contextmanager
def device_for(net, *plans, optimizer="momentum", **options):
    """A device that holds equal starting values for equal networks, with its slabs taken for all plans."""
    device = HostDevice(net, optimizers.get(optimizer), threads=THREADS, **{"poison": True, **options})
    try:
        device.reserve(*(max(getattr(p, f"{what}_bytes") for p in plans) for what in ("arena", "host", "disk")))
        random = np.random.default_rng(7)
        for name in plans[0].tape.resident:
            tensor = plans[0].tape.tensors[name]
            if tensor.role is Role.WEIGHT:
                value = random.standard_normal(tensor.shape) * 0.3
            else:
                value = np.full(tensor.shape, 1.0 if name.endswith("variance") else 0.0)
            device.write(plans[0], name, value.astype(tensor.dtype))
        yield device
    finally:
        device.close()


def feed(device, plan, step=0):
    """Images, labels and clock of one step; equal steps get equal ones."""
    random = np.random.default_rng(100 + step)
    shape = device.network.input.shape[1:]
    device.write(plan, "input", random.standard_normal((plan.tape.batch, *shape), dtype=np.float32))
    device.write(plan, "labels", random.integers(0, CLASSES, plan.tape.batch))
    clock = np.zeros(clocks.SIZE)
    clock[clocks.STEP], clock[clocks.LEARNING_RATE] = step, 0.1
    clock[clocks.BIAS_1], clock[clocks.BIAS_2] = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
    device.write(plan, "clock", clock)


def resident(device, plan):
    """{name: array} of weights, state and statistics."""
    return {name: device.read(plan, name) for name in plan.tape.resident}


def outcome(device, plan, steps=2):
    """Everything that `steps` steps leave behind: their results, and what is resident after them."""
    found = {}
    for step in range(steps):
        feed(device, plan, step)
        execute(plan, device)
        found |= {f"{name} of step {step}": device.read(plan, name) for name in plan.tape.results}
    return found | resident(device, plan)


def train(make: Callable[[], Network], decisions=None, *, steps=2, **options):
    """(outcome, plan) of a network that is made, planned and trained for a few steps."""
    net = make()
    plan = plan_of(net, decisions)
    with device_for(net, plan, **options) as device:
        found = outcome(device, plan, steps)
        assert device.measured_peak_bytes(plan) == plan.peak_bytes
    return found, plan


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_array_equal(found[name].view(np.uint8), value.view(np.uint8), err_msg=name)
    assert any(value.any() for value in expected.values())
