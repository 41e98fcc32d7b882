"""search held against enumeration, on a few of the networks of experiments/brute_force.py; and enumeration itself."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path

import pytest

from vdnn import optimizers
from vdnn.building import build
from vdnn.layers import Conv2d, Flatten, Linear, ReLU, SoftmaxCrossEntropy
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import fastest
from vdnn.network import Network
from vdnn.setting import kernels_named

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import brute_force
import enumerated

SEEDS = (0, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 17)
SECONDS = 0.6  # for search; the best is mostly there at once


def two_convolutions():
    net = Network((16, 8, 12, 12), name="two")
    x = net.add(ReLU(), net.add(Conv2d(16, 3, padding=1), net.input))
    x = net.add(Conv2d(16, 3, padding=1), x)
    net.add(SoftmaxCrossEntropy(), net.add(Linear(10), net.add(Flatten(), x)))
    return build(net, kernels_named("cudnn4"), optimizers.get("sgd"))


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_enumerated_is_faster_than_what_search_finds(seed):
    case = next(brute_force.cases(seed, most=5))
    row, found, best = brute_force.compare(case, SECONDS, most=60)
    assert found.arena_bytes <= case.budget
    assert best is None or best.arena_bytes <= case.budget
    assert row.ratio <= brute_force.WORST
    assert row.search >= row.bound * (1 - brute_force.EQUAL)


def test_a_leaner_algorithm_is_taken_where_a_copy_gains_more_from_its_room():
    row, found, _ = brute_force.compare(next(brute_force.cases(112)), 5.0, known=False)
    assert row.is_hit
    assert (
        found.decisions.algorithms["conv3.backward_data"]
        != fastest(found.tape, roofline("a100"))["conv3.backward_data"]
    )


def test_with_memory_for_all_the_optimum_is_everything_kept():
    tape, cost = two_convolutions(), roofline("titan-x", launch_seconds=1e-7, copy_latency_seconds=1e-7)
    kept = make_plan(tape, resolve(Decisions(algorithms=fastest(tape, cost)), tape, {}))
    found = enumerated.optimum(tape, kept.arena_bytes, cost)
    assert found.is_whole
    assert oracle_seconds(tape, cost) <= found.seconds <= simulate(kept, cost).step_seconds


def test_below_the_floor_nothing_is_found():
    tape, cost = two_convolutions(), roofline("titan-x")
    found = enumerated.optimum(tape, tape.floor_bytes - 512, cost)
    assert (found.seconds, found.plan, found.members) == (inf, None, 0)


def test_what_is_not_below_the_threshold_is_left_out_and_all_that_is_faster_is_found():
    tape, cost = two_convolutions(), roofline("titan-x", launch_seconds=1e-7, copy_latency_seconds=1e-7)
    budget = tape.floor_bytes * 11 // 10
    best = enumerated.optimum(tape, budget, cost, most=10_000)
    assert best.is_whole
    assert enumerated.optimum(tape, budget, cost, best.seconds, most=10_000).plan is None
    again = enumerated.optimum(tape, budget, cost, best.seconds * 1.01, most=10_000)
    assert again.seconds == best.seconds


def test_inputs_are_never_dropped_and_every_other_way_is_tried():
    tape, cost = two_convolutions(), roofline("titan-x")
    names = enumerated.movable(tape)
    found = list(enumerated.assignments(tape, cost, inf))
    assert "input" in names
    assert not any(ways["input"] == "drop" for ways in found)
    for b in names:
        assert {ways[b] for ways in found} >= {"keep", "offload"}


def test_of_many_that_are_moved_fewer_timings_are_enumerated_but_not_none():
    tape = two_convolutions()
    names = enumerated.movable(tape)
    for count in range(len(names) + 1):
        pairs = enumerated.ranges(tape, dict.fromkeys(names[:count], "offload"))
        total = 1
        for options in pairs:
            total *= len(options)
        assert len(pairs) == count
        assert 1 <= total <= enumerated.MEMBERS
        assert all((0, 0) in options for options in pairs)
