"""Training on a GPU: the same bits under every policy and budget, however a step is run; near the host's numbers."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import conformance
import numpy as np
import pytest
from conformance import delays, make_device
from networks import CLASSES, NETWORKS, norm_dropout, residual

import vdnn
from vdnn import data, models
from vdnn.fitting import least_plan
from vdnn.memory.policy import POLICIES
from vdnn.network import Role

pytestmark = pytest.mark.gpu
STEPS = 4
EMULATED = conformance.GPU == "emulated"


def optimizer():
    return vdnn.SGD(0.02, momentum=0.9, weight_decay=1e-3)


def vgg11():
    return models.get("vgg11", batch=8, image=(3, 64, 64), classes=CLASSES)


BUILDERS = {build.__name__: build for build in NETWORKS} | ({} if EMULATED else {"vgg11": vgg11})
MODES = {  # what a kernel set computes with, and how it stores images
    "fp32 nchw": {"math": "fp32", "storage": "nchw"},
    "fp32 nhwc": {"math": "fp32", "storage": "nhwc"},
    "tf32 nchw": {"math": "tf32", "storage": "nchw"},
    "tf32 nhwc": {"math": "tf32", "storage": "nhwc"},
}


def dropped(tape):
    """Every feature map that may be dropped is, and made again in backward."""
    return {t: vdnn.KEEP if t.role is Role.INPUT else vdnn.DROP for t in tape.saved}


def mixed(tape):
    """The larger half of what is saved is offloaded, the rest dropped or kept in turn."""
    ordered = sorted(tape.saved, key=lambda t: -t.nbytes)
    fates = dict.fromkeys(ordered[: len(ordered) // 2], vdnn.OFFLOAD)
    features = [t for t in ordered[len(ordered) // 2 :] if t.role is Role.FEATURE]
    return fates | {t: vdnn.DROP if i % 2 else vdnn.KEEP for i, t in enumerate(features)}


EVERY = {**{name: name for name in POLICIES}, "dropped": dropped, "mixed": mixed}


def batches(net, count=STEPS):
    numbers = np.random.default_rng(7)
    return [
        (numbers.standard_normal(net.input.shape, np.float32), numbers.integers(CLASSES, size=net.batch))
        for _ in range(count)
    ]


def digest(value):
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def arrays_of(trainer):
    """{name: digest} of all weights, optimizer states and statistics."""
    groups = (trainer.weights, trainer.state, trainer.statistics)
    return {name: digest(group[name]) for group in groups for name in group}


def trained(make, policy="keep_all", budget=None, algorithms="performance", *, steps=STEPS, gradients=False, **options):
    """(losses, digests, plan) after some steps; with `gradients` those of the last batch are among the digests."""
    net = make()
    device = make_device("cuda", net, **options)
    trainer = vdnn.Trainer(net, policy, budget, device=device, optimizer=optimizer(), algorithms=algorithms, seed=1)
    given = batches(net, steps)
    losses = [trainer.step(*batch) for batch in given]  # not looked at yet: steps run one after the other
    losses = [float(loss) for loss in losses]
    digests = arrays_of(trainer)
    if gradients:
        loss, found = trainer.gradients(*given[-1])
        losses.append(loss)
        digests |= {f"gradient of {name}": digest(value) for name, value in found.items()}
    assert device.graph_refusal == ""
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes <= trainer.plan.arena_bytes
    plan = trainer.plan
    trainer.close()
    return losses, digests, plan


@pytest.fixture(scope="module")
def kept():
    """A function (mode, network) -> what keep_all gives."""
    made = {}

    def get(mode, name):
        if (mode, name) not in made:
            made[mode, name] = trained(BUILDERS[name], gradients=True, **MODES[mode])
        return made[mode, name]

    return get


def assert_same(found, wanted):
    assert found[0] == wanted[0][: len(found[0])]
    differing = [name for name, value in found[1].items() if value != wanted[1][name]]
    assert not differing


# ---- equal bits


@pytest.mark.parametrize("policy", [p for p in EVERY if p != "keep_all"])
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("mode", ["fp32 nchw", "tf32 nhwc"])
def test_every_policy_gives_the_bits_of_keep_all(mode, name, policy, kept):
    if name == "vgg11" and mode == "fp32 nchw" and policy not in ("vdnn_all", "mixed"):
        pytest.skip("the other mode has it: its many weights take seconds")
    expected = kept(mode, name)
    assert np.isfinite(expected[0]).all()
    assert len(set(expected[0][:STEPS])) == STEPS  # training moves
    found = trained(BUILDERS[name], EVERY[policy], None, expected[2], gradients=name != "vgg11", **MODES[mode])
    assert_same(found, expected)


@pytest.mark.parametrize("policy", ["vdnn_all", "mixed"])
@pytest.mark.parametrize("name", ["chain", "inception"])
@pytest.mark.parametrize("mode", ["fp32 nhwc", "tf32 nchw"])
def test_the_other_storage_of_each_math_keeps_the_bits_too(mode, name, policy, kept):
    expected = kept(mode, name)
    assert_same(trained(BUILDERS[name], EVERY[policy], None, expected[2], gradients=True, **MODES[mode]), expected)


WAYS = {
    "timed": {"timed": True},
    "without graphs": {"graphs": False},
    "poisoned": {"poison": True},
    "delayed": {"delay": delays(3, 2e-3)},
    "delayed and poisoned": {"delay": delays(4, 1e-3), "poison": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["vdnn_all", "least", "dropped"])
@pytest.mark.parametrize("name", ["residual", "norm_dropout", "inception"])
def test_how_a_step_is_run_changes_no_bit(name, policy, way, kept):
    expected = kept("fp32 nchw", name)
    assert_same(trained(BUILDERS[name], EVERY[policy], None, expected[2], **MODES["fp32 nchw"], **WAYS[way]), expected)


@pytest.mark.parametrize("way", ["delayed", "poisoned"])
@pytest.mark.parametrize("name", [n for n in BUILDERS if n == "vgg11"])
def test_how_a_step_of_a_large_network_is_run_changes_no_bit(name, way, kept):
    expected = kept("tf32 nhwc", name)
    found = trained(BUILDERS[name], "vdnn_all", None, expected[2], steps=2, **MODES["tf32 nhwc"], **WAYS[way])
    assert found[0] == expected[0][:2]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_budget_down_to_the_least_that_plans_changes_no_bit(name):
    make = BUILDERS[name]
    net = make()
    device = make_device("cuda", net)
    least = least_plan(net, kernels=device.kernels, cost=device.cost, optimizer=optimizer(), undo=True)
    device.close()
    expected = trained(make, "keep_all", None, least)
    found = trained(make, least.decisions, least.arena_bytes, least)
    assert found[2].arena_bytes == least.arena_bytes < expected[2].arena_bytes
    assert_same(found, expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", BUILDERS)
def test_what_vdnn_dyn_chooses_for_a_budget_changes_no_bit(name, share, kept, record_property):
    if name == "vgg11" and share != 0.5:
        pytest.skip("one share is enough: its many weights take seconds")
    make = BUILDERS[name]
    net = make()
    device = make_device("cuda", net)
    options = {"kernels": device.kernels, "cost": device.cost, "optimizer": optimizer(), "undo": True}
    low = vdnn.plan(net, "vdnn_all", algorithms="memory", **options).arena_bytes
    high = vdnn.plan(net, "keep_all", **options).arena_bytes
    device.close()
    budget = low + int(share * max(0, high - low))
    found = trained(make, "vdnn_dyn", budget)
    assert found[2].arena_bytes <= budget
    record_property("budget_bytes", float(budget))
    record_property("offloaded_bytes", float(found[2].offloaded_bytes))
    assert_same(found, trained(make, "keep_all", None, found[2]))


def test_delays_and_poison_find_a_missing_wait(kept):
    """Without the waits of backward for what comes back, slow copies leave it nothing but poison to read."""
    if EMULATED:
        pytest.skip("emulated delays take no time")
    losses, _, plan = kept("fp32 nchw", "residual")
    net = residual()
    device = make_device("cuda", net, checked=False, poison=True, delay=slow_returns, **MODES["fp32 nchw"])
    trainer = vdnn.Trainer(net, "vdnn_all", device=device, optimizer=optimizer(), algorithms=plan, seed=1, undo=False)
    made = trainer.plan
    returns = {i for i, s in enumerate(made.steps) if s.kind == "prefetch" and made.role(s.name) is Role.FEATURE}
    assert returns
    bad = replace(made, steps=tuple(without(s, returns) if s.kind == "compute" else s for s in made.steps))
    for name, value in zip(("input", "labels"), batches(net)[0], strict=True):
        device.write(bad, name, value)
    device.write(bad, "clock", trainer._clock())
    vdnn.execute(bad, device)
    assert float(device.read(bad, net.loss.y.name)[0]) == losses[0]  # forward has all its waits
    assert not all(np.isfinite(device.read(bad, name)).all() for name in net.parameters)
    trainer.close()


def slow_returns(step):
    return 3e-3 if step.kind == "prefetch" else 0.0


def without(step, waits):
    return replace(step, waits=tuple(w for w in step.waits if w not in waits))


# ---- near the host


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [n for n in BUILDERS if n != "vgg11"])
def test_losses_are_near_those_of_the_host(mode, name, kept, record_property):
    net = BUILDERS[name]()
    host = vdnn.Trainer(net, "keep_all", optimizer=optimizer(), seed=1, threads=2)
    expected = [host.step(*batch) for batch in batches(net)]
    host.close()
    found = kept(mode, name)[0][:STEPS]
    errors = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    record_property("relative errors of losses", errors)
    assert max(errors[:3]) <= (1e-4 if mode.startswith("fp32") else 2e-2)  # they grow from step to step


def test_weights_are_near_those_of_the_host():
    net = norm_dropout()
    host = vdnn.Trainer(net, "keep_all", optimizer=optimizer(), seed=1, threads=2)
    own = norm_dropout()
    trainer = vdnn.Trainer(own, "vdnn_all", device=make_device("cuda", own), optimizer=optimizer(), seed=1)
    for batch in batches(net, 2):
        host.step(*batch)
        trainer.step(*batch)
    for name, value in host.weights.items():
        np.testing.assert_allclose(trainer.weights[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for name, value in host.statistics.items():
        np.testing.assert_allclose(trainer.statistics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert trainer.evaluate(*batches(net)[0]).loss == pytest.approx(host.evaluate(*batches(net)[0]).loss, rel=1e-3)
    host.close()
    trainer.close()


@pytest.mark.parametrize("mode", ["fp32 nchw", "tf32 nhwc"])
def test_digits_are_learnt_in_two_epochs(mode, record_property):
    if EMULATED:
        pytest.skip("too long to emulate")
    digits = data.digits()
    net = models.get("digits_vgg", batch=32)
    device = make_device("cuda", net, **MODES[mode])
    trainer = vdnn.Trainer(net, "vdnn_all", device=device, optimizer=vdnn.SGD(0.01, momentum=0.9), seed=0)
    history = trainer.fit(digits.train_images, digits.train_labels, 2, test=(digits.test_images, digits.test_labels))
    trainer.close()
    record_property("accuracy", history[-1].test.accuracy)
    assert history[-1].loss < history[0].loss
    assert history[-1].test.accuracy > 0.9


def test_parts_of_a_batch_train_and_evaluate(kept):
    """A last batch of fewer samples has plans of its own, over the same weights."""
    net = norm_dropout()
    images, labels = (np.concatenate(part) for part in zip(*batches(net), strict=True))
    results = []
    for policy in ("keep_all", "vdnn_all"):
        own = norm_dropout()
        algorithms = kept("fp32 nchw", "norm_dropout")[2]
        device = make_device("cuda", own, **MODES["fp32 nchw"])
        trainer = vdnn.Trainer(own, policy, device=device, optimizer=optimizer(), algorithms=algorithms, seed=1)
        history = trainer.fit(images[:11], labels[:11], 2)
        results.append((history[-1].loss, arrays_of(trainer), trainer.evaluate(images[:7], labels[:7])))
        assert trainer.predict(images[:5]).shape == (5, CLASSES)
        trainer.close()
    assert np.isfinite(results[0][0])
    # algorithms for part of a batch may differ where memory does, and so may the last bits
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)


# ---- checkpoints


def loaded(path, make):
    """A trainer from a checkpoint, on the device that it was saved on."""
    if not EMULATED:
        return vdnn.Trainer.load(path, optimizer=optimizer())
    net = make()
    return vdnn.Trainer.load(path, net, device=make_device("cuda", net, **MODES["tf32 nhwc"]), optimizer=optimizer())


@pytest.mark.parametrize("make", [residual, norm_dropout])
def test_training_goes_on_bit_for_bit_from_a_checkpoint(make, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors, which checkpoints need, is not installed")
    path = str(tmp_path / "half.safetensors")
    net = make()
    device = make_device("cuda", net, **MODES["tf32 nhwc"])
    trainer = vdnn.Trainer(net, "vdnn_all", device=device, optimizer=optimizer(), seed=1)
    given = batches(net)
    for batch in given[:2]:
        trainer.step(*batch)
    trainer.save(path)
    expected = [float(trainer.step(*batch)) for batch in given[2:]]
    wanted = arrays_of(trainer)
    trainer.close()
    again = loaded(path, make)
    assert again.device.name == "cuda"
    assert (again.device.kernels.math, again.device.kernels.storage) == ("tf32", "nhwc")
    assert again.steps_done == 2
    assert [float(again.step(*batch)) for batch in given[2:]] == expected
    assert arrays_of(again) == wanted
    again.close()


def test_what_was_saved_on_the_gpu_goes_on_on_the_host_and_back(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors, which checkpoints need, is not installed")
    path = str(tmp_path / "gpu.safetensors")
    net = residual()
    trainer = vdnn.Trainer(net, "vdnn_all", device=make_device("cuda", net), optimizer=optimizer(), seed=1)
    given = batches(net)
    trainer.step(*given[0])
    trainer.save(path)
    wanted, expected = arrays_of(trainer), float(trainer.step(*given[1]))
    trainer.close()
    host = vdnn.Trainer.load(path, device="host", optimizer=optimizer())
    assert host.device.name == "host"
    assert arrays_of(host) == wanted
    host.save(path)
    assert float(host.step(*given[1])) == pytest.approx(expected, rel=1e-3)
    host.close()
    own = residual()
    back = vdnn.Trainer.load(path, own, device=make_device("cuda", own), optimizer=optimizer())
    assert arrays_of(back) == wanted
    assert float(back.step(*given[1])) == pytest.approx(expected, rel=1e-3)
    back.close()
