from __future__ import annotations

import json
from dataclasses import replace

import pytest
from networks import FATES, NETWORKS, plan_of
from stubs import decided, squares, tape_of

from vdnn.memory.cost import roofline
from vdnn.memory.decisions import OFFLOAD, Decisions
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.simulate import simulate
from vdnn.network import Role
from vdnn.tables import plan_html, plan_table

DECISIONS = Decisions({"conv1.y": OFFLOAD}, ahead={"conv1.y": 2}, slack={"conv1.y": 1}, returns="each")


@pytest.fixture
def plan():
    tape = tape_of(squares(1))
    return make_plan(tape, decided(tape, DECISIONS, **{"conv1.forward": "roomy"}), undo=True, policy="mine")


def same(found, expected):
    """Whether two plans of equal tapes are equal."""
    return (found.steps, found.decisions, found.arena_bytes, found.host_bytes, found.policy) == (
        expected.steps,
        expected.decisions,
        expected.arena_bytes,
        expected.host_bytes,
        expected.policy,
    )


# ---- text


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            Step("compute", "conv1.forward", algorithm="gemm", waits=(3, 12)),
            "compute  compute  conv1.forward by gemm after 3 12",
        ),
        (Step("alloc", "conv1.y", offset=0), "compute  alloc    conv1.y @0"),
        (Step("free", "conv1.y"), "compute  free     conv1.y"),
        (Step("offload", "conv1.y", "offload", 512, waits=(7,)), "offload  offload  conv1.y @512 after 7"),
        (Step("prefetch", "conv1.y", "prefetch", 1024), "prefetch prefetch conv1.y @1024"),
    ],
)
def test_a_step_prints_short_and_reads_back(step, text):
    assert str(step) == text
    assert Step.parse(text) == step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compute alloc", "not a step: 'compute alloc'"),
        ("compute alloc a @x", "not a step: 'compute alloc a @x'"),
        ("compute recompute a", "no such kind of step, stream or tier: 'compute recompute a'"),
        ("copy offload a @0", "no such kind of step, stream or tier: 'copy offload a @0'"),
    ],
)
def test_what_is_no_step_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        Step.parse(text)


def test_a_plan_reads_back_from_its_text(plan):
    found = Plan.parse(str(plan), plan.tape)
    assert same(found, plan)
    assert str(found) == str(plan)


def test_the_text_has_a_line_for_each_step_and_one_before(plan):
    first, *lines = str(plan).splitlines()
    assert json.loads(first.removeprefix("# vdnn plan "))["policy"] == "mine"
    assert [line.split(maxsplit=1)[0] for line in lines] == [str(i) for i in range(len(plan.steps))]
    assert lines[0] == "    0 compute  alloc    conv1.w @0"


def test_a_line_that_was_lost_is_noticed_since_waits_are_numbers_of_steps(plan):
    lines = str(plan).splitlines()
    with pytest.raises(PlanError, match="step 4 is numbered '5'; waits would mean other steps: '    5 "):
        Plan.parse("\n".join(lines[:5] + lines[6:]), plan.tape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with '# vdnn plan', not ''"),
        ("# a plan\n", "not '# a plan'"),
        ("# vdnn plan {", "not the first line of a plan: JSONDecodeError"),
        ('# vdnn plan {"network": "net"}', "not the first line of a plan: KeyError: 'batch'"),
    ],
)
def test_text_that_is_no_plan_is_refused(plan, text, message):
    with pytest.raises(PlanError, match=message):
        Plan.parse(text, plan.tape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 3}, "the plan is for threads 1, the tape for 3"),
        ({"network": "other"}, "the plan is for network 'net', the tape for 'other'"),
        ({"purpose": "evaluate"}, "the plan is for purpose 'step', the tape for 'evaluate'"),
        ({"kernels": "cudnn9"}, "the plan is for kernels 'stub', the tape for 'cudnn9'"),
    ],
)
def test_text_for_another_tape_is_refused_naming_both(plan, change, message):
    with pytest.raises(PlanError, match=message):
        Plan.parse(str(plan), replace(plan.tape, **change))


def test_a_plan_with_another_alignment_is_refused(plan):
    with pytest.raises(PlanError, match="aligned to 256 bytes, this vdnn to 512"):
        Plan.parse(str(plan).replace('"alignment": 512', '"alignment": 256'), plan.tape)


# ---- JSON


