from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from networks import FATES, chain, device_for, feed, plan_of, residual
from stubs import decided, squares, tape_of

from vdnn.memory.execute import execute
from vdnn.memory.plan import Plan, PlanError, Step
from vdnn.memory.poison import Poison
from vdnn.memory.verify import verify

STEPS = """
compute alloc conv1.w @0
compute alloc conv1.w.v @512
compute alloc conv1.y @1024
compute alloc square1.y @1536
compute compute square1.forward by default
offload offload conv1.y @0
compute free conv1.y
compute free square1.y
"""


@pytest.fixture
def poisoned():
    tape = tape_of(squares(1))
    steps = tuple(Step.parse(line) for line in STEPS.strip().splitlines())
    arena = np.zeros(2048, np.uint8)
    poison = Poison(Plan(tape, decided(tape), steps, 2048, 512), arena)
    poison.reset()
    return poison, arena.reshape(4, 512)


def test_before_a_step_everything_but_what_is_resident_is_nan(poisoned):
    _, granules = poisoned
    assert (granules[:2] == 0).all()
    assert np.isnan(granules[2:].view(np.float32)).all()
    assert np.isnan(granules[2:].view(np.float64)).all()


@pytest.mark.parametrize("order", [(4, 5), (5, 4)])
def test_bytes_are_overwritten_after_the_last_of_their_users_whichever_that_is(poisoned, order):
    poison, granules = poisoned
    granules[2:] = 1
    actions = {4: poison.after(4, lambda: None), 5: poison.after(5, lambda: None)}
    actions[order[0]]()
    assert (granules[2] == 1).all()
    actions[order[1]]()
    assert (granules[2:] == 0xFF).all()


def test_an_action_runs_before_its_bytes_are_overwritten(poisoned):
    poison, granules = poisoned
    granules[2:] = 1
    seen = []
    poison.after(4, lambda: seen.append(int(granules[3, 0])))()
    assert seen == [1]
    assert (granules[3] == 0xFF).all()


def test_a_second_run_counts_from_the_beginning(poisoned):
    poison, granules = poisoned
    for _ in range(2):
        poison.reset()
        granules[2:] = 1
        poison.after(4, lambda: None)()
        assert (granules[2] == 1).all()
        poison.after(5, lambda: None)()
        assert (granules[2] == 0xFF).all()


# ---- plans that use bytes after they were freed


def freed_early(plan, name):
    """`plan` with the first free of a buffer right behind the op that makes it, waits renumbered."""
    order = list(range(len(plan.steps)))
    free = next(i for i, s in enumerate(plan.steps) if s.kind == "free" and s.name == name)
    k = next(i for i, op in enumerate(plan.tape.ops) if name in plan.tape.writes[i])
    made = max(i for i, _, op in plan.computes() if op is plan.tape.ops[k] and i < free)
    order.remove(free)
    order.insert(order.index(made) + 1, free)
    now = {old: new for new, old in enumerate(order)}
    steps = (replace(plan.steps[i], waits=tuple(now[w] for w in plan.steps[i].waits)) for i in order)
    return replace(plan, steps=tuple(steps))


@pytest.mark.parametrize(("make", "name"), [(chain, "maxpool1.y"), (chain, "conv1.y"), (residual, "bn2.y")])
@pytest.mark.parametrize("fates", ["keep", "offload"])
def test_a_buffer_that_is_freed_early_makes_the_loss_nan(make, name, fates):
    net = make()
    plan = freed_early(plan_of(net, FATES[fates]), name)
    with pytest.raises(PlanError):
        verify(plan)
    losses = {}
    for poison in (False, True):
        with device_for(net, plan, poison=poison, checked=False) as device:
            feed(device, plan)
            execute(plan, device)
            losses[poison] = device.read(plan, "loss1.y")[0]
    assert np.isnan(losses[True])


def test_the_environment_asks_for_poison(monkeypatch):
    net = chain()
    plan = plan_of(net)
    for value, poison in (("1", True), ("0", False)):
        monkeypatch.setenv("VDNN_SANITIZE", value)
        with device_for(net, plan, poison=None) as device:
            assert device.poison is poison
