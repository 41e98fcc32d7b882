"""What another fate of one tensor would cost: the same as planning that and simulating it."""

from __future__ import annotations

import json

import handmade
import networks
import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main
from vdnn.memory.cost import measured
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, PlanError, resolve
from vdnn.memory.passes import make_plan

TIMES = {"f1": 1, "f2": 2, "f3": 3, "f4": 4, "b5": 5, "b4": 6, "b3": 7, "b2": 8, "b1": 9}
COST = measured(TIMES, handmade.SecondPerKiB())
KIB = 1024


def made(fates):
    tape = handmade.chain()
    return make_plan(tape, resolve(Decisions(fates), tape, {op.name: op.algorithms[0].name for op in tape.ops}))


def changes(explanation, tensor):
    return {other.fate: other for other in explanation[tensor].alternatives}


@pytest.mark.parametrize("fate", [KEEP, OFFLOAD, DROP])
def test_a_replanned_alternative_is_the_plan_with_that_fate(fate):
    base = made({"y1": fate})
    for other, found in changes(base.explain(COST, replan=["y1"]), "y1").items():
        plan = made({"y1": other})
        assert found.is_replanned
        assert found.step_seconds == pytest.approx(
            vdnn.simulate(plan, COST).step_seconds - vdnn.simulate(base, COST).step_seconds
        )
        assert found.peak_bytes == plan.peak_bytes - base.peak_bytes
        assert found.arena_bytes == plan.arena_bytes


def test_dropping_by_hand():
    # all ops take 45 s, the input's copy 1 s before them; f1 again takes 1 s
    (keep, offload) = made({"y1": DROP}).explain(COST, replan=["y1"])["y1"].alternatives
    assert (keep.fate, keep.step_seconds, keep.peak_bytes) == (KEEP, -1, (1 + 8 + 8 + 1 + 1 + 8 - 25) * KIB)
    assert offload.fate is OFFLOAD


def test_what_is_not_replanned_is_an_estimate_from_the_row_itself():
    explanation = made({"y1": OFFLOAD}).explain(COST, replan=0)
    row, found = explanation["y1"], changes(explanation, "y1")
    assert not found[KEEP].is_replanned
    assert (found[KEEP].step_seconds, found[KEEP].peak_bytes) == (-row.stall_seconds, row.saved_bytes)
    assert found[DROP].step_seconds == 1 - row.stall_seconds
    assert found[DROP].arena_bytes is None


def test_of_some_tensors_the_largest_are_replanned():
    rows = made({}).explain(COST, replan=2).rows
    replanned = {row.tensor for row in rows if any(other.is_replanned for other in row.alternatives)}
    assert replanned == {"y1", "y2"}


def test_an_input_is_never_dropped_and_what_nobody_reads_has_no_alternative():
    explanation = vdnn.plan(networks.chain(), "keep_all").explain()
    assert changes(explanation, "input").keys() == {OFFLOAD}
    assert explanation["loss1.y"].alternatives == ()


def test_a_row_names_the_ops_that_use_it():
    row = vdnn.plan(networks.chain(), "keep_all").explain(replan=0)["conv1.y"]
    assert row.tensors == ("conv1.y", "relu1.y")
    assert row.written_by == ("conv1.forward", "relu1.forward")
    assert row.read_by == ("maxpool1.forward",)
    assert row.read_back_by == ("relu1.backward",)


def test_rows_are_sorted_by_bytes_or_by_stall():
    explanation = made({"y1": OFFLOAD, "y3": OFFLOAD}).explain(COST, replan=0)
    sizes = [row.bytes for row in explanation.sorted("bytes").rows]
    assert sizes == sorted(sizes, reverse=True)
    stalls = [row.stall_seconds for row in explanation.sorted("stall").rows]
    assert stalls == sorted(stalls, reverse=True)
    assert stalls[0] > 0
    assert explanation.sorted("step") is explanation
    with pytest.raises(ValueError, match="sorted by bytes, stall, step, not by 'size'"):
        explanation.sorted("size")


def test_wrong_names_and_numbers_are_refused():
    plan = vdnn.plan(networks.chain(), "keep_all")
    with pytest.raises(KeyError, match=r"did you mean conv1\.y"):
        plan.explain(replan=["conv1y"])
    with pytest.raises(KeyError, match="its role is weight"):
        plan.explain(replan=0)["conv1.w"]
    with pytest.raises(ValueError, match="replan=-1"):
        plan.explain(replan=-1)
    with pytest.raises(PlanError, match="made without times"):
        made({}).explain()


def test_undo_copies_are_in_the_alternatives_too():
    plan = vdnn.plan(networks.chain(), "keep_all", undo=True)
    (other,) = changes(plan.explain(replan=["input"]), "input").values()
    assert abs(other.step_seconds) < 1e-3 * vdnn.simulate(plan).step_seconds


def invoke(*arguments):
    return CliRunner().invoke(main, ["explain", "digits_vgg", "--policy", "vdnn_all", *arguments])


def test_the_command_tells_all_rows_or_all_about_one():
    text = invoke().stdout
    assert "instead: by how much step and peak would change" in text
    one = invoke("--tensor", "conv1_1.y").stdout
    assert one.startswith("tensor        ")
    assert "planned again and simulated" in one
    data = json.loads(invoke("--tensor", "conv1_1.y", "--json").stdout)
    assert {other["fate"] for other in data["alternatives"]} == {"keep", "drop"}
    rows = json.loads(invoke("--json", "--sort", "stall", "--replan", "0").stdout)
    assert rows[0]["stall_seconds"] == max(row["stall_seconds"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tensor", "conv11.y"), "is no tensor of digits_vgg (did you mean"),
        (("--tensor", ""), "is no tensor of digits_vgg"),
        (("--replan", "many"), "a number of tensors, such as 10, or all"),
        (("--replan", "-1"), "a number of tensors"),
        (("--sort", "size"), "is not one of"),
        (("--tensor", "conv1_1.y", "--sort", "stall"), "--sort is for all tensors"),
        (("--tensor", "conv1_1.y", "--replan", "0"), "--replan is for all tensors"),
    ],
)
def test_the_command_refuses_what_there_is_not(arguments, said):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
