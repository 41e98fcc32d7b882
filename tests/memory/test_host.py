"""Plans run on the host: the same bits whatever the fates and the timing, and nothing half done after a failure."""

from __future__ import annotations

import gc
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conformance import Failing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import (
    FATES,
    NETWORKS,
    THREADS,
    assert_same_bits,
    chain,
    device_for,
    feed,
    norm_dropout,
    outcome,
    plan_of,
    resident,
    residual,
    tape_of,
    train,
)

from vdnn import optimizers
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Add, BatchNorm2d, Concat, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.memory import host
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.device import DeviceError
from vdnn.memory.execute import execute, walk
from vdnn.memory.host import HostDevice
from vdnn.memory.passes import make_plan
from vdnn.memory.verify import verify
from vdnn.network import Network, Role


def random_delays(seed):
    draw = random.Random(seed)
    return lambda step: draw.choice((0.0, 0.0, 0.0002, 0.001))


@pytest.fixture(scope="module")
def kept():
    """What two steps leave behind when everything is kept, per network."""
    return {make: train(make)[0] for make in NETWORKS}


# ---- equal bits


@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("make", NETWORKS)
def test_every_fate_gives_the_same_bits_under_random_delays(make, fates, kept):
    found, plan = train(make, FATES[fates], delay=random_delays(fates))
    verify(plan)
    assert_same_bits(found, kept[make])


@pytest.mark.parametrize("timing", [(0, 0), (4, 2), ({"conv2.y": 3}, {"conv2.y": 1})])
@pytest.mark.parametrize("lifetimes", ["sliding", "network"])
def test_timing_and_lifetimes_do_not_change_the_bits(timing, lifetimes, kept):
    ahead, slack = timing

    def decisions(tape):
        return Decisions(FATES["offload"](tape), ahead=ahead, slack=slack, lifetimes=lifetimes)

    found, _ = train(residual, decisions, delay=random_delays(0))
    assert_same_bits(found, kept[residual])


@pytest.mark.parametrize("make", [residual, norm_dropout])
def test_the_measured_peak_has_what_slack_holds(make):
    """The source of a copy is in use while the copy may run, though no later step touches it."""
    without, slack = (
        plan_of(make(), lambda t, n=n: Decisions(FATES["offload"](t), slack=n), undo=False) for n in (0, 3)
    )
    assert slack.peak_bytes > without.peak_bytes
    for plan in (without, slack):
        with device_for(make(), plan) as device:
            assert device.measured_peak_bytes(plan) == plan.peak_bytes


def test_fates_really_differ_in_what_they_do():
    plans = {fates: plan_of(residual(), FATES[fates], undo=False) for fates in FATES}
    copies = {fates: plan.offloaded_bytes for fates, plan in plans.items()}
    ops = {fates: sum(step.kind == "compute" for step in plan.steps) for fates, plan in plans.items()}
    assert copies["keep"] == copies["drop"] == 0
    assert copies["offload"] > copies["alternate"] > 0
    assert ops["keep"] == ops["offload"] < ops["alternate"] < ops["drop"]


def test_what_a_reused_address_held_before_does_not_matter(kept):
    found, _ = train(norm_dropout, FATES["alternate"], poison=False)
    assert_same_bits(found, kept[norm_dropout])


def test_dropout_and_norm_train_differently_from_step_to_step(kept):
    """The reference is no constant: losses differ, and statistics move."""
    found = kept[norm_dropout]
    assert found["loss1.y of step 0"][0] != found["loss1.y of step 1"][0]
    assert (found["bn1.mean"] != 0).all()
    assert (found["bn1.variance"] != 1).all()


