from __future__ import annotations

import re
from itertools import pairwise

import networks
import pytest
from click.testing import CliRunner

from vdnn import timeline_data
from vdnn.__main__ import main
from vdnn.memory.cost import roofline
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import Trace
from vdnn.planning import plan
from vdnn.plot import PlotError
from vdnn.timeline_data import memory_blocks, stream_bars
from vdnn.timeline_figures import figures

COST = roofline("host")
LIMIT = 6_000_000  # bytes of a page


def traced(network=networks.residual, policy="vdnn_all", kind="simulated", **options):
    trace = simulate(plan(network(), policy, hardware="host", **options), COST)
    trace.kind = kind
    return trace


@pytest.fixture(scope="module")
def trace():
    return traced()


@pytest.fixture
def bokeh():
    pytest.importorskip("bokeh", reason="Bokeh is not installed")


@pytest.mark.parametrize("policy", OWN)
def test_blocks_add_up_to_the_live_bytes_at_every_time(policy):
    trace = traced(policy=policy)
    blocks = memory_blocks(trace)
    times = trace.timeline.times
    for i, (at, after) in enumerate(pairwise(times)):
        middle = (at + after) / 2
        there = sorted((b.bottom, b.top, b.role) for b in blocks if b.left <= middle < b.right)
        assert sum(top - bottom for bottom, top, _ in there) == trace.timeline.total[i]
        assert [bottom for bottom, _, _ in there] == [0, *(top for _, top, _ in there)][:-1]
        for bottom, top, role in there:
            assert top - bottom == trace.timeline.bytes[role][i]


def test_a_block_names_its_tensors_with_layer_and_bytes(trace):
    named = [block.names for block in memory_blocks(trace) if block.role == "feature map"]
    assert any("relu1.y, layer relu1, " in names for names in named), named[:3]


def test_the_blocks_of_network_wide_lifetimes_last_the_whole_step():
    trace = traced(policy="baseline")
    blocks = memory_blocks(trace)
    assert {(block.left, block.right) for block in blocks} == {(0.0, trace.step_seconds)}
    assert max(block.top for block in blocks) == trace.plan.arena_bytes


def test_lanes_hold_every_op_and_copy_and_no_two_at_once(trace):
    bars = stream_bars(trace)
    ran = [step for step in trace.plan.steps if step.kind not in ("alloc", "free")]
    assert len([bar for bar in bars if bar.work != "stall"]) == len(ran)
    for lane in ("compute", "offload", "prefetch"):
        spans = sorted((bar.left, bar.right) for bar in bars if bar.lane == lane)
        assert len(spans) > 3
        for (_, end), (begin, _) in pairwise(spans):
            assert begin >= end - 1e-12


def test_a_step_with_very_many_marks_is_drawn_more_coarsely(trace, monkeypatch):
    fine, every = memory_blocks(trace), stream_bars(trace)
    monkeypatch.setattr(timeline_data, "MOST", 50)
    monkeypatch.setattr(timeline_data, "FINEST", 20)
    coarse, joined = memory_blocks(trace), stream_bars(trace)
    assert len(coarse) <= 8 * 21 < len(fine)
    assert len(joined) < len(every)
    assert figures(trace, None)["drawn"] == f"to 1/20 of the step, as it has {len(trace.events)} events"
    assert max(block.right for block in coarse) == max(block.right for block in fine)
    times, total = trace.timeline.times, trace.timeline.total
    assert {block.total for block in coarse if block.left in times} <= set(total)
    assert sum("drawn as one" in bar.about for bar in joined) > 3
    for lane in {bar.lane for bar in every}:
        ends = [
            (min(b.left for b in bars if b.lane == lane), max(b.right for b in bars if b.lane == lane))
            for bars in (every, joined)
        ]
        assert ends[0] == ends[1]


def test_stalls_are_drawn_as_long_as_they_are_and_name_the_copy(trace):
    stalls = [bar for bar in stream_bars(trace) if bar.work == "stall"]
    assert sum(bar.right - bar.left for bar in stalls) == pytest.approx(sum(s.seconds for s in trace.stalls))
    assert any(re.match(r"for the prefetch of \S+, ", bar.about) for bar in stalls)


def test_copies_to_disk_have_lanes_of_their_own():
    trace = traced(host_budget=0)
    lanes = {bar.lane for bar in stream_bars(trace)}
    assert {"write to disk", "read from disk"} <= lanes
    assert "spill file" in figures(trace, None)


def test_figures_say_by_how_much_a_plan_is_over(trace):
    assert figures(trace, trace.plan.arena_bytes)["arena"].endswith("(fits)")
    assert figures(trace, trace.plan.arena_bytes - 1024)["arena"].endswith("(over by 1.00 KiB)")
    assert figures(trace, None)["budget"] == "none given"


