"""Our rules are no worse than the paper's on any of its networks: no larger peak, no slower step, no larger arena."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PAPER = Path(__file__).resolve().parent.parent / "experiments" / "paper"
sys.path.insert(0, str(PAPER))

import beyond  # noqa: E402
from reporting import read_csv  # noqa: E402
from study import SIX, TEN  # noqa: E402

COMMITTED = {(row["network"], int(row["batch"]), row["policy"]): row for row in read_csv(PAPER / "results/beyond.csv")}
CASES = [(pair, *case) for pair in (*SIX, TEN[6]) for case in beyond.CASES]  # the deepest take seconds each


@pytest.mark.parametrize(("pair", "policy", "algorithms"), CASES)
def test_ours_is_no_worse_and_as_committed(pair, policy, algorithms):
    found = beyond.case(pair, policy, algorithms)
    assert found.is_no_worse
    assert found.ours.plan.arena_bytes <= found.paper.plan.arena_bytes
    assert found.ours.plan.tape.count == found.paper.plan.tape.count
    fresh = beyond.row(found)
    committed = COMMITTED[*pair, found.label]
    for name, value in fresh.items():
        if isinstance(value, float):
            assert value == pytest.approx(float(committed[name]), rel=1e-9), name
        else:
            assert committed[name] == ("" if value is None else str(value)), name


def test_every_network_and_policy_is_committed_and_none_is_worse():
    assert COMMITTED.keys() == {(*pair, beyond.policy_label(*case)) for pair in TEN for case in beyond.CASES}
    for row in COMMITTED.values():
        assert row["no_worse"] == "yes"
        assert float(row["peak_ours"]) <= float(row["peak_paper_rules"])
        assert float(row["arena_ours"]) <= float(row["arena_paper_rules"])
        assert float(row["step_simulated_ours"]) <= float(row["step_simulated_paper_rules"])


def test_a_slower_or_a_larger_plan_is_worse():
    fast, slow = (beyond.run("alexnet", 128, policy, "p", "ours") for policy in ("vdnn_conv", "least"))
    pair = ("alexnet", 128)
    assert beyond.Case(pair, "conv", "p", fast, fast, "indices").is_no_worse
    assert not beyond.Case(pair, "conv", "p", fast, slow, "indices").is_no_worse
    assert not beyond.Case(pair, "conv", "p", slow, fast, "indices").is_no_worse  # faster, but larger
