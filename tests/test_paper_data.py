"""The paper's numbers agree with each other as far as they are resolved; tables and pictures show what they get."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments" / "paper"))

import published
import reporting
from drawing import Block, Series, grouped_bars, line_pairs, stacked_bars, timeline
from published import FIGURE_1, FIGURE_4, FIGURE_5, FIGURE_6, FIGURE_11, FIGURE_12, FIGURE_15, bar
from reporting import ReportError, Result

from vdnn.plot import PlotError

SIX = [("alexnet", 128), ("overfeat", 128), ("googlenet", 128), ("vgg19", 64), ("vgg19", 128), ("vgg19", 256)]
DEEP = [("vgg116", 32), ("vgg216", 32), ("vgg316", 32), ("vgg416", 32)]
POLICIES = ["all (m)", "all (p)", "conv (m)", "conv (p)", "dyn", "base (m)", "base (p)"]
RESOLUTION = published.RESOLUTION["figure_11_14"]
EACH_BAR = [
    pytest.param(pair, each, id=f"{pair[0]}-{pair[1]}-{each.label}") for pair in SIX for each in FIGURE_11[pair]
]


def saving_error(used, base):
    """How far a saving may be off if both bars it is computed from are read wrong by Fig. 11's resolution."""
    return RESOLUTION["mib"] * (1 + used / base) / base


# ---- the paper's figures against each other


@pytest.mark.parametrize(("pair", "each"), EACH_BAR)
def test_the_average_saving_is_what_the_bars_say(pair, each):
    base = bar(*pair, "base", "p").average_mib
    allowed = saving_error(each.average_mib, base) + RESOLUTION["average_saving"]
    assert abs(1 - each.average_mib / base - each.average_saving) <= allowed


@pytest.mark.parametrize(("pair", "each"), EACH_BAR)
def test_the_maximum_saving_is_what_the_bars_say(pair, each):
    base = bar(*pair, "base", "p").maximum_mib
    allowed = saving_error(each.maximum_mib, base) + RESOLUTION["maximum_saving"] / 2
    assert abs(1 - each.maximum_mib / base - each.maximum_saving) <= allowed


@pytest.mark.parametrize("pair", SIX)
def test_each_network_has_all_policies_in_the_figures_order(pair):
    assert [each.label for each in published.bars(*pair)] == POLICIES


@pytest.mark.parametrize(("pair", "each"), EACH_BAR)
def test_the_maximum_is_not_below_the_average(pair, each):
    assert each.maximum_mib >= each.average_mib
    assert each.policy != "base" or each.maximum_mib == each.average_mib


def test_the_marked_bars_are_those_above_the_memory_of_the_gpu_but_one():
    above = {(p, b.label) for p in SIX for b in FIGURE_11[p] if b.maximum_mib > published.MACHINE.memory_mib}
    marked = {(p, b.label) for p in SIX for b in FIGURE_11[p] if b.untrainable}
    assert above - marked == {(("vgg19", 128), "base (m)")}  # an anomaly of the figure
    assert marked <= above


def test_dyn_on_vgg_128_is_conv_p():
    dyn, conv = bar("vgg19", 128, "dyn"), bar("vgg19", 128, "conv", "p")
    assert (dyn.average_mib, dyn.maximum_mib, dyn.performance) == (conv.average_mib, conv.maximum_mib, conv.performance)


def test_performance_is_over_the_oracle_where_the_baseline_cannot_train():
    for pair in SIX:
        is_oracle = published.NORMALISED_TO[pair] == "oracle"
        assert bar(*pair, "base", "p").untrainable == is_oracle
        assert bar(*pair, "base", "p").performance == 1


@pytest.mark.parametrize("pair", SIX)
def test_the_four_parts_of_the_baseline_sum_to_its_size(pair):
    part = published.RESOLUTION["figure_4"]["mib"]
    assert abs(sum(FIGURE_4[pair].parts) - FIGURE_1[pair].total_mib) <= 4 * part


