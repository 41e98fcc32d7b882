from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from handmade import COST, SLOW_AND_FAST, SMALL, op, tape

from vdnn.memory.cost import (
    Contention,
    Copies,
    CostError,
    DeviceCost,
    FastestTier,
    Roofline,
    copy_of,
    measured,
    roofline,
)

PLAIN = Roofline("plain", 1000.0, 100.0, 0.5, 10.0, 20.0, 1.0, 2.0, 4096)


def one(flops, nbytes):
    made = tape([op("f", ["x"], ["y"], algorithms=SLOW_AND_FAST, flops=flops)], {"x": nbytes, "y": nbytes})
    return made, made.ops[0]


def test_an_op_bound_by_arithmetic_gains_from_a_faster_algorithm():
    made, f = one(4000, 4)
    assert PLAIN.op_seconds(made, f, "slow") == 4000 / 1000 / 0.5 + 1
    assert PLAIN.op_seconds(made, f, "fast") == 4000 / 4000 / 0.5 + 1


def test_an_op_bound_by_memory_does_not():
    made, f = one(4, 1000)
    assert PLAIN.op_seconds(made, f, "slow") == PLAIN.op_seconds(made, f, "fast") == 2000 / 100 / 0.5 + 1


def test_a_copy_takes_its_latency_and_its_bytes_at_the_rate_of_its_direction():
    assert PLAIN.copy_seconds(50, "offload") == 50 / 10 + 2
    assert PLAIN.copy_seconds(50, "prefetch") == 50 / 20 + 2


def test_a_device_copies_at_the_rates_of_its_measured_link():
    about = {"name": "card", "compute_capability": 70, "multiprocessors": 2, "clock_hertz": 10.0}
    link = type("Link", (), {"offload": 4.0, "prefetch": 8.0, "both": 3.0, "latency": 0.5})
    cost = DeviceCost.of(about | {"memory_bytes_per_second": 100.0, "memory_bytes": 4096}, link)
    assert cost.rates.flops_per_second == 2 * 64 * 2 * 10
    assert (cost.offload_bytes_per_second, cost.prefetch_bytes_per_second) == (4.0, 8.0)
    assert (cost.copy_seconds(8, "offload"), cost.copy_seconds(8, "prefetch")) == (2.5, 1.5)


def test_a_copy_to_disk_takes_the_drives_time():
    drive = {"disk_write_bytes_per_second": 5.0, "disk_read_bytes_per_second": 25.0, "disk_latency_seconds": 3.0}
    slow = replace(PLAIN, **drive)
    assert slow.copy_seconds(50, "offload", "disk") == 50 / 5 + 3
    assert slow.copy_seconds(50, "prefetch", "disk") == 50 / 25 + 3
    assert slow.copy_seconds(50, "offload", "host") == PLAIN.copy_seconds(50, "offload")
    with pytest.raises(CostError, match="disk_read_bytes_per_second is 0"):
        replace(PLAIN, disk_read_bytes_per_second=0)
    with pytest.raises(CostError, match="disk_latency_seconds is -1"):
        replace(PLAIN, disk_latency_seconds=-1)


def test_a_drive_may_be_measured_and_is_kept_in_the_file(tmp_path):
    cost = measured({"f": 1}, PLAIN, disk=Copies(4.0, 8.0, 0.5))
    assert (cost.copy_seconds(8, "offload", "disk"), cost.copy_seconds(8, "prefetch", "disk")) == (2.5, 1.5)
    assert cost.copy_seconds(50, "offload") == PLAIN.copy_seconds(50, "offload")
    (tmp_path / "times.json").write_text(cost.to_json())
    assert measured(tmp_path / "times.json").disk == cost.disk
    (tmp_path / "before.json").write_text(measured({"f": 1}).to_json())
    before = measured(tmp_path / "before.json", "host")
    assert before.disk is None
    assert before.copy_seconds(5, "prefetch", "disk") == roofline("host").copy_seconds(5, "prefetch", "disk")


def test_a_model_that_knows_no_disk_is_asked_for_none():
    assert copy_of(COST, 1024, "offload") == 1
    with pytest.raises(TypeError):
        copy_of(COST.link, 1024, "offload", "disk")


def test_no_copy_is_faster_than_by_the_fastest_tier():
    cost = FastestTier(replace(PLAIN, disk_read_bytes_per_second=100.0, disk_latency_seconds=0.0))
    assert cost.copy_seconds(50, "prefetch") == 0.5
    assert cost.copy_seconds(50, "offload") == 50 / 1.8e9
    assert (cost.name, cost.memory_bytes) == (PLAIN.name, PLAIN.memory_bytes)


# ---- measured times


def test_measured_times_may_differ_by_algorithm():
    made, f = one(1, 4)
    cost = measured({("f", "fast"): 0.5, "f": 2})
    assert cost.op_seconds(made, f, "fast") == 0.5
    assert cost.op_seconds(made, f, "slow") == 2
    assert cost.memory_bytes == roofline().memory_bytes