@pytest.mark.parametrize("make", NETWORKS)
def test_gradients_are_those_that_an_update_uses(make):
    """w - rate * gradient, for the plain gradient step, is the weight after the update."""
    net = make()
    gradients = plan_of(net, FATES["alternate"], purpose="gradients", optimizer="sgd", undo=False)
    step = plan_of(net, FATES["offload"], optimizer="sgd")
    with device_for(net, step, gradients, optimizer="sgd") as device:
        feed(device, gradients)
        before = resident(device, gradients)
        execute(gradients, device)
        assert_same_bits(resident(device, gradients), before)
        found = {name: device.read(gradients, name) for name in gradients.tape.results}
        feed(device, step)
        execute(step, device)
        after = resident(device, step)
    for layer, parameter in (n.split(".") for n, (t, _) in net.parameters.items() if t.role is Role.WEIGHT):
        w, dw = before[f"{layer}.{parameter}"], found[f"{layer}.d{parameter}"]
        np.testing.assert_array_equal(after[f"{layer}.{parameter}"], w - np.float32(0.1) * dw)


def test_a_smaller_batch_runs_in_the_same_slabs_over_the_same_weights():
    full, part = norm_dropout(4), norm_dropout(4).with_batch(3)
    plans = [plan_of(net, FATES["offload"]) for net in (full, part)]
    with device_for(full, *plans) as device:
        feed(device, plans[0])
        execute(plans[0], device)
        after_full = resident(device, plans[0])
        assert_same_bits(resident(device, plans[1]), after_full)
        feed(device, plans[1], 1)
        execute(plans[1], device)
        assert (device.read(plans[0], "conv1.w") != after_full["conv1.w"]).any()


def test_a_step_can_be_repeated_without_feeding_it_again():
    """Inputs keep their place on the host although offloads come and go there."""
    net = chain()
    plan = plan_of(net, FATES["offload"], purpose="gradients", undo=False)
    with device_for(net, plan) as device:
        feed(device, plan)
        execute(plan, device)
        first = {name: device.read(plan, name) for name in plan.tape.results}
        execute(plan, device)
        assert_same_bits({name: device.read(plan, name) for name in plan.tape.results}, first)


def test_a_result_is_readable_whatever_its_fate():
    net = chain()
    plan = plan_of(net, lambda tape: dict.fromkeys(tape.features, OFFLOAD))
    assert plan.fate("loss1.y") is OFFLOAD
    with device_for(net, plan) as device:
        feed(device, plan)
        execute(plan, device)
        loss = device.read(plan, "loss1.y")
    assert loss[0] == train(chain, steps=1)[0]["loss1.y of step 0"][0]


# ---- random networks


@st.composite
def networks(draw):
    """A directed acyclic network of layers that keep (4, 4, 4, 4), closed by an Add of all that is left over."""
    net = Network((2, 4, 4, 4), name="random")
    tensors, used = [net.input], set()
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["conv", "relu", "bn", "dropout", "pool", "add", "concat"]))
        count = {"add": draw(st.integers(2, 3)), "concat": 2}.get(kind, 1)
        x = [draw(st.sampled_from(tensors)) for _ in range(count)]
        used |= {t.name for t in x}
        if kind == "concat":
            y = net.add(Conv2d(4, 1), net.add(Concat(), *x))
        else:
            y = net.add(make_layer(kind, draw), *x)
        tensors.append(y)
    ends = [t for t in tensors[1:] if t.name not in used]
    x = net.add(Add(), *ends) if len(ends) > 1 else ends[0]
    net.add(SoftmaxCrossEntropy(), net.add(Linear(5), net.add(Flatten(), x)))
    return net


def make_layer(kind, draw):
    saves = draw(st.sampled_from(["indices", "input"])) if kind == "pool" else ""
    return {
        "conv": lambda: Conv2d(4, 3, padding=1, bias=False),
        "relu": ReLU,
        "bn": BatchNorm2d,
        "dropout": lambda: Dropout(0.4),
        "pool": lambda: MaxPool2d(3, 1, padding=1, saves=saves),
        "add": Add,
    }[kind]()


