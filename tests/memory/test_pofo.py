import random
from dataclasses import replace
from itertools import product

import pytest
from handmade import COST, SMALL

from vdnn import models, optimizers
from vdnn.building import build
from vdnn.memory.chain import Stage, chains_of
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import keep_all
from vdnn.memory.published.offloading_chain import solve
from vdnn.memory.published.pofo import pofo
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import fastest, sketch, trial
from vdnn.memory.verify import verify
from vdnn.network import Role
from vdnn.setting import kernels_named

TITAN = roofline("titan-x")
INFINITE = float("inf")


def stage(name, size, forward, backward, link=1.0, before=0, inside=0):
    """A layer whose backward needs its input and its output; times in seconds, sizes in bytes, `link` in s/byte."""
    return Stage(
        output=name,
        inside=(f"{name}.inside",) if inside else (),
        output_bytes=size,
        inside_bytes=inside,
        forward_seconds=forward,
        backward_seconds=backward,
        again_seconds=forward,
        inside_seconds=forward if inside else 0,
        forward_bytes=before + size + inside,
        passing_bytes=before + size,
        backward_bytes=before + size + inside,
        late_bytes=before + size + inside,
        gradient_bytes=0,
        output_out=size * link if name != "x" else 0,
        output_in=size * link,
        inside_out=inside * link,
        inside_in=inside * link,
        input_lead=forward,
        inside_lead=0,
    )


# ---- a chain small enough to work out


def three(memory):
    """x (1 byte) -> a (4) -> b (1) -> the end; copies take a second a byte."""
    stages = [stage("x", 1, 0, 0), stage("a", 4, 2, 3, before=1), stage("b", 1, 3, 4, before=4)]
    return solve([*stages, stage("", 0, 1, 1, before=1)], memory, (memory, memory, memory))


def test_in_enough_memory_a_chain_costs_nothing():
    # forward of b takes a and b, and x that is kept below: 1 + 4 + 1
    assert three(6).seconds == 0


def test_with_a_byte_less_the_input_is_fetched_again_in_the_shadow_of_backward():
    # b's forward takes 5 beside nothing; x comes back while b computes backward, but a and b take all 5 bytes then: it
    # is in the queue for a whole second, which begins when the backward of b ends
    found = three(5)
    assert found.fates[0] == (KEEP, OFFLOAD)
    assert found.seconds == 1


def test_less_than_an_op_takes_is_no_memory_for_the_chain():
    assert three(4) is None


def test_a_dropped_stage_costs_its_forward_where_the_link_is_slower():
    # 8 bytes that stay over the last stage's 9 do not fit; their copies would take 80 s each way, the ops 2 s
    stages = [stage("x", 1, 0, 0), stage("a", 8, 2, 2, 10.0, before=1), stage("b", 1, 1, 1, 10.0, before=8)]
    stages += [stage("c", 8, 1, 1, 10.0, before=1), stage("", 0, 1, 1, before=8)]
    found = solve(stages, 11, (11, 110, 110))
    assert found.fates[1] == (DROP, DROP)
    assert found.seconds == 2


# ---- against all assignments


def price(stages, fates, memory, out_rate, back_rate):
    """Seconds that fates [(inside, output)] cost in the model, written out step by step; infinite if they do not fit.

    Forward and backward are walked apart, and a run of dropped stages is looked at as a whole.
    """
    n = len(stages)
    seconds = 0.0
    kept = [0]  # below each stage, its input not counted
    for k in range(1, n):
        inside, cut = fates[k][0], fates[k - 1][1]
        kept.append(kept[-1] + (stages[k].inside_bytes if inside is KEEP else 0))
        kept[-1] += stages[k - 1].output_bytes if cut is KEEP else 0
    waiting = 0.0
    for k in range(1, n):  # forward
        s, inside = stages[k], fates[k][0]
        room = memory - kept[k - 1] - (s.passing_bytes if inside is DROP else s.forward_bytes)
        if room < 0:
            return INFINITE
        stall = max(0.0, waiting - room * out_rate)
        seconds += stall
        waiting = max(0.0, waiting - stall - (s.forward_seconds - s.input_lead))
        waiting += stages[k - 1].output_out if fates[k - 1][1] is OFFLOAD else 0
        waiting = max(0.0, waiting - s.input_lead) + (s.inside_out if inside is OFFLOAD else 0)
    seconds += waiting
    waiting = 0.0
    for k in range(1, n):  # backward, from its end
        s, (inside, output), cut = stages[k], fates[k], fates[k - 1][1]
        begin = k  # the run of dropped stages below, if any, is begin .. k - 1
        while fates[begin - 1][1] is DROP:
            begin -= 1
        held = sum(stages[j].inside_bytes for j in range(begin, k))
        held += sum(stages[j].output_bytes for j in range(begin, k - 1))
        fetched = begin < k and fates[begin - 1][1] is OFFLOAD
        held += stages[begin - 1].output_bytes if fetched else 0
        free = memory - kept[k - 1] - held
        room = free - s.backward_bytes
        if room < 0:
            if cut is not OFFLOAD or DROP in (inside, output) or free < s.late_bytes:
                return INFINITE
            stall = max(0.0, waiting - (free - s.late_bytes) * back_rate)
            rest = max(0.0, waiting - stall - (s.backward_seconds - s.input_need))
            seconds += stall + rest + stages[k - 1].output_in
            waiting = s.inside_in if inside is OFFLOAD else 0
            continue
        stall = max(0.0, waiting - room * back_rate)
        again = s.again_seconds if output is DROP else s.inside_seconds if inside is DROP else 0.0
        seconds += stall + again
        need = 0 if inside is DROP else s.input_need  # of what has to be there first, if it runs again
        waiting = max(0.0, waiting - stall - (s.backward_seconds + again - need))
        waiting += stages[k - 1].output_in if cut is OFFLOAD and output is not DROP else 0
        waiting = max(0.0, waiting - need)
        if output is not DROP:
            waiting += stages[begin - 1].output_in if fetched else 0
            if peak_of_reruns(stages, fates, k, begin, kept, held) > memory:
                return INFINITE
        waiting += s.inside_in if inside is OFFLOAD else 0
    return seconds + waiting