def test_missing_times_are_all_named():
    cost = measured({"f1": 1})
    with pytest.raises(CostError, match="measured has no time for f2, b2"):
        cost.op_seconds(SMALL, SMALL.ops[1], "default")


def test_a_missing_algorithm_is_named():
    made, f = one(1, 4)
    with pytest.raises(CostError, match="no time for f by slow"):
        measured({("f", "fast"): 0.5}).op_seconds(made, f, "slow")


def test_measured_times_read_back_from_their_json(tmp_path):
    path = tmp_path / "times.json"
    path.write_text(COST.to_json())
    again = measured(path, link="host")
    assert again.seconds == COST.seconds
    assert again.copy_seconds(0, "offload") == roofline("host").copy_seconds(0, "offload")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"seconds": {"f1": 1}}',
        '{"name": "a", "seconds": [1]}',
        '{"name": 1, "seconds": {}}',
        '{"format": "vdnn trace 1", "name": "a", "seconds": {}}',
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(CostError, match="no table of times"):
        measured(path)


@pytest.mark.parametrize("seconds", [-1, "fast", True, float("nan"), math.inf])
def test_a_time_that_is_no_time_is_refused(seconds):
    with pytest.raises(CostError, match="not a number of seconds"):
        measured({"f1": seconds})


LINK = {"offload_bytes_per_second": 4.0, "prefetch_bytes_per_second": 8.0, "latency_seconds": 0.5}
ABOUT = {"device": "two cores", "threads": 2, "numpy": "2.4"}


def test_without_a_measured_link_memory_and_contention_those_of_the_link_serve():
    cost = measured({"f1": 1}, roofline("host", duplex=False))
    assert cost.copy_seconds(5, "offload") == roofline("host").copy_seconds(5, "offload")
    assert cost.memory_bytes == roofline("host").memory_bytes
    assert cost.contention == Contention(duplex=False)
    assert measured({"f1": 1}).contention is None


def test_what_was_measured_takes_the_place_of_the_link():
    cost = measured({"f1": 1}, copy=LINK, memory_bytes=4096, contention={"link_share": 0.5}, about=ABOUT)
    assert (cost.copy_seconds(8, "offload"), cost.copy_seconds(8, "prefetch")) == (2.5, 1.5)
    assert cost.memory_bytes == 4096
    assert cost.contention == Contention(link_share=0.5)
    assert cost.about == ABOUT


def test_all_that_was_measured_reads_back_from_its_json(tmp_path):
    made = measured(
        {("f1", "fast"): 1, "f2": 0.25},
        name="mine",
        copy=Copies(**LINK),
        memory_bytes=4096,
        contention=Contention(False, 0.5, 0.25, 0.125),
        about=ABOUT,
    )
    path = tmp_path / "times.json"
    path.write_text(made.to_json())
    assert measured(path) == made


def test_times_alone_are_written_as_times_alone():
    assert set(json.loads(measured({"f1": 1}).to_json())) == {"format", "name", "seconds"}


def test_what_is_given_replaces_what_the_file_says(tmp_path):
    path = tmp_path / "times.json"
    path.write_text(measured({"f1": 1}, copy=LINK, memory_bytes=4096).to_json())
    again = measured(path, memory_bytes=8192)
    assert (again.memory_bytes, again.copies) == (8192, Copies(**LINK))


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (
            {"copy": LINK | {"offload_bytes_per_second": -1.0}},
            "offload_bytes_per_second is -1.0: not a number of bytes",
        ),
        ({"copy": LINK | {"prefetch_bytes_per_second": math.inf}}, "prefetch_bytes_per_second is inf: not a number of"),
        ({"copy": LINK | {"latency_seconds": float("nan")}}, "latency_seconds is nan: not a number of seconds"),
        (
            {"copy": {"offload_bytes_per_second": 1.0}},
            "copy is {'offload_bytes_per_second': 1.0}: not an object of off",
        ),
        ({"copy": "fast"}, "copy is 'fast': not an object of offload_bytes_per_second, prefetch_bytes_per_second, lat"),
        ({"memory_bytes": -4096}, "memory_bytes is -4096: not a number of bytes"),
        ({"memory_bytes": "12GiB"}, "memory_bytes is '12GiB': not a number of bytes"),
        (
            {"contention": {"share": 0.5}},
            "contention is {'share': 0.5}: not an object of duplex, link_share, compute_s",
        ),
        ({"contention": {"link_share": 2}}, "link_share is 2: not a number above 0 and at most 1"),
        ({"about": "two cores"}, "about is 'two cores': not an object of facts"),
        ({"about": {"threads": [2]}}, r"threads is \[2\]: not text or a number"),
    ],
)
def test_what_cannot_have_been_measured_is_refused(figures, message):
    with pytest.raises(CostError, match=message):
        measured({"f1": 1}, **figures)


def test_nonsense_in_a_file_is_refused_alike(tmp_path):
    path = tmp_path / "times.json"
    path.write_text('{"name": "a", "seconds": {"f1": 1}, "copy": {"offload_bytes_per_second": NaN}}')
    with pytest.raises(CostError, match=r"copy is \{'offload_bytes_per_second': nan\}: not an object of"):
        measured(path)
