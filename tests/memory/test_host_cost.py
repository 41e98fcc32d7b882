"""Measured times on the host: what they change, on which scale all else is, and that nothing changes without them."""

from __future__ import annotations

import pytest

import vdnn
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.memory.cost import roofline
from vdnn.memory.host import HostDevice
from vdnn.memory.host_cost import HostCost, host_cost, scales_of
from vdnn.memory.op_times import Names, OpTimes, key_of
from vdnn.memory.search_cache import digest
from vdnn.memory.trial import fastest

KERNELS = NumpyKernels(1)
SGD = vdnn.SGD(0.1, momentum=0.9)


def network(batch=2):
    net = vdnn.Network((batch, 48, 8, 8), name="net")
    x = net.add(ReLU(), net.add(Conv2d(48, 3, 1, 1, name="a"), net.input))
    x = net.add(ReLU(), net.add(Conv2d(64, 3, 1, 1, name="b"), x))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(4), net.add(Flatten(), x)))
    return net


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VDNN_CACHE", str(tmp_path))
    return tmp_path


def tape_of(net):
    return build(net, KERNELS, SGD)


def keep(net, op, seconds):
    """Put made-up seconds of an op into the table."""
    tape = tape_of(net)
    OpTimes.of(KERNELS).save(key_of(tape, tape.ops[tape.index[op]], Names.of(net, SGD)), seconds)


def all_algorithms(net, op):
    tape = tape_of(net)
    return [a.name for a in tape.ops[tape.index[op]].algorithms]


def test_without_a_table_the_cost_is_the_published_one(cache):
    assert host_cost(network(), KERNELS, SGD) == roofline("host")


def test_times_of_other_networks_change_nothing(cache):
    keep(network(batch=3), "a.forward", {"direct": 1.0})
    assert host_cost(network(), KERNELS, SGD) == roofline("host")


def test_a_measured_op_takes_its_measured_time_and_the_rest_is_scaled_by_the_median(cache):
    net, rates = network(), roofline("host")
    tape = tape_of(net)
    for name, times in (("a.forward", 2), ("b.forward", 4), ("relu1.forward", 10)):
        op = tape.ops[tape.index[name]]
        keep(net, name, {a.name: times * rates.op_seconds(tape, op, a.name) for a in op.algorithms[:1]})
    cost = host_cost(net, KERNELS, SGD)

    def ratio(name, algorithm=0):
        op = tape.ops[tape.index[name]]
        chosen = op.algorithms[algorithm].name
        return cost.op_seconds(tape, op, chosen) / rates.op_seconds(tape, op, chosen)

    assert ratio("a.forward") == pytest.approx(2)
    assert ratio("relu2.forward") == pytest.approx(10)  # one like it was timed
    assert ratio("a.forward", -1) == ratio("linear1.forward") == pytest.approx(4)  # none was: the median of all three
    assert cost.copy_seconds(10**6, "offload") == rates.copy_seconds(10**6, "offload")


def test_the_scale_of_an_algorithm_is_the_median_of_its_own_ratios():
    net, rates = network(), roofline("host")
    tape, names = tape_of(net), Names.of(net, SGD)
    ops = [tape.ops[tape.index[name]] for name in ("a.forward", "b.forward")]
    seconds = {
        key_of(tape, op, names): {"direct": k * rates.op_seconds(tape, op, "direct")}
        for op, k in zip(ops, (2, 6), strict=True)
    }
    assert scales_of(tape, names, seconds, rates) == pytest.approx({"": 4, "conv forward direct": 4})


def test_the_fastest_algorithm_is_the_one_that_was_measured_so(cache):
    net = network()
    names = all_algorithms(net, "a.forward")
    for slow in names:
        keep(net, "a.forward", {name: 1.0 if name != slow else 2.0 for name in names})
        best = min(names, key=lambda n: (1.0 if n != slow else 2.0, names.index(n)))
        assert fastest(tape_of(net), host_cost(net, KERNELS, SGD))["a.forward"] == best


def test_a_trainers_plan_follows_the_table_and_says_so(cache):
    net = network()
    before = vdnn.Trainer(net, threads=1, optimizer=SGD)
    assert (before.algorithms_by, before.measured_ops) == ("published", 0)
    chosen = before.plan.decisions.algorithms["b.backward_weights"]
    before.close()
    names = all_algorithms(net, "b.backward_weights")
    assert len(names) > 1
    keep(net, "b.backward_weights", {name: 10.0 if name == chosen else 1.0 for name in names})
    after = vdnn.Trainer(net, threads=1, optimizer=SGD)
    assert after.plan.decisions.algorithms["b.backward_weights"] != chosen
    assert (after.algorithms_by, after.measured_ops) == ("measured", 1)
    after.close()


def test_given_algorithms_are_said_to_be_given(cache):
    with_given = vdnn.Trainer(network(), threads=1, optimizer=SGD, algorithms={"a.forward": "direct"})
    assert with_given.algorithms_by == "given"
    with_given.close()


def test_a_device_decides_by_the_table_as_it_was_when_it_was_first_asked(cache):
    net = network()
    device = HostDevice(net, SGD, threads=1)
    first = device.cost
    keep(net, "a.forward", {"direct": 1.0})
    assert device.cost is first
    device.close()
    assert isinstance(HostDevice(net, SGD, threads=1).cost, HostCost)


def test_searches_by_different_tables_are_kept_apart(cache):
    net = network()
    found = []
    for seconds in (1.0, 2.0, 1.0):
        keep(net, "a.forward", {"direct": seconds})
        cost = host_cost(net, KERNELS, SGD)
        cost.op_seconds(tape_of(net), tape_of(net).ops[0], "direct")  # what it remembers is no part of it
        found.append(digest(cost))
    assert found[0] == found[2] != found[1]


def test_search_plans_by_the_table(cache):
    net = network()
    names = all_algorithms(net, "b.forward")
    keep(net, "b.forward", {name: 1e-9 if name == "direct" else 1.0 for name in names})
    cost = host_cost(net, KERNELS, SGD)
    searching = vdnn.searching(seconds=0.2)
    made = vdnn.plan(net, searching, kernels=KERNELS, optimizer=SGD, cost=cost, budget="1GiB", micro_batches=1)
    assert made.decisions.algorithms["b.forward"] == "direct"
