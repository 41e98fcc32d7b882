"""A GPU as a device: its memory, its streams, its graphs, and what is refused."""

from __future__ import annotations

import time

import conformance
import numpy as np
import pytest
from conformance import make_device, plan_on, ready, reserve, run
from networks import CLASSES, FATES, assert_same_bits, chain, feed, resident, residual

import vdnn
from vdnn.kernels.cuda.driver import CudaError
from vdnn.layers import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.layers.base import Layer
from vdnn.memory.device import DeviceError
from vdnn.memory.execute import execute
from vdnn.network import Network

pytestmark = pytest.mark.gpu
EMULATED = conformance.GPU == "emulated"
real = pytest.mark.skipif(EMULATED, reason="the test doubles have no such thing")
WARM = 5  # steps after which libraries have loaded what they use
STEPS = 20
OUTSIDE = 2 << 20  # bytes of device memory that may go elsewhere meanwhile


def trainer_of(net, policy="vdnn_all", *, undo=True, **options):
    device = make_device("cuda", net, **options)
    return vdnn.Trainer(net, policy, device=device, optimizer=vdnn.SGD(0.02, momentum=0.9), seed=1, undo=undo)


def batch_of(net, seed=0):
    numbers = np.random.default_rng(seed)
    return numbers.standard_normal(net.input.shape, np.float32), numbers.integers(CLASSES, size=net.batch)


# ---- a layer of one's own


class Twice(Layer):
    """y = 2 x through CuPy; told so, it makes an array on the way, as no layer may."""

    kind = "twice"
    allocates = False

    def forward(self, xp, x, y):
        if self.allocates:
            y[...] = x * 2
        else:
            xp.multiply(x, 2, out=y)

    def backward(self, xp, dy, dx):
        xp.multiply(dy, 2, out=dx)


def twice_network():
    net = Network((4, 3, 6, 6), name="twice")
    x = net.add(Twice(), net.add(Conv2d(6, 3, padding=1), net.input))
    x = net.add(ReLU(), net.add(Conv2d(6, 3, padding=1), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(CLASSES), net.add(Flatten(), x)))
    return net


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_a_layer_that_calls_cupy_trains_like_on_the_host(storage):
    net = twice_network()
    host = vdnn.Trainer(net, "keep_all", optimizer=vdnn.SGD(0.02, momentum=0.9), seed=1, threads=2)
    trainer = trainer_of(twice_network(), storage=storage)
    for seed in range(3):
        batch = batch_of(net, seed)
        assert float(trainer.step(*batch)) == pytest.approx(host.step(*batch), rel=1e-4)
    assert trainer.device.graph_refusal == ""
    trainer.close()
    host.close()


@real
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_layer_that_allocates_in_a_step_is_refused_and_nothing_has_changed(after):
    """In its first step, in the one that is captured, and later where steps are issued one by one."""
    net = twice_network()
    trainer = trainer_of(net, graphs=after < 3)
    for seed in range(after):
        trainer.step(*batch_of(net, seed))
    trainer.settle()
    before = {name: trainer.weights[name] for name in trainer.weights}
    state = {name: trainer.state[name] for name in trainer.state}
    layer = net["twice1"].layer
    layer.allocates = True
    with pytest.raises(CudaError, match=r"asked for \d+ bytes of device memory; a layer may use only the arrays"):
        float(trainer.step(*batch_of(net, after)))
    assert trainer.steps_done == after
    assert_same_bits({name: trainer.weights[name] for name in trainer.weights}, before)
    for name, value in state.items():
        np.testing.assert_array_equal(trainer.state[name], value)
    layer.allocates = False
    assert np.isfinite(float(trainer.step(*batch_of(net, after))))
    assert trainer.steps_done == after + 1
    trainer.close()


# ---- graphs


@pytest.mark.parametrize("policy", ["keep_all", "vdnn_all", "checkpoint", "least"])
@pytest.mark.parametrize("mode", [("fp32", "nchw"), ("tf32", "nhwc")])
def test_steps_become_graphs_and_keep_their_bits(mode, policy, record_property):
    found, algorithms = [], "performance"
    for graphs in (True, False):
        net = residual()
        device = make_device("cuda", net, math=mode[0], storage=mode[1], graphs=graphs)
        trainer = vdnn.Trainer(net, policy, device=device, optimizer="momentum", algorithms=algorithms, seed=1)
        algorithms = trainer.plan
        losses = [trainer.step(*batch_of(net, seed)) for seed in range(6)]
        arrays = {name: trainer.weights[name] for name in trainer.weights}
        arrays["losses"] = np.array([float(loss) for loss in losses])
        found.append(arrays)
        assert device.graph_refusal == ""
        captured = sum(len(schedule.graphs) for schedule in device._schedules.values())
        assert captured == (2 if graphs else 0)  # one for each place of the inputs
        trainer.close()
    assert_same_bits(*found)
    record_property("graphs", "captured and replayed")


