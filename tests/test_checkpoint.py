"""Checkpoints: whole or not at all, and a run that was killed goes on as if it had not been."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import vdnn
from vdnn import CheckpointError, Trainer, layers, models
from vdnn.data import digits
from vdnn.schedules import Cosine, StepDecay, Warmup


def small(batch=16, classes=10):
    net = vdnn.Network((batch, 1, 8, 8), name="small")
    x = net.add(layers.ReLU(), net.add(layers.BatchNorm2d(), net.add(layers.Conv2d(4, 3, stride=(2, 1)), net.input)))
    x = net.add(layers.Dropout(0.3), net.add(layers.Flatten(), net.add(layers.AvgPool2d(2, ceil_mode=True), x)))
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(classes), x))
    return net


def everything(trainer):
    return {k: v for group in (trainer.weights, trainer.state, trainer.statistics) for k, v in group.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.fixture
def saved(tmp_path):
    data = digits()
    trainer = Trainer(small(), "vdnn_all", optimizer=vdnn.Adam(Warmup(3, Cosine(0.01, 50))), seed=3, threads=1)
    trainer.fit(data.train_images[:48], data.train_labels[:48], 2)
    path = tmp_path / "run.safetensors"
    trainer.save(path)
    yield trainer, path
    trainer.close()


def test_a_loaded_trainer_has_every_array_and_setting(saved):
    trainer, path = saved
    loaded = Trainer.load(path)
    assert_equal(everything(loaded), everything(trainer))
    assert loaded.optimizer == trainer.optimizer
    assert (loaded.seed, loaded.steps_done, loaded.epoch, loaded.position) == (3, 6, 2, 0)
    assert loaded.plan.decisions.algorithms == trainer.plan.decisions.algorithms
    assert [repr(n.layer) for n in loaded.net.nodes] == [repr(n.layer) for n in trainer.net.nodes]
    batch = digits().train_images[:16], digits().train_labels[:16]
    assert loaded.step(*batch) == trainer.step(*batch)
    loaded.close()


def test_the_file_is_one_safetensors_file_with_json_for_the_rest(saved):
    _, path = saved
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["vdnn"])
        assert set(file.keys()) >= {"conv1.w", "conv1.w.m", "bn1.mean"}
    assert about["seed"] == 3
    assert about["optimizer"]["kind"] == "Adam"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 7, 100, 3000, -1])
def test_a_truncated_file_is_refused_with_its_size(saved, keep):
    _, path = saved
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=rf"\({len(whole[:keep]):,} bytes\) is truncated or no safetensors file"):
        Trainer.load(path)


def test_foreign_files_are_refused(saved, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no checkpoint at all, but longer than eight bytes")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        Trainer.load(text)
    other = tmp_path / "other.safetensors"
    save_file({"w": np.zeros(3, np.float32)}, other)
    with pytest.raises(CheckpointError, match="not one that vdnn wrote"):
        Trainer.load(other)
    with pytest.raises(CheckpointError, match="is no file"):
        Trainer.load(tmp_path / "missing.safetensors")


def test_a_checkpoint_of_another_network_is_refused_by_name_and_shape(saved):
    _, path = saved
    with pytest.raises(CheckpointError, match=r"layer 6 \(linear1\) was saved with out_features 10, not 7"):
        Trainer.load(path, net=small(classes=7))
    with pytest.raises(CheckpointError, match=r"layer 0 \(conv1\) was saved with name 'conv1', not "):
        Trainer.load(path, net=models.digits_vgg(batch=8))


def chain(*kinds, image=8):
    net = vdnn.Network((4, 1, image, image), name="chain")
    x = net.input
    for layer in kinds:
        x = net.add(layer, x)
    net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(3), net.add(layers.Flatten(), x)))
    return net


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: [layers.Conv2d(2, 3, dilation=3, padding=3), layers.ReLU()], r"\(conv1\) was saved with .*\[1, 1\]"),
        (lambda: [layers.Conv2d(2, 3, padding=1), layers.Tanh()], r"layer 1 \(relu1\) was saved with name 'relu1'"),
        (
            lambda: [layers.Conv2d(2, 3, padding=1), layers.Tanh(name="relu1")],
            r"layer 1 \(relu1\) was saved with kind 'ReLU', not 'Tanh'",
        ),
    ],
)
def test_a_network_of_equal_arrays_that_computes_something_else_is_refused(tmp_path, other, message):
    path = tmp_path / "run.safetensors"
    trainer = Trainer(chain(layers.Conv2d(2, 3, padding=1), layers.ReLU()), "keep_all", threads=1)
    trainer.save(path)
    trainer.close()
    with pytest.raises(CheckpointError, match=message):
        Trainer.load(path, net=chain(*other()))
    Trainer.load(path, net=chain(layers.Conv2d(2, 3, padding=1), layers.ReLU()).with_batch(3)).close()


def test_a_network_with_more_layers_or_other_inputs_is_refused(tmp_path):
    def wired(first, more=0):
        net = vdnn.Network((4, 1, 8, 8))
        x = net.add(layers.ReLU(), net.input)
        y = net.add(layers.Tanh(), x)
        x = net.add(layers.Flatten(), net.add(layers.Add(), *((x, y) if first else (y, x))))
        net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(3), x))
        return net

    path = tmp_path / "run.safetensors"
    trainer = Trainer(wired(True), "keep_all", threads=1)
    trainer.save(path)
    trainer.close()
    with pytest.raises(CheckpointError, match=r"with inputs \['relu1.y', 'tanh1.y'\], not \['tanh1.y', 'relu1.y'\]"):
        Trainer.load(path, net=wired(False))
    net = vdnn.Network((4, 1, 8, 8))
    net.add(layers.Tanh(), net.add(layers.ReLU(), net.input))
    with pytest.raises(CheckpointError, match="the network was saved with number of layers 6, not 2"):
        Trainer.load(path, net=net)


def rewritten(path, change):
    """The checkpoint with its metadata changed in place by `change`."""
    with safe_open(path, framework="numpy") as file:
        arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator)
        about = json.loads(file.metadata()["vdnn"])
    change(about)
    save_file(arrays, path, {"vdnn": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("seed"), "its metadata has no 'seed'"),
        (lambda a: a.pop("options"), "its metadata has no 'options'"),
        (lambda a: a.update(speed=1), "its metadata has 'speed', which this version does not know"),
        (lambda a: a.update(network=[]), r"its metadata has network=\[\], which is no valid dict"),
        (lambda a: a.update(epoch="two"), "its metadata has epoch='two', which is no valid int"),
        (lambda a: a.update(seed=-1), "seed=-1"),
        (lambda a: a["options"].update(speed=1), "options has 'speed'"),
        (lambda a: a["options"].pop("budget"), "options has no 'budget'"),
        (lambda a: a["options"].update(policy="nothing"), "options cannot be used: no policy is named 'nothing'"),
        (lambda a: a["options"]["algorithms"].update({"conv1.forward": "x"}), "options cannot be used: conv1.forward"),
        (lambda a: a["options"].update(rewrites=["x"]), "options cannot be used: 'x' in 'x' is no rewrite"),
        (lambda a: a["options"].update(rewrites=[3]), "options cannot be used: '3' in '3' is no rewrite"),
        (lambda a: a["options"].update(rewrites="all"), "options has rewrites='all', which is no valid list"),
        (lambda a: a["network"].pop("shape"), "network has no 'shape'"),
        (lambda a: a["network"].update(shape=[0, 1]), r"network cannot be used: .*positive integers"),
        (lambda a: a["network"].update(dtype="float8"), "network cannot be used: dtype 'float8'"),
        (lambda a: a["network"]["layers"][0].pop("inputs"), "network, layer 0 has no 'inputs'"),
        (lambda a: a["network"]["layers"][1].update(inputs=["x.y"]), "layer bn1 names or lacks 'x.y'"),
        (lambda a: a["network"]["layers"][0]["config"].update(speed=1), "layer conv1 cannot be used: .*'speed'"),
        (lambda a: a["network"]["layers"][0]["config"].update(stride=0), "layer conv1 cannot be used: stride"),
        (lambda a: a["network"]["layers"][0]["config"].update(kernel_size=99), "layer conv1 cannot be used"),
        (lambda a: a["optimizer"].pop("kind"), "optimizer names or lacks 'kind'"),
        (lambda a: a["optimizer"].update(kind=3), "optimizer cannot be used"),
        (lambda a: a["optimizer"].update(speed=1), "optimizer cannot be used: .*'speed'"),
        (lambda a: a["optimizer"].update(eps=-1), "optimizer cannot be used: eps=-1"),
        (lambda a: a["optimizer"]["learning_rate"].pop("kind"), "optimizer names or lacks 'kind'"),
    ],
)
def test_a_missing_or_unknown_field_is_named_with_its_file(saved, change, message):
    _, path = saved
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=rf"{path.name}: .*{message}"):
        Trainer.load(path)


def test_an_earlier_checkpoint_goes_on_with_the_standard_rewrites(saved):
    _, path = saved
    rewritten(path, lambda about: (about.pop("recipe"), about["options"].pop("rewrites")))
    loaded = Trainer.load(path)
    assert loaded.recipe is None
    assert loaded.plan.tape.rewrites == ("inplace", "split", "sum_inplace", "early_update")
    loaded.close()


def test_a_newer_format_is_refused_by_its_name(saved, tmp_path):
    _, path = saved
    with safe_open(path, framework="numpy") as file:
        arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no iterator)
        about = json.loads(file.metadata()["vdnn"])
    newer = tmp_path / "newer.safetensors"
    save_file(arrays, newer, {"vdnn": json.dumps({**about, "format": "vdnn checkpoint 9"})})
    with pytest.raises(CheckpointError, match="'vdnn checkpoint 9'; this version reads 'vdnn checkpoint 1'"):
        Trainer.load(newer)


def test_layers_and_policies_of_ones_own_must_be_passed_again(tmp_path):
    class Twice(vdnn.Layer):
        def forward(self, xp, x, y):
            xp.add(x, x, out=y)

        def backward(self, xp, dy, dx):
            xp.add(dy, dy, out=dx)

    def make():
        net = vdnn.Network((4, 1, 4, 4))
        x = net.add(layers.Flatten(), net.add(Twice(), net.add(layers.Conv2d(2, 3), net.input)))
        net.add(layers.SoftmaxCrossEntropy(), net.add(layers.Linear(3), x))
        return net

    trainer = Trainer(make(), lambda tape: dict.fromkeys(tape.saved, vdnn.OFFLOAD), threads=1)
    path = tmp_path / "own.safetensors"
    trainer.save(path)
    with pytest.raises(CheckpointError, match=r"layer twice1 is not one of vdnn's own; pass the network"):
        Trainer.load(path)
    with pytest.raises(CheckpointError, match="policy of your own; pass it"):
        Trainer.load(path, net=make())
    loaded = Trainer.load(path, net=make(), policy="keep_all")
    assert_equal(everything(loaded), everything(trainer))
    for t in (trainer, loaded):
        t.close()


def test_a_schedule_that_is_no_value_cannot_be_saved_and_says_so(tmp_path):
    trainer = Trainer(small(), "keep_all", optimizer=vdnn.SGD(lambda step: 0.1), threads=1)
    with pytest.raises(CheckpointError, match=r"use one of vdnn.schedules"):
        trainer.save(tmp_path / "run.safetensors")
    assert not list(tmp_path.iterdir())
    trainer.close()


def test_a_schedule_of_ones_own_is_not_taken_for_one_of_the_same_name(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Constant:
        rate: float

        def __call__(self, step):
            return self.rate / 2

    trainer = Trainer(small(), "keep_all", optimizer=vdnn.SGD(Constant(0.1)), threads=1)
    with pytest.raises(CheckpointError, match=r"use one of vdnn.schedules"):
        trainer.save(tmp_path / "run.safetensors")
    trainer.close()


def test_an_optimizer_of_ones_own_must_be_passed_again(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class SGD(vdnn.SGD):  # of the same name as one of vdnn's
        factor: float = 2.0

    path = tmp_path / "own.safetensors"
    trainer = Trainer(small(), "keep_all", optimizer=SGD(0.1, momentum=0.9), threads=1)
    trainer.save(path)
    with pytest.raises(CheckpointError, match="an optimizer of your own; pass it: load"):
        Trainer.load(path)
    loaded = Trainer.load(path, optimizer=SGD(0.1, momentum=0.9))
    assert_equal(everything(loaded), everything(trainer))
    for t in (trainer, loaded):
        t.close()


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    path = tmp_path / "run.safetensors"
    optimizer = vdnn.Adam(Warmup(np.int64(2), Cosine(np.float32(0.1), 9)), betas=(np.float32(0.5), np.float64(0.9)))
    trainer = Trainer(small(np.int64(16)), "keep_all", optimizer=optimizer, seed=np.int64(3), threads=1)
    trainer.save(path)
    loaded = Trainer.load(path)
    assert loaded.optimizer == optimizer
    assert type(loaded.seed) is int
    assert type(loaded.optimizer.betas[0]) is float
    for t in (trainer, loaded):
        t.close()


def test_weights_that_are_half_updated_do_not_replace_a_good_checkpoint(saved):
    trainer, path = saved
    before = path.read_bytes()
    trainer.device.torn = True
    with pytest.raises(CheckpointError, match="a step that failed left the weights half updated"):
        trainer.save(path)
    assert path.read_bytes() == before
    trainer.device.torn = False


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_file_has_ordinary_permissions(saved):
    trainer, path = saved
    before = os.umask(0o027)
    try:
        trainer.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="folders are not synchronised elsewhere")
def test_the_folder_is_synchronised_after_the_file_took_its_name(saved, monkeypatch):
    trainer, path = saved
    seen = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append("replace"), replace(*names)))
    monkeypatch.setattr(
        os, "fsync", lambda n: (seen.append("folder" if stat.S_ISDIR(os.fstat(n).st_mode) else "file"), fsync(n))
    )
    trainer.save(path)
    assert seen == ["file", "replace", "folder"]


def test_a_full_disk_leaves_the_old_checkpoint_and_no_other_file(saved):
    """A limit on the size of files stands for the full disk: writing fails in the middle, in the same way."""
    _, path = saved
    before = path.read_bytes()
    script = textwrap.dedent("""
        import resource, signal, sys
        import vdnn
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        trainer = vdnn.Trainer.load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            trainer.save(sys.argv[1])
        except vdnn.CheckpointError as error:
            print(error)
    """)
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written" in run.stdout
    assert "the checkpoint before it is untouched" in run.stdout
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    Trainer.load(path).close()


def test_a_folder_that_is_not_there_is_named(saved, tmp_path):
    trainer, _ = saved
    with pytest.raises(CheckpointError, match="nowhere"):
        trainer.save(tmp_path / "nowhere" / "run.safetensors")


KILLED = """
import sys
import vdnn
from test_checkpoint import settings
trainer, data = settings()
def note(run, loss):
    print(run.epoch, run.position, flush=True)
trainer.fit(*data, 4, shift=1, save=sys.argv[1], progress=note)
"""


def settings():
    data = digits()
    optimizer = vdnn.SGD(StepDecay(0.05, every=7, factor=0.5), momentum=0.9, nesterov=True)
    trainer = Trainer(small(), "vdnn_all", optimizer=optimizer, seed=11, threads=2)
    return trainer, (data.train_images[:100], data.train_labels[:100])


def test_four_epochs_equal_two_a_kill_and_two_more(tmp_path: Path):
    path = tmp_path / "run.safetensors"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout is not None
    for line in child.stdout:  # killed in the middle of the third epoch
        if line.split() == ["2", "2"]:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    rest = Trainer.load(path)
    assert rest.epoch == 2
    whole, data = settings()
    whole.fit(*data, 4, shift=1)
    rest.fit(*data, 4, shift=1)
    assert rest.steps_done == whole.steps_done == 28
    assert_equal(everything(rest), everything(whole))
    for t in (rest, whole):
        t.close()
