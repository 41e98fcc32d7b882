"""The what-if study: what must hold between links, plans and machines does, on a small plane."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments" / "paper"))

import whatif
import whatif_picture
import whatif_plans as plans
from reporting import ReportError
from study import setting

import vdnn
from vdnn.memory.passes import make_plan

VGG = ("vgg19", 256)
SMALL = (VGG, ("resnet18", 16))
LINKS = (12.8e9, 70e9, 375e9)
RATES = (7e12, 60e12, 500e12)


@pytest.fixture(scope="module")
def plane():
    return [each for pair in SMALL for each in plans.over_plane(pair, LINKS, RATES)]


@pytest.fixture(scope="module")
def results():
    return {(each.network, each.quantity): each for each in whatif.results((VGG,))}


def on_one_machine(**seconds_and_peaks):
    """{policy: step}, all alike but for (seconds, peak in bytes)."""
    any_step = plans.step(VGG, "keep_all", vdnn.roofline("titan-x"))
    return {
        policy: replace(any_step, policy=policy, simulated_step_seconds=seconds, peak_bytes=peak)
        for policy, (seconds, peak) in seconds_and_peaks.items()
    }


@pytest.mark.parametrize("pair", SMALL)
@pytest.mark.parametrize("policy", ["vdnn_all", "vdnn_conv", "within", "checkpoint"])
def test_a_faster_link_never_slows_a_step_of_fixed_decisions(pair, policy):
    plan = plans.plan_for(pair, policy, plans.at(60e12, 50e9))
    taken = [vdnn.simulate(plan, plans.at(60e12, link)).step_seconds for link in (5e9, 12.8e9, 50e9, 200e9, 375e9)]
    assert taken == sorted(taken, reverse=True)
    assert taken[-1] < taken[0]


@pytest.mark.parametrize("policy", ["vdnn_all", "vdnn_conv", "within", "checkpoint", "keep_all"])
def test_every_plan_is_verified(policy):
    for pair in SMALL:
        vdnn.verify(plans.plan_for(pair, policy, plans.at(100e12, 25e9)))


def test_every_point_has_every_policy(plane):
    assert len(plane) == len(SMALL) * len(LINKS) * len(RATES) * 4
    assert len({(e.network, e.policy, e.flops_per_second, e.link) for e in plane}) == len(plane)


def test_shares_are_between_0_and_1(plane):
    assert all(0 <= each.simulated_hidden_copy_fraction <= 1 for each in plane)
    assert len({each.simulated_hidden_copy_fraction for each in plane}) > len(plane) / 3


def test_nothing_is_faster_than_the_oracle(plane):
    assert all(0 < each.simulated_performance <= 1 for each in plane)


def test_all_hides_on_slow_arithmetic_and_a_fast_link_and_little_the_other_way_round(plane):
    hidden = {
        (e.flops_per_second, e.offload_bytes_per_second): e.simulated_hidden_copy_fraction
        for e in plane
        if (e.network, e.policy) == ("vgg19", "vdnn_all")
    }
    assert hidden[RATES[0], LINKS[-1]] > 0.99
    assert hidden[RATES[-1], LINKS[0]] < 0.05


def test_recompute_wins_on_a_slow_link_and_loses_on_a_fast_one(plane):
    taken = {
        (e.policy, e.flops_per_second, e.offload_bytes_per_second): e.simulated_step_seconds
        for e in plane
        if e.network == "vgg19"
    }
    assert taken["checkpoint", RATES[-1], LINKS[0]] < taken["vdnn_conv", RATES[-1], LINKS[0]]
    assert taken["checkpoint", RATES[0], LINKS[-1]] > taken["vdnn_conv", RATES[0], LINKS[-1]]


def test_recompute_copies_nothing(plane):
    assert {e.offloaded_bytes for e in plane if e.policy in ("checkpoint", "keep_all")} == {0}
    assert all(e.offloaded_bytes > 0 for e in plane if e.policy in ("vdnn_all", "vdnn_conv"))


@pytest.mark.parametrize("pair", SMALL)
def test_within_needs_no_more_than_recompute_and_copies_less_than_vdnn_all(pair):
    cost = plans.at(60e12, 50e9)
    within, recompute, everything = (plans.plan_for(pair, name, cost) for name in ("within", "checkpoint", "vdnn_all"))
    assert within.peak_bytes <= recompute.peak_bytes
    assert 0 < within.offloaded_bytes < everything.offloaded_bytes


def test_a_layout_without_search_has_the_same_peak_and_nearly_the_same_step():
    cost = plans.at(67e12, 50e9)
    quick = plans.plan_for(VGG, "vdnn_all", cost)
    made_for = replace(setting(*VGG, "ours", "all"), cost=cost)
    searched = make_plan(made_for.tape, quick.decisions)
    assert quick.peak_bytes == searched.peak_bytes
    taken = [vdnn.simulate(plan, cost).step_seconds for plan in (quick, searched)]
    assert taken[0] == pytest.approx(taken[1], rel=0.02)


# ---- recompute against offload, fairly


def test_the_rival_of_recompute_is_the_fastest_that_needs_no_more():
    found = on_one_machine(vdnn_all=(3.0, 10), vdnn_conv=(1.0, 21), within=(2.0, 20), checkpoint=(2.5, 20))
    assert whatif.in_no_more_memory(found).policy == "within"


def test_without_a_rival_that_needs_no_more_there_is_an_error_with_the_bytes():
    found = on_one_machine(vdnn_all=(3.0, 21), vdnn_conv=(1.0, 22), checkpoint=(2.5, 20))
    with pytest.raises(ValueError, match="vgg19 needs at most 20 bytes"):
        whatif.in_no_more_memory(found)


def test_every_machine_has_its_results(results):
    assert len(results) == len(plans.machines()) * 6
    assert all(each.paper is None and each.ours > 0 for each in results.values())


def test_the_papers_machine_hides_and_an_h100_in_tf32_would_rather_recompute(results):
    ratio = "offload's time over recompute's, in no more memory"
    assert results["vgg19", "titan-x: vdnn_all, copying that hides"].ours > 0.99
    assert results["vgg19", f"titan-x: {ratio}"].ours < 1
    assert results["vgg19", "h100-sxm TF32: vdnn_all, copying that hides"].ours < 0.2
    assert results["vgg19", f"h100-sxm TF32: {ratio}"].ours > 2


# ---- machines


def test_the_hiding_rule_of_the_titan_x_by_hand():
    # 0.7 x 7e12 FLOP/s over 12.8e9 B/s is 382.8 FLOP in the time of a byte, and a channel brings 4.5
    channels = plans.hiding_channels(vdnn.roofline("titan-x"), 12.8e9)
    assert channels == pytest.approx(382.8125 / 4.5)
    assert 64 < channels < 128  # CONV_02 cannot hide its X, the next group can: Fig. 9's picture


def test_a_convolution_does_4_5_flop_for_each_channel_and_byte_of_its_x():
    tape = setting(*VGG, "ours", "all").tape
    convolutions = [op for op in tape.ops[: tape.turn] if op.kind.startswith("conv")]
    assert len(convolutions) == 16
    for op in convolutions:
        x, y = tape.tensors[op.arguments["x"]], tape.tensors[op.arguments["y"]]
        assert op.flops / x.nbytes == pytest.approx(4.5 * y.shape[1], rel=0.01)


def test_memory_bandwidth_is_a_line_amid_the_machines():
    above = [
        math.log(m.bytes_per_second / plans.memory_bandwidth(m.flops_per_second)) for m in plans.machines().values()
    ]
    assert sum(above) == pytest.approx(0, abs=1e-2)
    assert max(abs(each) for each in above) < math.log(2.5)
    assert plans.memory_bandwidth(4e12) < plans.memory_bandwidth(8e12) < 2 * plans.memory_bandwidth(4e12)


def test_an_axis_goes_from_bound_to_bound_by_one_factor():
    assert plans.axis((1e9, 100e9), 3) == [1e9, 10e9, 100e9]


def test_tensor_cores_change_the_arithmetic_alone():
    found = plans.machines()
    for name, rate in plans.TF32.items():
        assert found[f"{name} TF32"] == replace(found[name], flops_per_second=rate)
    assert "host" not in found


# ---- files


def test_steps_are_read_as_they_were_written(plane, tmp_path):
    found = [*plane[:5], *(plans.step(VGG, "within", cost, name) for name, cost in plans.machines().items())]
    assert whatif.read(whatif.write(tmp_path / "whatif.csv", found)) == found


def test_a_file_without_its_comment_is_refused(tmp_path):
    (tmp_path / "whatif.csv").write_text("network,batch\nvgg19,256\n")
    with pytest.raises(ReportError, match="begins with"):
        whatif.read(tmp_path / "whatif.csv")


@pytest.mark.parametrize("rates", [RATES, RATES[:2]])
def test_the_picture_is_a_small_file(plane, rates, tmp_path):
    machines = [plans.step(VGG, policy, vdnn.roofline("gh200"), "gh200") for policy in ("vdnn_all", "vdnn_conv")]
    found = [each for each in plane if each.flops_per_second in rates]
    path = whatif_picture.draw([*found, *machines], tmp_path / "pictures")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 100_000
