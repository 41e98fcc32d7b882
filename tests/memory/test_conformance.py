"""What plans and trainers rely on, of every kind of device: the host, a GPU over test doubles, and a real GPU."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from conformance import (
    KINDS,
    OTHERS,
    SKEW,
    STORAGES,
    FailingSGD,
    delays,
    failing,
    failing_network,
    fill,
    make_device,
    plan_on,
    ready,
    require,
    reserve,
    run,
)
from networks import FATES, NETWORKS, assert_same_bits, chain, feed, norm_dropout, outcome, resident, residual

from vdnn.memory.decisions import OFFLOAD, Decisions
from vdnn.memory.device import DeviceError
from vdnn.memory.execute import begin, execute, walk
from vdnn.memory.plan import PlanError

ON_CUDA = [k for k in KINDS if k not in ("host", *OTHERS)]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_storage = pytest.mark.parametrize("kind", STORAGES)
each_network = pytest.mark.parametrize("make", NETWORKS)


@pytest.fixture(scope="module")
def kept():
    """A function (kind, network) -> what two steps leave behind when everything is kept, and the plan."""
    made = {}

    def get(kind, make):
        require(kind)
        if (kind, make) not in made:
            with ready(kind, make(), FATES["keep"]) as (device, plan):
                made[kind, make] = outcome(device, plan), plan
        return made[kind, make]

    return get


def outcome_of(kind, make, decisions, plan, **options):
    """What two steps leave behind under other decisions, by the algorithms of `plan`."""
    algorithms = plan.decisions.algorithms
    with ready(kind, make(), decisions, algorithms=algorithms, **options) as (device, other):
        found = outcome(device, other)
        assert device.measured_peak_bytes(other) == other.peak_bytes
    return found


# ---- equal bits


@pytest.mark.parametrize("fates", [f for f in FATES if f != "keep"])
@each_network
@each_storage
def test_every_fate_gives_the_bits_of_keep_all(kind, make, fates, kept):
    expected, plan = kept(kind, make)
    assert_same_bits(outcome_of(kind, make, FATES[fates], plan), expected)


@each_network
@each_kind
def test_poison_changes_no_bit(kind, make, kept):
    expected, plan = kept(kind, make)
    assert_same_bits(outcome_of(kind, make, FATES["alternate"], plan, poison=True), expected)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("make", [chain, residual])
@each_kind
def test_delays_change_no_bit(kind, make, seed, kept):
    expected, plan = kept(kind, make)
    options = {} if kind == "host" else {"seed": seed}
    assert_same_bits(outcome_of(kind, make, FATES["offload"], plan, delay=delays(seed), **options), expected)


@pytest.mark.parametrize("timing", [(0, 0), (4, 2)])
@pytest.mark.parametrize("lifetimes", ["sliding", "network"])
@each_kind
def test_timing_and_lifetimes_change_no_bit(kind, timing, lifetimes, kept):
    expected, plan = kept(kind, residual)

    def decisions(tape):
        return Decisions(FATES["offload"](tape), ahead=timing[0], slack=timing[1], lifetimes=lifetimes)

    assert_same_bits(outcome_of(kind, residual, decisions, plan), expected)


@each_kind
def test_a_tensor_brought_back_for_each_use_changes_no_bit(kind, kept):
    expected, plan = kept(kind, residual)

    def decisions(tape):
        return Decisions(FATES["offload"](tape), ahead=0, returns="each")

    assert_same_bits(outcome_of(kind, residual, decisions, plan), expected)


@each_kind
def test_the_reference_is_no_constant(kind, kept):
    found, _ = kept(kind, norm_dropout)
    assert found["loss1.y of step 0"][0] != found["loss1.y of step 1"][0]
    assert (found["bn1.mean"] != 0).all()
    assert (found["bn1.variance"] != 1).all()


@each_kind
def test_gradients_are_those_of_keep_all_whatever_the_fates_and_change_nothing(kind):
    net, found = residual(), {}
    device = make_device(kind, net, poison=True)
    keep = plan_on(device, purpose="gradients", undo=False)
    plans = [
        plan_on(device, FATES[f], purpose="gradients", undo=False, algorithms=keep.decisions.algorithms) for f in FATES
    ]
    reserve(device, *plans)
    fill(device, keep)
    before = resident(device, keep)
    for fates, plan in zip(FATES, plans, strict=True):
        found[fates] = run(device, plan)
        assert_same_bits(found[fates], found["keep"])
        assert device.measured_peak_bytes(plan) == plan.peak_bytes
    assert_same_bits(resident(device, keep), before)
    assert found["keep"].keys() > {"conv1.dw", "bn1.db", "linear1.dw"}
    device.close()


@each_kind
def test_evaluation_reads_running_averages_no_clock_and_changes_nothing(kind):
    net = norm_dropout()
    device = make_device(kind, net, poison=True)
    step = plan_on(device)
    evaluate = plan_on(device, purpose="evaluate", undo=False, algorithms=step.decisions.algorithms)
    reserve(device, step, evaluate)
    fill(device, step)
    run(device, step)
    before = resident(device, step)
    feed(device, evaluate, 1)
    execute(evaluate, device)
    scores = device.read(evaluate, "linear1.y")
    device.write(evaluate, "clock", np.full(8, 2.0))  # dropout must not look at it
    execute(evaluate, device)
    np.testing.assert_array_equal(device.read(evaluate, "linear1.y"), scores)
    assert scores.any()
    assert_same_bits(resident(device, step), before)
    assert device.measured_peak_bytes(evaluate) == evaluate.peak_bytes < step.peak_bytes
    device.close()


@each_kind
def test_a_second_plan_goes_on_over_the_same_weights(kind, kept):
    expected, first = kept(kind, residual)
    algorithms = first.decisions.algorithms
    with ready(kind, residual(), FATES["offload"], FATES["drop"], algorithms=algorithms) as (device, one, other):
        found = {f"{name} of step 0": value for name, value in run(device, one, 0).items()}
        found |= {f"{name} of step 1": value for name, value in run(device, other, 1).items()}
        assert_same_bits(found | resident(device, other), expected)


@each_kind
def test_a_smaller_batch_runs_over_the_same_weights(kind):
    net = norm_dropout(4)
    device = make_device(kind, net, poison=True)
    full = plan_on(device, FATES["offload"])
    part = plan_on(device, FATES["offload"], net=net.with_batch(3))
    reserve(device, full, part)
    fill(device, full)
    run(device, full)
    before = resident(device, full)
    assert_same_bits(resident(device, part), before)
    loss = run(device, part, 1)["loss1.y"]
    assert np.isfinite(loss).all()
    assert (device.read(full, "conv1.w") != before["conv1.w"]).any()
    device.close()


@each_kind
def test_a_step_can_be_repeated_without_feeding_it_again(kind):
    """Inputs keep their place on the host although offloads come and go there."""
    device = make_device(kind, chain(), poison=True)
    plan = plan_on(device, FATES["offload"], purpose="gradients", undo=False)
    reserve(device, plan)
    fill(device, plan)
    first = run(device, plan)
    execute(plan, device)
    assert_same_bits({name: device.read(plan, name) for name in plan.tape.results}, first)
    device.close()


# ---- memory, and data in and out


@each_storage
def test_residents_of_every_shape_and_type_can_be_written_and_read(kind):
    with ready(kind, norm_dropout(), FATES["offload"]) as (device, plan):
        numbers = np.random.default_rng(0)
        tensors = [plan.tape.tensors[name] for name in plan.tape.resident]
        assert {len(t.shape) for t in tensors} >= {1, 2, 4}
        values = {t.name: numbers.standard_normal(t.shape).astype(t.dtype) for t in tensors}
        for name, value in values.items():
            device.write(plan, name, value)
        for name, value in values.items():
            found = device.read(plan, name)
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, value, err_msg=name)


@each_storage
def test_a_value_in_any_memory_order_is_written_by_its_logical_order(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        value = np.random.default_rng(0).standard_normal(plan.tape.tensors["conv2.w"].shape).astype(np.float32)
        for given in (np.asfortranarray(value), np.repeat(value, 2, axis=3)[..., ::2], value.astype(np.float64)):
            device.write(plan, "conv2.w", np.zeros_like(value))
            device.write(plan, "conv2.w", given)
            np.testing.assert_array_equal(device.read(plan, "conv2.w"), value)


@each_kind
def test_what_is_read_is_a_copy(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        loss = run(device, plan)["loss1.y"]
        value = loss.copy()
        weight = device.read(plan, "conv1.w")
        weight[...] = 0
        assert device.read(plan, "conv1.w").any()
        run(device, plan, 1)
        np.testing.assert_array_equal(loss, value)


@each_kind
def test_the_clock_is_double_and_reaches_the_step_as_it_was_written(kind):
    """A learning rate of 0 moves no weight, another one does; in float32 neither would be exact."""
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        before = resident(device, plan)
        feed(device, plan)
        device.write(plan, "clock", np.zeros(8))
        execute(plan, device)
        assert_same_bits({"conv1.w": device.read(plan, "conv1.w")}, {"conv1.w": before["conv1.w"]})
        run(device, plan)
        assert (device.read(plan, "conv1.w") != before["conv1.w"]).any()
        assert plan.tape.tensors["clock"].dtype == "float64"


@each_kind
def test_larger_slabs_keep_the_weights_and_the_step_goes_on(kind, kept):
    expected, first = kept(kind, residual)
    with ready(kind, residual(), FATES["offload"], algorithms=first.decisions.algorithms) as (device, plan):
        found = {f"{name} of step 0": value for name, value in run(device, plan, 0).items()}
        before = resident(device, plan)
        device.grow(2 * device.arena_bytes, 2 * int(device.host.nbytes))
        assert device.arena_bytes >= 2 * plan.arena_bytes
        assert device.host.nbytes >= 2 * device.host_bytes_of(plan)
        assert_same_bits(resident(device, plan), before)
        found |= {f"{name} of step 1": value for name, value in run(device, plan, 1).items()}
        assert_same_bits(found | resident(device, plan), expected)


@each_kind
def test_slabs_that_are_large_enough_already_stay(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        sizes = device.arena_bytes, device.host.nbytes, device.host.ctypes.data
        feed(device, plan)
        device.grow(plan.arena_bytes - 512, 512)
        assert (device.arena_bytes, device.host.nbytes, device.host.ctypes.data) == sizes
        execute(plan, device)  # the inputs are where they were


@each_kind
def test_new_slabs_forget_the_weights(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        assert device.held.keys() == set(plan.tape.resident)
        reserve(device, plan)
        assert not device.held
        fill(device, plan)
        assert device.held.keys() == set(plan.tape.resident)


@each_kind
def test_a_device_with_nothing_reserved_takes_what_its_first_plan_needs(kind):
    net = chain()
    device = make_device(kind, net)
    plan = plan_on(device, FATES["offload"])
    device.load(plan)
    assert device.arena_bytes == plan.arena_bytes
    assert device.host.nbytes == device.host_bytes_of(plan) >= plan.host_bytes
    assert device.free_bytes() >= plan.arena_bytes
    device.close()


@pytest.mark.parametrize("kind", ON_CUDA)
def test_slabs_that_cannot_be_had_are_refused_with_numbers_and_the_weights_stay(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        before = resident(device, plan)
        absurd = 1 << 50
        with pytest.raises(DeviceError, match=f"{absurd} bytes.*are free"):
            device.grow(absurd, 0)
        assert device.arena_bytes == plan.arena_bytes
        assert_same_bits(resident(device, plan), before)
        run(device, plan)


@each_kind
@pytest.mark.parametrize("fates", FATES)
def test_the_measured_peak_is_the_predicted_one(kind, fates):
    with ready(kind, residual(), FATES[fates], undo=False) as (device, plan):
        assert device.measured_peak_bytes(plan) == plan.peak_bytes <= device.arena_bytes


@each_kind
def test_the_measured_peak_has_what_slack_holds(kind):
    with ready(
        kind, residual(), *(lambda t, n=n: Decisions(FATES["offload"](t), slack=n) for n in (0, 3)), undo=False
    ) as (device, without, slack):
        assert slack.peak_bytes >= without.peak_bytes  # more, unless the peak lies where nothing is offloaded
        for plan in (without, slack):
            assert device.measured_peak_bytes(plan) == plan.peak_bytes


# ---- what is refused


@each_kind
def test_an_unknown_name_is_refused_by_name(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        with pytest.raises(KeyError, match=r"'conv1\.ww' is no weight, state, statistic or input of chain"):
            device.write(plan, "conv1.ww", np.zeros(3))
        with pytest.raises(KeyError, match=r"conv1.y.* is no result of Plan\(chain"):
            device.read(plan, "conv1.y")


@each_kind
def test_another_shape_is_refused_with_both(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        with pytest.raises(ValueError, match=r"conv1.b has shape \(6,\), not \(1,\)"):
            device.write(plan, "conv1.b", np.zeros(1, np.float32))
        with pytest.raises(ValueError, match=r"input has shape \(4, 3, 8, 8\), not \(4, 3, 8\)"):
            device.write(plan, "input", np.zeros((4, 3, 8), np.float32))


@each_kind
def test_a_type_that_would_lose_what_it_says_is_refused(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        with pytest.raises(TypeError, match="same_kind"):
            device.write(plan, "labels", np.zeros(4, np.float64))
        with pytest.raises(TypeError, match="same_kind"):
            device.write(plan, "conv1.b", np.zeros(6, np.complex64))


@pytest.mark.parametrize("what", ["kernels", "storage", "threads", "optimizer"])
@each_kind
def test_a_plan_for_something_else_is_refused_naming_both(kind, what):
    other = 77 if what == "threads" else "another"
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        mine = getattr(plan.tape, what)
        with pytest.raises(DeviceError, match=f"the plan is for {what} {other!r}, this device has {mine!r}"):
            device.load(replace(plan, tape=replace(plan.tape, **{what: other})))


@each_kind
def test_a_plan_with_updates_needs_an_optimizer(kind):
    net = chain()
    device = make_device(kind, net)
    plan = plan_on(device)
    device.optimizer = None
    with pytest.raises(DeviceError, match="for optimizer 'momentum', this device has 'none'"):
        device.load(plan)
    device.close()


@each_kind
def test_a_slab_that_is_too_small_is_refused_with_both_numbers(kind):
    with ready(kind, chain(), FATES["offload"]) as (device, plan):
        larger = replace(plan, arena_bytes=plan.arena_bytes + 512)
        with pytest.raises(DeviceError, match=f"arena of {plan.arena_bytes + 512} bytes.* {device.arena_bytes}"):
            device.load(larger)
        larger = replace(plan, host_bytes=plan.host_bytes + 512)
        need = device.host_bytes_of(larger)
        with pytest.raises(DeviceError, match=f"host slab of {need} bytes.* {device.host.nbytes}"):
            device.load(larger)


@each_kind
def test_an_edited_plan_that_is_unsafe_is_refused_unless_nobody_checks(kind):
    with ready(kind, chain(), FATES["offload"]) as (device, plan):
        unsafe = replace(plan, steps=tuple(replace(s, waits=()) for s in plan.steps))
        with pytest.raises(PlanError, match="<-- HERE"):
            device.load(unsafe)
        device.checked = False
        device.load(unsafe)


@each_kind
def test_a_plan_that_finds_the_weights_elsewhere_is_refused(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        device.checked = False
        moved = tuple(
            replace(s, offset=s.offset + 512) if s.kind == "alloc" and s.name in plan.tape.resident else s
            for s in plan.steps
        )
        with pytest.raises(
            DeviceError, match=r"not for the weights on this device: \S+ lies at \d+ in the plan, at \d+"
        ):
            device.load(replace(plan, steps=moved))


@each_kind
def test_a_plan_of_another_network_is_refused_by_the_name_of_a_weight(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, _):
        other = plan_on(device, net=residual())
        with pytest.raises(DeviceError, match="not for the weights on this device"):
            device.load(other)


# ---- what happens in a step


@pytest.mark.parametrize("fates", FATES)
@each_kind
def test_a_trace_has_times_of_all_that_takes_time_in_an_order_that_the_plan_allows(kind, fates):
    skew = SKEW if kind == "cuda" else 0
    with ready(kind, chain(), FATES[fates]) as (device, plan):
        run(device, plan)
        feed(device, plan, 1)
        trace = execute(plan, device)
    assert [event.step for event in trace.events] == list(plan.steps)
    last = dict.fromkeys(("compute", "offload", "prefetch"), 0.0)
    for event in trace.events:
        if event.step.kind in ("alloc", "free"):
            assert event.start is event.finish is None
            continue
        assert last[event.stream] - skew <= event.start <= event.finish <= trace.step_seconds
        assert all(trace.events[w].finish <= event.start + skew for w in event.step.waits)
        last[event.stream] = event.finish
    assert trace.kind == "measured"
    assert trace.step_seconds > 0


@pytest.mark.parametrize("fates", ["offload", "alternate"])
@each_kind
def test_a_walk_yields_every_step_in_plan_order_and_says_what_is_in_use(kind, fates, kept):
    expected, first = kept(kind, residual)
    with ready(kind, residual(), FATES[fates], algorithms=first.decisions.algorithms) as (device, plan):
        found = {}
        for step in range(2):
            feed(device, plan, step)
            seen = []
            for event in walk(plan, device):
                seen.append((event.step, device.bytes_in_use))
            assert [s for s, _ in seen] == list(plan.steps)
            assert tuple(n for _, n in seen) == plan.live_bytes
            assert device.bytes_in_use == plan.tape.resident_bytes
            found |= {f"{name} of step {step}": device.read(plan, name) for name in plan.tape.results}
        assert_same_bits(found | resident(device, plan), expected)


@each_kind
def test_the_events_of_a_walk_have_times_at_its_end(kind):
    with ready(kind, chain(), FATES["offload"]) as (device, plan):
        feed(device, plan)
        for event in list(walk(plan, device)):
            if event.step.kind not in ("alloc", "free"):
                assert 0 <= event.start <= event.finish


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
@each_kind
def test_leaving_a_walk_early_leaves_everything_as_it_was(kind, share):
    with ready(kind, residual(), FATES["offload"]) as (device, plan):
        run(device, plan)
        feed(device, plan, 1)
        before = resident(device, plan)
        for event in walk(plan, device):
            if event.index >= share * len(plan.steps):
                break
        gc.collect()  # the generator is closed when nobody holds it
        assert_same_bits(resident(device, plan), before)
        assert device.bytes_in_use == plan.tape.resident_bytes
        execute(plan, device)
        assert (device.read(plan, "conv1.w") != before["conv1.w"]).any()


@each_kind
def test_an_exception_in_the_body_of_the_loop_undoes_the_step(kind):
    with ready(kind, residual(), FATES["drop"]) as (device, plan):
        run(device, plan)
        feed(device, plan, 1)
        before = resident(device, plan)
        events = walk(plan, device)
        for event in events:
            if event.index == len(plan.steps) - 1:
                break
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt())
        assert_same_bits(resident(device, plan), before)


@pytest.mark.parametrize("at", ["the middle", "the end"])
@each_kind
def test_another_step_is_refused_while_a_walk_is_open(kind, at, kept):
    expected, first = kept(kind, chain)
    with ready(kind, chain(), FATES["offload"], algorithms=first.decisions.algorithms) as (device, plan):
        index = len(plan.steps) // 2 if at == "the middle" else len(plan.steps) - 1
        found = {}
        for step in range(2):
            feed(device, plan, step)
            for event in walk(plan, device):
                if event.index == index:
                    with pytest.raises(RuntimeError, match="exhaust or close its walk first"):
                        execute(plan, device)
                    with pytest.raises(RuntimeError, match="exhaust or close its walk first"):
                        device.reserve(device.arena_bytes, device.host.nbytes)
            found |= {f"{name} of step {step}": device.read(plan, name) for name in plan.tape.results}
        assert_same_bits(found | resident(device, plan), expected)


@pytest.mark.parametrize("kind", ON_CUDA)
def test_the_next_inputs_are_written_while_a_step_runs_and_do_not_reach_it(kind, kept):
    expected, first = kept(kind, residual)
    with ready(kind, residual(), FATES["offload"], algorithms=first.decisions.algorithms) as (device, plan):
        feed(device, plan, 0)
        pending = begin(plan, device, timed=False)
        feed(device, plan, 1)
        assert pending.finish() is None
        found = {f"{name} of step 0": device.read(plan, name) for name in plan.tape.results}
        begin(plan, device, timed=False).finish()
        found |= {f"{name} of step 1": device.read(plan, name) for name in plan.tape.results}
        assert_same_bits(found | resident(device, plan), expected)


@pytest.mark.parametrize("kind", ON_CUDA)
def test_steps_as_graphs_give_the_bits_of_steps_one_by_one(kind, kept):
    _, first = kept(kind, chain)
    found = []
    for graphs in (True, False):
        options = {"algorithms": first.decisions.algorithms, "graphs": graphs}
        with ready(kind, chain(), FATES["alternate"], **options) as (device, plan):
            results = {}
            for step in range(3):
                feed(device, plan, step)
                begin(plan, device, timed=False).finish()
                results |= {f"{name} of step {step}": device.read(plan, name) for name in plan.tape.results}
            found.append(results | resident(device, plan))
            assert device.graph_refusal == ""
    assert_same_bits(*found)


# ---- failures


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
@each_kind
def test_a_failure_leaves_everything_as_it_was_and_says_in_which_step(kind, phase):
    net = failing_network()
    with ready(kind, net, FATES["offload"], optimizer=FailingSGD(0.01, momentum=0.9)) as (device, plan):
        run(device, plan)  # so that states and statistics are no zeros
        feed(device, plan, 1)
        before = resident(device, plan)
        with failing(net, phase), pytest.raises(ArithmeticError, match=f"{phase} fails") as error:
            execute(plan, device)
        assert "in step" in error.value.__notes__[0]
        assert ("conv1.w.update" if phase == "update" else f"failing1.{phase}") in error.value.__notes__[0]
        assert_same_bits(resident(device, plan), before)
        assert device.bytes_in_use == plan.tape.resident_bytes
        assert not device.torn


@pytest.mark.parametrize("phase", ["forward", "backward", "update"])
@each_kind
def test_the_step_after_a_failure_has_the_bits_of_one_without(kind, phase):
    found, algorithms = [], None
    for fails in (False, True):
        net, optimizer = failing_network(), FailingSGD(0.01, momentum=0.9)
        with ready(kind, net, FATES["offload"], optimizer=optimizer, algorithms=algorithms) as (device, plan):
            algorithms = plan.decisions.algorithms
            run(device, plan)
            feed(device, plan, 1)
            if fails:
                with failing(net, phase), pytest.raises(ArithmeticError):
                    execute(plan, device)
            execute(plan, device)
            found.append(resident(device, plan))
    assert_same_bits(*found)


@each_kind
def test_a_step_that_ended_well_can_be_taken_back(kind):
    with ready(kind, residual(), FATES["alternate"]) as (device, plan):
        run(device, plan)
        before = resident(device, plan)
        run(device, plan, 1)
        assert (device.read(plan, "conv1.w") != before["conv1.w"]).any()
        assert "as before this step" in device.take_back(plan)
        assert_same_bits(resident(device, plan), before)


@each_kind
def test_without_undo_a_step_cannot_be_taken_back_and_the_next_is_refused(kind):
    with ready(kind, chain(), FATES["keep"], undo=False) as (device, plan):
        run(device, plan)
        assert "lost: undo=False" in device.take_back(plan)
        with pytest.raises(DeviceError, match="half updated; load them from a checkpoint first"):
            execute(plan, device)


@each_kind
def test_without_undo_a_torn_step_is_said_and_the_next_one_refused(kind):
    net = failing_network()
    with ready(kind, net, FATES["keep"], optimizer=FailingSGD(0.01, momentum=0.9), undo=False) as (device, plan):
        feed(device, plan)
        with failing(net, "backward"), pytest.raises(ArithmeticError):  # the last layers' weights are updated before
            execute(plan, device)
        assert device.torn
        with pytest.raises(DeviceError, match="half updated; load them from a checkpoint first"):
            execute(plan, device)
        reserve(device, plan)
        assert not device.torn
        fill(device, plan)
        run(device, plan)


@each_kind
def test_without_undo_a_failure_before_the_first_update_tears_nothing(kind):
    net = failing_network()
    with ready(kind, net, FATES["keep"], optimizer=FailingSGD(0.01, momentum=0.9), undo=False) as (device, plan):
        feed(device, plan)
        before = {n: v for n, v in resident(device, plan).items() if not n.startswith("bn1.")}
        first = next(i for i, _, op in plan.computes() if op.phase == "update" or op.phase == "update_statistics")
        for event in walk(plan, device):
            if event.index == first - 1:
                break
        gc.collect()
        assert not device.torn
        assert_same_bits({n: device.read(plan, n) for n in before}, before)


# ---- the end


@each_kind
def test_a_device_can_be_closed_twice(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        run(device, plan)
        device.close()
        device.close()


@each_kind
def test_a_closed_device_is_refused(kind):
    with ready(kind, chain(), FATES["keep"]) as (device, plan):
        device.close()
        with pytest.raises(RuntimeError, match="this device was closed"):
            execute(plan, device)
        with pytest.raises(RuntimeError, match="this device was closed"):
            device.reserve(512, 512)


@each_kind
def test_a_device_is_closed_although_its_step_still_runs(kind):
    with ready(kind, chain(), FATES["offload"]) as (device, plan):
        feed(device, plan)
        begin(plan, device, timed=False)
        device.close()


@each_kind
def test_devices_side_by_side_do_not_disturb_each_other(kind, kept):
    expected, first = kept(kind, chain)
    options = {"algorithms": first.decisions.algorithms}
    with (
        ready(kind, chain(), FATES["offload"], **options) as (one, plan),
        ready(kind, chain(), FATES["drop"], **options) as (other, second),
    ):
        found, beside = {}, {}
        for step in range(2):
            found |= {f"{name} of step {step}": value for name, value in run(one, plan, step).items()}
            beside |= {f"{name} of step {step}": value for name, value in run(other, second, step).items()}
        assert_same_bits(found | resident(one, plan), expected)
        assert_same_bits(beside | resident(other, second), expected)


def test_decisions_offload_nothing_by_accident():
    """The fates that the tests above compare do differ in what is copied and what is run again."""
    with ready("host", residual(), *FATES.values(), undo=False) as (_, *plans):
        keep, offload, drop, alternate = plans
        assert keep.offloaded_bytes == drop.offloaded_bytes == 0 < alternate.offloaded_bytes < offload.offloaded_bytes
        assert len(keep.steps) < len(alternate.steps)
        assert len(list(keep.computes())) < len(list(drop.computes()))
        assert any(plan.fate("conv1.y") is OFFLOAD for plan in (offload, alternate)) or alternate.offloaded_bytes
