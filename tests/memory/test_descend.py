"""Descent on small random networks: repairs make room, and nothing that is found is worse than what it began with."""

from __future__ import annotations

import random

import pytest
from random_ways import case_of, random_ways

from vdnn.memory.decisions import resolve
from vdnn.memory.descend import Descent
from vdnn.memory.schedule import Way
from vdnn.memory.trial import sketch

SEEDS = range(300, 315)


def descent_of(seed, is_over=lambda: False, limit=None):
    case, scheduler = case_of(seed)
    return Descent(scheduler, case.budget if limit is None else limit, is_over)


@pytest.mark.parametrize("seed", SEEDS)
def test_repair_leads_to_room_where_everything_moved_has_room(seed):
    descent = descent_of(seed)
    assert not descent.schedule(dict.fromkeys(descent.scheduler.movable, Way.EACH)).overflow
    assert not descent.repair({}).overflow
    assert not descent.repair(dict.fromkeys(descent.scheduler.movable, Way.OFFLOAD)).overflow


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_repaired_is_a_plan_that_peaks_within_the_limit(seed):
    case, _ = case_of(seed)
    descent = descent_of(seed)
    lot = random.Random(seed)
    for _ in range(6):
        found = descent.repair(random_ways(descent.scheduler, lot))
        if not found.overflow:
            plan = sketch(case.tape, resolve(found.decisions, case.tape, {}))
            assert plan.peak_bytes <= descent.limit


@pytest.mark.parametrize("seed", SEEDS)
def test_repair_never_leaves_more_overflow_than_there_was(seed):
    descent = descent_of(seed)
    lot = random.Random(seed)
    for _ in range(6):
        ways = random_ways(descent.scheduler, lot)
        assert descent.repair(ways).overflow <= descent.schedule(ways).overflow


@pytest.mark.parametrize("seed", SEEDS)
def test_what_has_room_is_not_repaired(seed):
    descent = descent_of(seed)
    ways = dict.fromkeys(descent.scheduler.movable, Way.EACH)
    assert descent.repair(ways) == descent.schedule(ways)


def test_what_is_frozen_keeps_its_way():
    for seed in SEEDS:
        descent = descent_of(seed)
        for b in descent.scheduler.movable:
            assert descent.repair({}, frozen=b).ways[b] is Way.KEEP


def test_no_more_changes_are_made_than_allowed():
    for seed in SEEDS:
        descent = descent_of(seed, limit=0)
        for changes in (0, 1, 2):
            ways = descent.repair({}, changes=changes).ways
            assert sum(way is not Way.KEEP for way in ways.values()) <= changes


@pytest.mark.parametrize("seed", SEEDS)
def test_descending_never_leads_to_worse(seed):
    descent = descent_of(seed)
    lot = random.Random(seed)
    for ways in ({}, *(random_ways(descent.scheduler, lot) for _ in range(3))):
        start = descent.repair(ways)
        found = descent.descend(start)
        assert found.rank <= start.rank
        assert descent.schedule(found.ways) == found


def test_descending_leads_somewhere_in_some_of_these_networks():
    better = 0
    for seed in SEEDS:
        descent = descent_of(seed)
        start = descent.repair(dict.fromkeys(descent.scheduler.movable, Way.OFFLOAD))
        better += descent.descend(start).seconds < start.seconds * 0.99
    assert better > len(SEEDS) // 4


def test_with_memory_for_all_descending_from_everything_moved_keeps_the_step_of_everything_kept():
    for seed in SEEDS:
        descent = descent_of(seed, limit=1 << 50)
        found = descent.descend(descent.repair(dict.fromkeys(descent.scheduler.movable, Way.OFFLOAD)))
        assert found.seconds == pytest.approx(descent.schedule({}).seconds, rel=1e-4)


def test_once_it_is_over_nothing_is_changed():
    for seed in SEEDS:
        descent = descent_of(seed, is_over=lambda: True)
        start = descent.schedule(dict.fromkeys(descent.scheduler.movable, Way.OFFLOAD))
        assert descent.descend(start) == start
        assert descent.repair({}) == descent.schedule({})
        assert descent.tried == 2


def test_equal_descents_find_the_same():
    for seed in SEEDS:
        found = []
        for _ in range(2):
            descent = descent_of(seed)
            found.append(descent.descend(descent.repair({})))
        assert found[0] == found[1]
        assert list(found[0].ways) == list(found[1].ways)
