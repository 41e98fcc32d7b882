from __future__ import annotations

import pickle

import networks
import pytest

import vdnn
from vdnn.fitting import least_budget, least_plan
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d, ReLU
from vdnn.memory import trial
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import DROP, OFFLOAD, Decisions
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.memory.verify import verify
from vdnn.planning import BudgetError, budget_bytes, plan, summary
from vdnn.units import UnitError

COST = roofline("host")
KEYS = {
    "network",
    "batch",
    "policy",
    "algorithms",
    "budget_bytes",
    "fits",
    "peak_bytes",
    "average_bytes",
    "arena_bytes",
    "host_bytes",
    "offloaded_bytes",
    "floor_bytes",
    "step_seconds",
    "oracle_seconds",
    "breakdown",
    "time",
}


def deep(batch=16):
    """Six convolutions, so that what is saved outweighs what one op needs."""
    net = vdnn.Network((batch, 3, 8, 8), name="deep")
    x = net.input
    for _ in range(6):
        x = net.add(ReLU(), net.add(Conv2d(8, 3, padding=1), x))
    return networks.finish(net, x)


def largest_first(tape, budget):
    fates = dict.fromkeys(tape.saved, vdnn.KEEP)
    for t in sorted(fates, key=lambda t: -t.nbytes):
        if plan(tape, fates).arena_bytes <= budget:
            break
        fates[t] = OFFLOAD
    return fates


def needed(net, policy, **options):
    return plan(net, policy, budget="1TiB", **options).arena_bytes


# ---- what plan takes


def test_the_default_is_dyn_with_momentum_on_a_titan_x():
    made = plan(networks.chain())
    assert (made.policy, made.tape.optimizer, made.tape.purpose) == ("vdnn_dyn", "momentum", "step")
    assert made.offloaded_bytes == 0  # everything fits


def test_another_batch_plans_the_same_network_for_it():
    assert plan(networks.chain(batch=4), batch=9).tape.batch == 9
    assert plan(networks.chain(batch=4), batch=9).arena_bytes == plan(networks.chain(batch=9)).arena_bytes


def test_a_tape_is_planned_as_it_is():
    tape = networks.tape_of(networks.chain())
    assert plan(tape, "keep_all").tape is tape
    with pytest.raises(ValueError, match="a tape is for one batch size, here 4"):
        plan(tape, batch=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"purpose": "evaluate"}, "purpose='evaluate' contradicts the tape, which was built with purpose='gradients'"),
        ({"threads": 5}, "threads=5 contradicts the tape, which was built with threads=2"),
        ({"optimizer": "sgd"}, "optimizer='sgd' contradicts the tape, which was built with optimizer='adam'"),
        ({"optimizer": vdnn.SGD(0.1, momentum=0.9)}, "optimizer='momentum' contradicts the tape"),
    ],
)
def test_what_contradicts_the_tape_is_refused(options, message):
    tape = networks.tape_of(networks.chain(), "gradients", "adam")
    with pytest.raises(ValueError, match=message):
        plan(tape, "keep_all", **options)
    assert plan(tape, "keep_all").tape is tape
    assert plan(tape, "keep_all", purpose="gradients", threads=2, optimizer=vdnn.Adam()).tape is tape


def test_threads_that_are_not_those_of_the_kernels_are_refused():
    with pytest.raises(ValueError, match="threads=2 contradicts kernels=numpy with 1 threads"):
        plan(networks.chain(), threads=2, kernels=NumpyKernels(1))
    assert plan(networks.chain(), threads=1, kernels=NumpyKernels(1)).threads == 1


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="takes a Network or a Tape, not 'vgg16'"):
        plan("vgg16")


def test_fates_without_a_budget_are_planned_as_they_are():
    tape = networks.tape_of(networks.chain(batch=3_000_000))
    assert plan(tape, {}, hardware="host").arena_bytes > COST.memory_bytes
    with pytest.raises(BudgetError):
        plan(tape, {}, hardware="host", budget="100%")


def test_fates_are_checked_and_planned_under_no_name():
    made = plan(networks.chain(), Decisions({"conv1.y": OFFLOAD}, ahead=3))
    assert made.policy == ""
    assert made.decisions.ahead == 3
    assert made.offloaded_bytes == made.payload("conv1.y")


