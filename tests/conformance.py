"""Devices of every kind, which must do alike, and what it takes to run steps of small networks on them.

VDNN_GPU in the environment says what becomes of tests that need a GPU: "" skips them where there is none, "required"
fails them, "sanitized" is for kernels alone, each array in memory of its own, and "emulated" runs them over test
doubles, which tests the tests.  VDNN_DEVICE=module:function adds a device of somebody else's: what the function, called
with a network, an optimizer and the options of a device, returns.
"""

from __future__ import annotations

import os
import random
import warnings
from contextlib import contextmanager
from functools import cache

import emulator
import numpy as np
import pytest
from cuda_doubles import emulated_device
from networks import THREADS, feed

from vdnn import optimizers
from vdnn.building import build
from vdnn.importing import imported
from vdnn.kernels.cuda import CudaKernels
from vdnn.kernels.cuda.driver import CudaError, CupyDriver, missing
from vdnn.layers import BatchNorm2d, Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.layers.base import Layer
from vdnn.memory.cuda import CudaDevice
from vdnn.memory.decisions import resolve
from vdnn.memory.execute import execute
from vdnn.memory.host import HostDevice
from vdnn.memory.passes import make_plan
from vdnn.network import Network, Role

GPU = os.environ.get("VDNN_GPU", "")
OWN = os.environ.get("VDNN_DEVICE", "")  # module:function: a device that is not vdnn's own
OTHERS = ["foreign"] if OWN else []
KINDS = ["host", "emulated", *OTHERS, pytest.param("cuda", marks=pytest.mark.gpu)]
STORAGES = [
    "host",
    "emulated",
    "emulated-nhwc",
    *OTHERS,
    *(pytest.param(k, marks=pytest.mark.gpu) for k in ("cuda", "cuda-nhwc")),
]
SKEW = 5e-6  # seconds by which the clocks of a GPU's engines may differ


@cache
def why_no_gpu():
    """Why no GPU can be used, or ""."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own, where it finds no CUDA
        reason = missing()
        if not reason:
            try:
                driver = CupyDriver()
                CudaKernels.on(driver, driver.new_stream()).close()
            except CudaError as error:
                reason = str(error)
    return " ".join(reason.split())


def require(kind):
    """Skip the test, with the reason, where a device of this kind cannot be had."""
    if kind.startswith("cuda") and GPU == "sanitized":
        return
    if kind.startswith("cuda") and GPU != "emulated":
        if why_no_gpu() and GPU == "required":
            pytest.fail(f"no GPU can be used: {why_no_gpu()}", pytrace=False)
        if why_no_gpu():
            pytest.skip(f"no GPU can be used: {why_no_gpu()}")
    elif not kind.startswith(("host", "foreign")) and emulator.available():
        pytest.skip(emulator.available())


def make_device(kind, net, optimizer="momentum", *, seed=0, **options):
    """A device of a kind: host, emulated or cuda; the last two with a storage behind a dash, if not the usual one."""
    require(kind)
    optimizer = optimizers.get(optimizer)
    name, _, storage = kind.partition("-")
    if name == "foreign":
        return imported(OWN, "a Device", ValueError)(net, optimizer, **options)
    if name == "host":
        return HostDevice(net, optimizer, threads=THREADS, **options)
    options = {"storage": storage or None, **options}
    if name == "cuda" and GPU != "emulated":
        return CudaDevice(net, optimizer, **options)
    return emulated_device(net, optimizer, seed=seed, **options)


def plan_on(device, decisions=None, *, net=None, undo=True, purpose="step", algorithms=None):
    """A plan for this device; `decisions` as networks.plan_of takes them, `algorithms` those of another plan."""
    tape = build(net or device.network, device.kernels, device.optimizer, purpose)
    given = decisions(tape) if callable(decisions) else decisions or {}
    chosen = {k: v for k, v in (algorithms or {}).items() if k in tape.index}
    return make_plan(tape, resolve(given, tape, chosen), undo=undo)


def reserve(device, *plans):
    host_bytes = max(device.host_bytes_of(p) for p in plans)
    device.reserve(max(p.arena_bytes for p in plans), host_bytes, max(p.disk_bytes for p in plans))


def fill(device, plan, seed=7):
    """Give all that is resident a starting value; equal networks and seeds get equal ones."""
    numbers = np.random.default_rng(seed)
    for name in plan.tape.resident:
        tensor = plan.tape.tensors[name]
        value = np.full(tensor.shape, 1.0 if name.endswith("variance") else 0.0)
        if tensor.role is Role.WEIGHT:
            value = numbers.standard_normal(tensor.shape) * 0.3
        device.write(plan, name, value.astype(tensor.dtype))


@contextmanager
def ready(kind, net, *decisions, optimizer="momentum", undo=True, algorithms=None, **options):
    """(device, plans, one for each of `decisions`) with the slabs taken and starting values in place."""
    device = make_device(kind, net, optimizer, **options)
    try:
        plans = [plan_on(device, d, undo=undo, algorithms=algorithms) for d in decisions]
        reserve(device, *plans)
        fill(device, plans[0])
        yield device, *plans
    finally:
        device.close()


def run(device, plan, step=0):
    """Feed and execute one step; {name: value} of its results."""
    feed(device, plan, step)
    execute(plan, device)
    return {name: device.read(plan, name) for name in plan.tape.results}


def delays(seed, longest=2e-4):
    """Seconds before a step: mostly none, else up to `longest`."""
    numbers = random.Random(seed)
    return lambda step: max(0.0, numbers.uniform(-longest, longest))


# ---- what fails when it is told to


class Failing(Layer):
    """The identity, until it is told to fail in one phase."""

    kind = "failing"

    def __init__(self):
        self.fails = ""

    def forward(self, kernels, x, y):
        kernels.copy(x, y)
        self.may_fail("forward")

    def backward(self, kernels, dy, dx):
        kernels.copy(dy, dx)
        self.may_fail("backward")

    def may_fail(self, phase):
        if phase == self.fails:
            raise ArithmeticError(f"{phase} fails")


class FailingSGD(optimizers.SGD):
    """Fails in the middle of an update, with the weight of shape `fails_at` changed already."""

    fails_at = ()

    def update(self, kernels, clock, w, dw, workspace, velocity=None, **_):
        super().update(kernels, clock, w, dw, workspace, velocity)
        if w.shape == type(self).fails_at:
            raise ArithmeticError("update fails")


def failing_network():
    net = Network((4, 3, 6, 6), name="failing")
    x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(6, 3, padding=1), net.input)))
    x = net.add(Conv2d(6, 3, padding=1), net.add(Failing(), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(5), net.add(Flatten(), x)))
    return net


@contextmanager
def failing(net, phase):
    """Inside, a step fails in this phase."""
    FailingSGD.fails_at = net["conv1"].parameters["w"].shape if phase == "update" else ()
    net["failing1"].layer.fails = phase
    try:
        yield
    finally:
        FailingSGD.fails_at, net["failing1"].layer.fails = (), ""
