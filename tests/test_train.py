"""Trainer: real training, and everything that a user can do wrong."""

import signal
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import vdnn
from vdnn import Trainer, layers, models
from vdnn.data import Batches, digits, synthetic
from vdnn.schedules import Cosine, StepDecay, Warmup

BATCH = 16


def small(batch=BATCH, dropout=0.25):
    net = vdnn.Network((batch, 1, 8, 8), name="small")
    x = net.add(layers.ReLU(), net.add(layers.Conv2d(8, 3, padding=1), net.input))
    x = net.add(layers.ReLU(), net.add(layers.BatchNorm2d(), net.add(layers.Conv2d(8, 3, padding=1), x)))
    x = net.add(layers.Flatten(), net.add(layers.MaxPool2d(2), x))
    x = net.add(layers.Dropout(dropout), x)
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(10), x))
    return net


@pytest.fixture
def trainer():
    made = Trainer(small(), "vdnn_all", optimizer=vdnn.SGD(0.1, momentum=0.9, weight_decay=1e-4), threads=2)
    yield made
    made.close()


@pytest.fixture
def batch():
    data = digits()
    return data.train_images[:BATCH], data.train_labels[:BATCH]


def everything(trainer):
    return {k: v.copy() for group in (trainer.weights, trainer.state, trainer.statistics) for k, v in group.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def test_training_lowers_the_loss_and_tells_digits_apart(trainer):
    data = digits()
    history = trainer.fit(data.train_images[:480], data.train_labels[:480], 4)
    assert history[-1].loss < history[0].loss / 2
    assert trainer.evaluate(data.test_images, data.test_labels).accuracy > 0.8
    assert trainer.epoch == 4
    assert trainer.steps_done == 4 * 30


def test_a_step_returns_the_loss_from_before_its_update(trainer, batch):
    before, _ = trainer.gradients(*batch)
    assert trainer.step(*batch) == before
    assert trainer.step(*batch) != before


def test_gradients_change_nothing_and_explain_the_next_step(batch):
    trainer = Trainer(small(), "vdnn_all", optimizer=vdnn.SGD(0.5), threads=2)
    before = everything(trainer)
    _, gradients = trainer.gradients(*batch)
    assert_equal(before, everything(trainer))
    assert gradients.keys() == trainer.weights.keys()
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert np.abs(gradients["conv1.w"]).max() > 0
    trainer.step(*batch)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(trainer.weights[name], before[name] - np.float32(0.5) * gradient)
    trainer.close()


def test_evaluate_and_predict_change_nothing_and_agree(trainer):
    data = digits()
    before = everything(trainer)
    result = trainer.evaluate(data.test_images, data.test_labels)  # 359 images: the last batch is smaller
    scores = trainer.predict(data.test_images)
    assert_equal(before, everything(trainer))
    assert scores.shape == (359, 10)
    assert result.accuracy == np.mean(scores.argmax(axis=1) == data.test_labels)
    logs = scores - scores.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs.astype(np.float64)).sum(axis=1, keepdims=True))
    assert result.loss == pytest.approx(-logs[np.arange(359), data.test_labels].mean(), rel=1e-5)


def test_a_last_batch_of_another_size_is_planned_for_itself(trainer):
    data = digits()
    trainer.fit(data.train_images[:40], data.train_labels[:40], 1)  # 16 + 16 + 8
    assert trainer.steps_done == 3
    assert trainer.plan_for(8).tape.batch == 8
    assert trainer.device.arena_bytes <= max(trainer.plan.arena_bytes, trainer.plan_for(BATCH, "gradients").arena_bytes)


