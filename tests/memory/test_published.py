"""Published policies: what each does with a chain small enough to work out by hand, and what all of them hold to."""

from __future__ import annotations

from functools import cache

import pytest
from handmade import KIB, SecondPerKiB, op, tape

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.layers.base import LayerError
from vdnn.memory.cost import measured, roofline
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import decide
from vdnn.memory.published import PUBLISHED
from vdnn.memory.published.fitting import sizeable
from vdnn.memory.published.meter import Meter
from vdnn.memory.published.recompute import Recompute
from vdnn.memory.published.running import Running
from vdnn.memory.published.swapping import Link, accesses
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import fastest, sketch
from vdnn.memory.verify import verify
from vdnn.micro_batches import MicroBatchError
from vdnn.setting import kernels_named

CONV = {"kind": "conv"}
# Live under keep_all, in KiB beside x: f4 16, b4 20, b3 20, b2 16, b1 12.  The floor is 12: b3's y3, g4, g3.
CHAIN = tape(
    [
        op("f1", ["x"], ["y1"], **CONV),
        op("f2", ["y1"], ["y2"], **CONV),
        op("f3", ["y2"], ["y3"], **CONV),
        op("f4", ["y3"], ["y4"], **CONV),
        op("b4", ["y4"], ["g4"]),
        op("b3", ["y3", "g4"], ["g3"]),
        op("b2", ["y2", "g3"], ["g2"]),
        op("b1", ["y1", "g2"], ["g1"]),
    ],
    {"x": 512} | {f"{kind}{n}": 4 * KIB for n in (1, 2, 3, 4) for kind in "yg"},
)
NAMES = [o.name for o in CHAIN.ops]
EVEN = measured(dict.fromkeys(NAMES, 4.0), SecondPerKiB())  # an op takes as long as the copy of a tensor: 4 s
QUICK = measured(dict.fromkeys(NAMES, 0.25), SecondPerKiB())  # a rerun takes 0.25 s, a copy 4 s
HEEDING = [p for p in PUBLISHED if p not in ("paper_all", "paper_conv")]  # the budget


def decided(policy, budget, cost=EVEN, on=CHAIN):
    return decide(PUBLISHED[policy], on, budget, cost, fastest(on, cost)).decisions


def moved(decisions):
    return {b: fate for b, fate in decisions.fates.items() if fate is not KEEP and b.startswith("y")}


def seconds(decisions, cost=EVEN, on=CHAIN):
    return simulate(make_plan(on, decisions), cost).step_seconds


# ---- one by one, on the chain


def test_paper_all_offloads_what_layers_read_and_waits_by_the_papers_rules():
    decisions = decided("paper_all", 0)
    assert moved(decisions) == {"y1": OFFLOAD, "y2": OFFLOAD, "y3": OFFLOAD}
    assert (decisions.sync, decisions.streams, decisions.inputs) == ("layer", 1, "copied")


def test_paper_conv_leaves_pooling_alone():
    pooled = tape(
        [
            op("f1", ["x"], ["y1"], **CONV),
            op("f2", ["y1"], ["y2"], kind="maxpool"),
            op("f3", ["y2"], ["y3"], **CONV),
            op("b3", ["y2", "y3"], ["g3"]),
            op("b2", ["y1", "g3"], ["g2"]),
        ],
        {"x": 512, "y1": KIB, "y2": KIB, "y3": KIB, "g3": KIB, "g2": KIB},
    )
    cost = measured({o.name: 1.0 for o in pooled.ops}, SecondPerKiB())
    assert moved(decided("paper_conv", 0, cost, pooled)) == {"y2": OFFLOAD}
    assert moved(decided("paper_all", 0, cost, pooled)) == {"y1": OFFLOAD, "y2": OFFLOAD}


def test_paper_dyn_offloads_nothing_where_all_fits_and_every_conv_where_it_does_not():
    assert moved(decided("paper_dyn", 32 * KIB)) == {}
    assert moved(decided("paper_dyn", 17 * KIB)) == {"y1": OFFLOAD, "y2": OFFLOAD, "y3": OFFLOAD}


