"""Sub-batches: what a step of several rounds computes, what it takes, and where it is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import vdnn
from vdnn import Trainer, layers, models
from vdnn.__main__ import main
from vdnn.fitting import least_plan
from vdnn.memory.policy import OWN
from vdnn.micro_batches import MicroBatchError, parts_of
from vdnn.planning import summary
from vdnn.setting import kernels_named

CLASSES = 5


def plain(batch=8, dtype="float64"):
    """Convolution, ReLU, pooling, a hidden layer and dropout."""
    net = vdnn.Network((batch, 3, 8, 8), dtype, name="plain")
    x = net.add(layers.ReLU(), net.add(layers.Conv2d(6, 3, padding=1), net.input))
    x = net.add(layers.Flatten(), net.add(layers.MaxPool2d(2), x))
    x = net.add(layers.Dropout(0.5), net.add(layers.ReLU(), net.add(layers.Linear(10), x)))
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(CLASSES), x))
    return net


def forked(batch=8, dtype="float64"):
    """A tensor that three layers read, so that gradients are summed; an add and a join along channels."""
    net = vdnn.Network((batch, 3, 8, 8), dtype, name="forked")
    x = net.add(layers.LocalResponseNorm(3), net.add(layers.Conv2d(6, 3, padding=1), net.input))
    y = net.add(layers.Add(), net.add(layers.Conv2d(6, 3, padding=1), x), x)
    x = net.add(layers.Concat(), y, net.add(layers.Conv2d(4, 1), x))
    x = net.add(layers.Flatten(), net.add(layers.AvgPool2d(2), x))
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(CLASSES), x))
    return net


def regression(batch=8, dtype="float64"):
    net = vdnn.Network((batch, 3, 8, 8), dtype, name="regression")
    x = net.add(layers.ReLU(), net.add(layers.Conv2d(4, 3, padding=1), net.input))
    net.add(layers.MeanSquaredError(), net.add(layers.Linear(3), net.add(layers.Flatten(), x)))
    return net


def normed(batch=8, dtype="float64"):
    net = vdnn.Network((batch, 3, 4, 4), dtype, name="normed")
    x = net.add(layers.BatchNorm2d(), net.input)
    x = net.add(layers.BatchNorm2d(), net.add(layers.Conv2d(4, 3), x))
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(CLASSES), net.add(layers.Flatten(), x)))
    return net


NETWORKS = {make.__name__: make for make in (plain, forked, regression)}


def data(net, count=None):
    numbers = np.random.default_rng(3)
    count = count or net.batch
    images = numbers.standard_normal((count, *net.input.shape[1:]))
    if net.labels.dtype == "int64":
        return images.astype(net.dtype), numbers.integers(CLASSES, size=count)
    return images.astype(net.dtype), numbers.standard_normal((count, *net.labels.shape[1:])).astype(net.dtype)


def trainer_of(net, parts, policy="keep_all", **options):
    device = vdnn.HostDevice(net, threads=2, poison=True)
    given = {"optimizer": vdnn.SGD(0.1, momentum=0.9), "seed": 1} | options
    return Trainer(net, policy, device=device, micro_batches=parts, **given)


def stepped(net, parts, policy="keep_all", samples=None, **options):
    """(loss, gradients, weights after a step, plan); the step took what its plan says."""
    trainer = trainer_of(net, parts, policy, **options)
    batch = data(net, samples)
    first, gradients = trainer.gradients(*batch)
    loss = trainer.step(*batch)
    assert loss == first
    plan = trainer.plan
    assert trainer.measured_peak_bytes == plan.peak_bytes
    assert trainer.device.measured_peak_bytes(trainer.plan_for(len(batch[0]))) <= plan.arena_bytes
    weights = dict(trainer.weights)
    trainer.close()
    return loss, gradients, weights, plan


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def assert_near(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert np.abs(value).max() > 0
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


# ---- what is computed


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_loss_gradients_and_weights_are_those_of_the_whole_batch(make, parts):
    whole, found = stepped(make(), 1), stepped(make(), parts)
    assert found[0] == pytest.approx(whole[0], rel=1e-12)
    assert_near(found[1], whole[1], 1e-12)
    assert_near(found[2], whole[2], 1e-12)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_in_single_precision_they_differ_by_rounding(make):
    whole, found = stepped(make(dtype="float32"), 1), stepped(make(dtype="float32"), 4)
    assert found[0] == pytest.approx(whole[0], rel=1e-5)
    assert_near(found[1], whole[1], 1e-5)


def test_dropout_keeps_of_each_sample_what_it_keeps_in_the_whole_batch():
    net = vdnn.Network((16, 16), "float64", name="masks")
    net.add(layers.MeanSquaredError(), net.add(layers.Linear(1), net.add(layers.Dropout(0.5), net.input)))
    images, labels = np.eye(16), np.full((16, 1), 1000.0)  # weight j meets sample j alone, and has a gradient if kept
    kept = []
    for parts in (1, 2, 4, 16):
        trainer = trainer_of(net, parts)
        _, gradients = trainer.gradients(images, labels)
        kept.append((gradients["linear1.w"][0] != 0).tolist())
        trainer.close()
    assert 0 < sum(kept[0]) < 16
    assert kept == [kept[0]] * 4


@pytest.mark.parametrize("parts", [2, 4])
def test_all_policies_give_the_same_bits_and_take_what_they_say(parts):
    wanted = stepped(forked(), parts)
    for policy in OWN:
        loss, gradients, weights, plan = stepped(forked(), parts, policy, algorithms=wanted[3])
        assert plan.policy == policy
        assert (loss, bits(gradients), bits(weights)) == (wanted[0], bits(wanted[1]), bits(wanted[2])), policy


def test_dropped_and_offloaded_tensors_of_every_round_come_back():
    for policy in ("checkpoint", "least", "vdnn_all"):
        trainer = trainer_of(plain(), 2, policy)
        fates = trainer.plan.decisions.fates
        away = {name for name, fate in fates.items() if fate is not vdnn.KEEP and name in saved(trainer.plan.tape)}
        assert {f"{name}@2" for name in away if "@" not in name} == {name for name in away if "@" in name}
        trainer.close()


def saved(tape):
    return {tape.buffer_of[t.name] for t in tape.saved}


@pytest.mark.parametrize("samples", [1, 3, 5, 6, 7])
def test_fewer_samples_than_a_batch_give_what_they_give_as_a_whole(samples):
    whole, found = stepped(plain(), 1, samples=samples), stepped(plain(), 2, samples=samples)
    assert found[0] == pytest.approx(whole[0], rel=1e-12)
    assert_near(found[1], whole[1], 1e-12)


@pytest.mark.parametrize(
    ("samples", "most", "parts"), [(8, 4, (4, 4)), (4, 4, (4,)), (3, 4, (3,)), (6, 4, (4, 2)), (11, 4, (4, 4, 3))]
)
def test_fewer_samples_come_in_full_parts_and_one_with_the_rest(samples, most, parts):
    assert parts_of(samples, most) == parts


def test_the_plan_for_fewer_samples_takes_no_more_than_that_for_all():
    trainer = trainer_of(plain(), 2, "vdnn_all")
    for samples in range(1, 8):
        assert trainer.plan_for(samples).arena_bytes <= trainer.plan.arena_bytes
        assert trainer.plan_for(samples).tape.micro_batches == (1 if samples <= 4 else 2)
    trainer.close()


def test_an_epoch_evaluation_and_scores_are_those_of_the_whole_batch():
    found = []
    for parts in (1, 4):
        trainer = trainer_of(plain(), parts)
        images, labels = data(plain(), 30)  # the last batch has 6
        history = trainer.fit(images, labels, 2, test=(images[:13], labels[:13]))
        found.append((history, trainer.predict(images), trainer.steps_done))
        trainer.close()
    (whole, scores, steps), (parted, others, others_steps) = found
    assert steps == others_steps == 8
    for one, other in zip(whole, parted, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-10)
        assert other.test.loss == pytest.approx(one.test.loss, rel=1e-10)
        assert other.test.accuracy == one.test.accuracy
    np.testing.assert_allclose(others, scores, rtol=1e-9, atol=1e-12)


def test_evaluation_has_no_more_samples_at_a_time_than_a_round():
    trainer = trainer_of(plain(), 4)
    assert trainer.plan_for(2, "evaluate").tape.micro_batches == 1
    with pytest.raises(vdnn.InputError, match="the batch has 3 samples; this trainer is planned for 1 to 2"):
        trainer.plan_for(3, "evaluate")
    trainer.close()


# ---- training as ever


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    images, labels = data(plain(dtype="float32"), 22)
    path = tmp_path / "run.safetensors"
    ends = []
    for stops in (False, True):
        trainer = trainer_of(plain(dtype="float32"), 2, "vdnn_all")
        trainer.fit(images, labels, 1)
        if stops:
            trainer.save(path)
            trainer.close()
            trainer = Trainer.load(path)
            assert trainer.plan.tape.micro_batches == 2
        trainer.fit(images, labels, 2)
        ends.append((bits(trainer.weights), bits(trainer.state)))
        trainer.close()
    assert ends[0] == ends[1]


def test_a_checkpoint_may_go_on_with_another_number_of_parts(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = trainer_of(plain(dtype="float32"), 2)
    trainer.save(path)
    trainer.close()
    loaded = Trainer.load(path, micro_batches=4)
    assert loaded.plan.tape.micro_batches == loaded.micro_batches == 4
    loaded.close()


def test_a_failed_step_leaves_weights_and_statistics_as_they_were():
    net = normed(dtype="float32")
    trainer = trainer_of(net, 2, allow_coupled=True)
    images, labels = data(net)
    trainer.step(images, labels)
    trainer.weights["linear1.w"] = np.full_like(trainer.weights["linear1.w"], 3e38)  # scores overflow
    before = [bits(group) for group in (trainer.weights, trainer.state, trainer.statistics)]
    with np.errstate(all="ignore"), pytest.raises(vdnn.TrainingError, match="the weights are as before this step"):
        trainer.step(images, labels)
    assert [bits(group) for group in (trainer.weights, trainer.state, trainer.statistics)] == before
    trainer.close()


def test_adam_updates_once_a_step():
    whole, found = (stepped(plain(), parts, optimizer=vdnn.Adam(0.01)) for parts in (1, 4))
    assert_near(found[2], whole[2], 1e-9)


def test_an_emulated_gpu_gives_what_the_whole_batch_gives():
    emulator = pytest.importorskip("emulator")
    if emulator.available():
        pytest.skip(emulator.available())
    from cuda_doubles import emulated_device

    found = []
    for parts, policy in ((1, "keep_all"), (2, "keep_all"), (2, "vdnn_all")):
        net = plain(dtype="float32")
        trainer = Trainer(net, policy, device=emulated_device(net), seed=1, micro_batches=parts)
        batch = data(net)
        losses = [float(loss) for loss in [trainer.step(*batch) for _ in range(3)]]  # both slots for inputs are used
        assert trainer.measured_peak_bytes == trainer.plan.peak_bytes
        found.append((losses, dict(trainer.weights)))
        trainer.close()
    whole, parted, offloaded = found
    assert parted[0] == pytest.approx(whole[0], rel=1e-4)
    assert_near(parted[1], whole[1], 1e-4)
    assert (offloaded[0], bits(offloaded[1])) == (parted[0], bits(parted[1]))


# ---- layers that couple samples


def test_batch_norm_is_refused_with_the_names_of_the_layers():
    with pytest.raises(vdnn.LayerError) as error:
        vdnn.build(normed(), kernels_named("numpy"), None, "gradients", micro_batches=2)
    assert str(error.value) == (
        "normed: bn1, bn2 take statistics over the batch, so 2 sub-batches of 4 samples would train another function "
        "than one batch of 8; allow_coupled=True accepts that each sub-batch has statistics of its own"
    )


def test_evaluation_couples_nothing():
    tape = vdnn.build(normed(), kernels_named("numpy"), None, "evaluate", micro_batches=2)
    assert tape.results == ("linear1.y", "loss1.y", "linear1.y@2", "loss1.y@2")


def test_with_leave_each_part_has_its_own_statistics_and_averages_move_for_each():
    net = normed()
    trainer = trainer_of(net, 2, allow_coupled=True)
    images, labels = data(net)
    trainer.step(images, labels)
    halves = [images[:4].mean((0, 2, 3)), images[4:].mean((0, 2, 3))]
    expected = 0.9 * (0.1 * halves[0]) + 0.1 * halves[1]
    np.testing.assert_allclose(trainer.statistics["bn1.mean"], expected, rtol=1e-12)
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes
    trainer.close()


def test_leave_and_parts_are_kept_in_a_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = trainer_of(normed(dtype="float32"), 2, allow_coupled=True)
    trainer.save(path)
    trainer.close()
    loaded = Trainer.load(path)
    assert (loaded.micro_batches, loaded.allow_coupled) == (2, True)
    loaded.close()


class Half(layers.Layer):
    """y = mean of x ** 2 / 2, of a user who has not heard of sub-batches."""

    is_loss = True

    def shapes(self, x):
        return vdnn.Shapes((1,), labels=vdnn.Spec(x))

    def forward(self, xp, x, labels, y):
        y[0] = xp.mean(x * x) / 2

    def backward(self, xp, x, labels, dx):
        xp.divide(x, x.size, out=dx)


def test_a_loss_that_cannot_know_the_number_of_samples_is_refused():
    net = vdnn.Network((4, 3), name="own")
    net.add(Half(), net.add(layers.Linear(2), net.input))
    vdnn.build(net, kernels_named("numpy"), None, "gradients")
    with pytest.raises(vdnn.LayerError, match=r"half1: the backward of Half\(\) names no `samples`"):
        vdnn.build(net, kernels_named("numpy"), None, "gradients", micro_batches=2)


# ---- the tape


def test_parts_that_do_not_divide_the_batch_are_refused_with_those_that_do():
    with pytest.raises(MicroBatchError, match="micro_batches=5 does not divide the batch of plain, 8 samples; 4 or 8"):
        vdnn.plan(plain(), micro_batches=5)
    with pytest.raises(MicroBatchError, match="micro_batches=9 does not divide the batch of plain, 8 samples; 8 would"):
        Trainer(plain(), micro_batches=9)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(MicroBatchError, match="a number of sub-batches, at least 1"):
            vdnn.build(plain(), kernels_named("numpy"), None, "gradients", micro_batches=wrong if wrong != 1 else "1")


def test_parts_may_be_unequal_if_they_are_the_batch():
    tape = vdnn.build(plain(), kernels_named("numpy"), None, "gradients", micro_batches=(5, 3))
    assert [tape.tensors[name].shape[0] for name in ("input", "input@2")] == [5, 3]
    assert (tape.batch, tape.micro_batches) == (8, 2)
    for wrong in ((5, 4), (8, 0), (4.0, 4), ()):
        with pytest.raises(MicroBatchError, match="no sizes that add up to a batch of 8"):
            vdnn.build(plain(), kernels_named("numpy"), None, "gradients", micro_batches=wrong)


def linear(batch=8):
    """Two layers: 4 KiB of images a sample, and weights of 4 KiB."""
    net = vdnn.Network((batch, 1024), name="linear")
    net.add(layers.MeanSquaredError(), net.add(layers.Linear(1), net.input))
    return net


def test_rounds_follow_each_other_and_updates_the_last():
    tape = vdnn.build(linear(), kernels_named("cudnn4"), vdnn.SGD(0.1, momentum=0.9), micro_batches=3 - 1)
    assert list(map(str, tape.ops)) == [
        "linear1.forward(input, linear1.w, linear1.b -> linear1.y)",
        "loss1.forward(linear1.y, labels -> loss1.y)",
        "loss1.backward(linear1.y, labels -> loss1.dx)",
        "linear1.backward_weights(input, loss1.dx -> linear1.dw, linear1.db)",
        "linear1.forward@2(input@2, linear1.w, linear1.b -> linear1.y@2)",
        "loss1.forward@2(linear1.y@2, labels@2 -> loss1.y@2)",
        "loss1.backward@2(linear1.y@2, labels@2 -> loss1.dx@2)",
        "linear1.backward_weights@2(input@2, loss1.dx@2 -> linear1.dw@2, linear1.db@2)",
        "linear1.dw.sum2(linear1.dw, linear1.dw@2 -> linear1.dw.sum2)",
        "linear1.db.sum2(linear1.db, linear1.db@2 -> linear1.db.sum2)",
        "linear1.w.update(clock@2, linear1.w, linear1.dw.sum2, linear1.w.velocity -> linear1.w, linear1.w.velocity)",
        "linear1.b.update(clock@2, linear1.b, linear1.db.sum2, linear1.b.velocity -> linear1.b, linear1.b.velocity)",
    ]
    assert tape.alias == {"linear1.dw.sum2": "linear1.dw", "linear1.db.sum2": "linear1.db"}
    assert tape.results == ("loss1.y", "loss1.y@2")
    assert tape.rounds == ((range(2), range(2, 4)), (range(4, 6), range(6, 12)))
    assert [t.name for t in tape.saved] == ["input", "linear1.y", "labels", "input@2", "linear1.y@2", "labels@2"]
    assert tape.tensors["input@2"].shape == (4, 1024)


def test_gradients_are_copied_out_once_when_they_are_whole():
    tape = vdnn.build(linear(), kernels_named("cudnn4"), None, "gradients", micro_batches=4)
    assert tape.results == ("loss1.y", "loss1.y@2", "loss1.y@3", "loss1.y@4", "linear1.dw.sum4", "linear1.db.sum4")
    plan = vdnn.plan(tape, "keep_all")
    copied = [step.name for step in plan.steps if step.kind == "offload"]
    assert [name for name in copied if ".d" in name] == ["linear1.dw", "linear1.db"]


@pytest.mark.parametrize(("parts", "floor"), [(1, 42496), (2, 30720), (4, 22528)])
def test_the_floor_by_hand(parts, floor):
    """Weights 4096 + 512; then the images of a part, dy 512, the gradients 4096 + 512, and those that wait, as much."""
    tape = vdnn.build(linear(), kernels_named("cudnn4"), vdnn.SGD(0.1), micro_batches=parts)
    assert floor == 4608 + 32768 // parts + 512 + 4608 * min(parts, 2)
    assert tape.floor_bytes == floor
    plan = vdnn.plan(tape, "least", algorithms="memory")
    assert plan.peak_bytes == floor


def test_where_weights_are_the_most_sub_batches_cost_memory():
    """The gradients of all layers wait from round to round, while a step of one round frees each at its update."""
    peaks = [
        vdnn.plan(models.get("alexnet", batch=16), "keep_all", kernels="cudnn4", micro_batches=parts).peak_bytes
        for parts in (1, 2)
    ]
    assert peaks[0] < peaks[1]


def test_one_part_is_the_tape_as_ever():
    tapes = [vdnn.build(plain(), kernels_named("numpy"), None, "gradients", **k) for k in ({}, {"micro_batches": 1})]
    assert list(map(str, tapes[0].ops)) == list(map(str, tapes[1].ops))
    assert tapes[1].rounds == ((range(tapes[1].turn), range(tapes[1].turn, len(tapes[1].ops))),)


# ---- plans


@pytest.mark.parametrize(
    ("name", "parts"), [("alexnet", 2), ("alexnet", 4), ("vgg16", 2), ("vgg16", 4), ("googlenet", 2)]
)
def test_every_policy_plans_large_networks_safely(name, parts):
    tape = vdnn.build(models.get(name, batch=16), kernels_named("cudnn4"), vdnn.SGD(0.1), micro_batches=parts)
    for policy in OWN:
        made = vdnn.plan(tape, policy, budget="12GiB")  # which verifies it
        assert made.floor_bytes <= made.peak_bytes <= made.arena_bytes


def test_under_the_papers_rules_the_rounds_are_planned_alike():
    made = vdnn.plan(models.get("vgg16", batch=16), "vdnn_all", rules="paper", micro_batches=2)
    tape, starts = made.tape, ({}, {})  # {X: the layer whose backward it comes back beside}
    for number, (_, backward) in enumerate(tape.rounds):
        for buffer, ahead in made.decisions.ahead.items():
            use = next((i for i in backward if buffer in tape.reads[i]), None)
            if use is not None:
                starts[number][buffer.removesuffix("@2")] = tape.ops[use - ahead].layer
    assert starts[0] == starts[1]
    assert len(starts[0]) > 10


def test_offloads_of_every_round_are_timed():
    tape = vdnn.build(models.get("vgg16", batch=64), kernels_named("cudnn4"), vdnn.SGD(0.1), micro_batches=2)
    made = vdnn.plan(tape, "vdnn_conv")
    late = vdnn.plan(tape, vdnn.Decisions(made.decisions.fates, ahead=0), algorithms=made)
    cost = vdnn.roofline("titan-x")
    stalls = [sum(s.seconds for s in vdnn.simulate(plan, cost).stalls if "@2" in s.op) for plan in (made, late)]
    assert stalls[0] < stalls[1] / 10


def test_what_all_rounds_have_shares_places_in_the_baseline():
    whole, parted = (
        vdnn.plan(models.get("vgg16", batch=64), "baseline", kernels="cudnn4", budget="40GiB", micro_batches=parts)
        for parts in (1, 4)
    )
    assert parted.breakdown["feature map"] == pytest.approx(whole.breakdown["feature map"] / 4, rel=1e-3)
    # of two, as one arrives while the other is there
    assert parted.breakdown["input"] == pytest.approx(whole.breakdown["input"] / 2, rel=1e-3)
    assert sum(parted.breakdown.values()) == pytest.approx(parted.arena_bytes)


def test_a_plan_prints_and_parses_and_goes_to_json_and_back():
    made = vdnn.plan(plain(), "vdnn_all", micro_batches=2)
    assert str(vdnn.Plan.parse(str(made), made.tape)) == str(made)
    again = vdnn.Plan.from_json(made.to_json())
    assert again.tape.micro_batches == 2
    assert str(again) == str(made)
    assert '"micro_batches": 2' in str(made).splitlines()[0]
    with pytest.raises(vdnn.PlanError, match="the plan is for micro_batches 2, the tape for 1"):
        vdnn.Plan.parse(str(made), vdnn.plan(plain()).tape)


def test_a_plan_from_before_there_were_parts_has_one():
    made = vdnn.plan(plain(), "vdnn_all")
    old = json.loads(made.to_json())
    del old["tape"]["micro_batches"], old["header"]["micro_batches"]
    assert str(vdnn.Plan.from_json(json.dumps(old))) == str(made)


def test_a_tape_has_its_parts_already():
    tape = vdnn.plan(plain(), micro_batches=2).tape
    assert vdnn.plan(tape).tape is tape
    with pytest.raises(ValueError, match="micro_batches=4 contradicts the tape, which was built with micro_batches=2"):
        vdnn.plan(tape, micro_batches=4)


def test_times_of_the_whole_batch_are_not_those_of_parts():
    tapes = [vdnn.plan(plain(), micro_batches=parts).tape for parts in (1, 2)]
    for about in ({"batch": 8}, {"batch": 8, "micro_batches": 1}):
        cost = vdnn.measured({op.name: 1e-3 for op in (*tapes[0].ops, *tapes[1].ops)}, about=about)
        assert cost.op_seconds(tapes[0], tapes[0].ops[0], "") == 1e-3
        with pytest.raises(ValueError, match="recorded for micro_batches 1, and asked for 2"):
            cost.op_seconds(tapes[1], tapes[1].ops[0], "")


def test_what_does_not_fit_is_told_with_a_batch_of_as_many_parts():
    net = models.get("vgg16", batch=256)
    with pytest.raises(vdnn.BudgetError, match="vgg16, batch 256 in 4 parts, does not fit under keep_all") as error:
        vdnn.plan(net, "keep_all", kernels="cudnn4", budget="4GiB", micro_batches=4)
    largest = error.value.advice.largest_batch
    assert largest % 4 == 0
    options = {"kernels": "cudnn4", "budget": "4GiB", "micro_batches": 4}
    assert vdnn.plan(net.with_batch(largest), "keep_all", **options).arena_bytes <= 4 << 30
    with pytest.raises(vdnn.BudgetError):
        vdnn.plan(net.with_batch(largest + 4), "keep_all", **options)


def test_the_least_plan_may_have_parts():
    whole, parted = (least_plan(plain(64), threads=1, micro_batches=parts) for parts in (1, 4))
    assert parted.tape.micro_batches == 4
    assert parted.arena_bytes < whole.arena_bytes


# ---- the command line


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_the_command_plans_parts_and_says_so():
    options = ("alexnet", "--batch", 16, "--kernels", "cudnn4", "--micro-batches", 4)
    result = run("plan", *options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["micro_batches"] == 4
    assert "alexnet, batch 16 in 4 parts, momentum" in run("plan", *options).stdout
    compared = run("compare", *options, "--policy", "keep_all", "--policy", "least").stdout
    assert "alexnet, batch 16 in 4 parts, momentum" in compared


def test_parts_that_there_cannot_be_are_wrong_usage():
    result = run("plan", "alexnet", "--batch", 16, "--micro-batches", 3)
    assert result.exit_code == 2
    assert "micro_batches=3 does not divide the batch of alexnet, 16 samples; 2 or 4 would" in result.stderr
    result = run("plan", "resnet18", "--batch", 4, "--micro-batches", 2)
    assert result.exit_code == 2
    assert "bn1" in result.stderr
    assert run("plan", "resnet18", "--batch", 4, "--micro-batches", 2, "--allow-coupled").exit_code == 0


def test_the_command_trains_in_parts(tmp_path):
    path = tmp_path / "run.safetensors"
    options = ("--batch", 64, "--samples", 64, "--threads", 2, "--epochs", 1, "--save", path, "--json")
    refused = run("train", "digits_vgg", "--micro-batches", 2, *options)
    assert refused.exit_code == 2
    result = run("train", "digits_vgg", "--micro-batches", 2, "--allow-coupled", *options, "--data", "synthetic")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["micro_batches"] == 2
    assert figures["measured_peak_bytes"] == figures["peak_bytes"]


def test_the_summary_says_how_many_parts():
    made = vdnn.plan(plain(), micro_batches=2)
    found = summary(made, vdnn.roofline("titan-x"))
    assert (found["batch"], found["micro_batches"]) == (8, 2)


def test_a_policy_chooses_the_number_of_parts_unless_it_is_given():
    net = models.get("vgg16", batch=128)
    setting = {"kernels": "cudnn4", "optimizer": "sgd"}
    budget = vdnn.plan(net, "keep_all", **setting).floor_bytes * 9 // 10  # one part cannot fit
    assert vdnn.plan(net, "modnn", budget=budget, **setting).tape.micro_batches > 1
    with pytest.raises(vdnn.BudgetError):
        vdnn.plan(net, "modnn", budget=budget, micro_batches=1, **setting)
