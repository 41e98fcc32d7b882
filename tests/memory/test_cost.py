from __future__ import annotations

import json
from importlib.resources import files

import pytest
from handmade import COST, SLOW_AND_FAST, SMALL, op, tape

from vdnn.memory.cost import CostError, Roofline, hardware_names, measured, roofline

PLAIN = Roofline("plain", 1000.0, 100.0, 0.5, 10.0, 1.0, 2.0, 4096)


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


def test_a_copy_takes_its_latency_and_its_bytes():
    assert PLAIN.copy_seconds(50, "offload") == PLAIN.copy_seconds(50, "prefetch") == 50 / 10 + 2


def test_the_titan_x_has_the_papers_figures():
    titan = roofline("titan-x")
    assert (titan.flops_per_second, titan.bytes_per_second, titan.copy_bytes_per_second) == (7e12, 336e9, 12.8e9)
    assert titan.memory_bytes == 12 * 2**30


def test_every_figure_of_every_hardware_has_a_source():
    table = json.loads(files("vdnn.memory").joinpath("hardware.json").read_text())
    assert set(table) == set(hardware_names())
    for name, figures in table.items():
        assert figures.pop("description")
        assert all(set(figure) == {"value", "source"} and len(figure["source"]) > 5 for figure in figures.values()), (
            name
        )
        assert roofline(name).memory_bytes > 0


def test_unknown_hardware_is_refused_with_the_closest_name():
    with pytest.raises(CostError, match=r"no hardware is named 'titanx' \(did you mean titan-x\?\); there are titan-x"):
        roofline("titanx")


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


@pytest.mark.parametrize("text", ["[]", "{", '{"seconds": {"f1": 1}}'])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(CostError, match="no table of times"):
        measured(path)


@pytest.mark.parametrize("seconds", [-1, "fast", True, float("nan")])
def test_a_time_that_is_no_time_is_refused(seconds):
    with pytest.raises(CostError, match="not a number of seconds"):
        measured({"f1": seconds})
