"""The verifier against an oracle that shares nothing with it, on plans with one thing wrong."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
from mutants import KINDS, mutants, without_a_wait
from oracle import judge

from vdnn import models
from vdnn.building import build
from vdnn.layers.base import Algorithm, Layer, Shapes, Spec
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan, PlanError
from vdnn.memory.rules import offload_inputs, under
from vdnn.memory.verify import verify
from vdnn.micro_batches import joined
from vdnn.network import Network, Role
from vdnn.tape import GRANULE, Tape

# ---- layers that only say what they read and write: nothing here is ever computed


class Conv(Layer):
    def __init__(self, filters, scratch=1):
        self.filters, self.scratch = filters, scratch

    def shapes(self, x):
        return Shapes((x[0], self.filters, *x[2:]), {"w": Spec((self.filters, x[1], 3, 3)), "b": Spec((self.filters,))})

    def algorithms(self, kernels, phase, dtype, *x):
        return (Algorithm("plain", 0), Algorithm("roomy", self.scratch * GRANULE))

    def forward(self, x, w, b, y, algorithm, workspace): ...
    def backward_weights(self, x, dy, dw, db, algorithm, workspace): ...
    def backward_data(self, w, dy, dx, algorithm, workspace): ...


class ReLU(Layer):
    inplace = {"y": "x", "dx": "dy"}

    def forward(self, x, y): ...
    def backward(self, y, dy, dx): ...


class Pool(Layer):
    def shapes(self, x):
        y = (x[0], x[1], x[2] // 2, x[3] // 2)
        return Shapes(y, saved={"indices": Spec(y, "uint8")})

    def forward(self, x, y, indices): ...
    def backward(self, indices, dy, dx): ...


class Norm(Layer):
    def shapes(self, x):
        each = Spec((x[1],))
        return Shapes(x, {"w": each, "b": each}, {"m": each, "v": each}, {"mean": each, "variance": each})

    def forward(self, x, y, w, b, m, v): ...
    def update_statistics(self, m, v, mean, variance): ...
    def backward(self, x, w, m, v, dy, dx, dw, db): ...


class Dropout(Layer):
    inplace = {"dx": "dy"}

    def forward(self, x, y, clock): ...
    def backward(self, dy, dx, clock): ...


class Add(Layer):
    inputs = 2
    inplace = {"y": "x0"}
    passes_gradient = True

    def forward(self, x0, x1, y): ...


class Concat(Layer):
    inputs = 2

    def shapes(self, *x):
        return Shapes((x[0][0], x[0][1] + x[1][1], *x[0][2:]))

    def forward(self, x0, x1, y): ...
    def backward(self, dy, dx0, dx1): ...


class Linear(Layer):
    def __init__(self, units):
        self.units = units

    def shapes(self, x):
        return Shapes((x[0], self.units), {"w": Spec((self.units, x[1] * x[2] * x[3]))})

    def forward(self, x, w, y): ...
    def backward_weights(self, x, dy, dw): ...
    def backward_data(self, w, dy, dx): ...


class Loss(Layer):
    is_loss = True

    def shapes(self, x):
        return Shapes((1,), saved={"p": Spec(x)}, labels=Spec((x[0],), "int64"))

    def forward(self, x, labels, y, p): ...
    def backward(self, p, labels, dx): ...


# ---- networks whose buffers take one to five granules


def chain() -> Network:
    net = Network((2, 3, 6, 6), name="chain")
    x = net.add(ReLU(), net.add(Conv(4, 2), net.input))
    x = net.add(Pool(), x)
    x = net.add(ReLU(), net.add(Conv(12), x))
    net.add(Loss(), net.add(Linear(10), x))
    return net


def residual() -> Network:
    net = Network((2, 4, 4, 4), name="residual")
    x = net.add(ReLU(), net.add(Conv(8), net.input))
    for _ in range(2):
        y = net.add(Conv(8, 2), net.add(ReLU(), net.add(Conv(8), x)))
        x = net.add(ReLU(), net.add(Add(), y, x))
    net.add(Loss(), net.add(Linear(5), x))
    return net


def inception() -> Network:
    net = Network((2, 2, 8, 8), name="inception")
    x = net.add(ReLU(), net.add(Conv(4), net.input))
    left = net.add(ReLU(), net.add(Conv(2), x))
    right = net.add(ReLU(), net.add(Conv(3, 3), net.add(ReLU(), net.add(Conv(2), x))))
    x = net.add(Concat(), net.add(Concat(), left, right), x)
    net.add(Loss(), net.add(Linear(4), net.add(Pool(), x)))
    return net


def norm_and_dropout() -> Network:
    net = Network((2, 3, 6, 6), name="norm and dropout")
    x = net.add(ReLU(), net.add(Norm(), net.add(Conv(4), net.input)))
    x = net.add(ReLU(), net.add(Norm(), net.add(Conv(6, 2), x)))
    x = net.add(Dropout(), net.add(Pool(), x))
    net.add(Loss(), net.add(Linear(10), x))
    return net


NETWORKS = {f.__name__: f for f in (chain, residual, inception, norm_and_dropout)}
MOMENTUM = SimpleNamespace(name="momentum", state=("velocity",), workspace=lambda kernels, shape, dtype: GRANULE)
PLAIN = SimpleNamespace(name="sgd", state=(), workspace=lambda kernels, shape, dtype: 0)
KERNELS = SimpleNamespace(
    name="declared",
    storage="nhwc",
    threads=1,
    conv2d_algorithms=lambda *_, **__: (Algorithm("plain", 0), Algorithm("roomy", 3 << 20)),
)


# ---- policies


def keep_everything(tape: Tape) -> Decisions:
    return Decisions(dict.fromkeys(tape.features, KEEP))


def offload_everything(tape: Tape) -> Decisions:
    return Decisions(dict.fromkeys(tape.saved, OFFLOAD), roomy(tape))


def drop_most(tape: Tape) -> Decisions:
    features = [t for t in tape.features if t.role is not Role.INPUT]
    return Decisions({t: KEEP if i % 3 == 1 else DROP for i, t in enumerate(features)})


def mix(tape: Tape) -> Decisions:
    rng = random.Random(tape.network)
    fates = {t: rng.choice([KEEP, OFFLOAD, OFFLOAD, DROP]) for t in tape.features if t.role is not Role.INPUT}
    fates |= {t: OFFLOAD for t in tape.saved if t.role is Role.INPUT}
    return Decisions(fates, roomy(tape), ahead=3, slack=2)


def roomy(tape: Tape) -> dict[str, str]:
    return {op.name: "roomy" for op in tape.ops if len(op.algorithms) > 1}


def mix_on_disk(tape: Tape) -> Decisions:
    """As `mix`, but some of what leaves is on disk, undo copies among that."""
    given = mix(tape)
    away = [t for t, fate in given.fates.items() if fate is OFFLOAD and t.role is not Role.INPUT]
    away = [t for t in away if t.name not in tape.results]
    return replace(given, tiers=dict.fromkeys(away[::2], "disk"), host_budget=24 * GRANULE)


def network_wide(tape: Tape) -> Decisions:
    return Decisions(dict.fromkeys(tape.features, KEEP), roomy(tape), lifetimes="network")


POLICIES = {f.__name__: f for f in (keep_everything, offload_everything, drop_most, mix, mix_on_disk, network_wide)}
WITH_UNDO = ("mix", "mix_on_disk")


@cache
def planned(network: str, policy: str, purpose: str = "step") -> Plan:
    net = NETWORKS[network]() if network in NETWORKS else models.get(network, batch=4)
    undo = purpose == "step" and policy in WITH_UNDO
    tape = build(net, KERNELS, PLAIN if policy == "drop_most" else MOMENTUM, purpose)
    return make_plan(tape, resolve(POLICIES[policy](tape), tape, {}), undo=undo, effort=10_000)


def accepts(plan: Plan) -> bool:
    try:
        verify(plan)
    except PlanError:
        return False
    return True


def agrees(what: str, plan: Plan) -> bool:
    """Whether the plan is safe, of which verifier and oracle must be of one opinion."""
    verdict = judge(plan)
    assert accepts(plan) == verdict.safe, f"{what}: the oracle says {verdict}\n{plan}"
    return verdict.safe


PAIRS = pytest.mark.parametrize(("network", "policy"), [(n, p) for n in NETWORKS for p in POLICIES])


@PAIRS
def test_verifier_and_oracle_agree_on_every_mutant(network, policy, record_property):
    plan = planned(network, policy)
    assert agrees("the plan itself", plan)
    safe = [agrees(*mutant) for mutant in mutants(plan, random.Random(f"{network} {policy}"), per_kind=30)]
    record_property("safe mutants accepted", sum(safe))
    record_property("unsafe mutants refused", len(safe) - sum(safe))
    print(f"{network}, {policy}: {len(safe) - sum(safe)} unsafe mutants refused, {sum(safe)} safe ones accepted")
    assert any(safe)
    assert not all(safe)


@pytest.mark.parametrize("network", NETWORKS)
def test_verifier_and_oracle_agree_on_mutants_of_plans_by_the_papers_rules(network):
    tape = planned(network, "mix").tape
    decisions = under("paper", resolve(offload_inputs(tape, ("conv", "pool"), "paper"), tape, {}))
    plan = make_plan(tape, decisions, undo=True)
    assert agrees("the plan itself", plan)
    verdicts = [agrees(*mutant) for mutant in mutants(plan, random.Random(network), per_kind=8)]
    assert any(verdicts)
    assert not all(verdicts)


@PAIRS
def test_verifier_and_oracle_agree_on_mutants_of_plans_of_two_rounds(network, policy, record_property):
    one = planned(network, policy).tape
    tape = joined([one, one])
    plan = make_plan(tape, resolve(POLICIES[policy](tape), tape, {}), undo=policy in WITH_UNDO, effort=10_000)
    assert agrees("the plan itself", plan)
    safe = [agrees(*mutant) for mutant in mutants(plan, random.Random(f"{network} {policy}"), per_kind=3)]
    record_property("safe mutants accepted", sum(safe))
    record_property("unsafe mutants refused", len(safe) - sum(safe))
    assert not all(safe)


@pytest.mark.parametrize("network", NETWORKS)
def test_verifier_and_oracle_agree_far_from_what_the_passes_make(network, record_property):
    rng = random.Random(network)
    plan, away, judged = planned(network, "mix"), 0, 0
    while judged < 100:
        found = list(rng.choice(KINDS)(plan))
        for what, make in rng.sample(found, min(2, len(found))):
            judged += 1
            mutant = make()
            if agrees(f"after {away} safe changes, {what}", mutant):
                plan, away = mutant, away + 1
                break
    record_property("safe mutants accepted", away)
    record_property("unsafe mutants refused", judged - away)
    assert away > 10


@pytest.mark.parametrize("purpose", ["gradients", "evaluate"])
@pytest.mark.parametrize("network", NETWORKS)
def test_verifier_and_oracle_agree_on_plans_that_update_nothing(network, purpose):
    for policy in POLICIES:
        plan = planned(network, policy, purpose)
        assert agrees(f"{policy}", plan)
        assert not all(map(agrees, *zip(*mutants(plan, random.Random(policy), per_kind=2), strict=True)))


@pytest.mark.parametrize("network", NETWORKS)
def test_plans_with_a_disk_have_copies_on_either_tier_and_undo_copies_on_disk(network):
    plan = planned(network, "mix_on_disk")
    tiers = {name: plan.tier(name) for name in plan.tape.buffers if plan.tier(name)}
    assert set(tiers.values()) == {"host", "disk"}
    assert any(tiers[name] == "disk" for name in plan.tape.resident)
    assert any(tiers.get(t.name) == "disk" for t in plan.tape.features)


@PAIRS
def test_no_wait_of_a_small_plan_is_redundant(network, policy):
    plan = planned(network, policy)
    for what, make in without_a_wait(plan):
        assert not agrees(what, make())


@pytest.mark.parametrize("policy", ["offload_everything", "mix"])
@pytest.mark.parametrize("network", ["vgg16", "resnet18"])
def test_no_wait_of_a_large_plan_is_redundant(network, policy):
    plan = planned(network, policy)
    verify(plan)
    for what, make in without_a_wait(plan):
        assert not accepts(make()), what


@pytest.mark.parametrize("policy", POLICIES)
def test_orders_that_do_harm_find_what_every_order_finds(policy):
    plan = planned("chain", policy)
    for what, mutant in mutants(plan, random.Random(policy), per_kind=6):
        assert judge(mutant).safe == judge(mutant, states=0).safe, what
