"""What a device's runs say of its times.  A simulated device, whose times are known, must be found as it is."""

from __future__ import annotations

from dataclasses import replace

import emulator
import pytest
from handmade import COST, OFFLOADED, SMALL, plan
from networks import NETWORKS, chain, tape_of

import vdnn
from vdnn import planning
from vdnn.commands.measure import Bench
from vdnn.memory.contention import Contention
from vdnn.memory.cost import Copies, Measured, measured
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.measuring import (
    BOTH,
    COPIED,
    SIZES,
    Recorder,
    alone_plan,
    beside_plan,
    both_plan,
    choices,
    copy_seconds,
    cost_of,
    link_of,
    op_seconds,
    wake_seconds,
)
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.memory.trace import Trace
from vdnn.memory.verify import verify

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def tape():
    return tape_of(chain())


@pytest.fixture
def kept(tape):
    return make_plan(tape, resolve(Decisions(), tape, choices(tape)[0]))


def later(trace, index, seconds):
    """The trace with the event of one step begun so much later; its end is where it was."""
    events = [replace(e, start=e.start + seconds) if e.index == index else e for e in trace.events]
    return Trace(trace.plan, events, "measured")


# ---- what a trace says

HANDMADE = simulate(plan(SMALL, OFFLOADED), COST)  # the times are in the text of OFFLOADED


def test_an_op_that_waited_for_a_copy_counts_from_its_start():
    assert [(key, s) for _, key, s in op_seconds(HANDMADE)] == [("f1", 3), ("f2", 2), ("b2", 1)]
    assert [s for *_, s in op_seconds(later(HANDMADE, 12, 0.25))] == [3, 2, 0.75]


def test_the_way_from_one_op_to_the_next_counts_as_the_next_ones():
    assert [s for *_, s in op_seconds(later(HANDMADE, 7, 0.25))] == [3, 2, 1]


def test_a_copy_counts_from_the_end_of_what_it_waited_for():
    found = [(kind, nbytes, s) for _, kind, nbytes, s in copy_seconds(later(HANDMADE, 5, 0.25))]
    assert found == [("prefetch", KIB, 1), ("offload", 4 * KIB, 4), ("prefetch", 4 * KIB, 4)]


def test_how_long_an_op_takes_to_begin_after_its_copy_is_told_for_each_that_waited():
    assert list(wake_seconds(later(HANDMADE, 12, 0.25))) == [0, 0.25]


# ---- the link


def test_rates_and_latency_are_found_where_times_are_a_line():
    line = {("offload", n): 1e-4 + n / 1e9 for n in SIZES} | {("prefetch", n): 1e-4 + n / 2e9 for n in SIZES}
    found = link_of(line, wake=5e-5)
    assert found.offload_bytes_per_second == pytest.approx(1e9)
    assert found.prefetch_bytes_per_second == pytest.approx(2e9)
    assert found.latency_seconds == pytest.approx(1.5e-4)


def test_copies_too_small_to_tell_change_no_rate():
    times = {(kind, n): 1e-9 if n < MIB else n / 1e6 for kind in ("offload", "prefetch") for n in SIZES}
    assert link_of(times) == Copies(1e6, 1e6, 0.0)


# ---- the plans


def test_the_choices_have_every_algorithm_of_every_op(tape):
    chosen = {(op, algorithm) for choice in choices(tape) for op, algorithm in choice.items()}
    assert chosen == {(op.name, a.name) for op in tape.ops for a in op.algorithms}


def test_all_plans_are_safe_and_leave_residents_where_they_are(tape, kept):
    places = {s.name: s.offset for s in kept.steps if s.kind == "alloc" and s.name in tape.resident}
    for made in (alone_plan(tape), both_plan(tape, BOTH), beside_plan(kept, MIB, 7)):
        verify(made)
        assert {s.name: s.offset for s in made.steps if s.kind == "alloc" and s.name in tape.resident} == places


def test_copies_alone_run_one_at_a_time(tape):
    made = alone_plan(tape, (KIB, MIB))
    assert [(s.kind, made.payload(s.name)) for s in made.steps if s.stream != "compute"] == [
        ("offload", KIB),
        ("prefetch", KIB),
        ("offload", MIB),
        ("prefetch", MIB),
    ]
    trace = simulate(made, measured({}, copy=Copies(1e6, 1e6, 0.0)))
    assert trace.step_seconds == trace.copy_seconds


def test_copies_both_ways_run_two_at_a_time_but_for_the_first_and_the_last(tape):
    trace = simulate(both_plan(tape, MIB), measured({}, copy=Copies(MIB, MIB, 0.0)))
    assert (trace.copy_seconds, trace.step_seconds) == (8, 5)


def test_copies_beside_ops_change_nothing_else(tape, kept):
    made = beside_plan(kept, MIB, 7)
    added = [s for s in made.steps if s.name.startswith(COPIED)]
    assert [s.kind for s in added] == ["alloc", *["offload", "prefetch"] * 4]
    rest = [(s.kind, s.name, s.algorithm) for s in made.steps if not s.name.startswith(COPIED)]
    assert rest == [(s.kind, s.name, s.algorithm) for s in kept.steps]
    indices = {i for i, s in enumerate(made.steps) if s.name.startswith(COPIED)}
    assert not any(indices & set(s.waits) for s in made.steps if s.kind == "compute")


# ---- a device whose times are known


def recorded(tape, cost, contention, algorithms=None):
    recorder = Recorder(tape, algorithms or choices(tape), lambda plan: simulate(plan, cost, contention))
    recorder.round()
    return cost_of(recorder.rounds, "found", 12345, {"threads": 2})


