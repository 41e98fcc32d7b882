"""With equal algorithms every policy gives the same bits, whatever the timing of the streams."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NETWORKS as BUILDERS

import vdnn
from vdnn.fitting import least_plan
from vdnn.memory.policy import POLICIES
from vdnn.memory.rules import offload_inputs, under

STEPS = 3
NETWORKS = {build.__name__: build for build in BUILDERS}


def largest_first(tape):
    """A policy of a user's own: the larger half of what is saved is offloaded, the rest dropped or kept in turn."""
    ordered = sorted(tape.saved, key=lambda t: -t.nbytes)
    fates = dict.fromkeys(ordered[: len(ordered) // 2], vdnn.OFFLOAD)
    features = [t for t in ordered[len(ordered) // 2 :] if t.role is vdnn.Role.FEATURE]
    return fates | {t: vdnn.DROP if i % 2 else vdnn.KEEP for i, t in enumerate(features)}


def offload_each_use(tape):
    """Everything offloaded, and brought back for each backward use on its own."""
    return vdnn.Decisions(dict.fromkeys(tape.saved, vdnn.OFFLOAD), ahead=0, returns="each")


def paper_rules(tape):
    """The paper's copies on one stream, joined after every layer that copied."""
    return under("paper", offload_inputs(tape, ("conv", "pool"), "paper"))


EVERY = {**{name: name for name in POLICIES}, "own": largest_first, "each": offload_each_use, "paper": paper_rules}


def data(net):
    numbers = np.random.default_rng(7)
    classes = net.scores.shape[1]
    return [
        (numbers.standard_normal(net.input.shape, np.float32), numbers.integers(classes, size=net.batch))
        for _ in range(STEPS)
    ]


def train(name, policy, algorithms, seed=None, budget=None):
    """Losses of the steps, gradients after them, every array, the plan.  A seed delays streams at random."""
    net = NETWORKS[name]()
    delays = random.Random(seed)
    delay = None if seed is None else lambda step: max(0.0, delays.uniform(-0.002, 0.001))
    device = vdnn.HostDevice(net, threads=2, delay=delay, poison=True)
    optimizer = vdnn.SGD(0.1, momentum=0.9, weight_decay=1e-3)
    trainer = vdnn.Trainer(net, policy, budget, device=device, optimizer=optimizer, algorithms=algorithms, seed=1)
    batches = data(net)
    losses = [trainer.step(*batch) for batch in batches]
    loss, gradients = trainer.gradients(*batches[0])
    arrays = {k: v for group in (trainer.weights, trainer.state, trainer.statistics) for k, v in group.items()}
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes <= trainer.plan.arena_bytes
    plan = trainer.plan
    trainer.close()
    return [*losses, loss], gradients, arrays, plan


@pytest.fixture(scope="module")
def references():
    made = {name: train(name, "keep_all", "performance") for name in NETWORKS}
    for losses, gradients, arrays, _ in made.values():
        for value in (*losses, *gradients.values(), *arrays.values()):
            assert np.isfinite(value).all()
        assert all(loss > 0 for loss in losses)
        assert len(set(losses)) == len(losses)  # training moves
        for key, value in {**gradients, **arrays}.items():
            assert np.abs(value).max() > 0, key
    return made


def assert_same(found, wanted):
    assert found[0] == wanted[0]
    for mine, theirs in zip(found[1:3], wanted[1:3], strict=True):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            assert mine[key].tobytes() == theirs[key].tobytes(), key


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_policy_gives_the_bits_of_keep_all_under_random_delays(references, name, policy):
    reference = references[name]

    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        assert_same(train(name, EVERY[policy], reference[3], seed), reference)

    check()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_changes_no_bit_down_to_the_least_that_plans(references, name):
    least = least_plan(NETWORKS[name](), threads=2)
    lean = train(name, "keep_all", least)
    found = train(name, least.decisions, least, seed=0, budget=least.arena_bytes)
    assert found[3].arena_bytes == least.arena_bytes
    assert_same(found, lean)
