from __future__ import annotations

import gzip
import json
from collections import Counter

import networks
import numpy as np
import pytest
from trace_format import SCHEMA, problems

import vdnn
from vdnn import recorder as recording
from vdnn.memory.cost import roofline
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.planning import plan

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(4)


@pytest.fixture
def trainer():
    trainer = vdnn.Trainer(networks.chain(), policy="vdnn_all", algorithms="memory", threads=1)
    yield trainer
    trainer.close()


def check(text):
    """The parsed trace, which keeps the rules of its format."""
    data = json.loads(text)
    jsonschema.validate(data, SCHEMA)
    assert problems(data["traceEvents"]) == []
    return data["traceEvents"]


@pytest.mark.parametrize("policy", OWN)
def test_a_trace_of_one_step_keeps_the_rules_of_its_format(policy):
    trace = simulate(plan(networks.residual(), policy, hardware="host"), roofline("host"))
    events = check(trace.to_chrome())
    slices = Counter(e["cat"] for e in events if e["ph"] == "X")
    kinds = Counter(step.kind for step in trace.plan.steps if step.kind not in ("alloc", "free"))
    assert slices == kinds
    arrows = Counter(e["name"] for e in events if e["ph"] == "s")
    names = {step.name for step in trace.plan.steps if step.kind == "offload"}
    prefetches = [step for step in trace.plan.steps if step.kind == "prefetch" and step.name in names]
    assert arrows["round trip"] == len(prefetches)


def test_rules_of_the_format_that_are_broken_are_found():
    good = {"ph": "X", "pid": 1, "tid": 1, "name": "a", "ts": 0, "dur": 2}
    assert problems([good, {**good, "ts": 1, "dur": 2}]) == [
        "on thread 1.1 'a' begins at 1 inside of 'a' and ends after it"
    ]
    arrow = {"ph": "s", "pid": 1, "tid": 1, "name": "w", "cat": "w", "id": 7, "ts": 1}
    assert problems([good, arrow]) == ["arrow 7 has 1 begin, 0 end"]
    assert problems([good, arrow, {**arrow, "ph": "f", "bp": "e", "ts": 9}]) == [
        "arrow 7 is at 9 on thread 1.1 outside of all slices"
    ]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"traceEvents": [{**arrow, "id": "1-2"}]}, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"traceEvents": [{**good, "dur": -1}]}, SCHEMA)


def test_the_last_steps_are_kept_in_full_and_all_in_sums(trainer):
    trainer.step(IMAGES, LABELS)
    with vdnn.record(trainer, last=2) as recorder:
        losses = [trainer.step(IMAGES, LABELS) for _ in range(5)]
    trainer.step(IMAGES, LABELS)
    table = recorder.table()
    assert table.column("step") == [2, 3, 4, 5, 6]
    assert table.column("loss") == losses
    assert recorder.steps == 5
    assert len(recorder.traces) == 2
    assert table.column("step_seconds_measured")[-2:] == [trace.step_seconds for trace in recorder.traces]
    assert table.column("offloaded_bytes")[0] == recorder.traces[0].moved_bytes["offload"]
    begins, ends = table.column("begin_seconds_measured"), table.column("finish_seconds_measured")
    assert all(begin >= end for begin, end in zip(begins[1:], ends, strict=False))


@pytest.mark.parametrize("first", [0, 1])
def test_two_recorders_may_stop_in_any_order(trainer, first):
    trainer.device.timed = False
    recorders = [vdnn.record(trainer), vdnn.record(trainer)]
    trainer.step(IMAGES, LABELS)
    recorders[first].stop()
    trainer.step(IMAGES, LABELS)
    recorders[1 - first].stop()
    assert [recorders[first].steps, recorders[1 - first].steps] == [1, 2]
    assert not trainer.device.timed


def test_recording_changes_no_bit(trainer):
    other = vdnn.Trainer(networks.chain(), policy="vdnn_all", algorithms="memory", threads=1)
    with vdnn.record(trainer):
        recorded = [trainer.step(IMAGES, LABELS) for _ in range(3)]
    assert recorded == [other.step(IMAGES, LABELS) for _ in range(3)]
    assert all(np.array_equal(trainer.weights[name], other.weights[name]) for name in trainer.weights)
    other.close()


def test_a_recording_is_a_trace_that_keeps_the_rules(trainer, tmp_path):
    with vdnn.record(trainer, last=2) as recorder:
        for _ in range(4):
            trainer.step(IMAGES, LABELS)
    events = check(gzip.decompress(recorder.to_chrome(tmp_path / "run.json.gz").read_bytes()))
    assert [e["name"] for e in events if e.get("cat") == "step"] == ["step 1", "step 2", "step 3", "step 4"]
    ops = sum(step.kind == "compute" for step in trainer.plan.steps)
    assert sum(e.get("cat") == "compute" for e in events) == 2 * ops


def test_what_is_over_the_limit_is_left_out_from_the_oldest_on(trainer, tmp_path):
    with vdnn.record(trainer, last=3) as recorder:
        for _ in range(3):
            trainer.step(IMAGES, LABELS)
    whole = recorder.to_chrome(tmp_path / "whole.json").stat().st_size
    path = recorder.to_chrome(tmp_path / "run.json", limit=whole - 1000)
    assert path.stat().st_size <= whole - 1000
    begins = [e["ts"] for e in check(path.read_text()) if e.get("cat") == "compute"]
    assert min(begins) > 1e6 * recorder.sums[1].begin - 1
    with pytest.raises(vdnn.RecordingError, match=r"the sums alone take .* the limit is 100 B"):
        recorder.to_chrome(tmp_path / "none.json", limit=100)
    assert not (tmp_path / "none.json").exists()


def test_sums_are_joined_where_there_would_be_too_many(trainer, monkeypatch):
    monkeypatch.setattr(recording, "MOST_SUMS", 4)
    with vdnn.record(trainer, last=1) as recorder:
        losses = [trainer.step(IMAGES, LABELS) for _ in range(7)]
    assert [(row.first, row.count) for row in recorder.sums] == [(1, 4), (5, 2), (7, 1)]
    assert recorder.sums[0].loss == pytest.approx(np.mean(losses[:4]))
    assert recorder.sums[0].offloaded_bytes == 4 * recorder.sums[2].offloaded_bytes
    assert recorder.steps == 7


@pytest.mark.parametrize("last", [0, -1, 1.5, True, "3"])
def test_a_number_of_steps_that_is_none_is_refused(trainer, last):
    with pytest.raises(vdnn.RecordingError, match="a whole number from 1 on"):
        vdnn.record(trainer, last=last)
    assert trainer.observers == []


def test_nothing_recorded_is_said_and_stopping_twice_is_fine(trainer, tmp_path):
    recorder = vdnn.record(trainer)
    recorder.stop()
    recorder.stop()
    trainer.step(IMAGES, LABELS)
    assert len(recorder.table()) == 0
    with pytest.raises(vdnn.RecordingError, match="no step was recorded"):
        recorder.to_chrome(tmp_path / "run.json")