def test_vdnn_plus_plus_offloads_as_vdnn_does_but_does_not_wait_after_layers():
    decisions = decided("vdnn_plus_plus", 17 * KIB)
    assert moved(decisions) == {"y1": OFFLOAD, "y2": OFFLOAD, "y3": OFFLOAD}
    assert (decisions.sync, decisions.streams) == ("bytes", 2)


def test_vdnn_plus_plus_keeps_sources_until_they_have_left_while_there_is_room():
    slow = measured(dict.fromkeys(NAMES, 2.0), SecondPerKiB())  # copies take two ops each
    decisions = decided("vdnn_plus_plus", 17 * KIB, slow)
    # y1 leaves from 2 s, the start of f2, to 6 s, the end of f3; y2 from 6 to 10, over the end of f4
    assert decisions.slack["y1"] == 1
    assert seconds(decisions, slow) < seconds(decided("paper_dyn", 17 * KIB, slow), slow)


def test_chen_budget_runs_the_least_again_that_the_budget_allows():
    # segments of more than 5.7 KiB: y2 is kept, and y1 alone is run again; b4 has x, y2, y3, y4, g4: 16.5 KiB
    assert moved(decided("chen_budget", 17 * KIB)) == {"y1": DROP}
    # of more than 8 KiB: y3 is kept, y1 and y2 are run again, and b2 has y1, y2, g3, g2 and x
    assert seconds(decided("chen_budget", 17 * KIB)) == 4.0 * 9 + 0.5  # eight ops, one again, and x arrives in 0.5 s


def test_superneurons_evicts_the_least_recently_used_and_no_more_than_it_must():
    assert moved(decided("superneurons", 16 * KIB + 512)) == {"y1": OFFLOAD}


def test_superneurons_runs_cheap_layers_again_and_never_convolutions():
    cheap = tape(
        [
            op("f1", ["x"], ["y1"], **CONV),
            op("f2", ["y1"], ["y2"], kind="bn"),
            op("f3", ["y2"], ["y3"], **CONV),
            op("f4", ["y3"], ["y4"], kind="bn"),
            *CHAIN.ops[4:],
        ],
        {"x": 512} | {f"{kind}{n}": 4 * KIB for n in (1, 2, 3, 4) for kind in "yg"},
    )
    decisions = decided("superneurons", 16 * KIB + 512, QUICK, cheap)
    assert moved(decisions) == {"y2": DROP}  # a quarter of a second instead of copies of four


def test_capuchin_swaps_the_tensor_with_the_longest_free_time_where_that_hides():
    # y1 is free from 8 s to 28 s less two copies, y2 from 12 to 24: y1 hides, and is enough
    decisions = decided("capuchin", 16 * KIB + 512)
    assert moved(decisions) == {"y1": OFFLOAD}
    assert decisions.ahead["y1"] == 1  # back just in time, while b2 computes; b3 would have no room for it
    assert seconds(decisions) == 8 * 4.0 + 0.5  # nothing waits but f1 for x


def test_capuchin_runs_again_what_would_wait_for_the_link():
    decisions = decided("capuchin", 17 * KIB, QUICK)
    assert set(moved(decisions).values()) == {DROP}


def test_dtr_drops_the_stalest_of_equal_tensors():
    assert moved(decided("dtr", 17 * KIB)) == {"y1": DROP}


def test_swap_advisor_swaps_what_is_used_furthest_in_the_future_and_fetches_it_as_early_as_there_is_room():
    decisions = decided("swap_advisor", 16 * KIB + 512)
    assert moved(decisions) == {"y1": OFFLOAD}
    assert decisions.ahead["y1"] == 1
    assert seconds(decisions) == 8 * 4.0 + 0.5
    roomy = decided("swap_advisor", 19 * KIB)
    assert moved(roomy) == {"y1": OFFLOAD}
    assert roomy.ahead["y1"] == 1


# ---- sub-batches


def two_rounds(parts=2, batch=256):
    """A network without batch norm whose batch comes in so many parts."""
    network = models.get("vgg11", batch=batch)
    return build(network, kernels_named("numpy", 1), optimizers.get("momentum"), micro_batches=parts)


def in_parts(budget, variant):
    whole, cost = setting("vgg11", 256)[:2]
    found = decide(PUBLISHED["modnn"], whole, budget, cost, fastest(whole, cost), variant=variant)
    return found, make_plan(found.tape, found.decisions)


