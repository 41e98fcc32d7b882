import random
import sys
from itertools import pairwise
from math import inf

import networks
import pytest
from handmade import KIB, SLOW_AND_FAST, SecondPerKiB, op, tape
from networks import tape_of

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.layers import Add, BatchNorm2d, Concat, Conv2d, Dropout, LocalResponseNorm, MaxPool2d, ReLU
from vdnn.memory.bound import bound
from vdnn.memory.cost import measured
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.hardware import roofline
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import least
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import least_workspace, sketch
from vdnn.network import Network, Role
from vdnn.rewrites import ALL, PAPER, STANDARD
from vdnn.setting import kernels_named

SECONDS = {"f1": 100, "f2": 2, "f3": 1, "b3": 1, "b1": 1}


class Slow(SecondPerKiB):
    """A link of 1 KiB in a hundred seconds."""

    def copy_seconds(self, nbytes, kind):
        return 100 * nbytes / KIB


def waist(algorithms=()):
    """y (4 KiB) is made from x, and read again by b1; in between f3 and b3 need 6 KiB for themselves."""
    return tape(
        [
            op("f1", ["x"], ["y"]),
            op("f2", ["y"], ["y2"], **({"algorithms": algorithms} if algorithms else {})),
            op("f3", ["y2"], ["y3"]),
            op("b3", ["y3"], ["g3"]),
            op("b1", ["y", "g3"], ["g1"]),
        ],
        {"x": KIB, "y": 4 * KIB, "y2": KIB, "y3": 5 * KIB, "g3": KIB, "g1": KIB},
    )


def planned(tape, fates, **options):
    return make_plan(tape, resolve(Decisions(fates, **options), tape, {}))


def test_a_tensor_that_must_leave_is_waited_for_both_ways():
    cost = measured(SECONDS | {"f1": 10_000}, SecondPerKiB())  # so that next to nothing of y is made again
    found = bound(waist(), 6 * KIB, cost)
    # x comes 1, f1 10000, f2 2 and 2 more until y (4 KiB) has left, f3 1, b3 1, y comes 4, b1 1
    assert found.seconds == pytest.approx(10_012, abs=0.05)
    assert found.fractions["y"] == pytest.approx((0, 1, 0), abs=1e-3)
    plan = planned(waist(), {"y": OFFLOAD}, ahead=0)
    assert plan.arena_bytes == 6 * KIB
    assert found.seconds <= simulate(plan, cost).step_seconds == 10_012


def test_a_tensor_that_the_link_cannot_carry_is_made_again():
    cost = measured(SECONDS | {"f1": 3}, Slow())
    found = bound(waist(), 7 * KIB, cost)
    assert found.seconds == pytest.approx(100 + 3 + 2 + 1 + 1 + 3 + 1, rel=1e-3)  # x comes, and f1 runs twice
    assert found.fractions["y"] == pytest.approx((0, 0, 1), abs=0.05)
    assert found.reruns["f1"] == pytest.approx(1, abs=0.05)
    plan = planned(waist(), {"y": DROP})
    assert plan.arena_bytes == 7 * KIB
    assert found.seconds <= simulate(plan, cost).step_seconds == 111


def test_a_tensor_that_fits_is_held():
    found = bound(waist(), 10 * KIB, measured(SECONDS, SecondPerKiB()))
    assert found.fractions["y"] == pytest.approx((1, 0, 0), abs=1e-4)
    assert found.seconds == 106


def test_a_workspace_that_does_not_fit_costs_the_time_of_the_slower_algorithm():
    times = {"f2 by slow": 8, "f2 by middle": 4, "f2 by fast": 2}
    cost = measured({name: s for name, s in SECONDS.items() if name != "f2"} | times, SecondPerKiB())
    held = waist(SLOW_AND_FAST)
    assert bound(held, 13 * KIB, cost).seconds == 106
    assert bound(held, 10 * KIB, cost).seconds == 108  # f2 has 5 KiB of its own, and 8 of workspace do not fit


@pytest.mark.parametrize("make", networks.NETWORKS)
def test_without_a_limit_the_bound_is_the_oracle(make):
    found = tape_of(make())
    cost = roofline("titan-x")
    assert bound(found, 1 << 40, cost).seconds == oracle_seconds(found, cost)


@pytest.mark.parametrize("make", networks.NETWORKS)
def test_below_the_floor_nothing_fits_and_at_the_floor_something_does(make):
    found = tape_of(make())
    cost = roofline("titan-x")
    floor = bound(found, 0, cost).floor
    smallest = sketch(found, resolve(least(found), found, least_workspace(found, cost)))
    assert found.floor_bytes <= floor <= smallest.peak_bytes
    assert bound(found, floor - 1, cost).seconds == inf
    assert bound(found, smallest.peak_bytes, cost).seconds < inf