@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("make", NETWORKS)
def test_a_plan_reads_back_from_json_with_its_tape(make, fates):
    plan = plan_of(make(), FATES[fates])
    found = Plan.from_json(plan.to_json())
    assert same(found, plan)
    for key in ("network", "batch", "purpose", "optimizer", "kernels", "storage", "threads", "resident", "results"):
        assert getattr(found.tape, key) == getattr(plan.tape, key)
    assert found.tape.tensors == plan.tape.tensors
    assert list(found.tape.tensors) == list(plan.tape.tensors)
    assert found.tape.alias == plan.tape.alias
    assert [vars(op) for op in found.tape.ops] == [vars(op) for op in plan.tape.ops]
    assert found.to_json() == plan.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a plan in JSON: JSONDecodeError"),
        ("[]", "not a plan in JSON: TypeError"),
        ("{}", "not a plan in JSON: KeyError: 'format'"),
        ('{"format": "vdnn plan 2"}', "format 'vdnn plan 2' is not 'vdnn plan 1'"),
        ('{"format": "vdnn plan 1", "steps": []}', "not a plan in JSON: KeyError: 'tape'"),
    ],
)
def test_json_that_is_no_plan_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize(("old", "new"), [('"feature map"', '"map"'), ('"conv1.y": "offload"', '"conv1.y": "go"')])
def test_json_with_a_role_or_a_fate_that_does_not_exist_is_refused(plan, old, new):
    assert old in plan.to_json()
    with pytest.raises(PlanError, match=r"not a plan in JSON: ValueError: .* is not a valid"):
        Plan.from_json(plan.to_json().replace(old, new))


# ---- figures: conv1, square1, loss1, everything 512 bytes; residents are conv1.w and conv1.w.v


def test_figures_of_a_plan_counted_by_hand():
    tape = tape_of(squares(1))
    plan = make_plan(tape, decided(tape, {"conv1.y": OFFLOAD}), undo=True)
    # at loss1.forward: w, v, input, labels, square1.y, loss1.y, loss1.p; conv1.y is on the host
    assert plan.peak_bytes == 7 * 512
    assert plan.breakdown == {Role.WEIGHT: 512, Role.STATE: 512, Role.INPUT: 1024, Role.FEATURE: 1536}
    assert plan.offloaded_bytes == 512  # conv1.y, not loss1.y (a result), nor w and v (undo)
    # 3 inputs, loss1.y, w and v stay; conv1.y's place is used again
    assert plan.host_bytes == 6 * 512
    assert plan.floor_bytes == 6 * 512  # loss1.forward's own four, w and v
    assert plan.live_bytes[-1] == 1024
    assert plan.threads == 1


def test_a_result_is_copied_whatever_its_fate_and_does_not_count_as_offloaded():
    tape = tape_of(squares(1))
    plan = make_plan(tape, decided(tape, {"loss1.y": OFFLOAD}))
    assert [s.name for s in plan.steps if s.kind == "offload"] == ["loss1.y"]
    assert plan.offloaded_bytes == 0
    both = make_plan(tape, decided(tape, {"loss1.y": OFFLOAD, "conv1.y": OFFLOAD}))
    assert both.offloaded_bytes == both.payload("conv1.y")


def test_sizes_are_whole_granules_and_payloads_are_not(plan):
    assert (plan.payload("conv1.w"), plan.size("conv1.w"), plan.role("conv1.w")) == (4, 512, Role.WEIGHT)
    name = "conv1.forward.workspace"
    assert (plan.payload(name), plan.size(name), plan.role(name)) == (512, 512, Role.WORKSPACE)
    assert plan.size("square1.forward.workspace") == 0


def test_network_wide_lifetimes_count_shared_slots_once():
    tape = tape_of(squares(2))
    plan = make_plan(tape, decided(tape, Decisions(lifetimes="network"), **{"conv1.forward": "roomy"}))
    # of the three gradient maps two live at a time
    assert plan.breakdown == {
        Role.WEIGHT: 512,
        Role.STATE: 512,
        Role.INPUT: 3 * 512,
        Role.FEATURE: 5 * 512,
        Role.WEIGHT_GRADIENT: 512,
        Role.GRADIENT: 2 * 512,
        Role.WORKSPACE: 512,
    }
    assert plan.peak_bytes == plan.arena_bytes == 14 * 512


@pytest.mark.parametrize("lifetimes", ["sliding", "network"])
@pytest.mark.parametrize("fates", FATES)
@pytest.mark.parametrize("make", NETWORKS)
def test_the_breakdown_adds_up_to_the_peak(make, fates, lifetimes):
    plan = plan_of(make(), lambda tape: Decisions(FATES[fates](tape), lifetimes=lifetimes))
    assert sum(plan.breakdown.values()) == plan.peak_bytes
    assert all(plan.breakdown.values())


# ---- for people


def test_an_excerpt_has_an_arrow_at_its_step(plan):
    lines = plan.excerpt(4, around=2).splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["2", "3", "4", "5", "6"]
    assert [line.endswith("   <-- HERE") for line in lines] == [False, False, True, False, False]
    assert plan.excerpt(0).splitlines()[0].endswith("<-- HERE")


def test_a_plan_shows_as_a_table_in_text_and_in_notebooks(plan):
    trace = simulate(plan, roofline("host"))
    assert plan.table() == plan_table(plan)
    assert plan.table(trace) == plan_table(plan, trace) != plan.table()
    assert plan._repr_html_() == plan_html(plan)


def test_a_plan_is_represented_by_its_figures(plan):
    figures = f"{len(plan.steps)} steps, arena {plan.arena_bytes} bytes, host {plan.host_bytes} bytes"
    assert repr(plan) == f"Plan(net, batch 2, mine: {figures})"
