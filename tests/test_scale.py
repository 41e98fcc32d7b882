"""The networks whose planning is timed, and the figures that come of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import scale


@pytest.mark.parametrize("count", [100, 300, 1000])
@pytest.mark.parametrize("make", scale.NETWORKS.values())
def test_a_network_has_as_many_layers_as_asked_for_and_halves_its_image_four_times(make, count):
    net = make(count)
    assert len(net.nodes) == count
    assert {node.y.shape[2] for node in net.nodes if len(node.y.shape) == 4} == {32, 16, 8, 4, 2}


@pytest.mark.parametrize("policy", scale.POLICIES)
def test_every_stage_of_a_plan_is_timed(policy):
    plan, seconds = scale.staged("residual", 100, policy)
    assert set(seconds) == {"network", *scale.STAGES}
    assert plan.arena_bytes >= plan.peak_bytes > 0


def test_growth_compares_seconds_per_layer_with_the_most_and_the_fewest_layers():
    rows = [
        scale.Row("chain", layers, "least", 1, 0, 0, 0, {"place": place}, total)
        for layers, place, total in ((100, 1.0, 2.0), (300, 0.0, 0.0), (1000, 30.0, 25.0))
    ]
    assert scale.growth(rows) == pytest.approx(1.25)
    assert scale.growth(rows, "place") == pytest.approx(3.0)