@given(net=networks(), data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_fates_on_random_networks_give_the_bits_of_keeping_all(net, data):
    tape = tape_of(net)
    fates = {
        t: data.draw(st.sampled_from((KEEP, OFFLOAD) if t.role is Role.INPUT else (KEEP, OFFLOAD, DROP)), label=t.name)
        for t in tape.features
    }
    timing = {
        "ahead": data.draw(st.integers(0, 5)),
        "slack": data.draw(st.integers(0, 3)),
        "returns": data.draw(st.sampled_from(["once", "each"])),
    }
    plan = make_plan(tape, resolve(Decisions(fates, **timing), tape, {}), undo=True)
    keep = make_plan(tape, resolve({}, tape, {}), undo=True)
    verify(plan)
    assert tape.floor_bytes <= plan.peak_bytes <= plan.arena_bytes
    with device_for(net, keep) as device:
        expected = outcome(device, keep, 1)
        assert device.measured_peak_bytes(keep) == keep.peak_bytes
    with device_for(net, plan, delay=random_delays(data.draw(st.integers(0, 9)))) as device:
        assert_same_bits(outcome(device, plan, 1), expected)
        assert device.measured_peak_bytes(plan) == plan.peak_bytes


# ---- failures


class FailingSGD(optimizers.SGD):
    """Fails in the middle of an update, with the weight changed already."""

    def update(self, kernels, clock, w, dw, workspace, velocity=None, **_):
        super().update(kernels, clock, w, dw, workspace, velocity)
        if FAILS["update"] and w.shape == FAILS["update"]:
            raise ArithmeticError("update fails")


FAILS = {"update": ()}


def failing_network():
    net = Network((4, 3, 6, 6), name="failing")
    x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(6, 3, padding=1), net.input)))
    x = net.add(Conv2d(6, 3, padding=1), net.add(Failing(), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(5), net.add(Flatten(), x)))
    return net


def failing_device(net, *plans, **options):
    return device_for(net, *plans, optimizer=FailingSGD(0.01, momentum=0.9), **options)


@pytest.fixture
def failing():
    net = failing_network()
    plan = plan_of(net, FATES["offload"])
    with failing_device(net, plan) as device:
        outcome(device, plan, 1)  # so that states and statistics are no zeros
        feed(device, plan, 1)
        yield net, plan, device
    FAILS["update"] = ()


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
def test_a_failure_leaves_everything_as_it_was_and_the_next_step_works(failing, phase):
    net, plan, device = failing
    before = resident(device, plan)
    net["failing1"].layer.fails = phase
    FAILS["update"] = net["conv1"].parameters["w"].shape if phase == "update" else ()
    with pytest.raises(ArithmeticError, match=f"{phase} fails") as error:
        execute(plan, device)
    assert "in step" in error.value.__notes__[0]
    assert ("conv1.w.update" if phase == "update" else f"failing1.{phase}") in error.value.__notes__[0]
    assert_same_bits(resident(device, plan), before)
    assert device.bytes_in_use == plan.tape.resident_bytes

    net["failing1"].layer.fails, FAILS["update"] = "", ()
    execute(plan, device)
    after = resident(device, plan)
    fresh = failing_network()
    with failing_device(fresh, plan) as other:
        outcome(other, plan, 2)
        assert_same_bits(after, resident(other, plan))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_leaving_a_walk_early_leaves_everything_as_it_was(failing, share):
    _, plan, device = failing
    before = resident(device, plan)
    for event in walk(plan, device):
        if event.index >= share * len(plan.steps):
            break
    gc.collect()  # the generator is closed when nobody holds it
    assert_same_bits(resident(device, plan), before)
    execute(plan, device)
    assert (device.read(plan, "conv1.w") != before["conv1.w"]).any()


def test_an_exception_in_the_body_of_the_loop_undoes_the_step(failing):
    _, plan, device = failing
    before = resident(device, plan)
    events = walk(plan, device)
    for event in events:
        if event.index == len(plan.steps) - 1:
            break
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    assert_same_bits(resident(device, plan), before)


