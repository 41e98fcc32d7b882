from __future__ import annotations

import sys
import types

import networks
import pytest
from handmade import chain, op, tape

from vdnn.memory import checkpointing, policy, trial
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, DecisionError, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.policy import PolicyError, decide
from vdnn.memory.rules import offload_inputs
from vdnn.memory.verify import verify
from vdnn.network import Role

COST = roofline("host")


def decided(name, tape, budget=1 << 40, algorithms=None):
    return decide(name, tape, budget, COST, algorithms or trial.fastest(tape, COST)).decisions


def offloaded(decisions):
    return {name for name, fate in decisions.fates.items() if fate is OFFLOAD}


def arena(tape, name, algorithms):
    return make_plan(tape, decided(name, tape, algorithms=algorithms)).arena_bytes


# ---- fixed policies


def test_keep_all_keeps_what_backward_reads_and_drops_the_rest():
    tape = chain()
    assert decided("keep_all", tape).fates == {"x": KEEP, "y1": KEEP, "y2": KEEP, "y3": KEEP, "y4": KEEP}


def test_vdnn_all_offloads_the_inputs_of_conv_and_pool():
    assert offloaded(decided("vdnn_all", chain())) == {"x", "y1", "y2", "y3"}


def test_vdnn_conv_offloads_the_inputs_of_conv_only():
    assert offloaded(decided("vdnn_conv", chain())) == {"x", "y1", "y3"}


def test_what_backward_does_not_read_is_not_offloaded():
    net = networks.inception()  # the input of the joining Concat's average pooling is nobody's in backward
    tape = networks.tape_of(net)
    saved = {tape.buffer_of[t.name] for t in tape.saved}
    assert offloaded(decided("vdnn_all", tape)) <= saved


def test_in_place_relu_makes_the_input_of_a_conv_the_output_of_the_one_before():
    tape = networks.tape_of(networks.chain())
    assert offloaded(decided("vdnn_conv", tape)) == {"input", "maxpool1.y", "maxpool1.indices"}
    assert tape.buffer_of["relu1.y"] in offloaded(decided("vdnn_all", tape))


def test_a_forked_tensor_leaves_with_its_last_reader():
    tape = networks.tape_of(networks.inception())
    plan = make_plan(tape, decided("vdnn_all", tape))
    forked = "lrn1.y"
    readers = [i for i, _, op in plan.computes() if forked in op.reads and op.phase == "forward"]
    leaves = next(i for i, step in enumerate(plan.steps) if step.kind == "offload" and step.name == forked)
    assert len(readers) == 4
    assert readers[-2] < leaves < readers[-1]  # beside the last reader: both only read


def test_a_prefetch_starts_with_the_conv_or_pool_layer_before_unless_timed():
    tape = networks.tape_of(networks.chain())
    plan = make_plan(tape, resolve(offload_inputs(tape, ("conv", "pool")), tape, {}))
    steps = [s.name for s in plan.steps if s.kind in ("compute", "prefetch")]
    returned = {b: steps[len(steps) - steps[::-1].index(b) :] for b in offloaded(decided("vdnn_all", tape))}
    first_op = {b: next(name for name in later if name in tape.index) for b, later in returned.items()}
    assert first_op == {
        "conv2.y": "loss1.backward",  # X of the last pooling layer: none is before it
        "maxpool1.y": "maxpool2.backward",
        "maxpool1.indices": "conv2.backward_weights",
        "conv1.y": "conv2.backward_weights",  # X of the first pooling layer, though ReLU is who reads it
        "input": "maxpool1.backward",
    }


def test_the_baseline_holds_everything_for_the_whole_step():
    tape = networks.tape_of(networks.chain())
    assert arena(tape, "baseline", None) > arena(tape, "keep_all", None)


@pytest.mark.parametrize("network", networks.NETWORKS)
@pytest.mark.parametrize("name", policy.POLICIES)
@pytest.mark.parametrize("purpose", ["step", "gradients", "evaluate"])
def test_every_policy_gives_a_safe_plan_of_every_network(network, name, purpose):
    tape = networks.tape_of(network(), purpose)
    verify(make_plan(tape, decided(name, tape)))


# ---- vdnn_dyn


@pytest.fixture
def sizes():
    """Arenas of the trials, over a chain whose fastest algorithms need the most workspace."""
    tape = chain()
    fast, least = trial.fastest(tape, COST), trial.least_workspace(tape, COST)
    named = {f"{name}(p)": arena(tape, name, fast) for name in ("keep_all", "vdnn_conv", "vdnn_all")}
    return tape, fast, {**named, "vdnn_all(m)": arena(tape, "vdnn_all", least)}


