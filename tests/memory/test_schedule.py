"""The scheduler's estimates held against the passes and the simulator, on small random networks and random ways."""

from __future__ import annotations

import random

import pytest
from random_ways import case_of, random_ways

from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.passes import make_plan, rerun_dropped
from vdnn.memory.schedule import Scheduler, Way, ways_of
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import fastest, least_workspace, sketch

SEEDS = range(200, 215)
TYPICAL, MOSTLY = 0.02, 0.10  # errors of the estimate: the median, and of four in five
SMALL = 4 * 512  # bytes of labels, clock and loss, which may be taken to stay longer than they do
AMPLE = 1 << 50  # bytes


def schedules(seed, count=8):
    """(case, schedule, limit) of random ways within limits from the floor to ample."""
    case, scheduler = case_of(seed)
    lot = random.Random(seed)
    for _ in range(count):
        limit = int(case.tape.floor_bytes * lot.uniform(0.9, 1.6))
        yield case, scheduler.schedule(random_ways(scheduler, lot), limit), limit


def plan_of(case, found):
    return sketch(case.tape, resolve(found.decisions, case.tape, {}))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_plan_of_what_has_room_peaks_within_the_limit(seed):
    for case, found, limit in schedules(seed):
        if not found.overflow:
            assert plan_of(case, found).peak_bytes <= limit


@pytest.mark.parametrize("seed", SEEDS)
def test_the_plan_of_what_has_no_room_peaks_above_the_limit_by_the_overflow(seed):
    for case, found, limit in schedules(seed):
        if found.overflow:
            assert plan_of(case, found).peak_bytes == limit + found.overflow


@pytest.mark.parametrize("seed", SEEDS)
def test_the_worst_place_is_that_of_the_op_at_the_peak(seed):
    for case, found, limit in schedules(seed):
        if found.overflow:
            plan = plan_of(case, found)
            live = [plan.live_bytes[i] for i, _, _ in plan.computes()]
            assert live[found.worst] == limit + found.overflow


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ops_that_run_are_those_of_the_plan_in_its_order(seed):
    for case, found, _ in schedules(seed):
        steps = rerun_dropped(case.tape, resolve(found.decisions, case.tape, {}))
        assert [case.tape.ops[i].name for i in found.runs] == [step.name for step in steps]


def test_some_of_these_random_ways_have_room_some_have_none_and_some_run_ops_again():
    found = [(s.overflow > 0, len(s.runs) > len(case.tape.ops)) for seed in SEEDS for case, s, _ in schedules(seed)]
    assert {overflows for overflows, _ in found} == {again for _, again in found} == {False, True}


@pytest.mark.parametrize("seed", SEEDS)
def test_each_op_takes_the_fastest_algorithm_that_has_room_wherever_it_runs(seed):
    for case, found, limit in schedules(seed, 4):
        late = resolve(
            Decisions(
                found.decisions.fates, least_workspace(case.tape, case.cost), ahead=0, returns=found.decisions.returns
            ),
            case.tape,
            {},
        )
        plan = sketch(case.tape, late)
        beside: dict[str, int] = {}
        for i, _, op in plan.computes():
            scratch = plan.size(f"{op.name}.workspace")
            beside[op.name] = max(beside.get(op.name, 0), plan.live_bytes[i] - scratch)
        for op in case.tape.ops:
            fitting = [a for a in op.algorithms if beside[op.name] + a.workspace <= limit]
            if fitting:
                best = min(case.cost.op_seconds(case.tape, op, a.name) for a in fitting)
                assert case.cost.op_seconds(case.tape, op, found.algorithms[op.name]) == best


@pytest.mark.parametrize("seed", SEEDS)
def test_where_everything_is_kept_and_has_room_the_step_is_the_oracles(seed):
    case, scheduler = case_of(seed)
    found = scheduler.schedule({}, AMPLE)
    assert found.algorithms == fastest(case.tape, case.cost)
    assert found.seconds == pytest.approx(oracle_seconds(case.tape, case.cost), rel=0.01)


def test_a_leaner_algorithm_than_the_fastest_is_taken_where_it_is_asked_for():
    asked = 0
    for seed in SEEDS:
        case, scheduler = case_of(seed)
        for i in scheduler.several:
            name, first, second = case.tape.ops[i].name, scheduler.choices[i][0], scheduler.choices[i][1]
            found = scheduler.schedule({}, AMPLE, {i: 1})
            assert found.algorithms == {**fastest(case.tape, case.cost), name: second[2]}
            assert found.seconds == pytest.approx(scheduler.schedule({}, AMPLE).seconds + second[0] - first[0])
            asked += 1
    assert asked > 5


def test_without_any_room_all_take_the_least_workspace():
    for seed in SEEDS:
        case, scheduler = case_of(seed)
        assert scheduler.schedule({}, 0).algorithms == least_workspace(case.tape, case.cost)


def errors(limit_of):
    """By what share of the step the estimate is off, of random ways that have room, sorted."""
    found = []
    for seed in SEEDS:
        case, scheduler = case_of(seed)
        lot = random.Random(seed)
        for _ in range(4):
            estimate = scheduler.schedule(random_ways(scheduler, lot), limit_of(case))
            if not estimate.overflow:
                plan = make_plan(case.tape, resolve(estimate.decisions, case.tape, {}), effort=0)
                step = simulate(plan, case.cost).step_seconds
                found.append(abs(estimate.seconds - step) / step)
    assert len(found) > len(SEEDS)
    return sorted(found)


@pytest.mark.parametrize("limit_of", [lambda case: AMPLE, lambda case: case.budget], ids=["ample", "tight"])
def test_the_estimate_is_mostly_within_a_few_percent_of_the_simulated_step(limit_of):
    found = errors(limit_of)
    assert found[len(found) // 2] < TYPICAL
    assert found[len(found) * 4 // 5] < MOSTLY


def test_ways_are_those_of_the_decisions_again():
    for seed in SEEDS:
        for case, found, _ in schedules(seed, 2):
            again = ways_of(resolve(found.decisions, case.tape, {}))
            assert {b: again[b] for b in found.ways} == dict(found.ways)


def test_what_returns_for_each_use_never_needs_more_than_what_returns_once():
    for seed in SEEDS:
        _, scheduler = case_of(seed)
        once, each = (scheduler.schedule(dict.fromkeys(scheduler.movable, way), 0) for way in (Way.OFFLOAD, Way.EACH))
        assert each.overflow <= once.overflow


def test_a_larger_limit_lets_sources_and_returns_stay_longer_and_never_overflows_more():
    for seed in SEEDS:
        case, scheduler = case_of(seed)
        ways = random_ways(scheduler, random.Random(seed))
        limits = [int(case.tape.floor_bytes * share) for share in (0.8, 1.0, 1.2, 1.5)]
        overflows = [scheduler.schedule(ways, limit).overflow for limit in limits]
        assert overflows == sorted(overflows, reverse=True)
        assert overflows[0] == limits[1] - limits[0] + overflows[1] or not overflows[1]


def test_another_scheduler_of_the_same_tape_makes_the_same_schedules():
    for seed in SEEDS:
        case, scheduler = case_of(seed)
        ways = random_ways(scheduler, random.Random(seed))
        other = Scheduler(case.tape, case.cost)
        assert scheduler.schedule(ways, case.budget) == other.schedule(ways, case.budget)