def test_without_undo_a_torn_step_is_said_and_the_next_one_refused():
    net = failing_network()
    plan = plan_of(net, undo=False)
    with failing_device(net, plan) as device:
        feed(device, plan)
        net["failing1"].layer.fails = "backward"  # the last layers' weights were updated before
        with pytest.raises(ArithmeticError):
            execute(plan, device)
        assert device.torn
        with pytest.raises(DeviceError, match="half updated; load them from a checkpoint first"):
            execute(plan, device)
        device.reserve(plan.arena_bytes, plan.host_bytes)
        assert not device.torn


def test_without_undo_a_failure_before_the_first_update_tears_nothing():
    net = chain()
    plan = plan_of(net, undo=False)
    with device_for(net, plan) as device:
        feed(device, plan)
        before = resident(device, plan)
        first = next(i for i, _, op in plan.computes() if op.phase == "update")
        for event in walk(plan, device):
            if event.index == first - 1:
                break
        gc.collect()
        assert not device.torn
        assert_same_bits(resident(device, plan), before)


def test_the_undo_area_counts_as_host_bytes_and_never_as_offloaded():
    with_undo, without = (plan_of(chain(), undo=undo) for undo in (True, False))
    assert with_undo.host_bytes >= without.host_bytes + with_undo.tape.resident_bytes
    assert with_undo.offloaded_bytes == without.offloaded_bytes == 0
    assert with_undo.arena_bytes == without.arena_bytes


# ---- what a device refuses


@pytest.fixture
def refusing():
    net = chain()
    plan = plan_of(net)
    with device_for(net, plan) as device:
        yield net, plan, device


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 7}, f"the plan is for threads 7, this device has {THREADS}"),
        ({"kernels": "cudnn9"}, "the plan is for kernels 'cudnn9', this device has 'numpy'"),
        ({"storage": "nchw"}, "the plan is for storage 'nchw', this device has 'nhwc'"),
        ({"optimizer": "adam"}, "the plan is for optimizer 'adam', this device has 'momentum'"),
    ],
)
def test_a_plan_for_something_else_is_refused_naming_both(refusing, change, message):
    _, plan, device = refusing
    with pytest.raises(DeviceError, match=message):
        device.load(replace(plan, tape=replace(plan.tape, **change)))


def test_a_slab_that_is_too_small_is_refused_with_both_numbers(refusing):
    _, plan, device = refusing
    larger = replace(plan, arena_bytes=plan.arena_bytes + 512)
    with pytest.raises(DeviceError, match=f"arena of {plan.arena_bytes + 512} bytes.* reserved {plan.arena_bytes}"):
        device.load(larger)
    larger = replace(plan, host_bytes=plan.host_bytes + 512)
    with pytest.raises(DeviceError, match=f"host slab of {plan.host_bytes + 512} bytes.* reserved {plan.host_bytes}"):
        device.load(larger)


