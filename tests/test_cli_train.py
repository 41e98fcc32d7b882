"""vdnn train: tiny runs through the command line, and everything that a user can do wrong."""

from __future__ import annotations

import json
import signal
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from vdnn import Trainer
from vdnn.__main__ import main
from vdnn.kernels.cuda.driver import missing

NET = """
import vdnn

def net(batch, image=(1, 4, 4)):
    n = vdnn.Network((batch, *image), name="tiny")
    x = n.add(vdnn.layers.ReLU(), n.add(vdnn.layers.Conv2d(2, 3), n.input))
    n.add(vdnn.layers.SoftmaxCrossEntropy(), n.add(vdnn.layers.Linear(3), n.add(vdnn.layers.Flatten(), x)))
    return n

def eight(batch):
    return net(batch, (1, 8, 8))

def headless(batch):
    n = vdnn.Network((batch, 1, 4, 4), name="headless")
    n.add(vdnn.layers.ReLU(), n.input)
    return n

def offload(tape):
    return {tape.saved[1]: vdnn.OFFLOAD}
"""
TINY = ("tiny:net", "--batch", "8", "--samples", "24", "--threads", "1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a small network in it, which is the current one."""
    (tmp_path / "tiny.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return tmp_path


def train(*arguments):
    result = CliRunner().invoke(main, ["train", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def train_json(*arguments):
    result = train(*arguments, "--json")
    return json.loads(result.stdout), result


def same_files(left, right):
    left, right = load_file(left), load_file(right)
    assert left.keys() == right.keys()
    assert any(value.any() for value in left.values())
    return all(np.array_equal(left[name], right[name]) for name in left)


@pytest.fixture
def interrupted(monkeypatch):
    """A function that has Ctrl-C pressed during the step of that number, from 1."""
    whole = Trainer.settle

    def at(number, presses=1):
        def settle(self):
            if self._running is not None and self.steps_done == number:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            whole(self)

        monkeypatch.setattr(Trainer, "settle", settle)

    yield at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- what it says


def test_json_is_one_object_with_the_figures_of_the_plan_and_what_was_measured():
    figures, result = train_json(*TINY, "--policy", "tiny:offload", "--epochs", 2)
    assert result.exit_code == 0
    assert (figures["network"], figures["batch"], figures["policy"]) == ("tiny", 8, "tiny:offload")
    assert (figures["data"], figures["train_samples"], figures["test_samples"]) == ("synthetic", 24, 6)
    assert figures["measured_peak_bytes"] == figures["peak_bytes"] == sum(figures["breakdown"].values())
    assert figures["peak_bytes"] <= figures["arena_bytes"] <= figures["budget_bytes"]
    assert figures["fits"] is True
    assert figures["offloaded_bytes"] > 0
    assert figures["time"] == "measured"
    assert figures["copy_seconds"] > 0
    assert figures["step_seconds"] > 0
    assert 0 <= figures["hidden_copy_fraction"] <= 1
    assert figures["steps"] == 6
    assert [epoch["epoch"] for epoch in figures["epochs"]] == [1, 2]
    assert 0 <= figures["test_accuracy"] == figures["epochs"][-1]["test_accuracy"] <= 1
    assert figures["stopped"] is False
    assert "oracle_seconds" not in figures  # that one would be simulated
    assert "epoch 2/2: loss" in result.stderr


def test_for_people_it_says_accuracy_per_epoch_peaks_budget_and_copies():
    result = train(*TINY, "--epochs", 2, "--budget", "1MiB")
    assert result.exit_code == 0
    assert "tiny: synthetic images 1x4x4, 24 to train on, 6 to test with" in result.stderr
    assert "tiny: vdnn_dyn moves nothing and runs nothing again" in result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert all(line.endswith("% right") for line in lines[:2])
    assert "tiny, batch 8, momentum, on this machine" in lines
    starts = ("budget", "arena", "predicted peak", "measured peak", "offloaded", "step", "copy", "copies hidden")
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert "1048576 bytes" in result.stdout
    assert max(map(len, lines)) <= 60


def test_digits_are_learned_by_default_where_they_suit():
    figures, result = train_json("digits_vgg", "--batch", 256, "--epochs", 1)
    assert (figures["data"], figures["train_samples"], figures["test_samples"]) == ("digits", 1438, 359)
    assert "digits images 1x8x8" in result.stderr


def test_a_network_of_fewer_classes_learns_synthetic_images():
    assert train_json("tiny:eight", "--batch", 8, "--epochs", 1)[0]["train_samples"] == 4 * 8


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_every_optimizer_trains_with_the_learning_rate_given(optimizer):
    figures, _ = train_json(*TINY, "--epochs", 1, "--optimizer", optimizer, "--learning-rate", 0.025)
    assert figures["optimizer"] == optimizer
    assert figures["epochs"][0]["learning_rate"] == 0.025


def test_policies_and_bandwidth_change_time_and_bytes_but_no_bit():
    train(*TINY, "--epochs", 1, "--policy", "keep_all", "--save", "kept")
    train(*TINY, "--epochs", 1, "--policy", "tiny:offload", "--link-bandwidth", "1MB/s", "--save", "offloaded")
    assert same_files("kept", "offloaded")
    train(*TINY, "--epochs", 1, "--seed", 1, "--save", "other")
    assert not same_files("kept", "other")


# ---- going on


def test_a_training_that_goes_on_ends_with_the_same_bits(here):
    train(*TINY, "--epochs", 3, "--save", "whole", "--seed", 5, "--optimizer", "adam")
    train(*TINY, "--epochs", 1, "--save", "first", "--seed", 5, "--optimizer", "adam")
    figures, result = train_json(
        "tiny:net", "--samples", 24, "--epochs", 3, "--resume", "first", "--save", here / "rest"
    )
    assert result.exit_code == 0
    assert (figures["batch"], figures["seed"], figures["optimizer"]) == (8, 5, "adam")
    assert [epoch["epoch"] for epoch in figures["epochs"]] == [2, 3]
    assert same_files("whole", "rest")


def test_ctrl_c_ends_the_step_saves_and_says_where(interrupted):
    train(*TINY, "--epochs", 3, "--save", "whole")
    interrupted(5)
    figures, result = train_json(*TINY, "--epochs", 3, "--save", "part")
    assert result.exit_code == 130
    assert "stopped in epoch 2 of 3: saved; go on with --resume part" in result.stderr
    assert (figures["stopped"], figures["steps"], len(figures["epochs"])) == (True, 5, 1)
    assert train(*TINY, "--epochs", 3, "--resume", "part", "--save", "part").exit_code == 0
    assert same_files("whole", "part")


def test_ctrl_c_at_the_end_of_an_epoch_goes_on_after_it(interrupted):
    train(*TINY, "--epochs", 2, "--save", "whole")
    interrupted(3)
    assert train(*TINY, "--epochs", 2, "--save", "part").exit_code == 130
    figures, _ = train_json(*TINY, "--epochs", 2, "--resume", "part", "--save", "part")
    assert figures["steps"] == 6
    assert same_files("whole", "part")


def test_ctrl_c_without_save_says_that_nothing_was_saved(interrupted, here):
    interrupted(1)
    result = train(*TINY)
    assert result.exit_code == 130
    assert "nothing was saved, as --save was not given" in result.stderr
    assert sorted(p.suffix for p in here.iterdir() if p.is_file()) == [".py"]


def test_ctrl_c_pressed_twice_stops_at_once(interrupted, monkeypatch):
    def step(self, images, labels):  # as if the step were taking long
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", step)
    result = train(*TINY, "--save", "x")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "stopped")


def test_a_training_that_goes_on_keeps_its_rewrites(here):
    figures, _ = train_json(*TINY, "--epochs", 1, "--rewrites", "all-split", "--save", "a.safetensors")
    assert figures["rewrites"] == ["inplace", "sum_inplace", "early_update", "relu_behind_pool", "relu_mask"]
    resumed, _ = train_json(*TINY, "--epochs", 2, "--resume", "a.safetensors")
    plain, _ = train_json(*TINY, "--epochs", 2, "--rewrites", "none")
    assert resumed["rewrites"] == figures["rewrites"]
    assert resumed["epochs"][-1]["loss"] == plain["epochs"][-1]["loss"]
    assert train(*TINY, "--rewrites", "fast").exit_code == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_vg"], "did you mean digits_vgg?"),
        (["tiny:not_there"], "module 'tiny' has no 'not_there'"),
        (["tiny:headless"], "headless tells no classes apart"),
        ([*TINY, "--policy", "vdnn_al"], "did you mean vdnn_all"),
        ([*TINY, "--optimizer", "lion"], "'sgd', 'momentum', 'adam'"),
        ([*TINY, "--learning-rate", "nan"], "--learning-rate nan is no number"),
        ([*TINY, "--learning-rate", "0"], "--learning-rate"),
        ([*TINY, "--budget", "12Gx"], "units are B, KiB"),
        ([*TINY, "--link-bandwidth", "fast"], "--link-bandwidth fast: bytes a second, such as 2GB"),
        ([*TINY, "--data", "digits"], "--samples is for --data synthetic"),
        (["tiny:net", "--data", "digits"], "they are 1x8x8, of 10 classes; tiny takes 1x4x4, of 3 classes"),
        ([*TINY, "--save", "no/such/file"], "No such file or directory: 'no/such/file'"),
        ([*TINY, "--save", ""], "the name of a file to write is empty"),
        ([*TINY, "--epochs", "0"], "--epochs"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2(arguments, message):
    result = train(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", 1], "saved has 1 epochs done; ask for more with --epochs"),
        (["--seed", 3], "--seed 3: saved was trained with 0, which cannot be changed"),
        (["--batch", 4], "--batch 4: saved was trained with 8"),
        (["--optimizer", "adam"], "--optimizer adam: saved was trained with momentum"),
    ],
)
def test_what_defines_a_training_cannot_be_changed_when_it_goes_on(arguments, message):
    train(*TINY, "--epochs", 1, "--save", "saved")
    result = train("tiny:net", "--resume", "saved", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_other_data_than_the_epoch_began_with_is_refused(interrupted):
    interrupted(3)
    train(*TINY, "--epochs", 2, "--save", "part")
    result = train("tiny:net", "--samples", 8, "--resume", "part")
    assert result.exit_code == 2
    assert "give --data, --samples and --augment as before" in result.stderr


def test_a_budget_that_does_not_fit_has_status_3_and_says_what_would():
    figures, result = train_json(*TINY, "--budget", "2KiB")
    assert result.exit_code == 3
    assert "tiny, batch 8, does not fit under vdnn_dyn" in result.stderr
    assert "what would fit:" in result.stderr
    assert (figures["fits"], figures["budget_bytes"]) == (False, 2048)
    assert train(*TINY, "--budget", "2KiB").stdout == ""


def test_a_file_that_is_no_checkpoint_has_status_1(here):
    (here / "file").write_bytes(b"nothing")
    for path, message in (("file", "is truncated or no safetensors file"), ("missing", "missing is no file")):
        result = train(*TINY, "--resume", path)
        assert result.exit_code == 1
        assert message in result.stderr


def test_a_checkpoint_of_another_network_has_status_1():
    train(*TINY, "--epochs", 1, "--save", "saved")
    result = train("digits_vgg", "--resume", "saved")
    assert result.exit_code == 1
    assert "saved was saved by tiny, not by digits_vgg" in result.stderr


def test_training_that_diverges_has_status_1():
    result = train(*TINY, "--learning-rate", 1e38)
    assert result.exit_code == 1
    assert "lower the learning rate" in result.stderr


# ---- a GPU


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--math", "tf32"), "--math tf32 is for --device cuda"),
        (("--device", "cuda", "--threads", 2), "--threads 2 is for --device host"),
        (("--device", "cuda", "--link-bandwidth", "1GB"), "--link-bandwidth 1GB is for --device host"),
    ],
)
def test_options_of_another_device_are_refused(options, message):
    result = train("tiny:net", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_a_gpu_the_command_says_why():
    if not missing():
        pytest.skip("there is a GPU")
    result = train("tiny:net", "--device", "cuda")
    assert result.exit_code == 1
    assert "no GPU can be used: CuPy" in result.stderr
