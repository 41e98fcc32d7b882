from __future__ import annotations

import pytest
from networks import FATES, NETWORKS, chain, plan_of, tape_of
from stubs import Conv, decided, network, short, squares
from stubs import tape_of as stub_tape

from vdnn.layers.base import Layer, Shapes
from vdnn.memory.decisions import OFFLOAD, Decisions
from vdnn.memory.passes import make_plan
from vdnn.memory.place import place
from vdnn.memory.plan import Plan, Step
from vdnn.network import Role


class Grow(Layer):
    """y is twice as large as x."""

    def shapes(self, x):
        return Shapes((x[0], 2 * x[1], *x[2:]))

    def forward(self, x, y): ...
    def backward(self, x, dy, dx): ...


def placed(tape, steps, decisions=None):
    return place(Plan(tape, decided(tape, decisions), tuple(Step.parse(line) for line in steps), 0, 0), effort=1000)


def test_residents_lie_at_the_bottom_and_what_dies_leaves_its_place():
    plan = placed(
        stub_tape(squares(1)),
        [
            "compute alloc input",
            "compute alloc conv1.w",
            "compute alloc conv1.w.v",
            "compute alloc conv1.y",
            "compute free conv1.y",
            "compute alloc square1.y",
            "compute free input",
            "compute alloc loss1.p",
        ],
    )
    offsets = {s.name: s.offset for s in plan.steps if s.kind == "alloc"}
    assert offsets["conv1.w"] == 0
    assert offsets["conv1.w.v"] == 512
    assert {offsets["input"], offsets["conv1.y"]} == {1024, 1536}
    assert offsets["square1.y"] == offsets["conv1.y"]
    assert offsets["loss1.p"] == offsets["input"]
    assert plan.arena_bytes == 2048


def test_frees_and_ops_get_no_offset():
    tape = stub_tape(squares(1))
    plan = make_plan(tape, decided(tape))
    assert {s.offset for s in plan.steps if s.kind in ("free", "compute")} == {-1}


def test_the_places_of_offloads_on_the_host_are_used_again_and_those_of_inputs_results_and_undo_are_not():
    steps = [
        "compute alloc conv1.w",
        "compute alloc conv1.w.v",
        "compute alloc input",
        "prefetch prefetch input",
        "compute alloc conv1.y",
        "offload offload conv1.y",
        "prefetch prefetch conv1.y",
        "compute alloc square1.y",
        "offload offload square1.y",
        "prefetch prefetch square1.y",
        "prefetch prefetch square1.y",
        "compute alloc loss1.y",
        "offload offload loss1.y",
        "offload offload conv1.w",
    ]
    plan = placed(stub_tape(squares(1)), steps, {"conv1.y": OFFLOAD, "square1.y": OFFLOAD})
    at: dict[str, list[int]] = {}
    for step in plan.steps:
        if step.kind in ("offload", "prefetch"):
            at.setdefault(step.name, []).append(step.offset)
    assert all(len(set(offsets)) == 1 for offsets in at.values())  # a prefetch reads where its offload wrote
    assert len(at["square1.y"]) == 3
    stay = [at[name][0] for name in ("input", "loss1.y", "conv1.w")]
    assert len(set(stay)) == 3
    assert at["conv1.y"][0] != at["input"][0]
    assert plan.host_bytes == 3 * 512  # one place for conv1.y, square1.y and one of the two that come later


def test_a_result_that_is_offloaded_keeps_its_place_on_the_host_after_it_came_back():
    steps = [
        "compute alloc conv1.w",
        "compute alloc conv1.w.v",
        "compute alloc loss1.y",
        "offload offload loss1.y",
        "prefetch prefetch loss1.y",
        "offload offload conv1.w",
    ]
    plan = placed(stub_tape(squares(1)), steps, {"loss1.y": OFFLOAD})
    assert plan.steps[3].offset == plan.steps[4].offset != plan.steps[5].offset
    assert plan.host_bytes == 1024


def test_network_wide_allocation_shares_the_fewest_slots_each_as_large_as_the_largest():
    tape = stub_tape(network(Conv(scratch=1), Grow(), Grow(), Conv(1, scratch=3)))
    roomy = {op.name: "roomy" for op in tape.ops if len(op.algorithms) > 1}
    plan = make_plan(tape, decided(tape, Decisions(lifetimes="network"), **roomy))
    gradients = sorted(
        {(s.offset, plan.size(s.name)) for s in plan.steps if s.kind == "alloc" and s.name.endswith(".dx")}
    )
    # loss1.dx 512, conv2.dx 2048, grow2.dx 1024, grow1.dx 512 bytes: two live at a time, so two slots of 2048
    assert {size for _, size in gradients} == {512, 1024, 2048}
    assert len({offset for offset, _ in gradients}) == 2
    first, second = sorted({offset for offset, _ in gradients})
    assert second - first == 2048
    scratch = {s.offset for s in plan.steps if s.kind == "alloc" and s.name.endswith("workspace")}
    assert len(scratch) == 1
    assert plan.breakdown[Role.WORKSPACE] == 3 * 512
    assert plan.breakdown[Role.GRADIENT] == 2 * 2048


@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("make", NETWORKS)
def test_no_two_buffers_that_live_at_one_time_overlap(make, fates):
    plan = plan_of(make(), FATES[fates])
    live: dict[str, range] = {}
    for step in plan.steps:
        if step.kind == "alloc":
            mine = range(step.offset, step.offset + plan.size(step.name))
            assert mine.stop <= plan.arena_bytes
            assert mine.start % 512 == 0
            for other in live.values():
                assert mine.stop <= other.start or other.stop <= mine.start
            live[step.name] = mine
        elif step.kind == "free":
            del live[step.name]
    assert set(live) == set(plan.tape.resident)
    assert plan.arena_bytes >= plan.peak_bytes


def test_residents_lie_alike_for_every_purpose_and_batch():
    net = chain(4)
    plans = [
        plan_of(net),
        plan_of(net, purpose="evaluate"),
        plan_of(net.with_batch(2), FATES["drop"], purpose="gradients"),
    ]
    places = [{s.name: s.offset for s in p.steps if s.kind == "alloc" and s.name in p.tape.resident} for p in plans]
    assert places[0] == places[1] == places[2]
    assert list(places[0]) == list(tape_of(net).resident)


def test_equal_decisions_give_equal_plans():
    first, second = (plan_of(chain(), FATES["alternate"]) for _ in range(2))
    assert short(first.steps) == short(second.steps)
