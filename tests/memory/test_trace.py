from __future__ import annotations

import csv
import gzip
import io
import json

import networks
import pytest
from handmade import COST, OFFLOADED, SMALL, plan

from vdnn.memory.cost import roofline
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import Event, Stall, Trace
from vdnn.planning import plan as make
from vdnn.trace_files import TraceError


@pytest.fixture
def trace():
    return simulate(plan(SMALL, OFFLOADED), COST)


def test_a_stall_is_blamed_on_the_copy_that_ended_last(trace):
    assert trace.stalls == (Stall(3, "f1", 1, "x", 1), Stall(12, "b2", 6, "y", 10))


def test_idle_time_that_no_copy_explains_has_no_cause():
    steps = plan(SMALL, OFFLOADED)
    times = {1: (0, 1), 3: (2, 4), 5: (4, 5), 7: (4.5, 6), 10: (6, 7), 12: (7, 8)}
    events = [Event(i, step, step.stream, *times.get(i, (None, None))) for i, step in enumerate(steps.steps)]
    measured = Trace(steps, events, "measured")
    assert measured.stalls == (Stall(3, "f1", 2, "x", 1), Stall(7, "f2", 0.5, "", -1), Stall(12, "b2", 1, "y", 10))


def test_hidden_copies_are_those_that_nobody_waits_for(trace):
    assert trace.copy_seconds == 9
    assert trace.compute_seconds == 6
    assert trace.hidden_copy_fraction == pytest.approx(1 - 7 / 9)


def test_copies_after_the_last_op_are_not_hidden():
    text = OFFLOADED.replace("compute free g\n", "offload offload g @8192 after 12\ncompute free g\n")
    trace = simulate(plan(SMALL, text), COST)
    assert trace.tail_seconds == 1
    assert trace.hidden_copy_fraction == pytest.approx(1 - 8 / 10)


def test_a_step_without_copies_hides_all_of_them():
    steps = plan(SMALL, OFFLOADED)
    assert Trace(steps, []).hidden_copy_fraction == 1


def test_a_buffer_lives_from_its_first_to_its_last_access(trace):
    assert list(trace.lives()) == [
        ("x", 0, 0, 0, 4),
        ("y", 2, 1024, 1, 8),  # the offload ends after the op that reads it
        ("y", 9, 1024, 8, 13),
        ("y2", 6, 5120, 4, 13),
        ("g", 11, 6144, 12, 13),
    ]


def test_the_average_weighs_bytes_by_time(trace):
    assert trace.average_bytes == round(1024 * (4 * 1 + 7 * 4 + 5 * 4 + 9 * 1 + 1 * 1) / 13)


def test_the_timeline_adds_up_what_is_live_by_role(trace):
    assert trace.timeline.times == [0, 1, 4, 8, 12, 13]
    assert trace.timeline.bytes == {
        "feature map": [0, 4096, 5120, 5120, 5120, 0],
        "gradient map": [0, 0, 0, 0, 1024, 0],
        "input": [1024, 1024, 0, 0, 0, 0],
    }
    assert trace.timeline.total == [1024, 5120, 5120, 5120, 6144, 0]


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("policy", OWN)
def test_what_is_live_never_exceeds_the_peak_of_the_plan(network, policy):
    cost = roofline("host")
    made = make(network(), policy, cost=cost)
    trace = simulate(made, cost)
    assert 0 < trace.average_bytes <= max(trace.timeline.total) <= made.peak_bytes
    assert trace.timeline.total[-1] == 0


def test_network_wide_lifetimes_take_the_whole_arena_all_the_time():
    cost = roofline("host")
    made = make(networks.inception(), "baseline", cost=cost)
    trace = simulate(made, cost)
    assert trace.timeline.total == [made.arena_bytes, 0]
    assert trace.average_bytes == made.arena_bytes == made.peak_bytes


def test_csv_has_a_line_per_event_and_says_what_the_times_are(trace):
    lines = list(csv.DictReader(io.StringIO(trace.to_csv())))
    assert len(lines) == len(trace.plan.steps)
    assert lines[10]["name"] == "y"
    assert float(lines[10]["start_seconds_simulated"]) == 8
    assert int(lines[10]["bytes"]) == 4096


