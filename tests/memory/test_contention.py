"""Timelines under contention, worked out by hand; and that what is worked holds for any times."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random

import networks
import pytest
from handmade import COST, KIB, OFFLOADED, SMALL, SecondPerKiB, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from vdnn.memory.contention import Contention
from vdnn.memory.cost import measured, roofline
from vdnn.memory.plan import PlanError, Step
from vdnn.memory.simulate import simulate
from vdnn.planning import plan as make

COPIES = ("offload", "prefetch")
WITHOUT_WAITS = "\n".join(line.split("#")[0].split("after")[0] for line in OFFLOADED.strip().splitlines())


class LateLink(SecondPerKiB):
    """As a link of 1 KiB/s, after a second."""

    def copy_seconds(self, nbytes, kind):
        return 1 + nbytes / KIB


class LateBack(SecondPerKiB):
    """A link of 1 KiB/s; what comes back does so after a second."""

    def copy_seconds(self, nbytes, kind):
        return (kind == "prefetch") + nbytes / KIB


class OneWayFaster(SecondPerKiB):
    """1 KiB/s to the host, 2 KiB/s back."""

    def copy_seconds(self, nbytes, kind):
        return nbytes / KIB / (1 if kind == "offload" else 2)


class Launched:
    """Times of `cost`, of whose ops the first second is a launch."""

    name, memory_bytes, launch_seconds = "launched", 1 << 20, 1.0

    def __init__(self, cost):
        self.op_seconds, self.copy_seconds = cost.op_seconds, cost.copy_seconds


def times(made, cost, contention):
    trace = simulate(made, cost, contention)
    return {f"{e.step.kind} {e.step.name}": (e.start, e.finish) for e in trace.events if e.finish > e.start}


# ---- by hand


def test_a_share_of_the_link_slows_copies_alone():
    assert times(plan(SMALL, OFFLOADED), COST, Contention(link_share=0.5)) == {
        "prefetch x": (0, 2),
        "compute f1": (2, 5),
        "offload y": (5, 13),
        "compute f2": (5, 7),
        "prefetch y": (13, 21),
        "compute b2": (21, 22),
    }


def test_the_latency_of_a_copy_is_not_slowed():
    late = measured(COST.seconds, LateLink())
    assert times(plan(SMALL, OFFLOADED), late, Contention(link_share=0.5)) == {
        "prefetch x": (0, 3),  # 1 s, then 1 KiB in 2 s
        "compute f1": (3, 6),
        "offload y": (6, 15),
        "compute f2": (6, 8),
        "prefetch y": (15, 24),
        "compute b2": (24, 25),
    }


def test_each_direction_has_a_latency_of_its_own():
    found = times(plan(SMALL, WITHOUT_WAITS), measured(COST.seconds, LateBack()), Contention(link_share=0.5))
    assert found["offload y"] == (0, 8)
    assert (found["prefetch x"], found["prefetch y"]) == ((0, 3), (3, 12))


def test_copies_both_ways_share_a_link_without_duplex():
    found = times(plan(SMALL, WITHOUT_WAITS), COST, Contention(duplex=False))
    assert found["prefetch x"] == (0, 2)  # half of 1 KiB/s; y has sent 1 of 4 KiB
    assert found["offload y"] == (0, 8)  # the other 3 KiB, again at half the rate
    assert found["prefetch y"] == (2, 9)  # 3 of 4 KiB until 8, the last alone
    assert [found[f"compute {name}"] for name in ("f1", "f2", "b2")] == [(0, 3), (3, 5), (5, 6)]


def test_latencies_pass_beside_each_other_on_a_link_without_duplex():
    found = times(plan(SMALL, WITHOUT_WAITS), measured(COST.seconds, LateLink()), Contention(duplex=False))
    assert found["prefetch x"] == (0, 3)  # 1 s for both, then half of 1 KiB/s
    assert found["offload y"] == (0, 8)  # 1 KiB until 3, 1 KiB alone until 4, the other 2 at half the rate
    assert found["prefetch y"] == (3, 10)  # starts after a second; 2 of 4 KiB until 8, the others alone


def test_compute_is_slow_while_a_copy_runs():
    found = times(plan(SMALL, OFFLOADED), COST, Contention(compute_slowdown=0.5))
    assert (found["offload y"], found["compute f2"]) == ((4, 8), (4, 8))  # 2 s at half the rate
    assert (found["compute f1"], found["compute b2"]) == ((1, 4), (12, 13))  # no copy runs


def test_compute_is_fast_again_when_the_copy_has_ended():
    brief = measured({"f1": 3, "f2": 5, "b2": 1}, SecondPerKiB())
    found = times(plan(SMALL, OFFLOADED), brief, Contention(compute_slowdown=0.25))
    assert found["offload y"] == (4, 8)
    # y's prefetch follows f2 by its wait in the plan, so nothing runs beside the rest
    assert found["compute f2"] == (4, 4 + 4 + (5 - 3))


def test_a_copy_is_slow_while_compute_runs():
    assert times(plan(SMALL, OFFLOADED), COST, Contention(copy_slowdown=0.5)) == {
        "prefetch x": (0, 1),
        "compute f1": (1, 4),
        "compute f2": (4, 6),
        "offload y": (4, 9),  # 1 KiB until 6, 3 KiB at the full rate
        "prefetch y": (9, 13),
        "compute b2": (13, 14),
    }


def test_copies_and_compute_slow_each_other():
    found = times(plan(SMALL, OFFLOADED), COST, Contention(compute_slowdown=0.5, copy_slowdown=0.5))
    assert found["compute f2"] == (4, 8)
    assert found["offload y"] == (4, 10)  # 2 KiB until 8, 2 KiB at the full rate
    assert found["compute b2"] == (14, 15)


def test_the_launch_of_an_op_is_neither_slowed_nor_slows():
    found = times(plan(SMALL, OFFLOADED), Launched(COST), Contention(compute_slowdown=0.5, copy_slowdown=0.5))
    assert found["compute f2"] == (4, 7)  # 1 s of launch, 1 s at half the rate
    assert found["offload y"] == (4, 9)  # 1 KiB until 5, 1 KiB until 7, 2 KiB


@pytest.mark.parametrize("contention", [None, Contention(), Contention(duplex=False)])
def test_a_prefetch_on_the_offload_stream_waits_there_and_takes_the_time_of_a_prefetch(contention):
    text = WITHOUT_WAITS.replace("prefetch prefetch y", "offload prefetch y").replace("prefetch prefetch x @0", "")
    made = plan(SMALL, "\n".join(line for line in text.splitlines() if line.strip()))
    found = times(made, measured(COST.seconds, OneWayFaster()), contention)
    assert (found["offload y"], found["prefetch y"]) == ((0, 4), (4, 6))


def test_a_longer_copy_is_a_longer_stall_with_the_same_cause():
    plain, slow = (simulate(plan(SMALL, OFFLOADED), COST, c) for c in (None, Contention(link_share=0.5)))
    assert [(s.op, s.cause, s.seconds) for s in plain.stalls] == [("f1", "x", 1), ("b2", "y", 6)]
    assert [(s.op, s.cause, s.seconds) for s in slow.stalls] == [("f1", "x", 2), ("b2", "y", 14)]


# ---- where it comes from


def test_the_contention_of_the_cost_model_is_the_default():
    cost = measured(COST.seconds, SecondPerKiB(), contention=Contention(link_share=0.5))
    made = plan(SMALL, OFFLOADED)
    assert simulate(made, cost).step_seconds == 22
    assert simulate(made, cost, Contention()).step_seconds == simulate(made, COST).step_seconds == 13


def test_hardware_without_duplex_is_slower_where_copies_meet():
    made = plan(SMALL, WITHOUT_WAITS)
    figures = {"offload_bytes_per_second": 1024, "prefetch_bytes_per_second": 1024, "copy_latency_seconds": 0}
    slow = simulate(made, roofline("host", duplex=False, **figures))
    assert slow.step_seconds == pytest.approx(9)  # as above; the ops take microseconds
    assert simulate(made, roofline("host", **figures)).step_seconds == pytest.approx(5)


def test_steps_that_wait_for_each_other_are_an_error():
    made = plan(SMALL, OFFLOADED)
    steps = list(made.steps)
    steps[3] = replace(steps[3], waits=(10,))  # f1 waits for the prefetch of what it makes
    with pytest.raises(PlanError, match="step 3 waits for a step that waits for it"):
        simulate(replace(made, steps=tuple(steps)), COST, Contention())


# ---- for any times


@cache
def made_plan(name, policy, single):
    """A plan of a small network; on one stream for copies if `single`."""
    made = make(getattr(networks, name)(), policy, hardware="host")
    if not single:
        return made
    return replace(made, steps=tuple(_on_one_stream(step) for step in made.steps))


def _on_one_stream(step: Step) -> Step:
    return replace(step, stream="offload") if step.kind == "prefetch" else step


PLANS = st.builds(
    made_plan,
    st.sampled_from([network.__name__ for network in networks.NETWORKS]),
    st.sampled_from(["vdnn_all", "least"]),
    st.booleans(),
)
RULES = st.builds(Contention, st.booleans(), st.floats(0.05, 1), st.floats(0, 0.9), st.floats(0, 0.9))


class Drawn:
    """Times drawn from a seed, of ops and copies about alike."""

    name, memory_bytes, launch_seconds = "drawn", 1 << 30, 0.125

    def __init__(self, seed, latency):
        self.seed, self.latency = seed, latency

    def op_seconds(self, tape, op, algorithm):
        random = Random(f"{self.seed} {op.name}")
        return random.choice([0.0, 0.1, random.random(), 3.0])

    def copy_seconds(self, nbytes, kind):
        return nbytes / (1000 if kind == "offload" else 1500) + self.latency


COSTS = st.builds(Drawn, st.integers(0, 1000), st.sampled_from([0.0, 0.01, 0.3]))


@settings(deadline=None, max_examples=60)
@given(PLANS, COSTS)
def test_without_anything_slowed_the_times_are_the_simple_ones(made, cost):
    simple, found = simulate(made, cost), simulate(made, cost, Contention())
    for a, b in zip(simple.events, found.events, strict=True):
        assert (a.index, a.step, a.stream) == (b.index, b.step, b.stream)
        assert (b.start, b.finish) == pytest.approx((a.start, a.finish), rel=1e-12, abs=0)


@settings(deadline=None, max_examples=60)
@given(PLANS, COSTS, RULES)
def test_contention_makes_no_step_end_sooner(made, cost, rules):
    simple, found = simulate(made, cost), simulate(made, cost, rules)
    for a, b in zip(simple.events, found.events, strict=True):
        assert b.finish >= a.finish * (1 - 1e-12)
    assert found.step_seconds >= simple.step_seconds * (1 - 1e-12)


@settings(deadline=None, max_examples=60)
@given(PLANS, COSTS, RULES)
def test_each_step_starts_as_soon_as_it_may_and_does_its_work_at_the_rates_of_the_time(made, cost, rules):
    events = simulate(made, cost, rules).events
    free, working = {}, []
    for e in events:
        earliest = max([free.get(e.stream, 0.0), *(events[w].finish for w in e.step.waits)])
        assert e.start == pytest.approx(earliest, rel=1e-12)
        free[e.stream] = e.finish
        if e.step.kind == "compute":
            op = made.tape.ops[made.tape.index[e.step.name]]
            took = cost.op_seconds(made.tape, op, e.step.algorithm)
            latency = min(took, cost.launch_seconds)
        elif e.step.kind in COPIES:
            took, latency = cost.copy_seconds(made.payload(e.step.name), e.step.kind), cost.latency
        else:
            assert e.finish == e.start
            continue
        working.append((e.start + latency, e.finish, e.step.kind in COPIES, took - latency))
    for begin, end, is_copy, work in working:
        assert done(begin, end, is_copy, working, rules) == pytest.approx(work, rel=1e-9, abs=1e-9)


def done(begin, end, is_copy, working, rules):
    """Seconds of work at full rate that are done from `begin` to `end`, added up over the times between changes."""
    if end <= begin:  # no work, but for rounding
        return 0.0
    beside = [w for w in working if w[0] < end and w[1] > begin]
    edges = sorted({begin, end, *(t for w in beside for t in w[:2] if begin < t < end)})
    total = 0.0
    for a, b in pairwise(edges):
        now = [w for w in beside if w[0] <= a and b <= w[1]]
        copies = sum(w[2] for w in now)
        if is_copy:
            rate = rules.link_share / (1 if rules.duplex else copies)
            rate *= 1 - (rules.copy_slowdown if copies < len(now) else 0)
        else:
            rate = 1 - (rules.compute_slowdown if copies else 0)
        total += rate * (b - a)
    return total