@pytest.mark.usefixtures("bokeh")
@pytest.mark.parametrize("kind", ["simulated", "measured"])
def test_a_page_is_one_small_file_that_says_what_its_times_are(tmp_path, kind):
    path = traced(kind=kind).save_html(tmp_path / "page.html", budget="1MiB")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LIMIT
    assert f"<title>residual, batch 4: vdnn_all ({kind})</title>" in text
    assert f"({kind})" in text
    assert ("measured" if kind == "simulated" else "simulated") not in _without_explanation(text)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", _without_explanation(text))


def _without_explanation(text):
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    return text[: text.index("<details>")]


@pytest.mark.usefixtures("bokeh")
def test_two_traces_are_drawn_on_one_page_with_their_kinds(tmp_path, trace):
    path = trace.save_html(tmp_path / "page.html", other=traced(policy="keep_all", kind="measured"))
    text = _without_explanation(path.read_text(encoding="utf-8"))
    assert "residual, batch 4: vdnn_all against keep_all" in text
    assert re.findall(r'class="kind">(\w+)<', text) == ["simulated", "measured"]


@pytest.mark.usefixtures("bokeh")
def test_names_are_text_on_the_page_whatever_is_in_them(tmp_path, trace):
    text = trace.save_html(tmp_path / "page.html", title="<script>alert(1)</script>").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_title_that_is_no_unicode_leaves_a_page(tmp_path, trace):
    trace.save_html(tmp_path / "page.html", title="half a pair: \ud800")
    assert "half a pair: ?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_bokeh_it_says_what_to_install_and_writes_nothing(tmp_path, without_package, trace):
    without_package("bokeh")
    with pytest.raises(PlotError, match=r"pip install 'vdnn\[view\]'"):
        trace.save_html(tmp_path / "page.html")
    assert "pip install 'vdnn[view]'" in run("digits_vgg", "-o", tmp_path / "page.html").stderr
    assert not (tmp_path / "page.html").exists()


# ---- the command


def run(*arguments):
    result = CliRunner().invoke(main, ["view", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.usefixtures("bokeh")
def test_view_draws_two_policies(tmp_path):
    out = tmp_path / "page.html"
    result = run("digits_vgg", "--policy", "vdnn_all", "--against", "keep_all", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "keep_all: arena" in result.stdout
    assert "digits_vgg, batch 32: vdnn_all against keep_all" in out.read_text(encoding="utf-8")


@pytest.mark.usefixtures("bokeh")
def test_view_draws_a_saved_trace_with_a_budget(tmp_path, trace):
    trace.to_json(tmp_path / "trace.json")
    result = run(tmp_path / "trace.json", "--budget", "1MiB", "-o", tmp_path / "page.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert '"budget_bytes": 1048576' in result.stdout


@pytest.mark.usefixtures("bokeh")
def test_a_plan_that_does_not_fit_is_drawn_with_status_3(tmp_path):
    out = tmp_path / "page.html"
    result = run("digits_vgg", "--policy", "keep_all", "--budget", "1MiB", "-o", out)
    assert result.exit_code == 3
    assert "what would fit" in result.stderr
    assert "over by" in out.read_text(encoding="utf-8")


@pytest.mark.usefixtures("bokeh")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["digits_vgg", "-o", "page.png"], "its name must end in one of .html"),
        (["digits_vgg", "--seconds", "3", "-o", "page.html"], "--seconds: for --policy search only"),
        (["missing.json", "-o", "page.html"], "No such file"),
        (["saved.json", "--policy", "vdnn_all", "-o", "page.html"], "--policy is about planning"),
        (["saved.json", "--against", "keep_all", "-o", "page.html"], "only another, a .json file"),
        (["other.json", "-o", "page.html"], "not a trace in JSON|is not 'vdnn trace 1'"),
        (["deep.json", "-o", "page.html"], "not a trace in JSON: RecursionError"),
        (["digits_vgg", "--policy", "search", "--robust", "-o", "page.html"], "No such option"),
        (["digits_vgg", "--policy", "vdnn_al", "-o", "page.html"], "did you mean vdnn_all"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(tmp_path, monkeypatch, trace, arguments, why):
    monkeypatch.chdir(tmp_path)
    trace.to_json("saved.json")
    (tmp_path / "other.json").write_text('{"steps": []}')
    (tmp_path / "deep.json").write_text("[" * 200_000)
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.search(why, result.stderr), result.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_trace_reads_back_from_json_event_by_event(trace):
    again = Trace.from_json(trace.to_json())
    assert again.to_csv() == trace.to_csv()
    assert again.timeline == trace.timeline
    assert again.kind == trace.kind