def test_json_has_figures_events_stalls_and_memory(trace):
    data = json.loads(trace.to_json())
    assert data["time"] == "simulated"
    assert data["step_seconds"] == 13
    assert data["stalls"][1] == {"index": 12, "op": "b2", "seconds": 6, "cause": "y", "copy": 10}
    assert data["memory"]["times"] == [0, 1, 4, 8, 12, 13]


def test_the_chrome_trace_has_streams_as_threads_and_memory_as_a_counter(trace):
    events = json.loads(trace.to_chrome())["traceEvents"]
    threads = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert threads == {"compute": 1, "offload": 2, "prefetch": 3}  # Perfetto gives thread 0 no name
    slices = {e["name"]: (e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["dur"]}
    assert slices["b2"] == (1, 12e6, 1e6)
    assert slices["prefetch y"] == (3, 8e6, 4e6)
    counters = [e["args"]["feature map"] for e in events if e["ph"] == "C"]
    assert counters == trace.timeline.bytes["feature map"]
    by_id = {}
    for e in events:
        if e["ph"] in "sf":
            by_id.setdefault(e["id"], []).append((e["name"], e["tid"], e["ts"]))
    assert [("wait", 3, 12e6 - 1), ("wait", 1, 12e6)] in by_id.values()
    assert [("round trip", 2, 8e6 - 1), ("round trip", 3, 8e6)] in by_id.values()
    assert len([pair for pair in by_id.values() if pair[0][0] == "round trip"]) == 1


def test_slices_tell_tensor_layer_and_bytes(trace):
    slices = {e["name"]: e["args"] for e in json.loads(trace.to_chrome())["traceEvents"] if e["ph"] == "X"}
    assert slices["offload y"] == {
        "step": 5,
        "layer": "1",
        "after": "3",
        "tensor": "y",
        "bytes": 4096,
        "tier": "host",
    }
    assert slices["b2"]["bytes"] == 4096 + 1024 + 1024
    assert slices["b2"]["layer"] == "2"


def test_a_chrome_trace_in_a_file_is_compressed_if_its_name_says_so(trace, tmp_path):
    text = trace.to_chrome(tmp_path / "trace.json")
    trace.to_chrome(tmp_path / "trace.json.gz")
    assert (tmp_path / "trace.json").read_text() == text
    assert gzip.decompress((tmp_path / "trace.json.gz").read_bytes()).decode() == text


def test_tables_have_units_and_kind_in_their_columns(trace):
    assert trace.table().columns == (
        *("index", "stream", "kind", "name", "start_seconds_simulated", "finish_seconds_simulated"),
        *("bytes", "layer", "algorithm", "tier"),
    )
    assert trace.table("memory").columns == ("seconds_simulated", "feature map", "gradient map", "input", "total")
    assert trace.table("memory").column("total") == trace.timeline.total
    assert trace.table("stalls").rows[1] == (12, "b2", "2", 6, "y", "prefetch", 4096)
    with pytest.raises(TraceError, match=r"no table 'stall' \(did you mean stalls\?\); there are events, mem"):
        trace.table("stall")


def test_a_buffer_belongs_to_the_layer_that_writes_it_first(trace):
    assert trace.layers == {
        "f1": "1",
        "f2": "2",
        "b2": "2",
        "f1.workspace": "1",
        "f2.workspace": "2",
        "b2.workspace": "2",
        "x": "1",
        "y": "1",
        "y2": "2",
        "g": "2",
    }


def broken(text, change):
    data = json.loads(text)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data.pop("plan"), "has no plan"),
        (lambda data: data.update(format="vdnn plan 1"), "is not 'vdnn trace 1'"),
        (lambda data: data.update(time="guessed"), "neither 'simulated' nor 'measured'"),
        (lambda data: data["events"][3].__setitem__(3, "f2"), "is not step 3 of the plan"),
        (lambda data: data["events"][3].__setitem__(0, 99), "is not step 99 of the plan: None"),
        (lambda data: data["events"][3].__setitem__(5, 0.5), "runs from 1.* to 0.5 seconds"),
        (lambda data: data["events"][3].pop(), "not a trace in JSON"),
        (lambda data: data["plan"].pop("steps"), "not a trace in JSON: PlanError"),
    ],
)
def test_json_that_is_no_trace_is_refused(trace, change, why):
    with pytest.raises(TraceError, match=why):
        Trace.from_json(broken(trace.to_json(), change))


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_text_that_is_no_trace_is_refused(text):
    with pytest.raises(TraceError):
        Trace.from_json(text)
