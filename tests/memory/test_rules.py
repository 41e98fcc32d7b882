"""The paper's own rules (section III), against the paper's text and worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from networks import NETWORKS, assert_same_bits, device_for, outcome, plan_of, tape_of, train

import vdnn
from vdnn import models
from vdnn.kernels.cudnn4 import Cudnn4Kernels
from vdnn.memory.decisions import KEEP, OFFLOAD, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.rules import offload_inputs, under
from vdnn.setting import SettingError

MIB = 2**20
COST = vdnn.roofline("titan-x")
ENDLESS = 1 << 60


def planned(name="vgg19", batch=256, policy="vdnn_all", algorithms="memory", count="features", **options):
    net = models.get(name, batch=batch, rules="paper")
    return vdnn.plan(
        net, policy, budget=ENDLESS, rules="paper", count=count, algorithms=algorithms, optimizer="sgd", **options
    )


def last_name(plan, buffer):
    return plan.tape.buffers[buffer].tensors[-1].name


def fetched_beside(plan):
    """{layer: the X that comes back while its backward runs} from the steps of the plan."""
    found = {}
    waiting = []
    for step in plan.steps:
        if step.kind == "prefetch" and plan.fate(step.name) is OFFLOAD:
            waiting.append(last_name(plan, step.name))
        elif step.kind == "compute":
            if waiting and "backward" in step.name:
                found[step.name.partition(".")[0]] = waiting
            waiting = []
    return found


def test_the_search_of_fig_10_fetches_one_layer_ahead_and_never_past_a_conv():
    beside = fetched_beside(planned())
    assert beside["loss"] == ["relu5_4.y"]  # X of POOL_5: FC layers search, too
    assert beside["fc8"] == ["relu5_3.y"]  # POOL_5 is fetched, so the search goes on to CONV_16
    assert "pool5" not in beside  # CONV_16 is fetched and closes the window
    assert beside["conv5_1"] == ["relu4_4.y"]  # X of POOL_4, just below
    assert beside["pool4"] == ["relu4_3.y"]  # X of CONV_12
    assert beside["conv1_2"] == ["input"]
    assert beside["pool1"] == ["relu1_1.y"]  # literally: CONV_02's X while POOL_1 still has all of its own
    assert not any(layer.startswith("relu") for layer in beside)


def test_every_layer_fetches_one_x_at_most():
    for name in ("vgg19", "googlenet", "alexnet"):
        for policy in ("vdnn_all", "vdnn_conv"):
            assert all(len(found) == 1 for found in fetched_beside(planned(name, 2, policy)).values())


def test_the_peak_is_that_of_the_papers_literal_rules():
    # POOL_1's backward: X, dX, Y, dY and the X of CONV_02 that the search fetched, and all filters
    x, y = 256 * 64 * 224 * 224 * 4, 256 * 64 * 112 * 112 * 4
    plan = planned()
    filters = sum(plan.size(b) for b in plan.tape.resident)
    assert round(filters / MIB) == 76
    # the step's labels and clock take a granule each
    assert plan.peak_bytes == plan.arena_bytes
    assert 0 <= plan.peak_bytes - (3 * x + 2 * y + filters) <= 8 * 512


@pytest.mark.parametrize(
    ("name", "batch", "conv", "both"),
    [
        ("alexnet", 128, 165, 349),
        ("overfeat", 128, 385, 1157),
        ("googlenet", 128, 1367, 2341),
        ("vgg19", 64, 2536, 4030),
    ],
)
def test_what_leaves_is_the_sum_of_the_inputs_with_the_images_and_without_the_classifier(name, batch, conv, both):
    assert round(planned(name, batch, "vdnn_conv").offloaded_bytes / MIB) == conv
    plan = planned(name, batch, "vdnn_all")
    assert round(plan.offloaded_bytes / MIB) == both
    left = {s.name for s in plan.steps if s.kind == "offload" and plan.fate(s.name) is OFFLOAD}
    assert "input" in left
    classifier = {op.arguments["x"] for op in plan.tape.ops if op.kind == "linear" and op.phase == "forward"}
    assert left.isdisjoint(plan.tape.buffer_of[x] for x in classifier)


def test_one_stream_copies_both_ways():
    plan = planned("alexnet", 2)
    assert {s.stream for s in plan.steps} == {"compute", "offload"}
    assert {s.kind for s in plan.steps if s.stream == "offload"} == {"offload", "prefetch"}


def test_after_a_layer_that_copied_neither_the_next_op_nor_the_next_copy_starts_before_all_is_done():
    plan = planned("vgg19", 2)
    trace = vdnn.simulate(plan, vdnn.roofline("titan-x", offload_bytes_per_second=1e9, prefetch_bytes_per_second=1e9))
    times = {e.index: (e.start, e.finish) for e in trace.events}
    computes = [i for i, s in enumerate(plan.steps) if s.kind == "compute"]
    joined = 0
    for before, (op, after) in zip([-1, *computes], pairwise(computes), strict=False):
        beside = [
            i
            for i in range(before + 1, op)
            if plan.steps[i].stream == "offload" and plan.fate(plan.steps[i].name) is OFFLOAD
        ]
        if beside:
            joined += 1
            done = max(times[i][1] for i in (op, *beside))
            assert times[after][0] >= done
            copies = [i for i in range(op + 1, len(plan.steps)) if plan.steps[i].stream == "offload"]
            assert not copies or times[copies[0]][0] >= done
    assert joined == 42  # 21 layers copied on the way forward, and as many on the way back


def test_a_layer_that_copied_nothing_joins_nothing():
    tape = tape_of(NETWORKS[0](), rewrites="paper")
    nothing = make_plan(tape, under("paper", resolve({}, tape, {})))
    ours = make_plan(tape, resolve({}, tape, {}))
    assert [s.waits for s in nothing.steps] == [s.waits for s in ours.steps]


def test_the_images_are_copied_out_and_come_back_from_where_they_were():
    plan = planned("alexnet", 2)
    steps = [s for s in plan.steps if s.name == "input" and s.kind in ("offload", "prefetch")]
    assert [s.kind for s in steps] == ["prefetch", "offload", "prefetch"]
    assert len({s.offset for s in steps}) == 1


def test_vdnn_dyn_tries_in_the_papers_order():
    cheap = planned(policy="vdnn_all", algorithms="memory", count="weights")
    conv = planned(policy="vdnn_conv", algorithms="performance", count="weights")
    everything = planned(policy="keep_all", algorithms="performance", count="weights")

    def chosen(budget):
        net = models.get("vgg19", batch=256, rules="paper")
        return vdnn.plan(net, "vdnn_dyn", budget=budget, rules="paper", count="weights", optimizer="sgd")

    assert chosen(everything.arena_bytes).offloaded_bytes == 0
    assert chosen(conv.arena_bytes).decisions.fates == conv.decisions.fates
    with pytest.raises(vdnn.BudgetError) as error:
        chosen(cheap.arena_bytes - 512)
    assert error.value.needed_bytes == cheap.arena_bytes


def test_unknown_rules_are_refused():
    with pytest.raises(SettingError, match="'theirs' are none of ours, paper"):
        vdnn.plan(models.digits_vgg(batch=2), rules="theirs")


# ---- run on a device


@pytest.mark.parametrize("make", NETWORKS)
def test_a_fused_backward_under_the_papers_rules_leaves_the_bits_of_everything_kept(make):
    expected, _ = train(make)
    net = make()
    tape = tape_of(net, rewrites="paper")
    decisions = under("paper", resolve(offload_inputs(tape, ("conv", "pool"), "paper"), tape, {}))
    plan = make_plan(tape, decisions, undo=True)
    assert any(op.name.endswith(".backward") and op.kind == "conv" for op in tape.ops)
    assert any(s.kind == "offload" and plan.fate(s.name) is OFFLOAD for s in plan.steps)
    with device_for(net, plan) as device:
        found = outcome(device, plan)
        assert device.measured_peak_bytes(plan) == plan.peak_bytes
    assert_same_bits(found, expected)


def test_a_plan_that_does_not_count_everything_is_refused_by_a_device():
    net = NETWORKS[0]()
    tape = tape_of(net, count="weights")
    plan = make_plan(tape, resolve({}, tape, {}))
    vdnn.verify(plan)
    with device_for(net, plan_of(net)) as device, pytest.raises(vdnn.DeviceError, match="counts weights alone"):
        device.load(plan)


# ---- what is counted


def test_counts_leave_out_what_they_say_and_nothing_else():
    net = models.digits_vgg(batch=8)
    plans = {
        count: vdnn.plan(net, {}, kernels="cudnn4", count=count, algorithms="memory")
        for count in ("all", "weights", "features")
    }
    resident = {count: plan.tape.resident_bytes for count, plan in plans.items()}
    tape = plans["all"].tape
    weights = [t for t, _ in net.parameters.values()]
    state = sum(tape.buffers[f"{t.name}.velocity"].nbytes for t in weights)
    statistics = sum(tape.buffers[name].nbytes for name in net.statistics)
    assert resident["all"] == resident["weights"] + state + statistics
    filters = sum(tape.buffers[t.name].nbytes for t in weights if t.name.startswith("conv"))
    assert resident["features"] == filters < resident["weights"]
    assert plans["weights"].breakdown["feature map"] == plans["features"].breakdown["feature map"]
    assert "weight gradient" not in {k for k, v in plans["weights"].breakdown.items() if v}
    assert plans["features"].floor_bytes < plans["weights"].floor_bytes < plans["all"].floor_bytes
    for plan in plans.values():
        vdnn.verify(plan)
        assert vdnn.Plan.from_json(plan.to_json()).peak_bytes == plan.peak_bytes
        assert vdnn.Plan.parse(str(plan), plan.tape).peak_bytes == plan.peak_bytes


def test_an_unknown_count_is_refused():
    with pytest.raises(ValueError, match="count 'some' is none of all, weights, features"):
        vdnn.plan(models.digits_vgg(batch=2), count="some")


def test_keeping_is_no_copy_under_any_rules():
    net = models.paper(models.digits_vgg(batch=2))
    kept = dict.fromkeys(vdnn.plan(net, {}).tape.saved, KEEP)
    plan = vdnn.plan(net, kept, rules="paper")
    assert plan.offloaded_bytes == 0
    assert np.isfinite(vdnn.simulate(plan, COST).step_seconds)


@pytest.mark.parametrize("count", ["weights", "features"])
@pytest.mark.parametrize("purpose", ["step", "gradients", "evaluate"])
def test_what_is_not_counted_is_no_copy_either(count, purpose):
    net = models.digits_vgg(batch=4)
    vdnn.verify(vdnn.plan(net, {}, count=count, purpose=purpose, undo=purpose == "step"))


def test_a_tape_is_not_half_made_into_the_papers_nor_given_other_kernels():
    tape = tape_of(NETWORKS[0]())
    with pytest.raises(SettingError, match="pass the network"):
        vdnn.plan(tape, "vdnn_all", rules="paper")
    with pytest.raises(ValueError, match="kernels='cudnn4' contradicts the tape"):
        vdnn.plan(tape, "vdnn_all", kernels="cudnn4")


def test_scores_that_a_view_would_show_are_made_by_an_op():
    net = vdnn.Network((2, 3, 4, 4))
    x = net.add(vdnn.layers.Conv2d(5, 3, padding=1), net.input)
    net.add(
        vdnn.layers.SoftmaxCrossEntropy(), net.add(vdnn.layers.Flatten(), net.add(vdnn.layers.GlobalAvgPool2d(), x))
    )
    for purpose in ("step", "gradients", "evaluate"):
        vdnn.verify(vdnn.plan(net, "least", kernels="cudnn4", purpose=purpose))


def test_a_gradient_of_two_joins_is_not_overwritten_while_one_still_reads_it():
    net = vdnn.Network((2, 3, 4, 4))
    branches = []
    for _ in range(2):
        parts = [net.add(vdnn.layers.ReLU(), net.add(vdnn.layers.Conv2d(4, 3, padding=1), net.input)) for _ in range(2)]
        branches.append(net.add(vdnn.layers.Concat(), *parts))
    x = net.add(vdnn.layers.Flatten(), net.add(vdnn.layers.Add(), *branches))
    net.add(vdnn.layers.SoftmaxCrossEntropy(), net.add(vdnn.layers.Linear(5), x))
    tape = vdnn.build(net, Cudnn4Kernels(), vdnn.SGD(0.1))
    whole = tape.buffer_of["linear1.dx"]
    writers = [op.name for op in tape.ops if whole in tape.writes[tape.index[op.name]]]
    readers = [op.name for op in tape.ops if whole in tape.reads[tape.index[op.name]]]
    # relu3 and relu4 come first and share bytes with relu1 and relu2, which still read them: they write elsewhere
    assert tape.buffer_of["relu4.dx"] != whole
    assert tape.buffer_of["relu3.dx"] != whole
    assert {"relu1.backward", "relu2.backward"} <= set(readers)
    assert writers[0] == "linear1.backward_data"
