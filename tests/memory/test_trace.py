from __future__ import annotations

import csv
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
    assert threads == {"compute": 0, "offload": 1, "prefetch": 2}
    slices = {e["name"]: (e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["dur"]}
    assert slices["b2"] == (0, 12e6, 1e6)
    assert slices["prefetch y"] == (2, 8e6, 4e6)
    counters = [e["args"]["feature map"] for e in events if e["ph"] == "C"]
    assert counters == trace.timeline.bytes["feature map"]
    arrows = [(e["tid"], e["ts"]) for e in events if e["ph"] in "sf" and e["id"] == "10-12"]
    assert arrows == [(2, 12e6), (0, 12e6)]