# ---- memory


@real
@pytest.mark.parametrize("options", [{}, {"graphs": False}, {"timed": True}], ids=["graphs", "plain", "timed"])
def test_device_memory_outside_the_slab_does_not_grow(options, record_property):
    import cupy

    net = residual()
    trainer = trainer_of(net, **options)
    driver, pool = trainer.device.driver, cupy.get_default_memory_pool()
    batch = batch_of(net)
    for _ in range(WARM):
        float(trainer.step(*batch))
    before, pooled = driver.memory_info()[0], pool.total_bytes()
    for _ in range(STEPS):
        float(trainer.step(*batch))
    grown = before - driver.memory_info()[0]
    record_property("bytes grown", str(grown))
    record_property("bytes in CuPy's pool", str(pool.total_bytes()))
    assert grown <= OUTSIDE
    assert pool.total_bytes() == pooled
    trainer.close()


@real
def test_a_closed_device_gives_its_memory_back(record_property):
    import gc

    def once():
        net = chain()
        device = make_device("cuda", net)
        device.reserve(256 << 20, 1 << 20)
        plan = plan_on(device)
        device.load(plan)
        conformance.fill(device, plan)
        run(device, plan)
        taken = driver.memory_info()[0]
        device.close()
        return taken

    from vdnn.kernels.cuda.driver import CupyDriver

    driver = CupyDriver()
    once()
    gc.collect()
    before = driver.memory_info()[0]
    taken = once()
    gc.collect()
    after = driver.memory_info()[0]
    record_property("bytes not given back", str(before - after))
    assert before - taken >= 256 << 20
    assert before - after <= 16 << 20


def test_the_arena_is_the_plan_and_no_more():
    net = residual()
    trainer = trainer_of(net)
    device = trainer.device
    trainer.step(*batch_of(net))
    assert device.arena_bytes == trainer.plans.arena_bytes
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes
    assert device.block.address % 512 == 0
    trainer.close()


@real
def test_more_device_memory_than_there_is_is_refused_with_the_numbers():
    net = chain()
    device = make_device("cuda", net)
    absurd = 1 << 45
    with pytest.raises(DeviceError, match=rf"{absurd} bytes\) of device memory; .* are free on "):
        device.reserve(absurd, 512)
    check_usable(device)


@real
def test_more_page_locked_memory_than_there_is_is_refused_with_the_numbers():
    net = chain()
    device = make_device("cuda", net)
    absurd = 1 << 50
    with pytest.raises(DeviceError, match=f"512 bytes on the device, {absurd} page-locked on the host"):
        device.reserve(512, absurd)
    check_usable(device)


@real
def test_a_slab_as_large_as_what_is_free_is_had_or_refused_and_the_device_goes_on(record_property):
    net = chain()
    device = make_device("cuda", net)
    refusal = ""
    try:
        device.reserve(device.free_bytes(), 512)
    except DeviceError as error:
        refusal = str(error)
    record_property("refusal", refusal)
    assert "bytes" in refusal or device.arena_bytes > 1 << 30
    check_usable(device)


def check_usable(device):
    """What was refused leaves the device usable."""
    device.reserve(512, 512)
    plan = plan_on(device)
    reserve(device, plan)
    conformance.fill(device, plan)
    assert np.isfinite(run(device, plan)["loss1.y"]).all()
    device.close()


def test_a_budget_that_is_too_small_says_what_would_fit():
    net = residual()
    device = make_device("cuda", net)
    with pytest.raises(vdnn.BudgetError, match="does not fit under vdnn_all") as error:
        vdnn.Trainer(net, "vdnn_all", 4096, device=device)
    assert error.value.advice.least_bytes > 4096
    device.close()


