from __future__ import annotations

from html.parser import HTMLParser

import networks
import pytest

from vdnn.memory.cost import roofline
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.planning import plan, summary
from vdnn.result_tables import comparison_table
from vdnn.tables import plan_html, plan_table, rows
from vdnn.units import format_bytes

COST = roofline("host")


@pytest.fixture
def made():
    return plan(networks.chain(), {"conv1.y": OFFLOAD, "maxpool1.y": DROP})


def test_there_is_a_row_per_saved_tensor_in_the_order_of_forward(made):
    names = [row.tensor for row in rows(made)]
    assert names[:4] == ["input", "relu1.y", "maxpool1.indices", "maxpool1.y"]
    assert names[-2:] == ["labels", "loss1.p"]
    assert "clock" not in names


def test_a_row_says_when_a_tensor_leaves_and_returns(made):
    found = {row.tensor: row for row in rows(made)}
    kept, offloaded, dropped = found["input"], found["relu1.y"], found["maxpool1.y"]
    assert (kept.fate, kept.leaves, kept.returns) == (KEEP, -1, -1)
    assert offloaded.fate is OFFLOAD
    assert (made.steps[offloaded.leaves].kind, made.steps[offloaded.returns].kind) == ("offload", "prefetch")
    assert dropped.fate is DROP
    assert (made.steps[dropped.leaves].kind, made.steps[dropped.returns].name) == ("free", "maxpool1.forward")
    assert dropped.leaves < dropped.returns


def test_stalls_stand_with_the_tensor_that_caused_them(made):
    trace = simulate(made, COST)
    found = {row.tensor: row.stall for row in rows(made, trace)}
    assert sum(found.values()) == pytest.approx(sum(s.seconds for s in trace.stalls))
    assert found["input"] > 0  # nothing can start before it is there


def test_the_table_is_plain_text_outside_a_terminal(made):
    text = plan_table(made, simulate(made, COST))
    assert "\x1b" not in text
    assert "chain, batch 4, own decisions: arena" in text
    assert "simulated:" in text
    assert all(row.tensor in text for row in rows(made))


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_table_fits_the_width(made, width):
    for text in (plan_table(made, simulate(made, COST), width=width), plan_table(made, width=width)):
        assert max(map(len, text.splitlines())) <= width
        assert "relu1.y" in text


def test_where_it_is_narrow_the_shape_goes_first(made):
    assert "shape" in plan_table(made, width=120)
    assert "shape" not in plan_table(made, simulate(made, COST), width=70)


def test_the_html_has_the_same_cells(made):
    class Cells(HTMLParser):
        found = []

        def handle_data(self, data):
            self.found.append(data)

    Cells().feed(plan_html(made))
    text = plan_table(made)
    assert len(Cells.found) > 50
    assert all(cell in text for cell in Cells.found if cell != "leaves, returns: steps of the plan")


def test_a_comparison_has_a_line_per_plan():
    net = networks.chain()
    summaries = [summary(plan(net, name, hardware="host"), COST) for name in ("keep_all", "vdnn_all")]
    lines = comparison_table(summaries).splitlines()
    assert "chain, batch 4, momentum, on host (simulated)" in lines[0]
    assert [line.split()[0] for line in lines[-2:]] == ["keep_all", "vdnn_all"]
    assert lines[-2].split()[-1].endswith("%")
    assert comparison_table([]) == ""


def test_what_is_the_same_for_all_plans_stands_in_the_title():
    net = networks.chain()
    one, other = (summary(plan(net, "keep_all", hardware="host"), COST, budget) for budget in (2**30, 2**20))
    assert ", algorithms performance, budget 1.00 GiB" in comparison_table([one, one])
    differing = comparison_table([one, other])
    assert "budget 1.00 GiB" not in differing
    assert "1.00 MiB" in differing


def test_floor_and_oracle_are_those_of_the_step_that_was_asked_for():
    whole = plan(networks.chain(), "keep_all", hardware="host")
    parts = plan(networks.chain(), "keep_all", hardware="host", micro_batches=4)
    found, alone = summary(parts, COST, whole=whole.tape), summary(parts, COST)
    assert (found["floor_bytes"], found["oracle_seconds"]) == (whole.floor_bytes, oracle_seconds(whole.tape, COST))
    assert (alone["floor_bytes"], alone["oracle_seconds"]) == (parts.floor_bytes, oracle_seconds(parts.tape, COST))
    assert whole.floor_bytes > parts.floor_bytes
    assert [(s["micro_batches"], s["asked_micro_batches"]) for s in (found, alone)] == [(4, 1), (4, 4)]


def test_plans_in_sub_batches_say_so_in_a_column_of_their_own():
    whole = plan(networks.chain(), "keep_all", hardware="host")
    parts = plan(networks.chain(), "vdnn_all", hardware="host", micro_batches=4)
    one, other, asked = summary(whole, COST), summary(parts, COST, whole=whole.tape), summary(parts, COST)
    assert "parts" not in comparison_table([one, one])
    lines = comparison_table([one, other]).splitlines()
    assert lines[0].startswith("chain, batch 4, momentum")
    assert f"floor of the whole batch {format_bytes(whole.floor_bytes)}, oracle " in lines[2]
    assert [line.split()[1] for line in lines[-2:]] == ["1", "4"]
    assert comparison_table([asked]).startswith("chain, batch 4 in 4 parts, momentum")
    assert "of the whole batch" not in comparison_table([asked])


def test_the_title_says_what_the_columns_under_jitter_are():
    one = summary(plan(networks.chain(), "keep_all", hardware="host"), COST)
    shaken = {**one, "jitter": {"jitter": 0.1, "median_slowdown": 1.01, "p95_slowdown": 1.02}}
    said = "median, p95: step over the undisturbed step, durations varying by 10%, simulated"
    assert said in comparison_table([one, shaken]).splitlines()
    assert "durations varying" not in comparison_table([one])


@pytest.mark.parametrize("width", [60, 80])
def test_budgets_that_differ_are_shown_where_it_is_narrow(width):
    net = networks.chain()
    found = [summary(plan(net, name, hardware="host"), COST, 2**20 * n) for n, name in enumerate(OWN, start=1)]
    text = comparison_table(found, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(f"{n}.00 MiB" in text for n in range(1, len(found) + 1))


def test_the_width_is_that_of_columns_where_it_is_set(made, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, plan_table(made).splitlines())) <= 50
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, plan_table(made).splitlines())) > 50