def test_a_larger_budget_never_raises_the_bound():
    found = build(models.get("vgg16", batch=8), kernels_named("numpy"), optimizers.get("momentum"))
    cost = roofline("titan-x")
    floor = bound(found, 0, cost).floor
    seconds = [bound(found, floor * share // 8, cost).seconds for share in (8, 9, 11, 14, 20)]
    assert all(one >= other * (1 - 1e-6) for one, other in pairwise(seconds))
    assert seconds[0] > seconds[-1] == oracle_seconds(found, cost)


def test_the_ways_of_each_tensor_add_up_to_one():
    found = tape_of(networks.residual())
    answer = bound(found, bound(found, 0, roofline("titan-x")).floor * 5 // 4, roofline("titan-x"))
    assert list(answer.fractions) == [found.buffer_of[t.name] for t in found.saved]
    assert all(sum(shares) == pytest.approx(1, abs=1e-6) for shares in answer.fractions.values())


@pytest.mark.parametrize("budget", [-1, 1.5, True, "1GiB"])
def test_a_budget_that_is_no_number_of_bytes_is_an_error(budget):
    with pytest.raises(ValueError, match=r"a budget is a number of bytes, not"):
        bound(waist(), budget, measured(SECONDS, SecondPerKiB()))


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"vdnn\[search\]"):
        bound(waist(), 6 * KIB, measured(SECONDS, SecondPerKiB()))


# ---- no plan is faster


def random_network(rng):
    net = Network((rng.choice((2, 4)), 3, 8, 8), name="random")
    x = net.input
    for _ in range(rng.randint(2, 6)):
        filters = rng.choice((2, 4, 8, 16))
        kind = rng.choice(("conv", "norm", "drop", "lrn", "add", "concat", "pool"))
        if kind == "conv":
            x = net.add(ReLU(), net.add(Conv2d(filters, 3, padding=1), x))
        elif kind == "norm":
            x = net.add(ReLU(), net.add(BatchNorm2d(), net.add(Conv2d(filters, 3, padding=1), x)))
        elif kind in ("add", "concat"):
            one = net.add(Conv2d(filters, 1), x)
            other = net.add(BatchNorm2d(), net.add(Conv2d(filters, 3, padding=1), x))
            x = net.add(Add() if kind == "add" else Concat(), one, other)
        else:
            saves = rng.choice(("indices", "input"))
            layer = {"drop": Dropout(0.3), "lrn": LocalResponseNorm(3), "pool": MaxPool2d(3, 1, padding=1, saves=saves)}
            x = net.add(layer[kind], x)
    return networks.finish(net, x)


def random_cost(rng):
    """Hardware on which copies take about as long as ops: else nothing is ever waited for."""
    return roofline(
        "titan-x",
        flops_per_second=10 ** rng.uniform(8, 11),
        bytes_per_second=10 ** rng.uniform(8, 11),
        launch_seconds=rng.choice((1e-7, 1e-6, 1e-5)),
        copy_latency_seconds=rng.choice((0.0, 1e-8, 1e-6)),
        offload_bytes_per_second=10 ** rng.uniform(7, 10),
        prefetch_bytes_per_second=10 ** rng.uniform(7, 10),
    )


def random_decisions(rng, tape):
    weights = [rng.random() for _ in range(3)]
    fates = {}
    for tensor in tape.features if rng.random() < 0.5 else tape.saved:
        fate = rng.choices((KEEP, OFFLOAD, DROP), weights)[0]
        fates[tensor.name] = OFFLOAD if fate is DROP and tensor.role is Role.INPUT else fate
    most = rng.choice((0, 1, 3, 10))
    return Decisions(
        fates,
        {one.name: rng.choice(one.algorithms).name for one in tape.ops},
        ahead={name: rng.randint(0, most) for name in fates},
        slack={name: rng.randint(0, most) for name in fates},
        returns=rng.choice(("once", "each")),
        sync=rng.choice(("bytes", "bytes", "layer")),
        streams=rng.choice((2, 2, 1)),
        lifetimes=rng.choice(("sliding", "sliding", "sliding", "network")),
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_plan_is_faster_than_the_bound_at_its_own_arena(seed):
    rng = random.Random(seed)
    net = random_network(rng) if seed % 4 else networks.NETWORKS[seed // 4 % 4]()
    options = {
        "purpose": rng.choice(("step", "step", "gradients")),
        "rewrites": PAPER if rng.random() < 0.2 else rng.choice((STANDARD, ALL)),
    }
    found = build(net, kernels_named(rng.choice(("numpy", "cudnn4"))), optimizers.get("momentum"), **options)
    cost = random_cost(rng)
    for _ in range(3):
        plan = make_plan(found, resolve(random_decisions(rng, found), found, {}), undo=rng.random() < 0.2)
        seconds = simulate(plan, cost).step_seconds
        assert bound(found, plan.arena_bytes, cost).seconds <= seconds * (1 + 1e-9), plan.decisions
