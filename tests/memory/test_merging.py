"""Ops that are merged leave the bits of ops that are not, and only those are that can be."""

import os
from contextlib import contextmanager

import numpy as np
import pytest
from networks import chain, finish, residual

import vdnn
from vdnn.layers import BatchNorm2d, Conv2d, MaxPool2d, ReLU
from vdnn.memory.bind import Bound
from vdnn.memory.merging import merges
from vdnn.network import Network

FAST = [pytest.param(False, id="numpy")]
try:
    import numba  # noqa: F401

    FAST.append(pytest.param(True, id="compiled"))
except ImportError:
    pass


def odd(batch=3):
    """Convolutions of every algorithm with odd numbers of channels, of groups and of strides, with and without bias."""
    net = Network((batch, 3, 11, 9), name="odd")
    x = net.add(ReLU(), net.add(Conv2d(37, 3, padding=1, bias=False), net.input))
    x = net.add(ReLU(), net.add(Conv2d(32, 1), x))
    x = net.add(ReLU(), net.add(Conv2d(8, 3, 2, padding=1, groups=2), x))
    x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(5, 1, 2), x)))
    return finish(net, net.add(MaxPool2d(2), x))


NETWORKS = [chain, residual, odd]


@contextmanager
def kernels_of(fast):
    before = os.environ.get("VDNN_FAST")
    os.environ["VDNN_FAST"] = str(int(fast))
    try:
        yield
    finally:
        os.environ.pop("VDNN_FAST")
        if before is not None:
            os.environ["VDNN_FAST"] = before


def trained(make, fast, policy, threads, algorithms="performance"):
    """Every gradient and every resident array after two steps, as bytes, and the names of the ops that do nothing."""
    net = make()
    numbers = np.random.default_rng(3)
    batch = numbers.standard_normal(net.input.shape, np.float32), numbers.integers(5, size=net.batch)
    with kernels_of(fast):
        device = vdnn.HostDevice(net, threads=threads, poison=True)
    optimizer = vdnn.SGD(0.1, momentum=0.9)
    trainer = vdnn.Trainer(net, policy, device=device, optimizer=optimizer, algorithms=algorithms, seed=1)
    for _ in range(2):
        trainer.step(*batch)
    _, gradients = trainer.gradients(*batch)
    arrays = {**gradients, **trainer.weights, **trainer.state, **trainer.statistics}
    idle = [trainer.plan.steps[j].name for _, j in merges(trainer.plan, net, device.kernels)]
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes
    trainer.close()
    return {name: value.tobytes() for name, value in arrays.items()}, idle


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("make", NETWORKS)
def test_merged_ops_leave_the_bits_of_ops_apart(make, fast, monkeypatch):
    found = {}
    for policy in ("keep_all", "vdnn_all", "checkpoint"):
        for threads in (1, 2):
            found[policy, threads], idle = trained(make, fast, policy, threads)
            assert idle
    monkeypatch.setattr("vdnn.memory.bind.merges", lambda *_: ())
    for (policy, threads), merged in found.items():
        apart, _ = trained(make, fast, policy, threads)
        assert merged == apart, (policy, threads)


def relus(device, plan, run):
    """How often a run of the plan calls the kernel relu."""
    calls, relu = [], device.kernels.relu
    device.kernels.relu = lambda x, y: calls.append(x) or relu(x, y)
    try:
        device.reserve(plan.arena_bytes, plan.host_bytes)
        run(plan, device)
    finally:
        del device.kernels.relu
    return len(calls)


def made(make, **options):
    """A device for a network, and a plan on it."""
    net = make()
    device = vdnn.HostDevice(net, vdnn.SGD(0.1), threads=1)
    return net, device, vdnn.plan(net, kernels=device.kernels, optimizer=device.optimizer, **options)


def test_execute_merges_and_walk_does_not():
    _, device, plan = made(residual)
    count = sum(step.name.startswith("relu") and step.name.endswith(".forward") for step in plan.steps)
    assert count == 5
    apart = relus(device, plan, lambda plan, device: list(vdnn.walk(plan, device)))
    whole = relus(device, plan, lambda plan, device: vdnn.execute(plan, device, apart=True))
    merged = relus(device, plan, vdnn.execute)
    device.close()
    assert (apart, whole, merged) == (count, count, 2)  # those behind Add


def test_a_step_that_does_nothing_has_its_event():
    _, device, plan = made(residual)
    device.reserve(plan.arena_bytes, plan.host_bytes)
    trace = vdnn.execute(plan, device)
    merged = {j for _, j in merges(plan, device.network, device.kernels)}
    device.close()
    assert len(merged) == 3
    assert all(trace.events[j].start <= trace.events[j].finish for j in merged)


def test_an_op_that_runs_again_is_merged_again():
    _, device, plan = made(residual, policy="checkpoint")
    found = [plan.steps[j].name for _, j in merges(plan, device.network, device.kernels)]
    device.close()
    assert len(found) > len(set(found))


def test_nothing_is_merged_where_a_copy_stands_between():
    net, device, plan = made(residual)
    first, second = next(merges(plan, net, device.kernels))
    buffer = plan.tape.buffer_of[plan.tape.ops[plan.tape.index[plan.steps[second].name]].arguments["x"]]
    between = vdnn.Step("offload", buffer, "offload", 0, waits=(first,))
    steps = (*plan.steps[:second], between, *plan.steps[second:])
    edited = vdnn.Plan(plan.tape, plan.decisions, steps, plan.arena_bytes, plan.host_bytes)
    found = [i for i, _ in merges(edited, net, device.kernels)]
    device.close()
    assert first not in found
    assert len(found) == 2


def test_nothing_is_merged_where_y_has_bytes_of_its_own():
    net, device, plan = made(residual, rewrites="none")
    found = list(merges(plan, net, device.kernels))
    device.close()
    assert found == []


def test_nothing_is_merged_where_a_mask_is_written():
    net, device, plan = made(lambda: residual(64), rewrites="standard+relu_mask")
    found = [plan.steps[j].name for _, j in merges(plan, net, device.kernels)]
    device.close()
    assert any(name.endswith(".mask") for name in plan.tape.tensors)
    assert found == []


def test_nothing_is_merged_where_the_kernels_cannot():
    class Plain:
        pass

    net, device, plan = made(residual)
    found = list(merges(plan, net, Plain()))
    device.close()
    assert found == []


class OwnNorm(BatchNorm2d):
    """A layer of somebody's own, with a method that does not take `rectify`."""

    def forward(self, kernels, x, w, b, y, batch_mean, batch_inverse_deviation, batch_variance, workspace):
        saved = batch_mean, batch_inverse_deviation, batch_variance
        kernels.batch_norm(x, w, b, y, *saved, self.eps, workspace)


class OwnReLU(ReLU):
    """A ReLU that may be anything."""


@pytest.mark.parametrize(("norm", "relu"), [(OwnNorm, ReLU), (BatchNorm2d, OwnReLU)])
def test_a_subclass_is_not_taken_for_its_base(norm, relu):
    def make():
        net = Network((2, 3, 6, 6))
        return finish(net, net.add(relu(), net.add(norm(), net.input)))

    _, device, plan = made(make)
    device.reserve(plan.arena_bytes, plan.host_bytes)
    bound = Bound(plan, device)
    device.close()
    assert bound.merged == {}