def test_a_policy_of_ones_own_stops_where_the_budget_is_met():
    net = deep(batch=64)
    most = needed(net, "keep_all")
    made = plan(net, largest_first, budget=most - 1)
    assert made.policy == "largest_first"
    assert made.arena_bytes < most
    assert 0 < made.offloaded_bytes < sum(t.nbytes for t in made.tape.saved)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_state_is_counted(optimizer):
    made = plan(networks.chain(), "keep_all", optimizer=optimizer)
    weights = made.breakdown["weight"]
    assert made.breakdown.get("optimizer state", 0) == {"sgd": 0, "momentum": 1, "adam": 2}[optimizer] * weights


def test_threads_are_those_of_the_kernels():
    assert plan(networks.chain(), threads=3).threads == 3
    assert plan(networks.chain(), kernels=NumpyKernels(1)).threads == 1


# ---- algorithms


def test_memory_takes_the_least_workspaces_and_performance_the_fastest():
    net = vdnn.models.get("resnet18", batch=2)
    fast, least = (plan(net, "keep_all", algorithms=choice) for choice in ("performance", "memory"))
    assert fast.decisions.algorithms == trial.fastest(fast.tape, roofline())
    assert least.decisions.algorithms == trial.least_workspace(fast.tape, roofline())
    assert fast.decisions.algorithms != least.decisions.algorithms
    assert least.arena_bytes < fast.arena_bytes
    assert simulate(fast, roofline()).step_seconds < simulate(least, roofline()).step_seconds
    assert [summary(p, roofline())["algorithms"] for p in (fast, least)] == ["performance", "memory"]


def test_algorithms_may_be_those_of_another_plan():
    net = vdnn.models.get("resnet18", batch=2)
    least = plan(net, "keep_all", algorithms="memory")
    assert plan(net, "vdnn_all", algorithms=least).decisions.algorithms == least.decisions.algorithms
    mapping = dict(least.decisions.algorithms)
    assert plan(net, "vdnn_all", algorithms=mapping).decisions.algorithms == mapping


def test_a_mapping_may_name_a_few_ops_only():
    net = vdnn.models.get("resnet18", batch=2)
    fast = plan(net, "keep_all")
    op = next(op for op in fast.tape.ops if len(op.algorithms) > 1)
    other = next(a.name for a in op.algorithms if a.name != fast.decisions.algorithms[op.name])
    made = plan(net, "keep_all", algorithms={op.name: other})
    assert made.decisions.algorithms == {**fast.decisions.algorithms, op.name: other}
    assert summary(made, roofline())["algorithms"] == "mixed"


def test_unknown_algorithms_are_refused():
    with pytest.raises(ValueError, match="algorithms 'fast' is none of performance, memory, mixed"):
        plan(networks.chain(), algorithms="fast")
    with pytest.raises(vdnn.DecisionError, match="'conv9' is no op"):
        plan(networks.chain(), algorithms={"conv9": "direct"})


# ---- budgets


def test_budgets_have_units_and_percentages_are_of_the_hardware():
    assert budget_bytes("12GiB") == budget_bytes(None) == budget_bytes("100%") == 12 * 2**30
    assert budget_bytes("50%", "host") == COST.memory_bytes // 2
    with pytest.raises(UnitError):
        plan(networks.chain(), budget="much")


def test_a_plan_that_does_not_fit_is_an_error_that_says_what_would():
    net = deep(batch=64)
    least = needed(net, "vdnn_all", algorithms="memory")
    with pytest.raises(BudgetError) as caught:
        plan(net, "vdnn_all", budget=least - 1)
    error = caught.value
    assert error.budget_bytes == least - 1
    assert error.plan.arena_bytes == error.advice.least_bytes == least
    text = str(error)
    tape = error.plan.tape
    for number in (error.needed_bytes, error.budget_bytes, tape.floor_bytes, tape.resident_bytes):
        assert f"({number} bytes)" in text
    assert f"budget     {-(-least // 2**10)}KiB, the least for vdnn_all" in text
    assert f"batch      {error.advice.largest_batch}, the largest" in text


