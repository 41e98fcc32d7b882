from __future__ import annotations

import csv
import io
import time
from collections import Counter

import networks
import pytest
from handmade import COST, OFFLOADED, SMALL, plan

from vdnn import models
from vdnn.memory.contention import Contention
from vdnn.memory.cost import roofline
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.planning import plan as make


def test_each_step_starts_when_its_stream_and_its_waits_are_done():
    trace = simulate(plan(SMALL, OFFLOADED), COST)
    times = {f"{e.step.kind} {e.step.name}": (e.start, e.finish) for e in trace.events if e.finish > e.start}
    assert times == {
        "prefetch x": (0, 1),
        "compute f1": (1, 4),
        "offload y": (4, 8),
        "compute f2": (4, 6),
        "prefetch y": (8, 12),
        "compute b2": (12, 13),
    }
    assert trace.step_seconds == 13
    assert trace.kind == "simulated"


def test_without_waits_streams_run_beside_each_other():
    text = "\n".join(line.split("#")[0].split("after")[0] for line in OFFLOADED.strip().splitlines())
    trace = simulate(plan(SMALL, text), COST)
    assert trace.step_seconds == 6  # f1, f2, b2; x and y take 5 s on one stream, y leaves in 4 s on the other
    assert trace.stalls == ()


@pytest.mark.parametrize("contention", [None, Contention()])
def test_the_trace_says_when_each_stream_did_what(contention):
    events = simulate(plan(SMALL, OFFLOADED), COST, contention).events
    busy = {
        stream: [(e.start, e.finish) for e in events if e.stream == stream and e.step.kind not in ("alloc", "free")]
        for stream in ("compute", "offload", "prefetch")
    }
    assert busy == {"compute": [(1, 4), (4, 6), (12, 13)], "offload": [(4, 8)], "prefetch": [(0, 1), (8, 12)]}
    at = [(e.step.name, e.start, e.finish) for e in events if e.step.kind == "free"]
    assert at == [("x", 4, 4), ("y", 6, 6), ("y", 13, 13), ("y2", 13, 13), ("g", 13, 13)]


def test_the_trace_names_the_tensor_of_each_stall():
    trace = simulate(plan(SMALL, OFFLOADED), COST)
    assert [(s.op, s.seconds, s.cause, s.copy) for s in trace.stalls] == [("f1", 1, "x", 1), ("b2", 6, "y", 10)]


def test_the_trace_says_how_many_bytes_moved_each_way():
    moved = Counter()
    for line in csv.DictReader(io.StringIO(simulate(plan(SMALL, OFFLOADED), COST).to_csv())):
        if line["kind"] in ("offload", "prefetch"):
            moved[line["kind"]] += int(line["bytes"])
    assert moved == {"offload": 4096, "prefetch": 1024 + 4096}


@pytest.mark.parametrize(
    ("contention", "times"),
    [(None, [0, 1, 4, 8, 12, 13]), (Contention(link_share=0.5), [0, 2, 5, 13, 21, 22])],
)
def test_the_trace_says_what_is_live_when(contention, times):
    timeline = simulate(plan(SMALL, OFFLOADED), COST, contention).timeline
    assert timeline.times == times
    assert timeline.total == [1024, 5120, 5120, 5120, 6144, 0]


def test_the_oracle_copies_only_inputs_and_results():
    assert oracle_seconds(SMALL, COST) == 7  # x arrives, then f1, f2, b2


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_no_plan_is_faster_than_the_oracle(network):
    tape, cost = networks.tape_of(network()), roofline("host")
    oracle = oracle_seconds(tape, cost)
    for policy in OWN:
        assert simulate(make(tape, policy, cost=cost), cost).step_seconds >= oracle * (1 - 1e-12)
    assert simulate(make(tape, "keep_all", cost=cost), cost).step_seconds <= oracle * 1.2


def test_vgg16_is_simulated_in_milliseconds():
    cost = roofline()
    vgg = make(models.vgg16(batch=64), "vdnn_all", cost=cost)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        _ = simulate(vgg, cost).step_seconds
        took.append(time.perf_counter() - start)
    assert min(took) < 0.02