def peak_of_reruns(stages, fates, k, begin, kept, held):
    """Most bytes while what is dropped right below stage k, and its inside, is run again."""
    s, peak = stages[k], 0
    there = s.gradient_bytes + s.output_bytes + (s.inside_bytes if fates[k][0] is not DROP else 0)
    run = stages[begin - 1].output_bytes if fates[begin - 1][1] is OFFLOAD else 0
    for j in range(begin, k):
        first_kept = stages[j - 1].output_bytes if j == begin and fates[j - 1][1] is KEEP else 0  # is in kept
        taken = stages[j].forward_bytes - first_kept
        before = 0 if j == begin else run
        peak = max(peak, kept[k - 1] + before + taken + there)
        run += stages[j].inside_bytes + (stages[j - 1].output_bytes if j > begin else 0)
    if fates[k][0] is DROP and s.inside_bytes:
        peak = max(peak, kept[k - 1] + held + s.forward_bytes + s.gradient_bytes)
    return peak


def random_chain(seed):
    """A chain of two to four layers with small whole sizes and times, half of the stages with an inside."""
    rng = random.Random(seed)
    size = rng.randint(1, 3)
    stages = [stage("x", size, 0, 0)]
    for k in range(rng.randint(2, 4)):
        before, size = size, rng.randint(1, 4)
        inside = rng.choice((0, rng.randint(1, 4)))
        made = stage(f"y{k}", size, rng.randint(1, 4), rng.randint(1, 6), before=before, inside=inside)
        lead = rng.randint(0, int(made.forward_seconds))
        scratch, grown = rng.randint(0, 3), rng.randint(0, 3)
        made = replace(made, passing_bytes=made.passing_bytes + scratch, forward_bytes=made.forward_bytes + scratch)
        made = replace(made, backward_bytes=made.backward_bytes + grown)
        need, late = rng.randint(0, int(made.backward_seconds)), made.backward_bytes - rng.choice((0, before))
        made = replace(made, input_lead=lead, input_need=need, late_bytes=late)
        stages.append(replace(made, gradient_bytes=rng.randint(0, 2)))
    return [*stages, stage("", 0, 1, 1, before=size)]


def all_fates(stages):
    choices = [[(KEEP, KEEP), (KEEP, OFFLOAD)]]
    for s in stages[1:]:
        insides = (KEEP, OFFLOAD, DROP) if s.inside_bytes else (KEEP,)
        choices.append([(i, o) for i in insides for o in ((KEEP, OFFLOAD) if s.output else (KEEP,))])
        choices[-1] += [(DROP, DROP)] if s.output else []
    return product(*choices)


def test_the_program_finds_what_trying_all_assignments_finds():
    tight = impossible = 0
    for seed in (*range(200), 1108):  # the last pays for copies that wait behind a late one
        stages = random_chain(seed)
        memory = max(max(s.late_bytes, s.passing_bytes) for s in stages) + seed % 7
        best = min(price(stages, fates, memory, 1.0, 1.0) for fates in all_fates(stages))
        found = solve(stages, memory, (memory, memory, memory))
        tight += 0 < best < INFINITE
        impossible += best == INFINITE
        assert (found is None) == (best == INFINITE), f"chain {seed} in {memory} bytes"
        if found:
            assert found.seconds == pytest.approx(best), f"chain {seed} in {memory} bytes"
            assert price(stages, found.fates, memory, 1.0, 1.0) == pytest.approx(best)
    assert tight > 50  # chains where something has to be paid
    assert 10 < impossible < 100


