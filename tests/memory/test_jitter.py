from __future__ import annotations

import handmade
import networks
import pytest

from vdnn.memory.cost import measured, roofline
from vdnn.memory.decisions import DROP, OFFLOAD
from vdnn.memory.jitter import JitterError, disturbed, expected_seconds, jittered
from vdnn.memory.plan import workspace_of
from vdnn.memory.policy import POLICIES
from vdnn.memory.simulate import simulate
from vdnn.planning import plan

COST = roofline("host")
ONE_WAY = roofline("host", duplex=False)  # both directions share the link


def offloaded():
    return handmade.plan(handmade.SMALL, handmade.OFFLOADED)


@pytest.mark.parametrize("cost", [COST, ONE_WAY])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "search"])
def test_without_jitter_every_sample_is_the_simulated_step_exactly(policy, cost):
    made = plan(networks.inception(), policy, cost=cost)
    found = jittered(made, cost, 0.0, samples=3)
    assert found.seconds.tolist() == [simulate(made, cost).step_seconds] * 3
    assert found.median == found.mean == found.p95 == found.worst == found.undisturbed_seconds


@pytest.mark.parametrize("cost", [COST, ONE_WAY])
def test_without_jitter_the_disturbed_trace_is_the_simulated_one(cost):
    made = plan(networks.residual(), "vdnn_all", cost=cost)
    assert disturbed(made, cost, 0.0).events == simulate(made, cost).events


def test_steps_that_all_wait_for_each_other_add_up_their_disturbed_durations():
    # prefetch x 1, f1 3, then offload y 4 beside f2 2, prefetch y 4, b2 1: the critical path is 13 s
    found = jittered(offloaded(), handmade.COST, 0.2, samples=2000, seed=5)
    assert found.undisturbed_seconds == 13
    assert 13 * 0.8 <= found.seconds.min() < 12
    assert 14 < found.worst <= 13 * 1.2
    assert found.mean == pytest.approx(13, abs=0.05)  # f2 is never late enough to matter
    # the variance of uniform [1 - j, 1 + j] is j^2 / 3, and those of 1, 3, 4, 4 and 1 seconds add up
    assert found.seconds.std() == pytest.approx((43 * 0.2**2 / 3) ** 0.5, rel=0.05)


def test_where_compute_and_copy_race_the_step_is_slower_on_average():
    # f2 takes as long as the copy of y beside it, so whichever is later counts
    cost = measured({"f1": 3, "f2": 4, "b2": 1}, handmade.SecondPerKiB())
    found = jittered(offloaded(), cost, 0.5, samples=4000)
    # the mean of the larger of two uniform [1 - j, 1 + j] is 1 + j / 3
    assert found.undisturbed_seconds == 13
    assert found.mean == pytest.approx(13 + 4 * 0.5 / 3, abs=0.1)


def test_the_figures_are_in_order_and_slowdowns_are_of_the_undisturbed_step():
    made = plan(networks.chain(), "vdnn_all", hardware="host")
    found = jittered(made, COST, 0.3)
    assert len(found.seconds) == 100
    assert found.seconds.min() < found.median < found.p95 < found.worst
    figures = found.summary()
    assert (figures["jitter"], figures["samples"]) == (0.3, 100)
    assert figures["p95_slowdown"] == found.p95 / simulate(made, COST).step_seconds


def test_a_seed_gives_the_same_samples_again_and_another_gives_others():
    made = plan(networks.chain(), "vdnn_all", hardware="host")
    first, again, other = (jittered(made, COST, seed=seed).seconds.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_two_plans_are_disturbed_alike_where_they_do_the_same():
    made = plan(networks.chain(), {"conv1.y": OFFLOAD, "maxpool1.y": DROP}, hardware="host")
    kept = plan(networks.chain(), {}, hardware="host")
    durations = []
    for each in (made, kept):
        runs = {}
        for event in disturbed(each, COST, 0.4).events:
            runs.setdefault(event.step.name, event.finish - event.start)
        durations.append([runs[op.name] for op in each.tape.ops])
    assert durations[0] == pytest.approx(durations[1])


def test_the_expected_seconds_are_the_mean_of_the_samples():
    made = plan(networks.residual(), "checkpoint", hardware="host")
    assert expected_seconds(made, COST, 0.2, 50, 3) == jittered(made, COST, 0.2, 50, 3).mean
    assert expected_seconds(made, COST, 0.0) == simulate(made, COST).step_seconds


def test_with_a_shared_link_every_step_is_disturbed_too():
    made = plan(networks.chain(), "vdnn_all", cost=ONE_WAY)
    found = jittered(made, ONE_WAY, 0.3, samples=20)
    assert len(set(found.seconds.tolist())) == 20
    assert found.median == pytest.approx(found.undisturbed_seconds, rel=0.15)


@pytest.mark.parametrize(("jitter", "samples"), [(-0.1, 10), (1.5, 10), (float("nan"), 10), (0.1, 0)])
def test_what_cannot_be_is_refused_with_the_number(jitter, samples):
    with pytest.raises(JitterError, match=str(samples) if samples < 1 else str(jitter)):
        jittered(offloaded(), handmade.COST, jitter, samples)


# ---- safety: whatever takes how long, bytes are never touched by two steps at once


def accesses(made):
    """Of every step that takes time: [(slab, start, stop, whether it is written)]."""
    at, tape = {}, made.tape
    for i, step in enumerate(made.steps):
        if step.kind == "alloc":
            at[step.name] = step.offset
        elif step.kind == "compute":
            k = tape.index[step.name]
            touched = [(b, False) for b in tape.reads[k]] + [(b, True) for b in tape.writes[k]]
            if workspace_of(step.name) in at:
                touched.append((workspace_of(step.name), True))
            yield i, [("device", at[b], at[b] + made.size(b), written) for b, written in touched]
        elif step.kind in ("offload", "prefetch"):
            size, back = made.size(step.name), step.kind == "prefetch"
            device = ("device", at[step.name], at[step.name] + size, back)
            yield i, [device, ("host", step.offset, step.offset + size, not back)]


def conflicts(made, trace):
    """Pairs of steps that touch the same bytes, one of them writing, where the later begins before the earlier ends."""
    touched = list(accesses(made))
    times = {e.index: (e.start, e.finish) for e in trace.events}
    return [
        (i, j)
        for n, (j, later) in enumerate(touched)
        for i, earlier in touched[:n]
        if times[j][0] < times[i][1]
        and any(
            a[0] == b[0] and a[1] < b[2] and b[1] < a[2] and (a[3] or b[3]) for a in earlier for b in later
        )
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["vdnn_all", "vdnn_dyn", "checkpoint", "least"])
def test_under_wild_jitter_no_bytes_are_touched_by_two_steps_at_once(policy):
    made = plan(networks.inception(), policy, hardware="host")
    for seed in range(10):
        trace = disturbed(made, COST, 1.0, seed)
        assert conflicts(made, trace) == []


def test_a_plan_without_its_waits_is_found_to_conflict():
    text = handmade.OFFLOADED.replace(" after 1 ", " ").replace(" after 5 7", "")
    made = handmade.plan(handmade.SMALL, text)
    assert conflicts(made, disturbed(made, handmade.COST, 0.5))
    assert not conflicts(offloaded(), disturbed(offloaded(), handmade.COST, 0.5))