def test_dyn_keeps_all_if_that_fits(sizes):
    tape, fast, arenas = sizes
    decisions = decided("vdnn_dyn", tape, arenas["keep_all(p)"])
    assert offloaded(decisions) == set()
    assert decisions.algorithms == fast


def test_dyn_then_tries_vdnn_conv(sizes):
    tape, fast, arenas = sizes
    for budget in (arenas["keep_all(p)"] - 1, arenas["vdnn_conv(p)"]):
        decisions = decided("vdnn_dyn", tape, budget)
        assert offloaded(decisions) == {"x", "y1", "y3"}
        assert decisions.algorithms == fast


def test_dyn_then_tries_vdnn_all(sizes):
    tape, fast, arenas = sizes
    for budget in (arenas["vdnn_conv(p)"] - 1, arenas["vdnn_all(p)"]):
        decisions = decided("vdnn_dyn", tape, budget)
        assert offloaded(decisions) == {"x", "y1", "y2", "y3"}
        assert decisions.algorithms == fast


def test_dyn_then_downgrades_only_the_ops_that_are_over_the_budget(sizes):
    tape, fast, arenas = sizes
    budget = arenas["vdnn_all(p)"] - 512
    decisions = decided("vdnn_dyn", tape, budget)
    assert make_plan(tape, decisions).arena_bytes <= budget
    changed = {name: algorithm for name, algorithm in decisions.algorithms.items() if algorithm != fast[name]}
    assert changed == {"f4": "middle"}  # the next one, not the last
    assert offloaded(decisions) == {"x", "y1", "y3"}  # vdnn_conv is tried before vdnn_all


def test_dyn_falls_back_to_the_least_workspaces(sizes):
    tape, _, arenas = sizes
    budget = arenas["vdnn_all(m)"]
    assert make_plan(tape, decided("vdnn_dyn", tape, budget)).arena_bytes == budget


def test_dyn_returns_its_first_trial_if_nothing_fits(sizes):
    tape, _, arenas = sizes
    decisions = decided("vdnn_dyn", tape, 1024)
    assert make_plan(tape, decisions).arena_bytes == arenas["vdnn_all(m)"]
    assert decisions.algorithms == trial.least_workspace(tape, COST)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_dyn_fits_every_budget_from_the_least_up(network):
    tape = networks.tape_of(network())
    least = arena(tape, "vdnn_all", trial.least_workspace(tape, COST))
    for budget in range(least, arena(tape, "keep_all", None) + 2048, 1024):
        assert make_plan(tape, decided("vdnn_dyn", tape, budget)).arena_bytes <= budget


# ---- algorithms


def test_of_equally_fast_algorithms_the_one_with_less_workspace_is_taken():
    tape = chain()
    assert trial.fastest(tape, COST)["f1"] == "fast"
    assert trial.least_workspace(tape, COST)["f1"] == "slow"
    quick = roofline("host", flops_per_second=1e30, bytes_per_second=1.0, attained=1.0, launch_seconds=0.0)
    assert trial.fastest(tape, quick)["f1"] == "slow"


# ---- checkpoint


def relus(n):
    """n equal ops in a row; backward of each reads its input."""
    ops = [op(f"f{i}", [f"y{i - 1}" if i > 1 else "x"], [f"y{i}"]) for i in range(1, n + 1)]
    ops.append(op("b0", [f"y{n}"], [f"g{n}"]))
    ops += [op(f"b{i}", [f"y{i - 1}" if i > 1 else "x", f"g{i}"], [f"g{i - 1}"]) for i in range(n, 0, -1)]
    return tape(ops, {"x": 512} | {f"y{i}": 1024 for i in range(1, n + 1)} | {f"g{i}": 1024 for i in range(n + 1)})


def dropped(made):
    return [name for name, fate in decided("checkpoint", made).fates.items() if fate is DROP]


def test_segments_are_equal_and_the_last_is_kept_whole():
    made = relus(9)
    fates = checkpointing._segment_fates(made, checkpointing.cuts_of(made), 3)
    assert [name for name, fate in fates.items() if fate is DROP] == ["y1", "y2", "y4", "y5"]


def test_of_equally_small_plans_the_one_with_fewer_reruns_is_taken():
    assert dropped(relus(9)) == ["y1", "y2", "y3", "y4"]  # y3 and y6 as cuts would leave five live at the turn as well


@pytest.mark.parametrize("n", [16, 64, 256])
def test_memory_grows_with_the_root_of_the_depth(n):
    made = relus(n)
    peak = trial.sketch(made, decided("checkpoint", made)).peak_bytes
    assert peak <= 1024 * (2 * n**0.5 + 1)  # as many cuts as tensors in a segment, one gradient and half an input


