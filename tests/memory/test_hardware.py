from __future__ import annotations

import json
import math
from dataclasses import fields
from importlib.resources import files

import pytest

from vdnn.memory.cost import Contention, CostError, Roofline, hardware_names, hardware_table, roofline


def test_the_titan_x_has_the_papers_figures():
    titan = roofline("titan-x")
    assert (titan.flops_per_second, titan.bytes_per_second) == (7e12, 336e9)
    assert titan.offload_bytes_per_second == titan.prefetch_bytes_per_second == 12.8e9
    assert titan.memory_bytes == 12 * 2**30
    assert titan.contention is None


def test_there_are_cards_of_every_generation_and_a_host():
    cards = "titan-x k40 p100 v100 t4 rtx-3090 rtx-4090 a100 h100-pcie h100-sxm gh200 host"
    assert hardware_names() == tuple(cards.split())


@pytest.mark.parametrize(("name", "peak"), [("v100", 16e9), ("a100", 31.5e9), ("h100-sxm", 63e9), ("gh200", 450e9)])
def test_no_link_is_faster_than_its_published_peak(name, peak):
    card = roofline(name)
    assert 0.5 * peak < min(card.offload_bytes_per_second, card.prefetch_bytes_per_second)
    assert max(card.offload_bytes_per_second, card.prefetch_bytes_per_second) < peak


@pytest.mark.parametrize(
    ("name", "peak"), [("host", 3.94e9), ("v100", 3.94e9), ("a100", 7.88e9), ("h100-sxm", 15.75e9)]
)
def test_no_drive_is_faster_than_four_lanes_or_reads_slower_than_it_writes(name, peak):
    card = roofline(name)
    assert 0.2 * peak < card.disk_write_bytes_per_second < card.disk_read_bytes_per_second < peak


def test_every_figure_of_every_hardware_has_a_source():
    table = json.loads(files("vdnn.memory").joinpath("hardware.json").read_text())
    assert set(table) == set(hardware_names())
    for name, figures in table.items():
        assert figures.pop("description")
        assert all(set(figure) == {"value", "source"} and len(figure["source"]) > 5 for figure in figures.values()), (
            name
        )
        assert {"name", *figures} == {field.name for field in fields(Roofline)}
        assert roofline(name).memory_bytes > 0


def test_the_table_of_hardware_is_a_copy_of_ones_own():
    hardware_table()["k40"]["attained"]["value"] = 0
    assert hardware_table()["k40"]["attained"] == {
        "value": 0.7,
        "source": "assumed: the share of either peak that a good kernel reaches",
    }
    assert roofline("k40").attained == 0.7


def test_unknown_hardware_is_refused_with_the_closest_name():
    with pytest.raises(CostError, match=r"no hardware is named 'titanx' \(did you mean titan-x\?\); there are titan-x"):
        roofline("titanx")


def test_a_figure_of_hardware_may_be_replaced():
    fast = roofline(
        "titan-x", offload_bytes_per_second=25e9, prefetch_bytes_per_second=math.inf, name="titan-x on PCIe 4"
    )
    assert fast.name == "titan-x on PCIe 4"
    assert fast.copy_seconds(25, "offload") == 1e-9 + 1e-5
    assert fast.copy_seconds(25, "prefetch") == 1e-5
    assert fast.flops_per_second == roofline("titan-x").flops_per_second


def test_a_figure_that_there_is_not_is_refused_with_the_closest_name():
    with pytest.raises(CostError, match=r"titan-x has no figure 'offload' \(did you mean offload_bytes_per_second\?\)"):
        roofline("titan-x", offload=25e9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flops_per_second", 0),
        ("offload_bytes_per_second", -1.0),
        ("prefetch_bytes_per_second", float("nan")),
        ("attained", "all"),
        ("launch_seconds", -1e-6),
        ("copy_latency_seconds", math.inf),
        ("memory_bytes", 1.5),
        ("memory_bytes", True),
        ("duplex", 1),
    ],
)
def test_a_figure_that_cannot_be_is_refused_with_its_value(name, value):
    with pytest.raises(CostError, match=f"{name} is {value!r}: not "):
        roofline("titan-x", **{name: value})


def test_a_link_without_duplex_is_contended():
    assert roofline("titan-x", duplex=False).contention == Contention(duplex=False)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"duplex": 0}, "duplex is 0: not true or false"),
        ({"link_share": 0}, "link_share is 0: not a number above 0 and at most 1"),
        ({"link_share": 1.5}, "link_share is 1.5: not a number above 0 and at most 1"),
        ({"link_share": True}, "link_share is True: not a number above 0 and at most 1"),
        ({"link_share": float("nan")}, "link_share is nan: not a number above 0 and at most 1"),
        ({"compute_slowdown": 1}, "compute_slowdown is 1: not a number of at least 0 and below 1"),
        ({"compute_slowdown": -0.1}, "compute_slowdown is -0.1: not a number of at least 0 and below 1"),
        ({"copy_slowdown": "half"}, "copy_slowdown is 'half': not a number of at least 0 and below 1"),
    ],
)
def test_contention_that_cannot_be_is_refused(figures, message):
    with pytest.raises(CostError, match=message):
        Contention(**figures)
