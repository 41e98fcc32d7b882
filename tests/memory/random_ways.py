"""Random ways on the small networks of the brute force, for what schedules and what descends."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from vdnn.memory.schedule import Scheduler, Way
from vdnn.network import Role

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import brute_force


@cache
def case_of(seed):
    case = next(brute_force.cases(seed, most=8))
    return case, Scheduler(case.tape, case.cost)


def random_ways(scheduler, lot):
    ways = {}
    for b in scheduler.movable:
        is_input = scheduler.tape.buffers[b].role is Role.INPUT
        ways[b] = lot.choice([way for way in Way if not (is_input and way is Way.DROP)])
    return ways
