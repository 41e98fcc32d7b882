"""Rewrites of the tape: what each does, where it is not done, and that none changes a bit."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import assert_same_bits, chain, device_for, finish, inception, norm_dropout, outcome, residual, tape_of

import vdnn
from vdnn import Trainer, rewrites
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
    SoftmaxCrossEntropy,
)
from vdnn.memory.cost import roofline
from vdnn.memory.plan import Plan, PlanError
from vdnn.memory.policy import keep_all, rewrites_of
from vdnn.network import Network
from vdnn.rewrites import ALL, NONE, STANDARD, RewriteError, named
from vdnn.setting import kernels_named

COST = roofline("titan-x")


@pytest.fixture(autouse=True)
def masks_of_small_maps(monkeypatch):
    """As if masks paid at any size: then small networks have them, and their last bytes are not full."""
    monkeypatch.setattr(rewrites, "LEAST_MASKED", 1)


# ---- names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", ALL),
        ("standard", ("inplace", "split", "sum_inplace", "early_update")),
        ("none", ()),
        ("paper", ("inplace", "sum_inplace", "early_update")),
        ("split", ("split",)),
        ("relu_mask, inplace", ("inplace", "relu_mask")),
        ("all-relu_mask", ALL[:5]),
        ("standard+relu_mask-split", ("inplace", "sum_inplace", "early_update", "relu_mask")),
        ("all - standard", ("relu_behind_pool", "relu_mask")),
    ],
)
def test_a_text_names_rewrites_each_once_and_in_one_order(text, wanted):
    assert named(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relu_masks", r"'relu_masks' in 'relu_masks' is no rewrite .did you mean relu_mask"),
        ("all-", r"'all-' in 'all-' is no rewrite"),
        ("", "is no rewrite; there are inplace, split, sum_inplace, early_update, relu_behind_pool, relu_mask"),
        ("standard+nothing", "'nothing' in 'standard.nothing' is no rewrite"),
    ],
)
def test_a_wrong_name_is_said_with_those_there_are(text, message):
    with pytest.raises(RewriteError, match=message):
        named(text)


def test_a_collection_of_names_is_sorted_and_checked():
    assert rewrites.checked({"relu_mask", "inplace"}) == ("inplace", "relu_mask")
    with pytest.raises(RewriteError, match="'all' is no rewrite"):
        rewrites.checked(["all", "split"])


def test_only_the_policy_search_asks_for_more_than_the_standard():
    assert rewrites_of("search") == ALL
    assert rewrites_of("vdnn_dyn") == rewrites_of(keep_all) == rewrites_of({}) == rewrites_of("a:search") == STANDARD


# ---- the tape


def pooled(layer=None, pool=None, shape=(2, 3, 8, 8)):
    """conv1, relu1, pool1 and a linear layer."""
    net = Network(shape, name="pooled")
    x = net.add(layer or ReLU(), net.add(Conv2d(4, 3, padding=1), net.input), name="relu1")
    return finish(net, net.add(pool or MaxPool2d(2), x))


def order_of(net, names="all", purpose="gradients"):
    return [op.name for op in tape_of(net, purpose, rewrites=names).ops]


def test_a_relu_goes_behind_its_pool_and_then_reads_its_own_mask():
    tape = tape_of(pooled(), rewrites="all", purpose="gradients")
    assert [repr(op) for op in tape.ops[:3]] == [
        "conv1.forward(input, conv1.w, conv1.b -> conv1.y)",
        "maxpool1.forward(conv1.y -> maxpool1.y, maxpool1.indices)",
        "relu1.forward(maxpool1.y -> relu1.y, relu1.mask)",
    ]
    assert [repr(op) for op in tape.ops[-3:]] == [
        "relu1.backward(relu1.mask, flatten1.dx -> relu1.dx)",
        "maxpool1.backward(maxpool1.indices, relu1.dx -> maxpool1.dx)",
        "conv1.backward_weights(input, maxpool1.dx -> conv1.dw, conv1.db)",
    ]
    assert tape.tensors["relu1.y"].shape == (2, 4, 4, 4)
    assert tape.tensors["relu1.mask"].shape == (16,)  # 128 bits
    assert tape.buffer_of["relu1.y"] == "maxpool1.y"
    assert tape.rewrites == ALL


def test_an_evaluation_moves_relus_and_writes_no_mask():
    tape = tape_of(pooled(), "evaluate", rewrites="all")
    assert [op.name for op in tape.ops[:3]] == ["conv1.evaluate", "maxpool1.evaluate", "relu1.evaluate"]
    assert "relu1.mask" not in tape.tensors


def test_a_relu_goes_behind_several_pools_and_whoever_read_the_last_reads_it():
    net = Network((2, 3, 8, 8))
    x = net.add(ReLU(), net.add(Conv2d(4, 3, padding=1), net.input))
    x = net.add(MaxPool2d(2), net.add(MaxPool2d(3, 1, padding=1), x))
    finish(net, net.add(Add(), net.add(Conv2d(4, 1), x), x))
    tape = tape_of(net, rewrites="relu_behind_pool")
    assert [op.name for op in tape.ops[:5]] == [
        "conv1.forward",
        "maxpool1.forward",
        "maxpool2.forward",
        "relu1.forward",
        "conv2.forward",
    ]
    assert tape.ops[4].arguments["x"] == tape.ops[5].arguments["x1"] == "relu1.y"


@pytest.mark.parametrize(
    ("layer", "pool"),
    [
        (None, MaxPool2d(2, saves="input")),  # nothing would be gained
        (None, AvgPool2d(2)),
        (None, MaxPool2d(2, padding=1, dilation=4)),  # a window that holds no element gives -inf, which ReLU clips
        (LeakyReLU(), None),
        (ReLU6(), None),
    ],
)
def test_other_activations_and_pools_stay_where_they_are(layer, pool):
    net = pooled(layer, pool, (2, 3, 3, 3))
    assert order_of(net, "relu_behind_pool") == order_of(net, "none")


def fork_after_relu():
    net = Network((4, 3, 8, 8), name="fork_after_relu")
    x = net.add(ReLU(), net.add(Conv2d(6, 3, padding=1), net.input))
    pools = [net.add(MaxPool2d(3, 1, padding=1), x), net.add(Conv2d(2, 1), x)]
    return finish(net, net.add(Concat(), *pools))


def fork_before_relu():
    net = Network((4, 3, 8, 8), name="fork_before_relu")
    x = net.add(Conv2d(6, 3, padding=1), net.input)
    return finish(net, net.add(Concat(), net.add(MaxPool2d(2), net.add(ReLU(), x)), net.add(Conv2d(2, 2, 2), x)))


def scores_of_a_pool():
    net = Network((4, 3, 8, 8))
    net.add(MaxPool2d(2), net.add(ReLU(), net.add(Conv2d(6, 3, padding=1), net.input)))
    return net


@pytest.mark.parametrize("make", [fork_after_relu, fork_before_relu])
def test_a_relu_that_others_read_or_whose_x_others_read_stays(make):
    assert order_of(make(), "relu_behind_pool") == order_of(make(), "none")


def test_scores_keep_their_name():
    assert order_of(scores_of_a_pool(), "relu_behind_pool", "evaluate")[-1] == "maxpool1.evaluate"


def test_a_mask_is_left_out_where_it_is_small_and_where_kernels_have_none(monkeypatch):
    monkeypatch.setattr(rewrites, "LEAST_MASKED", 4096)
    wide, narrow = (Network((batch, 3, 8, 8)) for batch in (16, 15))
    for net in (wide, narrow):
        finish(net, net.add(ReLU(), net.add(Conv2d(4, 3, padding=1), net.input)))  # 4096 and 3840 elements
    assert "relu1.mask" in tape_of(wide, rewrites="all").tensors
    assert "relu1.mask" not in tape_of(narrow, rewrites="all").tensors
    monkeypatch.setattr(NumpyKernels, "has_relu_mask", False)
    assert "relu1.mask" not in tape_of(wide, rewrites="all").tensors


def test_without_early_update_weights_change_after_all_backwards_in_the_same_order():
    early, late = (tape_of(chain(), rewrites=names) for names in ("standard", "standard-early_update"))
    updates = [op.name for op in early.ops if op.phase == "update"]
    assert [op.name for op in late.ops[-len(updates) :]] == updates
    assert [op.name for op in late.ops[: -len(updates)]] == [op.name for op in early.ops if op.phase != "update"]


def test_without_inplace_and_sum_inplace_nothing_shares_bytes():
    net = inception()
    assert set(tape_of(net, rewrites="none").alias) == set()
    alias = tape_of(net, rewrites="sum_inplace").alias
    assert alias
    assert all(".sum" in name for name in alias)
    assert not [name for name in tape_of(net, rewrites="inplace").alias if ".sum" in name]
    for names, sums in (("none", ["conv1.y.sum1"]), ("sum_inplace", [])):  # kernels that can add to a gradient
        tape = build(fork_before_relu(), kernels_named("cudnn4"), vdnn.SGD(0.1), rewrites=names)
        assert [op.name for op in tape.ops if op.phase == "sum"] == sums


# ---- bytes, by hand


def two_layers():
    """conv1 of 8 x 64 x 64 (a map of 131072 bytes a sample), relu, pool, and a linear layer."""
    net = Network((1, 8, 64, 64), name="two")
    x = net.add(MaxPool2d(2), net.add(ReLU(), net.add(Conv2d(8, 1, bias=False), net.input)))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(2, bias=False), net.add(Flatten(), x)))
    return net


MAP, QUARTER, INDICES, MASK, SMALL_MASK = 131072, 32768, 8192, 4096, 1024
WEIGHTS, LINEAR, CLOCK = 512 + 65536, 65536, 512  # of both layers; of the gradient of one


@pytest.mark.parametrize(
    ("names", "saved"),
    [
        ("standard", {"input": MAP, "conv1.y": MAP, "maxpool1.indices": INDICES, "maxpool1.y": QUARTER}),
        ("standard+relu_behind_pool", {"input": MAP, "maxpool1.y": QUARTER, "maxpool1.indices": INDICES}),
        (
            "standard+relu_mask",
            {"input": MAP, "relu1.mask": MASK, "maxpool1.indices": INDICES, "maxpool1.y": QUARTER},
        ),
        (
            "all",
            {"input": MAP, "maxpool1.indices": INDICES, "relu1.mask": SMALL_MASK, "maxpool1.y": QUARTER},
        ),
    ],
)
def test_what_backward_waits_for_has_the_bytes_that_are_expected(names, saved):
    tape = build(two_layers(), kernels_named("cudnn4"), vdnn.SGD(0.1), rewrites=names)
    small = {"labels", "clock", "loss1.p", "input"}
    found = {tape.buffer_of[t.name]: tape.buffers[tape.buffer_of[t.name]].nbytes for t in tape.saved}
    assert {b: n for b, n in found.items() if b not in small or b == "input"} | {"input": MAP} == saved


@pytest.mark.parametrize(
    ("names", "peak"),
    [
        # relu1.backward: input, relu1.y, dy, dx; the gradient of linear1.w waits for the end
        ("none", 4 * MAP + LINEAR),
        # maxpool1.backward: input, conv1.y for relu1, indices, dy, dx; the clock has come for linear1.w's update
        ("standard", MAP + MAP + INDICES + QUARTER + MAP + CLOCK),
        # the same without conv1.y
        ("standard+relu_behind_pool", MAP + INDICES + QUARTER + MAP + CLOCK),
        # the same with a mask in its place
        ("standard+relu_mask", MAP + MASK + INDICES + QUARTER + MAP + CLOCK),
        # relu1 and its mask are done with when maxpool1.backward begins
        ("all", MAP + INDICES + QUARTER + MAP + CLOCK),
    ],
)
def test_the_peak_of_everything_kept_is_as_worked_out_by_hand(names, peak):
    tape = build(two_layers(), kernels_named("cudnn4"), vdnn.SGD(0.1), rewrites=names)
    assert vdnn.plan(tape, {}, cost=COST).peak_bytes == peak + WEIGHTS


@pytest.mark.parametrize(
    ("names", "floor"),
    [
        ("none", 3 * MAP + LINEAR),  # relu1.backward: relu1.y, dy, dx, and the gradient of linear1.w waits
        ("standard", 2 * MAP + 512),  # conv1.backward_weights: input, dy, dw
        ("all", 2 * MAP + 512),  # the same: no rewrite makes it smaller
    ],
)
def test_the_floor_is_as_worked_out_by_hand(names, floor):
    tape = build(two_layers(), kernels_named("cudnn4"), vdnn.SGD(0.1), rewrites=names)
    assert tape.floor_bytes == floor + WEIGHTS


# ---- bits


def vgg_like(batch=4, dtype="float32"):
    """Pools of every kind: side by side, overlapping with padding, hanging over the edge, and two in a row."""
    net = Network((batch, 3, 9, 9), dtype, name="vgg_like")
    x = net.input
    for filters, *pools in (
        (6, MaxPool2d(3, 2, padding=1)),
        (5, MaxPool2d(2, ceil_mode=True), MaxPool2d(2, 1)),
    ):
        x = net.add(ReLU(), net.add(Conv2d(filters, 3, padding=1), x))
        for pool in pools:
            x = net.add(pool, x)
    x = net.add(ReLU(), net.add(Linear(7), net.add(Flatten(), x)))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(5), x))
    return net


def in_double(make):
    """The same network in float64."""
    net = make()
    other = Network(net.input.shape, "float64", net.name)
    tensors = {"input": other.input}
    for node in net.nodes:
        layer = type(node.layer)(**{**node.layer.config(), "name": node.name})
        tensors[node.y.name] = other.add(layer, *(tensors[t.name] for t in node.inputs))
    return other


def everything(batch=3):
    """A fork at a ReLU, whose y a pool and a convolution read, a ReLU before a pool alone, and sums of gradients."""
    net = Network((batch, 3, 6, 6), name="everything")
    x = net.add(MaxPool2d(3, 2, padding=1), net.add(ReLU(), net.add(Conv2d(5, 3, padding=1), net.input)))
    x = net.add(ReLU(), net.add(Conv2d(4, 1), x))
    branches = net.add(MaxPool2d(3, 1, padding=1), x), net.add(ReLU(), net.add(Conv2d(4, 3, padding=1), x))
    return finish(net, net.add(Add(), *branches))


NETWORKS = (vgg_like, chain, residual, inception, norm_dropout, fork_after_relu, fork_before_relu)
POLICIES = ("keep_all", "vdnn_all", "checkpoint")


def trained(net, names, policy="keep_all", purposes=("step", "gradients", "evaluate")):
    """Losses, gradients, scores and all that is resident after three steps, for one set of rewrites."""
    found = {}
    plans = {}
    for purpose in purposes:
        tape = tape_of(net, purpose, rewrites=names)
        fates = policy if purpose != "evaluate" else {}
        plans[purpose] = vdnn.plan(tape, fates, cost=COST, algorithms="memory")
    with device_for(net, *plans.values()) as device:
        found |= outcome(device, plans["step"], 3)
        for purpose in purposes[1:]:
            more = outcome(device, plans[purpose], 1)
            found |= {f"{name} ({purpose})": value for name, value in more.items()}
    return found


@pytest.fixture(scope="module")
def references():
    """The outcome without any rewrite and with everything kept, of each network, made once."""
    return {}


def reference(references, key, net):
    if key not in references:
        references[key] = trained(net, NONE)
        assert (
            len({float(v[0]) for k, v in references[key].items() if k.startswith("loss1.y of step") and "(" not in k})
            == 3
        )
    return references[key]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
def test_each_rewrite_alone_and_each_left_out_changes_no_bit(references, make, policy):
    net = make()
    wanted = reference(references, make.__name__, net)
    left_out = [f"all-{name}" for name in ALL] if policy == "keep_all" else ["none"]
    for names in ("all", *ALL, *left_out):
        assert_same_bits(trained(net, names, policy), wanted)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda f: f.__name__)
def test_no_rewrite_changes_a_bit_in_float64(references, make):
    net = in_double(make)
    wanted = reference(references, f"{make.__name__} in float64", net)
    assert {v.dtype for v in wanted.values()} == {np.dtype("float64")}
    for names, policy in itertools.product(("all", *ALL[4:]), POLICIES[::2]):
        assert_same_bits(trained(net, names, policy), wanted)


@pytest.mark.parametrize("make", [everything])
def test_no_subset_of_the_rewrites_changes_a_bit(references, make):
    wanted = reference(references, make.__name__, make())
    net = make()
    for count in range(len(ALL) + 1):
        for names in itertools.combinations(ALL, count):
            found = trained(net, names, purposes=("step",))
            assert_same_bits(found, {name: wanted[name] for name in found})


@pytest.mark.parametrize("kept", [True, False])
def test_a_mask_that_was_dropped_is_written_again_with_the_same_bits(references, kept):
    net = vgg_like()
    tape = tape_of(net, rewrites="all")
    fates = {t: vdnn.DROP for t in tape.saved if t.name.endswith(".mask") or (t.role is vdnn.Role.FEATURE and not kept)}
    assert any(name.endswith(".mask") for name in map(str, (t.name for t in fates)))
    plan = vdnn.plan(tape, fates, cost=COST, algorithms="memory")
    assert sum(s.name == "relu1.forward" for s in plan.steps) == 2
    with device_for(net, plan) as device:
        found = outcome(device, plan, 3)
    wanted = reference(references, "vgg_like", net)
    assert_same_bits(found, {name: wanted[name] for name in found})


# ---- ReLU and max pooling change places


def places(x, pool, dy, swapped):
    """(y, dx) of ReLU and then `pool`, or of the two in the other order, by NumPy's kernels."""
    kernels = NumpyKernels(1)
    layers_in_order = [pool, ReLU()] if swapped else [ReLU(), pool]
    inputs, tapes = x, []
    for layer in layers_in_order:
        shapes = layer.shapes(inputs.shape)
        y = stored(np.full(shapes.y, np.nan, x.dtype))
        saved = {k: stored(np.zeros(s.shape, s.dtype)) for k, s in shapes.saved.items()}
        run(kernels, layer, "forward", inputs.shape, x=inputs, y=y, **saved)
        tapes.append((layer, inputs.shape, {"y": y, **saved}))
        inputs = y
    gradient = dy
    for layer, shape, arrays in reversed(tapes):
        dx = stored(np.full(shape, np.nan, x.dtype))
        run(kernels, layer, "backward", shape, dy=gradient, dx=dx, **arrays)
        gradient = dx
    return inputs, gradient


