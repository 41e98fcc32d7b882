"""Policies side by side from Python."""

from __future__ import annotations

import networks
import pytest

import vdnn
from vdnn.memory.policy import PolicyError


def test_there_is_a_plan_for_each_policy_and_budget_in_the_order_asked_for():
    found = vdnn.compare(networks.chain(), ["vdnn_all", "keep_all"], ["1GiB", "512MiB"])
    assert [(s["policy"], s["budget_bytes"] >> 20) for s in found] == [
        ("vdnn_all", 1024),
        ("keep_all", 1024),
        ("vdnn_all", 512),
        ("keep_all", 512),
    ]
    assert len(found) == 4
    assert found[0]["peak_bytes"] == vdnn.plan(networks.chain(), "vdnn_all").peak_bytes


def test_functions_and_fates_of_ones_own_are_compared_too():
    def mine(tape):
        return dict.fromkeys(tape.saved[:1], vdnn.OFFLOAD)

    found = vdnn.compare(networks.chain(), [mine, {"relu1.y": vdnn.OFFLOAD}])
    assert [s["policy"] for s in found] == ["mine", ""]


def test_budgets_may_be_relative_to_the_step():
    (found,) = vdnn.compare(networks.chain(), ["keep_all"], ["floor"])
    assert found["budget_bytes"] == found["floor_bytes"]


def test_a_wrong_name_is_said_before_anything_is_planned():
    done = []
    with pytest.raises(PolicyError, match="did you mean keep_all"):
        vdnn.compare(networks.chain(), ["vdnn_all", "keepall"], progress=done.append)
    assert done == []


def test_there_is_text_and_a_file_of_figures():
    found = vdnn.compare(networks.chain(), ["keep_all", "vdnn_all"], hardware="host")
    assert "chain, batch 4, momentum, on host (simulated)" in found.table()
    assert found.to_csv().splitlines()[0].startswith("network,batch,")
    assert len(found.to_csv().splitlines()) == 3
    assert "2 plans, 2 fit, fastest vdnn_all" in repr(found)