@real
def test_a_percentage_is_of_what_is_free(record_property):
    net = chain()
    device = make_device("cuda", net)
    free = device.free_bytes()
    trainer = vdnn.Trainer(net, "vdnn_all", "50%", device=device)
    record_property("free bytes", str(free))
    assert trainer.budget_bytes == pytest.approx(free / 2, rel=0.05)
    trainer.close()


# ---- streams and time


def wide_network():
    """Maps of 32 MiB, so that copies take as long as convolutions."""
    net = Network((16, 3, 128, 128), name="wide")
    x = net.input
    for _ in range(4):
        x = net.add(ReLU(), net.add(Conv2d(32, 3, padding=1), x))
    x = net.add(MaxPool2d(8), x)
    net.add(SoftmaxCrossEntropy(), net.add(Linear(CLASSES), net.add(Flatten(), x)))
    return net


@real
@pytest.mark.parametrize("mode", [("fp32", "nchw"), ("tf32", "nhwc")])
def test_copies_run_beside_compute(mode, record_property):
    net = wide_network()
    trainer = trainer_of(net, "vdnn_all", timed=True, math=mode[0], storage=mode[1])
    for seed in range(3):
        trainer.step(*batch_of(net, seed))
    trainer.settle()
    trace = trainer.trace
    spans = {"compute": [], "offload": [], "prefetch": []}
    for event in trace.events:
        if event.start is not None:
            spans[event.step.kind].append((event.start, event.finish))
    beside = {
        kind: sum(any(a < d and c < b for c, d in spans["compute"]) for a, b in spans[kind])
        for kind in ("offload", "prefetch")
    }
    assert trainer.plan.offloaded_bytes > 90 << 20
    record_property("step_seconds", trace.step_seconds)
    record_property("compute_seconds", trace.compute_seconds)
    record_property("copy_seconds", trace.copy_seconds)
    record_property("hidden_copy_fraction", trace.hidden_copy_fraction)
    record_property("longest_copy_seconds", max(b - a for a, b in spans["offload"] + spans["prefetch"]))
    record_property("copies beside compute", str(beside))
    assert beside["offload"] > 0
    assert beside["prefetch"] > 0
    trainer.close()


@real
def test_a_step_returns_before_it_is_over(record_property):
    net = wide_network()
    trainer = trainer_of(net, "vdnn_all", delay=lambda step: 0.05 if step.name == "conv2.forward" else 0.0)
    batch = batch_of(net)
    for _ in range(2):
        float(trainer.step(*batch))
    began = time.perf_counter()
    loss = trainer.step(*batch)
    issued = time.perf_counter() - began
    float(loss)
    whole = time.perf_counter() - began
    record_property("seconds to issue", issued)
    record_property("seconds in all", whole)
    assert issued < whole / 2
    trainer.close()


@real
def test_the_link_and_the_device_are_described(record_property):
    device = make_device("cuda", chain())
    cost, figures = device.cost, device.driver.describe()
    for name, value in figures.items():
        record_property(name, str(value))
    record_property("offload bytes per second", cost.offload_bytes_per_second)
    record_property("prefetch bytes per second", cost.prefetch_bytes_per_second)
    assert min(cost.offload_bytes_per_second, cost.prefetch_bytes_per_second) > 1e9
    assert 1e8 < figures["clock_hertz"] < 1e10
    assert 1e11 < figures["memory_bytes_per_second"] < 1e14
    assert cost.memory_bytes == figures["memory_bytes"] > 1 << 30
    device.close()


@real
def test_a_delay_takes_its_time():
    with ready("cuda", chain(), FATES["keep"], delay=lambda step: 0.02 if step.name == "conv1.forward" else 0.0) as (
        device,
        plan,
    ):
        feed(device, plan)
        began = time.perf_counter()
        execute(plan, device)
        assert time.perf_counter() - began >= 0.02


@pytest.mark.parametrize("policy", ["vdnn_all", "least"])
def test_weights_survive_larger_slabs_on_the_way(policy):
    net = residual()
    trainer = trainer_of(net, policy)
    trainer.step(*batch_of(net))
    trainer.settle()
    before = resident(trainer.device, trainer.plan)
    trainer.device.grow(4 * trainer.device.arena_bytes, 4 * int(trainer.device.host.nbytes))
    assert_same_bits(resident(trainer.device, trainer.plan), before)
    assert np.isfinite([float(trainer.step(*batch_of(net, seed))) for seed in range(3)]).all()
    trainer.close()
