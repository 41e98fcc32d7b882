from __future__ import annotations

import json

import handmade
import networks
import pytest
from click.testing import CliRunner

from vdnn.__main__ import main
from vdnn.explain import explain
from vdnn.memory.cost import measured, roofline
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import POLICIES
from vdnn.memory.trace import COPIES
from vdnn.planning import plan

KIB = 1024
TIMES = {"f1": 1, "f2": 2, "f3": 3, "f4": 4, "b5": 5, "b4": 6, "b3": 7, "b2": 8, "b1": 9}
COST = measured(TIMES, handmade.SecondPerKiB())  # copies take a second per KiB


def explained(fates, cost=COST, **others):
    tape = handmade.chain()  # conv, conv, pool, conv: y1 and y2 are 8 KiB
    algorithms = {op.name: op.algorithms[0].name for op in tape.ops}
    found = explain(make_plan(tape, resolve(Decisions(fates, **others), tape, algorithms)), cost)
    return found, {row.tensor: row for row in found.rows}


def test_an_offload_is_told_with_its_copies_what_hides_them_and_the_stall():
    found = explain(handmade.plan(handmade.SMALL, handmade.OFFLOADED), handmade.COST)
    y = next(row for row in found.rows if row.tensor == "y")
    # out from 4 to 8 s, of which f2 runs to 6; back from 8 to 12, while b2 waits from 6 on
    assert (y.bytes, y.fate, y.leaves, y.returns) == (4 * KIB, OFFLOAD, 4, 8)
    assert (y.copy_seconds, y.hidden_seconds, y.stall_seconds) == (8, 2, 6)
    said, other = y.reason.split("; ")[:2]
    assert said == "compute waits 6.00 s for its 8.00 s of copies"
    assert other == "dropping it would take 3.00 s of running again"


def test_copies_that_hide_name_the_ops_beside_them():
    fast = measured(dict.fromkeys(TIMES, 40), handmade.SecondPerKiB())
    _, rows = explained({"y1": OFFLOAD}, fast)
    assert (rows["y1"].copy_seconds, rows["y1"].hidden_seconds, rows["y1"].stall_seconds) == (16, 16, 0)
    assert "its 16.0 s of copies hide, out behind f2, back behind b3; dropping it would take" in rows["y1"].reason


def test_a_drop_is_told_with_its_reruns_beside_the_copies_it_saves():
    found, rows = explained({"y1": DROP})
    y1 = rows["y1"]
    # f1 runs again after b3, at 1 + 1 + 2 + 3 + 4 + 5 + 6 + 7 s
    assert (y1.fate, y1.leaves, y1.returns, y1.rerun_seconds) == (DROP, 4, 29, 1)
    assert y1.reason == "run again in 1.00 s; copies would take 16.0 s"
    # kept, b3 would hold x, y1, y2, y3, g3 and g2; as it is, b2 holds x, y1, g2 and g1
    assert found.plan.peak_bytes == (1 + 8 + 8 + 8) * KIB
    assert y1.saved_bytes == (1 + 8 + 8 + 1 + 1 + 8 - 25) * KIB


def test_reruns_are_those_that_there_would_not_be_if_it_were_kept():
    _, rows = explained({"y1": DROP, "y2": DROP})
    assert (rows["y1"].rerun_seconds, rows["y2"].rerun_seconds) == (1, 2)


def test_what_comes_back_for_others_takes_no_reruns_of_its_own():
    _, rows = explained({"y1": DROP, "y2": DROP, "y3": DROP})
    assert "run again in" in rows["y1"].reason
    assert sum(row.rerun_seconds for row in rows.values()) == 1 + 2 + 3


def test_what_is_kept_is_told_with_what_leaving_would_free():
    found, rows = explained({})
    assert found.peak_op == "b3"
    free = "leaving would free 8.00 KiB at the peak, for 16.0 s of copies or 1.00 s of running again"
    assert rows["y1"].reason == free
    assert rows["x"].reason == "leaving would free 1.00 KiB at the peak, for 1.00 s of copies"
    assert rows["y2"].reason == "leaving would free nothing at the peak, b3"
    assert rows["y4"].reason == "b5 reads it at once"
    assert {row.saved_bytes for row in rows.values()} == {0}


def test_an_input_cannot_be_made_again():
    _, rows = explained({"x": OFFLOAD})
    assert rows["x"].reason.split("; ")[1] == "an input cannot be made again"
    assert rows["x"].saved_bytes == KIB  # b3 is the peak whether or not x is there


def test_what_backward_does_not_read_is_dropped_for_nothing():
    found = explain(plan(networks.chain(), "keep_all", hardware="host"), roofline("host"))
    (loss,) = (row for row in found.rows if row.tensor == "loss1.y")
    assert loss.reason == "backward does not read it"
    assert not loss.is_read_back