def test_modnn_takes_the_whole_batch_where_nothing_has_to_move():
    found, _ = in_parts(setting("vgg11", 256)[2] * 11 // 10, two_rounds)
    assert found.tape is setting("vgg11", 256)[0]
    assert moved(found.decisions) == {}


def test_modnn_takes_sub_batches_where_the_whole_batch_cannot_fit():
    whole = setting("vgg11", 256)[0]
    budget = whole.floor_bytes - 1
    asked = []

    def variant(parts):
        asked.append(parts)
        return two_rounds(parts)

    found, plan = in_parts(budget, variant)
    verify(plan)
    assert plan.arena_bytes <= budget
    assert asked == [2, 4, 8, 16]  # the largest sub-batch first
    assert found.tape.micro_batches in asked
    assert set(found.decisions.algorithms) == {o.name for o in found.tape.ops}


def test_modnn_without_sub_batches_is_for_the_tape_that_it_is_given():
    whole = setting("vgg11", 256)[0]
    found, _ = in_parts(whole.floor_bytes // 2, None)
    assert found.tape is whole


@pytest.mark.parametrize("error", [LayerError, MicroBatchError])
def test_modnn_stays_with_the_whole_batch_where_there_can_be_no_sub_batches(error):
    def variant(parts):
        raise error(f"no {parts} parts")

    whole = setting("vgg11", 256)[0]
    found, _ = in_parts(whole.floor_bytes // 2, variant)
    assert found.tape is whole


def test_modnn_says_the_smallest_plan_where_nothing_fits():
    found, _ = in_parts(KIB, two_rounds)
    least = min((setting("vgg11", 256)[0], *map(two_rounds, (2, 4, 8, 16))), key=lambda t: t.floor_bytes)
    assert found.tape.micro_batches == least.micro_batches > 1


@pytest.mark.parametrize("policy", PUBLISHED)
def test_its_plan_of_two_sub_batches_is_safe_and_fits(policy):
    built, cost = two_rounds(batch=16), roofline("titan-x")
    whole = sketch(built, resolve({}, built, fastest(built, cost))).peak_bytes
    budget = (built.floor_bytes + 2 * whole) // 3
    decisions = decided(policy, budget, cost, built)
    plan = make_plan(built, decisions)
    verify(plan)
    assert policy not in HEEDING or plan.arena_bytes <= budget


def test_the_meter_shows_the_peak_of_two_sub_batches_with_reruns():
    built, cost = two_rounds(batch=16), roofline("titan-x")
    fates = {b: OFFLOAD if k % 2 else DROP for k, b in enumerate(sizeable(built)) if b.startswith("conv")}
    for returns in ("once", "each"):
        decisions = Decisions(fates, ahead=0, returns=returns)
        reading = Meter(built, fastest(built, cost)).read(decisions)
        plan = sketch(built, resolve(decisions, built, fastest(built, cost)))
        assert reading.live.tolist() == [plan.live_bytes[i] for i, _, _ in plan.computes()]


def test_reruns_lie_in_the_backward_half_of_their_round():
    running = Running.of(CHAIN, resolve({"y1": DROP}, CHAIN, {}))
    assert [o.name for o in running.tape.ops] == ["f1", "f2", "f3", "f4", "b4", "b3", "b2", "f1", "b1"]
    assert running.rounds == ((range(4), range(4, 9)),)


def test_each_round_begins_behind_the_last_op_of_the_one_before():
    built = two_rounds(batch=16)
    running = Running.of(built, resolve({"conv1_1.y": DROP}, built, {}))
    again = len(running.tape.ops) - len(built.ops)
    (forward, backward), (later, last) = built.rounds
    assert again >= 1
    assert running.rounds[0] == (forward, range(backward.start, backward.stop + again))
    assert running.rounds[1] == (
        range(later.start + again, later.stop + again),
        range(last.start + again, last.stop + again),
    )


def test_buffers_of_rounds_take_turns():
    found = sizeable(two_rounds(batch=16))
    assert [b for b in found if "@" in b] == [f"{b}@2" for b in found if "@" not in b]
    assert [b.partition("@")[0] for b in found[::2]] == [b.partition("@")[0] for b in found[1::2]]


# ---- what they weigh


def test_swaps_that_share_a_link_cost_more_than_one_by_one():
    starts = [4.0 * i for i in range(9)]
    one, two, _, _ = sorted(accesses(CHAIN, ["y1", "y2", "y3", "y4"], starts, EVEN), key=lambda a: -a.free_seconds)
    assert (one.buffer, one.free_seconds, two.buffer, two.free_seconds) == ("y1", 12.0, "y2", 4.0)
    over = [0, 0, 0, 4 * KIB, 8 * KIB, 8 * KIB, 4 * KIB, 0]  # a budget of 12 KiB
    link = Link(starts, over, CHAIN.rounds[0])
    # y1 must have left before f4, at 12 s, and has, from 8 to 12; it may return after b2, at 28 s, when b1 begins
    assert link.overhead_with(one) == 4.0
    link.add(one)
    # y2 leaves from 12 to 16 s, as b4 begins; it would return after b3, at 24 s, when b2 begins
    assert link.overhead_with(two) - link.overhead == 0.0


def test_a_rerun_costs_that_of_its_dropped_sources_as_well_unless_it_is_collective():
    for collective, again in ((False, 8.0), (True, 4.0)):
        weighed = Recompute.of(CHAIN, ["y1", "y2", "y3"], [4.0] * 8, collective)
        assert weighed.seconds("y2") == 4.0
        weighed.choose("y1")
        assert weighed.seconds("y2") == again


def test_a_tensor_that_chosen_reruns_read_costs_once_more_for_each_of_them():
    weighed = Recompute.of(CHAIN, ["y1", "y2", "y3"], [4.0] * 8, collective=False)
    weighed.choose("y2")
    assert weighed.seconds("y1") == 8.0  # for itself, and for y2
    assert weighed.seconds("y3") == 8.0  # with that of y2, which it reads


@pytest.mark.parametrize("fates", [{}, {"y1": OFFLOAD, "y2": DROP}, {"y1": DROP, "y2": DROP}, {"y3": OFFLOAD}])
def test_the_meter_shows_the_peak_of_a_sketch(fates):
    decisions = Decisions(fates, ahead=0)
    meter = Meter(CHAIN, fastest(CHAIN, EVEN))
    assert meter.read(decisions).peak == sketch(CHAIN, resolve(decisions, CHAIN, {})).peak_bytes


# ---- all of them, on real networks


@cache
def setting(name, batch=16):
    built = build(models.get(name, batch=batch), kernels_named("numpy", 1), optimizers.get("momentum"))
    cost = roofline("titan-x")
    whole = sketch(built, resolve({}, built, fastest(built, cost))).peak_bytes
    return built, cost, whole


@pytest.fixture(params=["vgg16", "resnet18", "googlenet"])
def network(request):
    return setting(request.param)


@pytest.mark.parametrize("policy", PUBLISHED)
def test_its_plan_is_safe_and_half_of_what_keep_all_has_above_the_floor_is_enough(policy, network):
    built, cost, whole = network
    budget = built.floor_bytes + (whole - built.floor_bytes) // 2
    plan = make_plan(built, decided(policy, budget, cost, built))
    verify(plan)
    assert policy not in HEEDING or plan.arena_bytes <= budget


@pytest.mark.parametrize("policy", PUBLISHED)
def test_it_decides_the_same_every_time(policy):
    built, cost, whole = setting("resnet18")
    budget = (built.floor_bytes + 2 * whole) // 3
    assert decided(policy, budget, cost, built) == decided(policy, budget, cost, built)


@pytest.mark.parametrize("policy", HEEDING)
def test_nothing_moves_when_everything_fits(policy, network):
    built, cost, whole = network
    decisions = decided(policy, whole * 11 // 10, cost, built)
    saved = {built.buffer_of[t.name] for t in built.saved}
    assert {decisions.fates[b] for b in saved} == {KEEP}


@pytest.mark.parametrize("policy", PUBLISHED)
def test_a_budget_that_nothing_fits_gets_a_plan_all_the_same(policy):
    verify(make_plan(CHAIN, decided(policy, KIB)))