@pytest.mark.parametrize("policy", ["keep_all", "vdnn_all", "vdnn_dyn", "checkpoint"])
def test_what_would_fit_does_fit(policy):
    net = deep(batch=64)
    with pytest.raises(BudgetError) as caught:
        plan(net, policy, budget=needed(net, "vdnn_all", algorithms="memory") * 3 // 5)
    error = caught.value
    advice, budget = error.advice, error.budget_bytes
    assert (
        plan(net, policy, budget=advice.least_bytes, algorithms=advice.least_algorithms).arena_bytes
        <= advice.least_bytes
    )
    assert 0 < advice.largest_batch < 64
    plan(net, policy, batch=advice.largest_batch, budget=budget)
    with pytest.raises(BudgetError):
        plan(net, policy, batch=advice.largest_batch + 1, budget=budget)
    assert advice.policy == ""


def test_if_no_policy_is_named_none_fits():
    net = networks.chain(batch=64)
    budget = needed(net, "vdnn_all", algorithms="memory") - 512
    with pytest.raises(BudgetError, match="policy     none of vdnn's own fits") as caught:
        plan(net, "vdnn_all", budget=budget)
    assert caught.value.advice.policy == ""
    for name in OWN:
        with pytest.raises(BudgetError):
            plan(net, name, budget=budget)


def test_the_policy_that_is_named_is_the_fastest_that_fits():
    net = deep(batch=64)
    budget = needed(net, "keep_all") - 1
    with pytest.raises(BudgetError) as caught:
        plan(net, "keep_all", budget=budget)
    advice = caught.value.advice
    best = plan(net, advice.policy, budget=budget, algorithms=advice.algorithms)
    seconds = simulate(best, roofline()).step_seconds
    for name in ("vdnn_all", "vdnn_conv", "checkpoint"):
        if needed(net, name) <= budget:
            assert seconds <= simulate(plan(net, name), roofline()).step_seconds
    assert f"policy     {advice.policy} with algorithms {advice.algorithms}, the fastest" in str(caught.value)


def test_weights_that_do_not_fit_are_named_as_the_reason():
    with pytest.raises(BudgetError, match="batch      none: the weights and what stays with them are larger"):
        plan(networks.chain(), "vdnn_all", budget=2048)


def test_a_budget_below_one_sample_is_said():
    net = networks.chain()
    tape = networks.tape_of(net)
    with pytest.raises(BudgetError, match="batch      none: not even one sample fits under vdnn_all"):
        plan(net, "vdnn_all", budget=tape.resident_bytes + 512)


def test_a_tape_has_no_other_batches_to_offer():
    tape = networks.tape_of(networks.chain())
    with pytest.raises(BudgetError) as caught:
        plan(tape, "vdnn_all", budget=tape.floor_bytes // 2 + tape.resident_bytes // 2)
    assert caught.value.advice.largest_batch is None


def test_nothing_is_looked_for_until_it_is_asked_for():
    with pytest.raises(BudgetError) as caught:
        plan(deep(batch=64), "keep_all", budget="100KiB")
    assert not {"advice", "plan"} & vars(caught.value).keys()
    assert caught.value.needed_bytes > 100 * 1024


def test_the_error_survives_pickling():
    with pytest.raises(BudgetError) as caught:
        plan(networks.tape_of(networks.chain()), "keep_all", budget="10KiB")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.budget_bytes == 10 * 1024
    assert str(again) == str(caught.value)


# ---- figures


@pytest.mark.parametrize("policy", OWN)
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_the_summary_is_of_one_piece(network, policy):
    made = plan(network(), policy, hardware="host")
    figures = summary(made, COST)
    assert figures.keys() >= KEYS
    assert figures["floor_bytes"] <= figures["peak_bytes"] <= figures["arena_bytes"] <= figures["budget_bytes"]
    assert figures["average_bytes"] <= figures["peak_bytes"]
    assert figures["oracle_seconds"] <= figures["step_seconds"] * (1 + 1e-12)
    assert sum(figures["breakdown"].values()) == figures["peak_bytes"]
    assert figures["fits"] is True
    assert figures["time"] == "simulated"


def test_a_summary_may_be_of_a_measured_trace():
    made = plan(networks.chain(), "keep_all", hardware="host")
    trace = simulate(made, COST)
    trace.kind = "measured"
    assert summary(made, COST, budget=1, trace=trace)["time"] == "measured"
    assert summary(made, COST, budget=1)["fits"] is False


# ---- the least budget


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_no_policy_undercuts_the_least_plan(network):
    net = network(batch=16)
    least = least_plan(net)
    verify(least)
    assert least.floor_bytes <= least.arena_bytes == least_budget(net)
    for name in OWN:
        assert least.arena_bytes <= needed(net, name, algorithms="memory")


def test_the_least_plan_of_a_chain_is_near_the_floor():
    least = least_plan(deep(batch=64))
    own = least.arena_bytes - least.tape.resident_bytes
    assert own <= 1.6 * (least.floor_bytes - least.tape.resident_bytes)


def test_the_last_tensors_are_kept_where_that_costs_nothing():
    least = least_plan(deep(batch=64))
    fates = least.decisions.fates
    assert fates["loss1.p"] == "keep"
    assert fates["conv2.y"] == "offload"
    assert DROP not in [fates[least.tape.buffer_of[t.name]] for t in least.tape.saved]