@pytest.fixture(scope="module")
def known(tape):
    """Times of every op by every algorithm, each another; a link of unequal rates."""
    names = [f"{op.name} by {a.name}" for op in tape.ops for a in op.algorithms]
    return measured({name: 0.01 + 0.001 * n for n, name in enumerate(names)}, copy=Copies(1e8, 2e8, 0.0))


def test_ops_and_links_of_a_device_are_found(tape, known):
    found = recorded(tape, known, Contention())
    for op in tape.ops:
        for algorithm in op.algorithms:
            expected = known.op_seconds(tape, op, algorithm.name)
            assert found.op_seconds(tape, op, algorithm.name) == pytest.approx(expected)
    for kind in ("offload", "prefetch"):
        assert found.copy_seconds(MIB, kind) == pytest.approx(known.copy_seconds(MIB, kind))
    assert found.contention.duplex is True
    assert found.contention.compute_slowdown == pytest.approx(0, abs=1e-9)
    assert found.contention.copy_slowdown == pytest.approx(0, abs=1e-9)
    assert (found.name, found.memory_bytes, found.about) == ("found", 12345, {"threads": 2})


def test_a_link_that_both_directions_share_is_found(tape, known):
    assert recorded(tape, known, Contention(duplex=False)).contention.duplex is False


def test_how_much_ops_and_copies_slow_each_other_is_found(tape, known):
    found = recorded(tape, known, Contention(compute_slowdown=0.5, copy_slowdown=0.25)).contention
    assert found.compute_slowdown == pytest.approx(0.5, rel=1e-5)  # the loss is copied beside an op in any case
    assert found.copy_slowdown == pytest.approx(0.25, rel=1e-5)


def test_what_was_found_predicts_a_plan_that_copies_as_the_device_runs_it(tape, known):
    contention = Contention(compute_slowdown=0.5, copy_slowdown=0.25)
    found = recorded(tape, known, contention)
    for policy in ("vdnn_all", "least", "checkpoint"):
        made = planning.plan(tape, policy, cost=known)
        assert simulate(made, found).step_seconds == pytest.approx(simulate(made, known, contention).step_seconds)


def test_the_median_of_several_rounds_counts(tape, known):
    slow = Measured("slow", {key: 100 * s for key, s in known.seconds.items()}, known.link, known.copies)
    costs = [known]
    recorder = Recorder(tape, choices(tape)[:1], lambda plan: simulate(plan, costs[-1]))
    for cost in (known, slow, known):
        costs.append(cost)
        recorder.round()
    op = tape.ops[0]
    found = cost_of(recorder.rounds, "found", 1, {}).op_seconds(tape, op, op.algorithms[0].name)
    assert found == pytest.approx(known.op_seconds(tape, op, op.algorithms[0].name))


def test_a_delay_that_meets_another_op_in_each_run_is_in_the_sum(tape, known):
    def delayed(number):
        name = f"{tape.ops[number].name} by {choices(tape)[0][tape.ops[number].name]}"
        return Measured("delayed", {**known.seconds, name: known.seconds[name] + 0.5}, known.link, known.copies)

    cost = known
    recorder = Recorder(tape, choices(tape)[:1], lambda plan: simulate(plan, cost))
    for number in range(3):
        cost = delayed(number)
        recorder.round()
    found = cost_of(recorder.rounds, "found", 1, {})
    total, fast = (sum(c.op_seconds(tape, op, op.algorithms[0].name) for op in tape.ops) for c in (found, known))
    assert total == pytest.approx(fast + 0.5, rel=1e-3)


def test_progress_is_told_once_for_every_run(tape, known):
    recorder = Recorder(tape, choices(tape), lambda plan: simulate(plan, known))
    told = []
    recorder.round(told.append)
    assert len(told) == recorder.runs == len(choices(tape)) + 3


# ---- real devices


@pytest.mark.parametrize("make", NETWORKS)
def test_every_op_gets_a_positive_time_on_the_host_and_every_policy_can_be_predicted(make, tmp_path):
    bench = Bench(make(), threads=2)
    recorder = bench.recorder("all")
    recorder.round()
    path = tmp_path / "times.json"
    path.write_text(bench.cost(recorder.rounds, "all").to_json())
    bench.close()
    cost = vdnn.measured(path)
    for op in bench.tape.ops:
        assert all(cost.op_seconds(bench.tape, op, a.name) > 0 for a in op.algorithms)
    for policy in OWN:
        made = vdnn.plan(bench.tape, policy, cost=cost)
        assert vdnn.simulate(made, cost).step_seconds > 0


def test_runs_of_a_plan_do_not_change_the_weights():
    bench = Bench(chain(), threads=1)
    before = {name: value.copy() for name, value in bench.trainer.weights.items()}
    bench.run(bench.plan("vdnn_all"))
    assert any(value.any() for value in before.values())
    assert all((bench.trainer.weights[name] == value).all() for name, value in before.items())
    bench.close()


@pytest.mark.skipif(bool(emulator.available()), reason=emulator.available())
def test_an_emulated_gpu_is_measured_alike():
    from cuda_doubles import emulated_device

    net = chain()
    bench = Bench(net, emulated_device(net))
    recorder = bench.recorder()
    recorder.round()
    cost = bench.cost(recorder.rounds)
    assert {op.name for op in bench.tape.ops} == {key.partition(" by ")[0] for key in cost.seconds}
    assert cost.about["device"] == "cuda"
    bench.close()