@pytest.mark.parametrize("pair", list(FIGURE_4))
def test_the_share_of_the_feature_maps_is_theirs_of_the_parts(pair):
    found = FIGURE_4[pair]
    total = sum(found.parts)
    error = published.RESOLUTION["figure_4"]["mib"] * (1 + 4 * found.feature_map_share) / total  # one part, over four
    assert abs(found.feature_maps_mib / total - found.feature_map_share) <= error


@pytest.mark.parametrize("pair", SIX)
def test_the_baseline_is_as_large_in_fig_11_as_in_fig_1(pair):
    assert abs(bar(*pair, "base", "p").maximum_mib - FIGURE_1[pair].total_mib) <= RESOLUTION["mib"]


def test_fig_5_has_vgg_e_with_its_16_convolutions():
    channels = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    sides = [224, 224, 112, 112, 56, 56, 56, 56, 28, 28, 28, 28, 14, 14, 14, 14]
    assert [each.layer for each in FIGURE_5] == [f"CONV_{n:02}" for n in range(1, 17)]
    for (x, y), side, each in zip(pairwise(channels), sides, FIGURE_5, strict=True):
        mib = 256 * (x + y) * side * side * 4 / published.MIB
        assert abs(each.maps_mib - mib) <= 1, each


def test_fig_6_sums_to_321_ms_forward_and_800_ms_backward():
    convolutions = [each for each in FIGURE_6 if each.layer.startswith("CONV")]
    assert [each.layer for each in convolutions] == [each.layer for each in FIGURE_5]
    assert sum(each.forward_ms for each in convolutions) == pytest.approx(321, abs=0.5)
    assert sum(each.backward_ms for each in convolutions) == pytest.approx(800, abs=0.5)


def test_reuse_distances_grow_by_at_least_the_times_of_the_layer_after():
    assert len(FIGURE_6) == 19
    for one, after in pairwise(FIGURE_6):
        assert one.reuse_ms - after.reuse_ms >= after.forward_ms + after.backward_ms - 1, one


@pytest.mark.parametrize("batch", [64, 128, 256])
def test_fig_12_is_the_sum_of_the_inputs_of_fig_5s_network(batch):
    sides = [224, 112, 56, 28, 14]
    channels = [3 + 64, 64 + 128, 128 + 3 * 256, 256 + 3 * 512, 4 * 512]  # of a group's convolutions' inputs
    pooled = [64, 128, 256, 512, 512]
    conv = sum(c * side * side for c, side in zip(channels, sides, strict=True)) * batch * 4 / published.MIB
    pool = sum(c * side * side for c, side in zip(pooled, sides, strict=True)) * batch * 4 / published.MIB
    found, allowed = FIGURE_12["vgg19", batch], published.RESOLUTION["figure_12"]["mib"] + 1  # it is "about 10 MiB"
    assert abs(found.conv_mib - conv) <= allowed
    assert abs(found.all_mib - conv - pool) <= allowed


def test_fig_12_has_the_six_networks_and_fig_15_the_deep_four():
    assert list(FIGURE_12) == list(FIGURE_1) == SIX
    assert list(FIGURE_15) == DEEP
    assert list(published.LABELS) == SIX + DEEP
    assert all(each.base_untrainable == (each.base_mib > published.MACHINE.memory_mib) for each in FIGURE_15.values())


def test_the_textual_claims_are_about_the_figures():
    claims = published.CLAIMS
    deepest = FIGURE_15["vgg416", 32]
    assert round(deepest.base_mib / 1000, 1) == claims["vgg_416_baseline"].value  # a GB is 1000 MiB
    assert int(deepest.gpu_mib / 100) / 10 == claims["deep_gpu_memory"].value
    assert round(claims["vgg_416_baseline"].value / claims["vgg_32_baseline"].value) == claims["vgg_416_growth"].value
    shares = [round(each.cpu_mib / each.base_mib, 2) for each in FIGURE_15.values()]
    assert [min(shares), max(shares)] == [claims["deep_cpu_share"].value, claims["deep_cpu_share"].to]
    for name, pair in (("alexnet", SIX[0]), ("overfeat", SIX[1]), ("googlenet", SIX[2])):
        assert abs(bar(*pair, "all", "m").average_saving - claims[f"{name}_average_saving"].value) <= 0.0051
    dyn = bar("vgg19", 256, "dyn")
    assert round(dyn.average_saving, 2) == claims["vgg_256_average_saving"].value
    assert round(1 - dyn.performance, 2) == claims["vgg_256_performance_loss"].value