# ---- on tapes


@pytest.fixture(scope="module")
def vgg():
    return build(models.get("vgg11", batch=16), kernels_named("numpy"), optimizers.get("sgd"))


def kept_peak(tape):
    return sketch(tape, resolve(keep_all(), tape, fastest(tape, TITAN))).peak_bytes


def share_of(tape, share):
    return int(tape.floor_bytes + share * (kept_peak(tape) - tape.floor_bytes))


def planned(tape, budget):
    chosen = fastest(tape, TITAN)
    return resolve(pofo(tape, budget, TITAN, chosen), tape, chosen)


def test_every_saved_tensor_of_some_size_belongs_to_one_stage(vgg):
    chain = chains_of(vgg, TITAN, fastest(vgg, TITAN))[0]
    owned = [b for s in chain.stages for b in (*s.inside, s.output) if b]
    assert len(owned) == len(set(owned))
    assert {"input", "conv1_1.y", "pool1.indices", "pool1.y"} <= set(owned) <= {t.name for t in vgg.saved}


def test_the_stages_take_as_long_as_the_ops(vgg):
    chosen = fastest(vgg, TITAN)
    total = sum(TITAN.op_seconds(vgg, op, chosen[op.name]) for op in vgg.ops)
    stages = chains_of(vgg, TITAN, chosen)[0].stages
    assert sum(s.forward_seconds + s.backward_seconds for s in stages) == pytest.approx(total)


def test_the_gradients_of_earlier_sub_batches_are_taken_whatever_is_decided(vgg):
    tape = build(models.get("vgg11", batch=16), kernels_named("numpy"), optimizers.get("sgd"), micro_batches=2)
    first, second = chains_of(tape, TITAN, fastest(tape, TITAN))
    weights = sum(tape.buffers[b].nbytes for b in tape.buffers if tape.buffers[b].role is Role.WEIGHT)
    assert second.always_bytes - first.always_bytes == weights  # as large as what they are the gradients of
    assert [(s.output, s.output_bytes) for s in second.stages] == [
        (s.output and f"{s.output}@2", s.output_bytes) for s in first.stages
    ]


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25, 0.1])
def test_plans_of_a_chain_fit_and_verify(vgg, share):
    budget = share_of(vgg, share)
    plan = make_plan(vgg, planned(vgg, budget))
    verify(plan)
    assert plan.arena_bytes <= budget


def test_a_network_of_blocks_fits_with_reruns_and_copies_in_one_plan():
    tape = build(models.get("resnet18", batch=16), kernels_named("numpy"), optimizers.get("sgd"))
    budget = share_of(tape, 0.15)
    decisions = planned(tape, budget)
    plan = make_plan(tape, decisions)
    verify(plan)
    assert plan.arena_bytes <= budget
    dropped = {b for b, fate in decisions.fates.items() if fate is DROP}
    assert dropped & {t.name for t in tape.saved}
    assert OFFLOAD in decisions.fates.values()


def test_with_memory_for_everything_the_step_is_that_of_keep_all(vgg):
    chosen = fastest(vgg, TITAN)
    everything = simulate(make_plan(vgg, resolve(keep_all(), vgg, chosen)), TITAN).step_seconds
    assert simulate(make_plan(vgg, planned(vgg, 2 * kept_peak(vgg))), TITAN).step_seconds <= everything * 1.0005


def test_the_same_question_has_the_same_answer(vgg):
    budget = share_of(vgg, 0.6)
    assert planned(vgg, budget) == planned(vgg, budget)


def test_a_budget_below_the_floor_gives_decisions_that_do_not_fit_but_plan(vgg):
    budget = vgg.floor_bytes // 2
    assert trial(vgg, planned(vgg, budget), budget).arena_bytes > budget


def test_a_tape_without_backward_needs_no_decisions(vgg):
    tape = build(models.get("vgg11", batch=2), kernels_named("numpy"), optimizers.get("sgd"), purpose="evaluate")
    assert pofo(tape, 1 << 30, TITAN, {}) == Decisions()


def test_a_handmade_tape_is_planned():
    decisions = resolve(pofo(SMALL, 1 << 20, COST, {}), SMALL, {})
    assert trial(SMALL, decisions, 1 << 20).peak_bytes <= 1 << 20