def test_under_network_wide_lifetimes_everything_stays():
    _, rows = explained({}, lifetimes="network")
    assert rows["y1"].reason == "everything stays for the whole step"


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "search"])
def test_the_rows_add_up_to_the_trace_under_every_policy(policy):
    cost = roofline("host")
    made = plan(networks.residual(), policy, hardware="host")
    found = explain(made, cost)
    assert [row.fate for row in found.rows] == [made.fate(made.tape.buffer_of[t.name]) for t in made.tape.features]
    copied = [e.finish - e.start for e in found.trace.events if e.step.kind in COPIES and made.fate(e.step.name)]
    assert sum(row.copy_seconds for row in found.rows) == pytest.approx(sum(copied))
    caused = sum(stall.seconds for stall in found.trace.stalls if made.fate(stall.cause))
    assert sum(row.stall_seconds for row in found.rows) == pytest.approx(caused)
    assert all(0 <= row.hidden_seconds <= row.copy_seconds * 1.000001 for row in found.rows)
    assert all(row.fate is not KEEP or row.rerun_seconds == row.saved_bytes == 0 for row in found.rows)


def rounds():
    """Two rounds of conv, conv and back, each with a y that backward reads."""
    return handmade.tape(
        [
            handmade.op("f1", ["x"], ["y"]),
            handmade.op("f2", ["y"], ["y2"]),
            handmade.op("b2", ["y", "y2"], ["g"]),
            handmade.op("f1@2", ["x@2"], ["y@2"]),
            handmade.op("f2@2", ["y@2"], ["y2@2"]),
            handmade.op("b2@2", ["y@2", "y2@2"], ["g@2"]),
        ],
        {"x": KIB, "y": 4 * KIB, "y2": KIB, "g": KIB, "x@2": KIB, "y@2": 4 * KIB, "y2@2": KIB, "g@2": KIB},
    )


@pytest.mark.parametrize("fate", [OFFLOAD, DROP])
def test_in_every_round_a_tensor_leaves_and_returns_within_that_round(fate):
    cost = measured({"f1": 3, "f2": 2, "b2": 1, "f1@2": 3, "f2@2": 2, "b2@2": 1}, handmade.SecondPerKiB())
    tape = rounds()
    algorithms = {op.name: "default" for op in tape.ops}
    found = explain(make_plan(tape, resolve(Decisions({"y": fate, "y@2": fate}), tape, algorithms)), cost)
    rows = {row.tensor: row for row in found.rows}
    begins = {e.step.name: e.start for e in found.trace.events if e.step.kind == "compute" and "f2" in e.step.name}
    assert rows["y@2"].is_read_back
    assert not rows["x@2"].is_read_back  # the forward of its own round reads it, no backward
    assert begins["f2"] <= rows["y"].leaves <= rows["y"].returns <= begins["f2@2"]
    assert begins["f2@2"] <= rows["y@2"].leaves <= rows["y@2"].returns
    again = 3 if fate is DROP else 0  # f1, or f1@2
    assert (rows["y"].rerun_seconds, rows["y@2"].rerun_seconds) == (again, again)


def test_in_a_later_round_what_is_read_at_once_is_said_so():
    tape = rounds()
    cost = measured({op.name: 1 for op in tape.ops}, handmade.SecondPerKiB())
    made = make_plan(tape, resolve(Decisions(), tape, {op.name: "default" for op in tape.ops}))
    reasons = {row.tensor: row.reason for row in explain(made, cost).rows}
    assert reasons["y2"] == "b2 reads it at once"
    assert reasons["y2@2"] == "b2@2 reads it at once"


@pytest.mark.parametrize("width", [80, 120, 160])
def test_where_it_is_narrow_the_figures_stay_beside_the_reason(width):
    found, _ = explained({"y1": OFFLOAD, "y2": DROP})
    head = next(line for line in found.table(width).splitlines() if "tensor" in line).split()
    kept = {
        80: ["tensor", "bytes", "fate", "stall", "why"],
        120: ["stall", "instead", "why"],
        160: ["copies", "saves", "why"],
    }
    assert set(kept[width]) <= set(head)


@pytest.mark.parametrize("width", [60, 100, 1000])
def test_the_table_fits_the_width_and_says_where_the_peak_is(width):
    found, _ = explained({"y1": OFFLOAD, "y2": DROP})
    text = found.table(width)
    assert max(map(len, text.splitlines())) <= width
    assert f"the peak is at {found.peak_op}" in text
    assert all(word in text for word in ("y1", "offload", "drop", "why"))


def test_the_command_explains_in_a_table_or_in_its_json():
    runner = CliRunner()
    arguments = ["plan", "digits_vgg", "--policy", "vdnn_all", "--explain"]
    text = runner.invoke(main, arguments).stdout
    assert "why" in text
    assert "; dropping it would take " in text
    rows = json.loads(runner.invoke(main, [*arguments, "--json"]).stdout)["explanation"]
    assert {"offload", "keep"} <= {row["fate"] for row in rows}
    assert all(row["reason"] for row in rows)