@pytest.mark.parametrize(("name", "policy"), [("all_m", "all (m)"), ("all_p", "all (p)"), ("dyn", "dyn")])
def test_the_stated_means_are_near_those_of_the_bars_but_not_them(name, policy):
    bars = [each for pair in SIX for each in FIGURE_11[pair] if each.label == policy]
    stated = published.CLAIMS[f"{name}_maximum_saving"].value
    difference = stated - sum(each.maximum_saving for each in bars) / 6
    assert 0.01 < difference < 0.05


def test_the_stated_performance_is_that_of_the_bars_to_a_point_and_a_half():
    claims, found = published.CLAIMS, {}
    for name in ("all (m)", "conv (m)", "dyn"):
        found[name] = [each.performance for pair in SIX for each in FIGURE_11[pair] if each.label == name]
    for name, label in (("all_m", "all (m)"), ("conv_m", "conv (m)")):
        assert abs(1 - sum(found[label]) / 6 - claims[f"{name}_performance_loss"].value) <= 0.015
        assert abs(1 - min(found[label]) - claims[f"{name}_worst_performance_loss"].value) <= 0.01
    assert round(sum(found["dyn"]) / 6, 2) == claims["dyn_performance"].value
    assert round(min(found["dyn"]), 2) == claims["dyn_worst_performance"].value


@pytest.mark.parametrize("pair", SIX)
def test_offloading_more_or_slower_algorithms_never_makes_a_bar_faster(pair):
    for algorithms in ("m", "p"):
        speeds = [bar(*pair, policy, algorithms).performance for policy in ("all", "conv", "base")]
        assert all(one <= after + 2 * RESOLUTION["performance"] for one, after in pairwise(speeds))
    for policy in ("all", "conv", "base"):
        assert bar(*pair, policy, "m").performance < bar(*pair, policy, "p").performance


def test_the_classifiers_weights_are_those_of_vgg_e():
    sizes = (25088, 4096, 4096, 1000)
    for (inputs, outputs), mib in zip(pairwise(sizes), published.FIGURE_5_CLASSIFIER_WEIGHTS_MIB, strict=True):
        assert abs(inputs * outputs * 4 / published.MIB - mib) < 0.1
    for batch in (64, 128, 256):  # 143.7 million weights, once
        found = FIGURE_4["vgg19", batch].weights_mib
        assert abs(found - 143_667_240 * 4 / published.MIB) <= published.RESOLUTION["figure_4"]["mib"]


def test_what_is_never_used_at_once_is_stated_a_point_above_what_fig_1_shows():
    shares = [1 - each.largest_share for each in FIGURE_1.values()]
    claim = published.CLAIMS["never_used_at_once"]
    assert 0.005 < claim.value - min(shares) < 0.015
    assert 0.005 < claim.to - max(shares) < 0.015


def test_every_block_says_where_it_is_from_and_how_fine_it_is():
    assert set(published.SOURCES) == set(published.RESOLUTION)
    assert all(published.SOURCES.values())
    assert all(each["text"] for each in published.RESOLUTION.values())
    assert all(each.where and each.what for each in published.ANOMALIES)


def test_a_bar_that_was_not_published_is_refused_with_those_that_were():
    with pytest.raises(published.NotPublishedError, match="no network vgg19 of batch 32; they have alexnet 128"):
        published.bars("vgg19", 32)
    with pytest.raises(published.NotPublishedError, match=r"no bar 'dyn \(p\)'; they have all \(m\)"):
        bar("vgg19", 64, "dyn", "p")


# ---- tables