def run(kernels, layer, phase, shape, **arrays):
    dtype = next(a.dtype.name for a in arrays.values() if a.dtype.kind == "f")
    size = layer.algorithms(kernels, phase, dtype, shape)[0].workspace
    offered = {"kernels": kernels, "workspace": np.full(size, 0xFF, np.uint8), **arrays}
    layer.method(phase)(**{n: offered[n] for n in layer.needs(phase) if n in offered})


def stored(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


POOLS = st.builds(
    lambda kernel, stride, pad, ceil: MaxPool2d(kernel, stride, kernel // 2 if pad else 0, ceil_mode=ceil),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
ODD = np.array([-0.0, 0.0, -1, 1, 1, 2, -np.inf, np.inf, 1e-40, -1e-40])


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(POOLS, st.integers(3, 8), st.integers(3, 8), st.sampled_from(["float32", "float64"]), st.integers(0, 10**6))
def test_relu_and_max_pooling_give_the_same_bits_in_either_order(pool, H, W, dtype, seed):
    random = np.random.default_rng(seed)
    x = stored(random.choice(ODD, (2, 3, H, W)).astype(dtype))
    x[0, 0] = -np.abs(x[0, 0])  # windows without anything above 0
    shape = pool.shapes(x.shape).y
    dy = stored(np.where(random.random(shape) < 0.4, random.choice(ODD, shape), random.standard_normal(shape)))
    with np.errstate(invalid="ignore"):  # inf - inf, where windows overlap
        first, second = (places(x, pool, dy.astype(dtype), swapped) for swapped in (False, True))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_a_nan_comes_through_in_either_order_and_then_no_step_is_done():
    x = stored(np.random.default_rng(0).choice([-1.0, -0.0, 1.0, np.nan], (2, 3, 6, 6)).astype("float32"))
    dy = stored(np.ones((2, 3, 3, 3), "float32"))
    first, second = (places(x, MaxPool2d(2), dy, swapped)[0] for swapped in (False, True))
    assert np.isnan(first).any()
    assert first.tobytes() == second.tobytes()
    for names in ("none", "all"):
        trainer = Trainer(vgg_like(), rewrites=names, threads=1)
        before = {name: trainer.weights[name] for name in trainer.weights}
        trainer.weights["conv1.b"] = np.full(6, np.nan, "float32")
        with pytest.raises(vdnn.TrainingError, match="the loss is nan"):
            trainer.step(np.ones((4, 3, 9, 9), "float32"), np.zeros(4, int))
        assert trainer.weights["linear2.w"].tobytes() == before["linear2.w"].tobytes()
        trainer.close()


# ---- plans, trainers


def test_a_plan_says_its_rewrites_and_is_refused_by_a_tape_of_others():
    tapes = {names: tape_of(vgg_like(), rewrites=names) for names in ("standard", "all")}
    plan = vdnn.plan(tapes["all"], {}, cost=COST)
    assert json.loads(str(plan).splitlines()[0].removeprefix("# vdnn plan "))["rewrites"] == list(ALL)
    assert str(Plan.parse(str(plan), tapes["all"])) == str(plan)
    with pytest.raises(PlanError, match="the plan is for the rewrites all, the tape for standard"):
        Plan.parse(str(plan), tapes["standard"])
    read = Plan.from_json(plan.to_json())
    assert read.tape.rewrites == ALL
    assert str(read) == str(plan)


def test_a_plan_written_before_there_were_rewrites_is_read():
    plan = vdnn.plan(tape_of(vgg_like()), {}, cost=COST)
    data = json.loads(plan.to_json())
    del data["header"]["rewrites"], data["tape"]["rewrites"]
    assert Plan.from_json(json.dumps(data)).steps == plan.steps


def test_plan_takes_the_policys_choice_unless_told_otherwise():
    net = vgg_like()
    assert vdnn.plan(net, "keep_all", threads=1).tape.rewrites == STANDARD
    assert vdnn.plan(net, "keep_all", threads=1, rewrites="all-split").tape.rewrites == named("all-split")
    assert vdnn.plan(net, "keep_all", rules="paper").tape.rewrites == named("paper")
    assert vdnn.plan(net, "keep_all", rules="paper", rewrites="none").tape.rewrites == NONE
    with pytest.raises(RewriteError, match="'fused' in 'fused' is no rewrite"):
        vdnn.plan(net, rewrites="fused")
    tape = tape_of(net, rewrites="all")
    assert vdnn.plan(tape, "keep_all").tape is tape
    with pytest.raises(ValueError, match=r"rewrites=\('split',\) contradicts the tape"):
        vdnn.plan(tape, "keep_all", rewrites="split")


def test_what_would_fit_is_looked_for_with_the_same_rewrites():
    with pytest.raises(vdnn.BudgetError) as caught:
        vdnn.plan(vgg_like(batch=64), "keep_all", budget=100_000, rewrites="all", threads=1)
    assert caught.value.plan.tape.rewrites == ALL
    assert caught.value._setting.with_batch(3).tape.rewrites == ALL
    assert 0 < caught.value.advice.largest_batch < 64


def data(net, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(net.input.shape, np.float32), random.integers(0, 5, net.batch)


def test_a_trainer_follows_its_rewrites_in_every_batch_and_purpose_with_the_same_bits():
    results = []
    for names in ("none", "all"):
        trainer = Trainer(vgg_like(), rewrites=names, threads=1, algorithms="memory")
        images, labels = data(trainer.net)
        losses = [trainer.step(images, labels), trainer.step(images[:3], labels[:3])]
        loss, gradients = trainer.gradients(images[:2], labels[:2])
        scores = trainer.predict(images)
        assert {plan.tape.rewrites for plan in trainer.plans.made.values()} == {named(names)}
        assert len(trainer.plans.made) == 6
        results.append(([*losses, loss], {**gradients, "scores": scores, **trainer.weights, **trainer.state}))
        trainer.close()
    assert results[0][0] == results[1][0]
    assert_same_bits(*(arrays for _, arrays in results[::-1]))


def test_a_trainer_that_goes_on_has_the_rewrites_it_was_saved_with(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = Trainer(vgg_like(), "vdnn_all", rewrites="all-split", threads=1)
    images, labels = data(trainer.net)
    trainer.step(images, labels)
    trainer.save(path)
    wanted = trainer.step(images, labels)
    for options, names in (
        ({}, "all-split"),
        ({"rewrites": "standard-split"}, "standard-split"),
        ({"rewrites": "all"}, "all"),
    ):
        loaded = Trainer.load(path, **options)
        assert loaded.plan.tape.rewrites == named(names)
        assert loaded.step(images, labels) == wanted
        loaded.close()
    trainer.close()