def test_a_smaller_batch_gives_the_gradients_of_a_network_of_that_batch(batch):
    images, labels = batch[0][:5], batch[1][:5]
    large = Trainer(small(dropout=0), "keep_all", threads=2)
    little = Trainer(small(5, dropout=0), "keep_all", algorithms=large.plan_for(5), threads=2)
    assert large.gradients(images, labels)[0] == little.gradients(images, labels)[0]
    large.close()
    little.close()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (lambda x: np.full_like(x, np.nan), None, r"16 of 16 images hold NaN or infinity, the first at index 0"),
        (
            lambda x: np.where(np.arange(16)[:, None, None, None] == 5, 1e300, x.astype(float)),
            None,
            r"1 of 16 images .* at index 5",
        ),
        (lambda x: x[:, :, :7], None, r"images have shape \(16, 1, 7, 8\)"),
        (lambda x: np.concatenate([x, x]), lambda y: np.concatenate([y, y]), r"32 samples; .* planned for 1 to 16"),
        (lambda x: x[:0], lambda y: y[:0], r"there are no images"),
        (lambda x: (x * 255).astype(np.uint8), None, r"images are uint8; convert them to float32"),
        (None, lambda y: np.where(np.arange(16) == 3, 10, y), r"1 of 16 labels .* \[0, 10\): .* is 10 at index 3"),
        (None, lambda y: np.where(np.arange(16) == 7, -1, y), r"is -1 at index 7"),
        (None, lambda y: y[:8], r"labels have shape \(8,\); this batch takes \(16,\)"),
        (None, lambda y: y + 0.5, r"labels are float64; they are classes, so integers"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(trainer, batch, images, labels, message):
    trainer.step(*batch)
    before = everything(trainer)
    bad = (images(batch[0]) if images else batch[0], labels(batch[1]) if labels else batch[1])
    with pytest.raises(vdnn.InputError, match=message):
        trainer.step(*bad)
    assert_equal(before, everything(trainer))
    assert trainer.steps_done == 1
    assert np.isfinite(trainer.step(*batch))


@pytest.mark.parametrize("kernel", ["linear_forward", "conv2d_backward_weights", "sgd"])
def test_an_exception_inside_a_step_leaves_everything_as_before_and_the_next_step_works(batch, kernel):
    device = vdnn.HostDevice(small(), threads=2)
    works, calls = getattr(device.kernels, kernel), []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("a fault in a kernel")
        return works(*args, **kwargs)

    setattr(device.kernels, kernel, fails)
    trainer = Trainer(device.network, "vdnn_all", device=device, optimizer="momentum")
    twin = Trainer(small(), "vdnn_all", optimizer="momentum", threads=2)
    caught = None
    while caught is None:  # some calls are to be right first: the fault comes in the middle of training, and of a step
        before, done = everything(trainer), trainer.steps_done
        try:
            trainer.step(*batch)
            twin.step(*batch)
        except RuntimeError as error:
            caught = error
    assert "a fault in a kernel" in str(caught)
    assert "of the plan" in "".join(caught.__notes__)
    assert_equal(everything(trainer), before)
    assert trainer.steps_done == done
    assert trainer.step(*batch) == twin.step(*batch)
    assert_equal(everything(trainer), everything(twin))
    trainer.close()
    twin.close()


def test_ctrl_c_in_the_middle_of_a_step_is_held_to_its_end(batch):
    net = small()
    asked = []

    def interrupt(step):
        if step.kind == "compute" and step.name == "conv2.forward" and not asked:
            asked.append(step)
            signal.raise_signal(signal.SIGINT)
        return 0.0

    trainer = Trainer(net, "vdnn_all", device=vdnn.HostDevice(net, threads=2, delay=interrupt), optimizer="momentum")
    twin = Trainer(small(), "vdnn_all", optimizer="momentum", threads=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(*batch)
    assert asked
    twin.step(*batch)
    assert trainer.steps_done == 1
    assert_equal(everything(trainer), everything(twin))
    assert trainer.step(*batch) == twin.step(*batch)
    assert_equal(everything(trainer), everything(twin))
    trainer.close()
    twin.close()


def test_without_undo_a_torn_step_is_said_and_training_refused(batch, monkeypatch):
    trainer = Trainer(small(), "vdnn_all", optimizer="momentum", threads=2, undo=False)
    works, calls = trainer.device.kernels.sgd, []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("a fault in an update")
        works(*args, **kwargs)

    monkeypatch.setattr(trainer.device.kernels, "sgd", fails)
    with pytest.raises(RuntimeError, match="a fault in an update"):
        trainer.step(*batch)
    with pytest.raises(vdnn.DeviceError, match="load them from a checkpoint"):
        trainer.step(*batch)
    trainer.close()


def test_weights_are_read_only_copies_and_can_be_replaced(trainer):
    w = trainer.weights["conv1.w"]
    assert w.shape == (8, 1, 3, 3)
    with pytest.raises(ValueError, match="read-only"):
        w[:] = 0
    value = np.arange(72, dtype=np.float32).reshape(8, 1, 3, 3)
    trainer.weights["conv1.w"] = value
    np.testing.assert_array_equal(trainer.weights["conv1.w"], value)
    with pytest.raises(ValueError, match=r"conv1.w has shape \(8, 1, 3, 3\), not \(3,\)"):
        trainer.weights["conv1.w"] = np.zeros(3)
    with pytest.raises(KeyError):
        trainer.weights["conv9.w"] = value


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, b, c = (Trainer(small(), "keep_all", seed=s, threads=1) for s in (3, 3, 4))
    assert_equal(everything(a), everything(b))
    assert not np.array_equal(a.weights["conv1.w"], c.weights["conv1.w"])
    for t in (a, b, c):
        t.close()


def test_a_budget_under_the_floor_says_what_is_needed_and_what_would_fit():
    with pytest.raises(vdnn.BudgetError) as caught:
        Trainer(small(), "vdnn_all", budget="100KB")
    text = str(caught.value)
    assert "100000 bytes" in text
    assert str(caught.value.plan.arena_bytes) in text
    assert "floor" in text
    assert "would fit" in text


def test_the_budget_caps_the_slab_over_all_plans():
    lean = vdnn.plan(models.digits_vgg(batch=64), "keep_all", algorithms="memory", threads=2)
    budget = lean.arena_bytes * 3 // 4
    trainer = Trainer(models.digits_vgg(batch=64), "vdnn_dyn", budget=budget, threads=2, algorithms="mixed")
    assert trainer.device.arena_bytes <= budget
    data = digits()
    trainer.fit(data.train_images[:70], data.train_labels[:70], 1, test=(data.test_images, data.test_labels))
    assert trainer.device.arena_bytes <= budget
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes <= budget
    trainer.close()


def test_a_policy_that_names_an_unknown_tensor_or_returns_nonsense_is_refused_by_name():
    with pytest.raises(vdnn.DecisionError, match=r"'relu9.y' is no tensor"):
        Trainer(small(), {"relu9.y": vdnn.OFFLOAD})
    with pytest.raises(vdnn.DecisionError, match="Decisions or a mapping"):
        Trainer(small(), lambda tape: 42)


def test_learning_rates_follow_the_schedule(batch):
    trainer = Trainer(small(), "keep_all", optimizer=vdnn.SGD(StepDecay(0.5, every=1, factor=0.0)), threads=1)
    trainer.step(*batch)
    before = everything(trainer)
    trainer.step(*batch)  # the rate is 0 from the second step on
    for name in trainer.weights:
        assert np.array_equal(before[name], trainer.weights[name])
    trainer.close()
    assert Warmup(2, Cosine(1.0, 4))(0) == 0.5
    assert Cosine(1.0, 4)(2) == pytest.approx(0.5)


def test_a_loss_that_is_not_finite_is_an_error_and_takes_the_step_back(batch):
    trainer = Trainer(small(), "keep_all", optimizer=vdnn.SGD(1e30), threads=1)
    trainer.step(*batch)  # now the weights are huge, the next loss is not finite
    before = everything(trainer)
    with pytest.raises(vdnn.TrainingError, match=r"the loss is .* at step 2 .*1e\+30\); the weights are as before"):
        trainer.step(*batch)
    assert_equal(everything(trainer), before)
    assert trainer.steps_done == 1
    trainer.close()
    torn = Trainer(small(), "keep_all", optimizer=vdnn.SGD(1e30), threads=1, undo=False)
    torn.step(*batch)
    with pytest.raises(vdnn.TrainingError, match="are lost: undo=False"):
        torn.step(*batch)
    with pytest.raises(vdnn.DeviceError, match="load them from a checkpoint"):
        torn.step(*batch)
    torn.close()


def test_a_learning_rate_that_is_not_finite_is_refused_before_the_step(batch):
    trainer = Trainer(small(), "keep_all", optimizer=vdnn.SGD(lambda step: float("nan")), threads=1)
    before = everything(trainer)
    with pytest.raises(vdnn.TrainingError, match="the learning rate of step 1 is nan"):
        trainer.step(*batch)
    assert_equal(everything(trainer), before)
    trainer.close()


@pytest.mark.parametrize("policy", ["least", "vdnn_all"])
def test_a_smaller_batch_is_refused_only_where_no_plan_at_all_could_fit(policy):
    options = {"algorithms": "memory", "threads": 2, "budget": "1GiB", "undo": True, "hardware": "host"}
    whole = vdnn.plan(models.digits_vgg(batch=33), policy, **options)
    budget = whole.arena_bytes
    trainer = Trainer(models.digits_vgg(batch=33), policy, budget, algorithms="memory", threads=2)
    refused = {}
    for size in range(1, 34):
        try:
            assert trainer.plan_for(size).arena_bytes <= budget
        except vdnn.BudgetError as error:
            refused[size] = error.floor_bytes
    assert len(refused) < 8
    assert all(floor > budget for floor in refused.values())  # a workspace may be larger for fewer samples
    assert trainer.device.arena_bytes <= budget
    trainer.close()


def test_the_slab_grows_for_a_smaller_batch_that_needs_more_and_keeps_the_weights(batch):
    net = models.digits_vgg(batch=33)
    data = digits()
    trainer = Trainer(net, "least", algorithms="memory", threads=2)
    twin = Trainer(models.digits_vgg(batch=33), "keep_all", algorithms="memory", threads=2)
    sizes = [n for n in range(1, 33) if trainer.plans.get(n, "step").arena_bytes > trainer.plan.arena_bytes]
    assert sizes
    for n in (33, sizes[0], 33):
        images, labels = data.train_images[:n], data.train_labels[:n]
        assert trainer.step(images, labels) == twin.step(images, labels)
    assert_equal(everything(trainer), everything(twin))
    trainer.close()
    twin.close()


def test_fit_looks_at_all_labels_before_the_first_step(trainer):
    data = digits()
    labels = data.train_labels[:48].copy()
    labels[40] = 11
    with pytest.raises(vdnn.InputError, match="the first is 11 at index 40"):
        trainer.fit(data.train_images[:48], labels, 1)
    with pytest.raises(vdnn.InputError, match="there are no images"):
        trainer.fit(
            data.train_images[:48], data.train_labels[:48], 1, test=(data.test_images[:0], data.test_labels[:0])
        )
    assert trainer.steps_done == 0


def test_a_second_thread_is_refused_while_a_step_runs(batch):
    net = small()
    inside, go_on = threading.Event(), threading.Event()

    def hold(step):
        if step.kind == "compute" and step.name == "conv1.forward":
            inside.set()
            go_on.wait(10)
        return 0.0

    trainer = Trainer(net, "keep_all", device=vdnn.HostDevice(net, threads=1, delay=hold), optimizer="momentum")
    losses = []
    first = threading.Thread(target=lambda: losses.append(trainer.step(*batch)))
    first.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match="in the middle of a step in another thread"):
        trainer.step(*batch)
    go_on.set()
    first.join()
    assert len(losses) == trainer.steps_done == 1
    trainer.close()


def test_a_device_serves_one_trainer_and_its_network_alone(batch):
    net = small()
    device = vdnn.HostDevice(net, threads=1)
    with pytest.raises(ValueError, match="made for another network"):
        Trainer(small(), "keep_all", device=device)
    trainer = Trainer(net, "keep_all", device=device, optimizer="momentum")
    with pytest.raises(ValueError, match="holds the weights of another trainer"):
        Trainer(net, "keep_all", device=device)
    before = everything(trainer)
    other = vdnn.plan(models.digits_vgg(batch=1), "least", algorithms="memory", threads=1, optimizer="momentum")
    with pytest.raises(vdnn.DeviceError, match="not for the weights on this device"):
        vdnn.execute(other, device)
    assert_equal(everything(trainer), before)
    trainer.close()


def test_a_whole_step_allocates_nothing_of_size_outside_the_arena():
    net = models.vgg11(batch=4, image=(3, 64, 64), classes=10)
    images, labels = synthetic((3, 64, 64), 10, 4)
    trainer = Trainer(net, "vdnn_all", threads=2)
    trainer.step(images, labels)
    tracemalloc.start()
    trainer.step(images, labels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20  # the largest map alone has 4 MiB
    trainer.close()


def test_training_is_resumed_bit_for_bit_from_the_middle_of_an_epoch(tmp_path: Path):
    data = digits()
    images, labels = data.train_images[:100], data.train_labels[:100]
    optimizer = vdnn.Adam(Cosine(1e-2, 40))
    whole = Trainer(small(), "vdnn_all", optimizer=optimizer, seed=5, threads=2)
    whole.fit(images, labels, 4, shift=1)
    part = Trainer(small(), "vdnn_all", optimizer=optimizer, seed=5, threads=2)

    class KilledError(Exception):
        pass

    def kill(run, loss):
        if (run.epoch, run.position) == (2, 3):
            run.save(str(tmp_path / "run.safetensors"))
            raise KilledError

    with pytest.raises(KilledError):
        part.fit(images, labels, 4, shift=1, progress=kill)
    part.close()
    rest = Trainer.load(str(tmp_path / "run.safetensors"))
    assert (rest.epoch, rest.position) == (2, 3)
    rest.fit(images, labels, 4, shift=1)
    assert_equal(everything(rest), everything(whole))
    assert rest.steps_done == whole.steps_done
    for t in (whole, rest):
        t.close()


def test_batches_come_in_an_order_that_depends_on_seed_and_epoch_alone():
    images, labels = synthetic((1, 8, 8), 10, 50)
    first = [y.tolist() for _, y in Batches(images, labels, 16, 7).epoch(2)]
    again = [y.tolist() for _, y in Batches(images, labels, 16, 7).epoch(2, start=2)]
    assert first[2:] == again
    assert first != [y.tolist() for _, y in Batches(images, labels, 16, 7).epoch(3)]


def test_models_train_through_the_trainer_under_half_of_what_keeping_everything_takes():
    data = digits()
    lean = Trainer(models.digits_vgg(batch=32), "keep_all", algorithms="memory", threads=2)
    trainer = Trainer(models.digits_vgg(batch=32), "checkpoint", algorithms=lean.plan, threads=2)
    assert trainer.plan.arena_bytes < lean.plan.arena_bytes
    for t in (lean, trainer):
        t.step(data.train_images[:32], data.train_labels[:32])
    assert_equal(everything(trainer), everything(lean))
    assert trainer.measured_peak_bytes == trainer.plan.peak_bytes
    for t in (lean, trainer):
        t.close()


@pytest.mark.parametrize("policy", ["vdnn_all", "vdnn_conv"])
def test_what_only_backward_reads_is_no_part_of_the_plan_for_evaluation(policy):
    trainer = vdnn.Trainer(vdnn.models.digits_vgg(batch=4), policy=policy)
    assert "offload" in {trainer.plan.fate(t.name) for t in trainer.plan.tape.saved if t.name.endswith("indices")}
    assert np.isfinite(trainer.evaluate(np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, int)).loss)
    trainer.close()


def test_ctrl_c_during_fit_loses_no_batch_and_repeats_none(tmp_path: Path):
    data = digits()
    images, labels = data.train_images[:64], data.train_labels[:64]
    net = small()
    asked = []

    def interrupt(step):
        if step.kind == "compute" and step.name == "conv1.backward_weights":
            asked.append(step)
            if len(asked) == 3:
                signal.raise_signal(signal.SIGINT)
        return 0.0

    stopped = Trainer(net, "vdnn_all", device=vdnn.HostDevice(net, threads=2, delay=interrupt), optimizer="momentum")
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(images, labels, 2)
    assert (stopped.steps_done, stopped.epoch, stopped.position) == (3, 0, 3)
    stopped.fit(images, labels, 2)
    whole = Trainer(small(), "vdnn_all", optimizer="momentum", threads=2)
    whole.fit(images, labels, 2)
    assert_equal(everything(stopped), everything(whole))
    stopped.close()
    whole.close()