def result(**changes):
    given = {
        "figure": "Fig. 11", "network": "vgg19", "batch": 256, "quantity": "maximum memory, all (m)", "unit": "MiB",
        "paper": 9611, "ours": 9631.125, "kind": "exact", "tolerance": "39 MiB", "note": "3 maps",
        "allowed": 39,
    }  # fmt: skip
    return Result(**{**given, **changes})


def test_results_know_how_far_they_are_from_the_paper():
    found = result(paper=200.0, ours=190.0, allowed=10.0)
    assert (found.deviation, found.relative, found.within) == (-10.0, -0.05, True)
    assert result(paper=200.0, ours=189.0, allowed=10.0).within is False


@pytest.mark.parametrize("missing", [{"paper": None}, {"allowed": None}])
def test_nothing_is_claimed_without_a_published_number_or_a_tolerance(missing):
    assert result(**missing).within is None


def test_a_deviation_at_the_limit_is_within_whatever_binary_fractions_do():
    assert 0.846 - 0.841 > 0.005
    assert result(unit="ratio", paper=0.841, ours=0.846, allowed=0.005).within


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "measured"}, "kind 'measured' is not one of simulated, exact"),
        ({"ours": float("nan")}, "Fig. 11, VGG-16 .256., maximum memory, all .m.: ours is nan"),
        ({"allowed": -1}, "allowed is -1, below 0"),
    ],
)
def test_a_result_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ReportError, match=message):
        result(**wrong)


def test_results_come_back_from_their_file_as_they_were(tmp_path):
    several = [result(), result(paper=None, allowed=None), result(batch=None, ours=1 / 3, note='a, "b" | c\nd')]
    path = reporting.write_results(tmp_path / "made" / "results.csv", several, "a test")
    assert reporting.read_results(path) == several


def test_a_file_says_what_it_is_and_is_the_same_when_written_again(tmp_path):
    rows = [{"a": 1, "b": None}, {"a": 0.1, "b": True}]
    first = reporting.write_csv(tmp_path / "first.csv", rows, ("a", "b"), "a test").read_text()
    again = reporting.write_csv(tmp_path / "again.csv", iter(rows), ("a", "b"), "a test").read_text()
    assert first == again
    about, *lines = first.splitlines()
    assert about == f"# a test; commit {reporting.commit()}, vdnn {reporting.vdnn.__version__}"
    assert lines == ["a,b", "1,", "0.1,yes"]
    assert reporting.read_csv(tmp_path / "first.csv") == [{"a": "1", "b": ""}, {"a": "0.1", "b": "yes"}]


def test_a_row_with_other_columns_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ReportError, match="row 2 has the columns a; wanted are a, b"):
        reporting.write_csv(tmp_path / "x.csv", [{"a": 1, "b": 2}, {"a": 1}], ("a", "b"), "a test")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_make_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ReportError, match="begins with 'a,b"):
        reporting.read_csv(tmp_path / "x.csv")


def test_markdown_has_a_table_for_each_figure():
    text = reporting.markdown([result(), result(figure="Fig. 14"), result(quantity="average memory", paper=None)])
    assert text == (
        "### Fig. 11\n\n"
        "| network | quantity | paper | ours (exact) | deviation | within | why |\n"
        "| --- | --- | --: | --: | --: | --- | --- |\n"
        "| VGG-16 (256) | maximum memory, all (m), MiB | 9,611 | 9,631 | +20.1 (+0.2 %) | yes (39 MiB) | 3 maps |\n"
        "| VGG-16 (256) | average memory, MiB | – | 9,631 | – | – (39 MiB) | 3 maps |\n"
        "\n### Fig. 14\n\n"
        "| network | quantity | paper | ours (exact) | deviation | within | why |\n"
        "| --- | --- | --: | --: | --: | --- | --- |\n"
        "| VGG-16 (256) | maximum memory, all (m), MiB | 9,611 | 9,631 | +20.1 (+0.2 %) | yes (39 MiB) | 3 maps |\n"
    )


def test_markdown_escapes_what_would_end_a_cell():
    row = reporting.markdown([result(note="a | b\nc")]).splitlines()[-1]
    assert row.endswith("| a \\| b c |")
    assert row.count("|") - row.count("\\|") == len(reporting.COLUMNS) + 1