def test_a_second_step_is_refused_while_a_walk_is_open(refusing):
    _, plan, device = refusing
    feed(device, plan)
    last = plan.steps.index(next(s for s in reversed(plan.steps) if s.kind == "compute"))
    for event in walk(plan, device):
        if event.index in (len(plan.steps) // 2, last + 1):
            run, until = device.streams.run, time.monotonic() + 30
            while run.done != run.issued and time.monotonic() < until:
                pass  # so that bytes which the rest of the step needs are there to be spoilt
            for attempt in (lambda: execute(plan, device), lambda: device.reserve(plan.arena_bytes, plan.host_bytes)):
                with pytest.raises(RuntimeError, match="exhaust or close its walk first"):
                    attempt()
    expected = train(chain, steps=1)[0]
    assert_same_bits(resident(device, plan), {n: expected[n] for n in plan.tape.resident})
    execute(plan, device)


def test_an_unknown_name_or_another_shape_is_refused(refusing):
    net, plan, device = refusing
    with pytest.raises(KeyError, match=r"'conv1\.ww' is no weight, state, statistic or input of chain"):
        device.write(plan, "conv1.ww", np.zeros(3))
    with pytest.raises(ValueError, match=r"conv1.b has shape \(6,\), not \(1,\)"):
        device.write(plan, "conv1.b", np.zeros(1, np.float32))
    with pytest.raises(KeyError, match=r"conv1.y.* is no result of Plan\(chain"):
        device.read(plan, "conv1.y")
    evaluate = plan_of(net, purpose="evaluate", undo=False)
    with device_for(net, evaluate) as other:
        other.write(evaluate, "clock", np.zeros(8))  # this plan reads no clock, and says nothing


def test_a_link_without_bandwidth_and_a_plan_without_its_optimizer_are_refused():
    with pytest.raises(ValueError, match="link_bandwidth=0: bytes per second, more than 0"):
        HostDevice(chain(), link_bandwidth=0)
    net = chain()
    device = HostDevice(net, threads=THREADS)
    with pytest.raises(DeviceError, match="for optimizer 'momentum', this device has 'none'"):
        device.load(plan_of(net))
    device.close()
    with pytest.raises(RuntimeError, match="closed"):
        device.start(plan_of(net, purpose="gradients", undo=False))


# ---- what is seen while it runs


@pytest.mark.parametrize("fates", FATES)
def test_bytes_in_use_are_what_the_plan_has_allocated(fates):
    net = residual()
    plan = plan_of(net, FATES[fates])
    with device_for(net, plan) as device:
        feed(device, plan)
        live, seen = 0, []
        for event in walk(plan, device):
            step = event.step
            if step.kind in ("alloc", "free"):
                live += plan.size(step.name) if step.kind == "alloc" else -plan.size(step.name)
            seen.append((device.bytes_in_use, live))
        assert all(shown == counted for shown, counted in seen)
        assert max(shown for shown, _ in seen) == plan.peak_bytes <= device.arena_bytes
        assert device.bytes_in_use == plan.tape.resident_bytes


def test_events_come_in_plan_order_and_have_times_at_the_end():
    net = chain()
    plan = plan_of(net, FATES["offload"])
    with device_for(net, plan) as device:
        feed(device, plan)
        events = list(walk(plan, device))
    assert [event.step for event in events] == list(plan.steps)
    for event in events:
        if event.step.kind in ("alloc", "free"):
            assert event.start is event.finish is None
        else:
            assert 0 <= event.start <= event.finish
            assert all(events[w].finish <= event.start for w in event.step.waits)


def test_a_slow_link_works_beside_compute():
    """The forward ops end while a copy of a quarter of a second is under way; backward waits for what it needs."""
    net = chain()
    plan = plan_of(net, Decisions({"relu1.y": OFFLOAD}, slack=50), undo=False)
    copy_has_begun = threading.Event()

    def in_this_order(step):
        if step.kind == "offload" and step.name == "conv1.y":
            copy_has_begun.set()
        elif step.name == "conv2.forward":
            assert copy_has_begun.wait(timeout=30)
        return 0.0

    bandwidth = plan.payload("conv1.y") / 0.25
    with device_for(net, plan, link_bandwidth=bandwidth, delay=in_this_order) as device:
        feed(device, plan)
        events = execute(plan, device).events
    by_step = {(e.step.kind, e.step.name): e for e in events}
    copy, back = by_step["offload", "conv1.y"], by_step["prefetch", "conv1.y"]
    assert copy.finish - copy.start >= 0.25
    assert back.finish - back.start >= 0.25
    assert copy.start < by_step["compute", "loss1.forward"].finish < copy.finish
    assert copy.finish <= back.start
    assert back.finish <= by_step["compute", "relu1.backward"].start


def test_evaluation_reads_running_averages_and_changes_nothing():
    net = norm_dropout()
    step, evaluate = plan_of(net), plan_of(net, purpose="evaluate", undo=False)
    with device_for(net, step, evaluate) as device:
        outcome(device, step, 1)
        before = resident(device, step)
        scores = []
        for number in (1, 2):  # another clock: dropout must not look at it
            feed(device, evaluate, 1)
            device.write(evaluate, "clock", np.full(8, float(number)))
            execute(evaluate, device)
            scores.append(device.read(evaluate, "linear1.y"))
        np.testing.assert_array_equal(scores[0], scores[1])
        assert scores[0].any()
        assert_same_bits(resident(device, step), before)
        assert device.measured_peak_bytes(evaluate) == evaluate.peak_bytes < step.peak_bytes


def test_a_network_that_begins_without_parameters_has_no_backward_op_that_writes_nothing():
    net = Network((2, 3, 4, 4))
    x = net.add(Conv2d(4, 3), net.add(MaxPool2d(2, 1), net.input))
    net.add(SoftmaxCrossEntropy(), net.add(Flatten(), x))
    plan = plan_of(net)
    assert all(op.writes for op in plan.tape.ops)
    with device_for(net, plan) as device:
        device.write(plan, "input", np.ones((2, 3, 4, 4), np.float32))
        device.write(plan, "labels", np.array([0, 1]))
        device.write(plan, "clock", np.zeros(8))
        execute(plan, device)
        assert device.measured_peak_bytes(plan) == plan.peak_bytes


def test_an_input_that_is_added_twice_is_not_overwritten_in_between():
    """y = x0 + x1 + x2 in place of x0 would be wrong where x2 is x0."""
    net = Network((1, 2))
    a, b = net.add(Linear(2), net.input), net.add(Linear(2), net.input)
    net.add(SoftmaxCrossEntropy(), net.add(Add(), a, b, a))
    tape = build(net, NumpyKernels(THREADS), purpose="evaluate")
    plan = make_plan(tape, resolve({}, tape, {}))
    with device_for(net, plan) as device:
        for name, value in (("linear1.w", np.eye(2)), ("linear2.w", 10 * np.eye(2)), ("linear1.b", np.zeros(2))):
            device.write(plan, name, value.astype(np.float32))
        device.write(plan, "linear2.b", np.zeros(2, np.float32))
        device.write(plan, "input", np.array([[1, 2]], np.float32))
        device.write(plan, "labels", np.array([0]))
        execute(plan, device)
        np.testing.assert_array_equal(device.read(plan, "add1.y"), [[12, 24]])


def test_a_device_that_is_forgotten_ends_its_threads():
    net = chain()
    plan = plan_of(net)
    before = set(threading.enumerate())
    device = HostDevice(net, optimizers.get("momentum"), threads=THREADS, poison=True)
    device.load(plan)
    feed(device, plan)
    list(zip(range(3), walk(plan, device), strict=False))
    gc.collect()
    started = [t for t in threading.enumerate() if t not in before and t.name in ("vdnn-compute", "vdnn-offload")]
    assert len(started) == 2
    del device
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_the_clock_of_a_run_starts_at_its_first_step():
    net = chain()
    plan = plan_of(net)
    with device_for(net, plan) as device:
        feed(device, plan)
        began = time.perf_counter()
        trace = execute(plan, device)
        assert trace.step_seconds <= time.perf_counter() - began


def test_a_slab_that_cannot_grow_leaves_the_weights_where_they_are(monkeypatch):
    net = chain()
    plan = plan_of(net)
    with device_for(net, plan) as device:
        before = resident(device, plan)
        whole = host.slab

        def refuses(nbytes):
            if nbytes > plan.arena_bytes:
                raise MemoryError("planted")
            return whole(nbytes)

        monkeypatch.setattr(host, "slab", refuses)
        with pytest.raises(MemoryError, match="planted"):
            device.grow(plan.arena_bytes + 512, 0)
        assert not device.torn
        assert_same_bits(resident(device, plan), before)
