"""Training with a budget of host memory: every policy, sub-batches, checkpoints, and the resident set."""

from __future__ import annotations

import os

import numpy as np
import pytest

import vdnn
from vdnn import HostBudgetError, Trainer, layers, resident
from vdnn.data import digits
from vdnn.memory.spill import SpillError

BATCH = 16


def small(batch=BATCH):
    net = vdnn.Network((batch, 1, 8, 8), name="small")
    x = net.input
    for _ in range(3):
        x = net.add(layers.ReLU(), net.add(layers.Conv2d(8, 3, padding=1), x))
    x = net.add(layers.Flatten(), net.add(layers.MaxPool2d(2), x))
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(10), net.add(layers.Dropout(0.25), x)))
    return net


def trained(policy, steps=3, **options):
    """(everything after some steps, the trainer's plans)."""
    data = digits()
    trainer = Trainer(small(), policy, threads=2, **options)
    try:
        for n in range(steps):
            part = slice(n * BATCH, (n + 1) * BATCH)
            trainer.step(data.train_images[part], data.train_labels[part])
        return everything(trainer), trainer.plans
    finally:
        trainer.close()


def everything(trainer):
    return {k: v for group in (trainer.weights, trainer.state, trainer.statistics) for k, v in group.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
        assert np.isfinite(value).all()


@pytest.fixture(scope="module")
def reference():
    """What keeping all leaves behind, in so many sub-batches, and with which algorithms."""
    return {parts: trained("keep_all", micro_batches=parts) for parts in (1, 2)}


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "policy", ["vdnn_all", "vdnn_conv", "least", "capuchin", vdnn.searching(seconds=0.1, cache=False)]
)
def test_disk_and_host_and_keeping_all_give_the_same_bits(policy, parts, undo, reference):
    expected, plans = reference[parts]
    found = {}
    for host_budget in (None, 0):
        options = {"micro_batches": parts, "undo": undo, "algorithms": plans.main, "budget": "1MiB"}
        options |= {"rewrites": "standard", "host_budget": host_budget}
        found[host_budget], made = trained(policy, **options)
        assert bool(made.main.disk_bytes) == (host_budget == 0 and (undo or bool(made.main.offloaded_bytes)))
    assert_equal(found[None], expected)
    assert_equal(found[0], expected)


def test_the_budget_covers_the_plans_of_all_batches_and_purposes():
    data = digits()
    trainer = Trainer(small(), "vdnn_all", threads=2, host_budget="24KiB")
    for size in (BATCH, 5, BATCH):
        trainer.step(data.train_images[:size], data.train_labels[:size])
    trainer.evaluate(data.test_images[:40], data.test_labels[:40])
    assert all(plan.host_bytes <= 24 << 10 for plan in trainer.plans.made.values())
    assert trainer.device.host.nbytes <= 24 << 10
    assert trainer.device.disk_bytes == max(plan.disk_bytes for plan in trainer.plans.made.values())
    assert os.fstat(trainer.device.spill.number).st_size == trainer.device.disk_bytes
    trainer.close()


def test_gradients_that_do_not_fit_are_refused_when_they_are_asked_for():
    data = digits()
    batch = data.train_images[:BATCH], data.train_labels[:BATCH]
    tight, roomy = (Trainer(small(), "vdnn_all", threads=2, host_budget=n) for n in ("6KiB", "1MiB"))
    with pytest.raises(HostBudgetError, match=r"needed .* results of"):
        tight.gradients(*batch)
    tight.step(*batch)
    loss, gradients = roomy.gradients(*batch)
    whole = Trainer(small(), "keep_all", threads=2, algorithms=roomy.plan)
    assert whole.gradients(*batch)[0] == loss
    assert_equal(gradients, whole.gradients(*batch)[1])
    for trainer in (tight, roomy, whole):
        trainer.close()


def test_a_checkpoint_keeps_the_budget_and_goes_on_with_equal_bits(tmp_path):
    data = digits()
    path = tmp_path / "run.safetensors"
    first = Trainer(small(), "vdnn_all", threads=2, host_budget="8KiB", spill=tmp_path)
    first.fit(data.train_images[:48], data.train_labels[:48], 1)
    first.save(path)
    second = Trainer.load(path)
    assert second.host_budget == 8 << 10
    assert second.plan.disk_bytes == first.plan.disk_bytes > 0
    third = Trainer.load(path, host_budget=None)
    assert third.plan.disk_bytes == 0
    for trainer in (first, second, third):
        trainer.fit(data.train_images[:48], data.train_labels[:48], 2)
    assert_equal(everything(second), everything(first))
    assert_equal(everything(third), everything(first))
    for trainer in (first, second, third):
        trainer.close()
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_a_full_disk_in_a_step_is_an_error_and_the_next_step_works():
    data = digits()
    batch = data.train_images[:BATCH], data.train_labels[:BATCH]
    trainer = Trainer(small(), "vdnn_all", threads=2, host_budget=0)
    trainer.step(*batch)
    before, write = everything(trainer), trainer.device.spill.write_some

    def full(memory, place):
        raise OSError(28, "No space left on device")

    trainer.device.spill.write_some = full
    with pytest.raises(SpillError, match="No space left"):
        trainer.step(*batch)
    assert trainer.steps_done == 1
    assert_equal(everything(trainer), before)
    trainer.device.spill.write_some = write
    trainer.step(*batch)
    assert trainer.steps_done == 2
    trainer.close()


def test_spill_belongs_to_the_host():
    with pytest.raises(ValueError, match=r"spill='/tmp': threads, exact, link_bandwidth, spill are for the host"):
        Trainer(small(), device="cuda", spill="/tmp")


# ---- the resident set


@pytest.fixture
def status(tmp_path, monkeypatch):
    """The system says what is in this file."""
    path = tmp_path / "status"
    path.write_text("Name:\tpython\nVmHWM:\t  900 kB\nVmRSS:\t  700 kB\n")
    monkeypatch.setattr(resident, "STATUS", path)
    return path


def test_the_resident_set_is_planned_part_by_part(status):
    trainer = Trainer(small(), "vdnn_all", threads=2, host_budget="8KiB")
    status.write_text("VmHWM:\t  1000 kB\nVmRSS:\t  800 kB\n")
    found = trainer.resident
    assert found.before == 700 * 1024
    assert (found.arena, found.host) == (trainer.device.arena_bytes, trainer.device.host.nbytes)
    assert found.scratch == 2 * resident.SCRATCH
    assert found.staging == trainer.device.spill.staging_bytes
    assert found.planned == found.before + found.arena + found.host + found.staging + found.scratch
    assert found.measured == 1000 * 1024
    trainer.close()


def test_results_of_gradients_are_not_planned_for(status):
    trainer = Trainer(small(), "keep_all", threads=2, undo=False)
    assert trainer.resident.host < trainer.device.host.nbytes
    assert trainer.resident.host == max(
        plan.host_bytes for (_, purpose), plan in trainer.plans.made.items() if purpose != "gradients"
    )
    trainer.close()


@pytest.mark.parametrize("text", [None, "", "VmRSS: much\n"])
def test_where_the_system_does_not_say_there_is_no_resident_set(status, text):
    if text is None:
        status.unlink()
    else:
        status.write_text(text)
    trainer = Trainer(small(), "keep_all", threads=1)
    assert trainer.resident is None
    assert resident.peak_resident_bytes() is None
    trainer.close()
