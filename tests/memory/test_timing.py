"""When copies start and end, worked out by hand and held against simulated steps."""

from __future__ import annotations

import networks
import pytest
from handmade import KIB, SecondPerKiB, op, tape

import vdnn
from vdnn.kernels.cudnn4 import Cudnn4Kernels
from vdnn.memory.cost import measured
from vdnn.memory.decisions import DROP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.rules import offload_inputs
from vdnn.memory.simulate import simulate
from vdnn.memory.timing import timed
from vdnn.memory.trial import fastest

# f1 to f4 and back; y1 and y2 take 4 s to copy, each op takes 2 s
FOUR = tape(
    [
        op("f1", ["x"], ["y1"]),
        op("f2", ["y1"], ["y2"]),
        op("f3", ["y2"], ["y3"]),
        op("f4", ["y3"], ["y4"]),
        op("b4", ["y4"], ["g4"]),
        op("b3", ["g4"], ["g3"]),
        op("b2", ["y2", "g3"], ["g2"]),
        op("b1", ["y1", "g2"], ["g1"]),
    ],
    {"x": KIB, "y1": 4 * KIB, "y2": 4 * KIB, "y3": KIB, "y4": KIB, "g4": KIB, "g3": KIB, "g2": KIB, "g1": KIB},
)
COST = measured(dict.fromkeys((o.name for o in FOUR.ops), 2.0), SecondPerKiB())
FATES = {"y1": OFFLOAD, "y2": OFFLOAD}


def test_where_there_is_room_sources_stay_until_they_have_left_and_prefetches_start_just_in_time():
    roomy = Decisions(FATES, ahead=4, slack=4)  # whose peak holds both all the time
    found = timed(FOUR, roomy, COST, {})
    # y1 leaves beside f2, 2 to 6 s: f3 (4 to 6) runs meanwhile, and f4 starts at 6.  y2 then leaves from 6 to 10.
    assert found.slack == {"y1": 1, "y2": 1}
    # Backward begins at 8: y2 must be back at 12, when b2 begins, so it starts at once, beside b4.  y1 must be back at
    # 14, but the link is free at 12 at the earliest: it is posted beside b3, which ends then.
    assert found.ahead == {"y1": 2, "y2": 2}


def test_without_room_they_leave_and_return_as_late_as_the_peak_wants():
    tight = Decisions(FATES, ahead=0, slack=0)
    found = timed(FOUR, tight, COST, {})
    given = make_plan(FOUR, resolve(tight, FOUR, {}))
    plan = make_plan(FOUR, resolve(found, FOUR, {}))
    assert plan.peak_bytes == given.peak_bytes
    assert simulate(plan, COST).step_seconds <= simulate(given, COST).step_seconds


@pytest.mark.parametrize("make", networks.NETWORKS)
@pytest.mark.parametrize("bandwidth", [1e6, 1e8, 1e10])
def test_the_peak_is_not_raised_and_the_fates_stay(make, bandwidth):
    tape = networks.tape_of(make(64))
    cost = vdnn.roofline("host", offload_bytes_per_second=bandwidth, prefetch_bytes_per_second=bandwidth)
    algorithms = fastest(tape, cost)
    decisions = offload_inputs(tape, ("conv", "pool", "bn", "lrn"))
    before = make_plan(tape, resolve(decisions, tape, algorithms))
    after = make_plan(tape, resolve(timed(tape, decisions, cost, algorithms), tape, algorithms))
    vdnn.verify(after)
    assert after.decisions.fates == before.decisions.fates
    assert after.peak_bytes <= before.peak_bytes


@pytest.mark.parametrize("name", ["alexnet", "vgg19", "googlenet", "resnet50"])
@pytest.mark.parametrize("kinds", [("conv",), ("conv", "pool", "bn", "lrn")])
def test_large_networks_are_faster_than_one_layer_ahead(name, kinds):
    tape = vdnn.build(vdnn.models.get(name, batch=64), Cudnn4Kernels(), vdnn.SGD(0.1))
    cost = vdnn.roofline("titan-x")
    algorithms = fastest(tape, cost)
    decisions = offload_inputs(tape, kinds)
    plans = [
        make_plan(tape, resolve(d, tape, algorithms)) for d in (decisions, timed(tape, decisions, cost, algorithms))
    ]
    before, after = (simulate(plan, cost).step_seconds for plan in plans)
    assert after < before


@pytest.mark.parametrize("name", ["alexnet", "vgg19", "googlenet"])
@pytest.mark.parametrize("policy", ["vdnn_all", "vdnn_conv"])
def test_the_papers_networks_are_faster_than_by_its_rules_in_no_more_memory(name, policy):
    options = {"budget": 1 << 60, "kernels": "cudnn4", "optimizer": "sgd", "count": "features"}
    net = vdnn.models.get(name, batch=64)
    cost = vdnn.roofline("titan-x")
    paper, ours = (vdnn.plan(net, policy, rules=rules, **options) for rules in ("paper", "ours"))
    assert ours.peak_bytes <= paper.peak_bytes
    assert simulate(ours, cost).step_seconds <= simulate(paper, cost).step_seconds


def test_decisions_that_run_something_again_are_refused():
    with pytest.raises(ValueError, match="run nothing again"):
        timed(FOUR, Decisions({"y1": DROP}), COST, {})