def test_each_number_says_its_kind_where_a_figure_has_both():
    header, _, exact, simulated = reporting.markdown([result(), result(kind="simulated")]).splitlines()[2:]
    assert "| ours |" in header
    assert "9,631 (exact)" in exact
    assert "9,631 (simulated)" in simulated


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12412, "MiB", "12,412"), (9.13, "MiB", "9.1"), (0.8407, "ratio", "0.841"), (0.895, "share", "89.5 %"),
        (11.8, "ms", "11.8"), (1205, "ms", "1,205"), (1, "yes/no", "yes"), (None, "MiB", "–"),
        (-0.0001, "ratio", "0.000"),
    ],
)  # fmt: skip
def test_numbers_are_shown_as_their_unit_is_read(value, unit, text):
    assert reporting.number(value, unit) == text


def test_the_terminal_shows_every_result_and_how_many_agree():
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(reporting.console_table([result(), result(ours=1.0), result(paper=None)]))
    text = console.export_text()
    assert "1 of 2 within tolerance, 1 without one" in text
    assert text.count("VGG-16 (256)") == 3


def test_inputs_that_are_reproduced_count_apart():
    several = [result(), result(tolerance="input: 39 MiB"), result(tolerance="input", allowed=None)]
    assert reporting.summary(several) == "1 of 1 within tolerance, 0 without one, 2 inputs reproduced"


def test_an_input_that_is_not_reproduced_counts_as_out():
    wrong = result(ours=1.0, tolerance="input: 39 MiB")
    assert reporting.summary([wrong]) == "0 of 1 within tolerance, 0 without one"


# ---- pictures


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("panels", [0, 2])
def test_bars_are_drawn_in_groups(tmp_path, panels):
    series = [Series("all", [1, 2, 3], [1, None, 3], [False, False, True]), Series("conv", [4, 5, 6], [4, 5, 6])]
    names = ["one (1)", "two (2)", "three (3)"]
    path = tmp_path / "bars.png"
    grouped_bars(path, "Bars", names, series, "memory, MiB", kind="exact bytes", panels=panels, line=(5, "limit"))
    assert is_picture(path)


def test_stacks_and_lines_are_drawn(tmp_path):
    parts = [Series("weights", [1, 2], [1, None]), Series("maps", [3, 4], [3, None])]
    assert is_picture(stacked_bars(tmp_path / "a.png", "A", ["one", "two"], parts, "memory, MiB", kind="exact bytes"))
    assert is_picture(line_pairs(tmp_path / "b.png", "B", ["one", "two"], parts, "time, ms", kind="simulated"))


def test_the_same_numbers_draw_the_same_picture(tmp_path):
    blocks = [Block("compute", "forward 1", 0, 3, "forward"), Block("compute", "waits", 3, 5, "wasted")]
    first, again = (timeline(tmp_path / name, "Times", blocks, kind="simulated") for name in ("a.png", "b.png"))
    assert first.read_bytes() == again.read_bytes()
    other = timeline(tmp_path / "c.png", "Times", blocks[:1], kind="simulated")
    assert other.read_bytes() != first.read_bytes()


def test_pictures_refuse_what_does_not_match(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"all: 2 of ours, 1 of the paper's, 1 marks; 1 places"):
        grouped_bars(path, "", ["one"], [Series("all", [1, 2], [1])], "", kind="simulated")
    with pytest.raises(ValueError, match="kind 'measured' is not one of simulated, exact bytes"):
        line_pairs(path, "", ["one"], [Series("all", [1], [1])], "", kind="measured")
    with pytest.raises(ValueError, match="finish is not before start"):
        timeline(path, "", [Block("compute", "x", 2, 1, "forward")], kind="simulated")
    with pytest.raises(ValueError, match="0 places"):
        timeline(path, "", [], kind="simulated")
    assert not path.exists()


def test_pictures_say_what_to_install_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match=r"pip install 'vdnn\[plot\]'"):
        timeline(tmp_path / "x.png", "", [Block("compute", "x", 0, 1, "forward")], kind="simulated")