def test_segments_run_again_once():
    made = relus(9)
    plan = make_plan(made, decided("checkpoint", made))
    runs = [op.name for _, _, op in plan.computes()]
    assert runs[9:] == ["b0", "b9", "b8", "b7", "b6", "f1", "f2", "f3", "f4", "b5", "b4", "b3", "b2", "b1"]


def test_cuts_of_a_network_with_skips_lie_between_its_blocks():
    tape = networks.tape_of(networks.residual())
    (cuts,) = checkpointing.cuts_of(tape)
    inside = {tape.ops[i].layer for i, _ in cuts}
    assert {"conv2", "bn2", "relu2", "conv3", "bn3"}.isdisjoint(inside)
    assert "relu3" in inside


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_checkpoint_never_needs_more_than_keep_all(network):
    tape = networks.tape_of(network())
    peaks = [trial.sketch(tape, decided(name, tape)).peak_bytes for name in ("checkpoint", "keep_all")]
    assert peaks[0] <= peaks[1]
    assert all(
        f is not DROP for t, f in decided("checkpoint", tape).fates.items() if tape.buffers[t].role is Role.INPUT
    )


# ---- trials


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_trial_agrees_with_the_plan(network):
    tape = networks.tape_of(network())
    for name in policy.POLICIES:
        decisions = decided(name, tape)
        plan = make_plan(tape, decisions)
        assert trial.sketch(tape, decisions).peak_bytes == plan.peak_bytes or name == "baseline"
        assert trial.trial(tape, decisions, plan.arena_bytes).arena_bytes <= plan.arena_bytes
        assert trial.trial(tape, decisions, plan.arena_bytes - 1).arena_bytes >= plan.arena_bytes


# ---- by name


def test_an_unknown_policy_is_refused_with_the_closest_names():
    with pytest.raises(PolicyError, match=r"no policy is named 'vdnn-dym' \(did you mean vdnn_dyn"):
        policy.get("vdnn-dym")


def test_a_policy_may_be_a_function_of_a_module(monkeypatch):
    module = types.ModuleType("mine")
    module.first = lambda tape: {tape.saved[0]: OFFLOAD}
    module.number = 3
    monkeypatch.setitem(sys.modules, "mine", module)
    said = decide("mine:first", chain(), 1, COST, {})
    name, decisions = said.name, said.decisions
    assert name == "mine:first"
    assert offloaded(decisions) == {"x"}
    with pytest.raises(PolicyError, match="no 'second'"):
        policy.get("mine:second")
    with pytest.raises(PolicyError, match="int, not a function"):
        policy.get("mine:number")
    with pytest.raises(PolicyError, match="no module 'not_there'"):
        policy.get("not_there:first")


def test_a_policy_is_given_what_it_names():
    seen = {}

    def mine(cost, algorithms, budget, tape, other=5):
        seen.update(cost=cost, algorithms=algorithms, budget=budget, tape=tape, other=other)
        return {}

    tape = chain()
    name = decide(mine, tape, 77, COST, {"f1": "slow"}).name
    assert name == "mine"
    assert seen == {"cost": COST, "algorithms": {"f1": "slow"}, "budget": 77, "tape": tape, "other": 5}


def test_a_policy_that_asks_for_something_else_is_refused():
    with pytest.raises(DecisionError, match="policy <lambda> asks for 'plan'; a policy may ask for tape, budget, cost"):
        decide(lambda plan: {}, chain(), 1, COST, {})


def test_an_error_in_a_policy_says_which_policy_it_was():
    def mine(tape):
        raise KeyError("oops")

    with pytest.raises(KeyError) as caught:
        decide(mine, chain(), 1, COST, {})
    assert caught.value.__notes__ == ["in policy mine"]


@pytest.mark.parametrize(
    ("fates", "message"),
    [
        ({"y9": KEEP}, "policy <lambda>: 'y9' is no tensor"),
        ({"y1": "forget"}, "'forget' is no fate for y1"),
        ({"x": DROP}, "x cannot be dropped"),
        (7, "a policy returns Decisions or a mapping"),
    ],
)
def test_decisions_that_make_no_sense_are_refused(fates, message):
    with pytest.raises(DecisionError, match=message):
        decide(lambda: fates, chain(), 1, COST, {})


def test_resolving_again_changes_nothing():
    tape = chain()
    decisions = decided("vdnn_all", tape)
    assert resolve(decisions, tape, {}) == decisions
