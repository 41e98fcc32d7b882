"""vdnn measure: a file of times through the command line, and everything that a user can do wrong."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from click.testing import CliRunner

import vdnn
from vdnn.commands import measure as module
from vdnn.commands.measure import measure
from vdnn.kernels.cuda.driver import missing
from vdnn.memory.measuring import Recorder, key_of
from vdnn.memory.policy import OWN

NET = """
import vdnn

def net(batch):
    n = vdnn.Network((batch, 1, 4, 4), name="tiny")
    x = n.add(vdnn.layers.ReLU(), n.add(vdnn.layers.Conv2d(2, 3), n.input))
    n.add(vdnn.layers.SoftmaxCrossEntropy(), n.add(vdnn.layers.Linear(3), n.add(vdnn.layers.Flatten(), x)))
    return n

def headless(batch):
    n = vdnn.Network((batch, 1, 4, 4), name="headless")
    n.add(vdnn.layers.ReLU(), n.input)
    return n
"""
TINY = ("tiny:net", "--batch", "8", "--threads", "1", "--repeats", "2")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a small network in it, which is the current one."""
    (tmp_path / "tiny.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(measure, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def interrupt_in_round(monkeypatch, number, presses=1):
    """Have Ctrl-C pressed at the end of the round of that number, from 1."""
    whole = Recorder.round

    def one(self, *arguments):
        whole(self, *arguments)
        if len(self.rounds) == number:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "round", one)


# ---- the file


def test_the_file_holds_times_copies_memory_contention_and_what_they_are_of(here):
    result = run(*TINY, "--out", "times.json")
    assert result.exit_code == 0
    assert "times.json: medians of 2 rounds" in result.stdout
    data = json.loads((here / "times.json").read_text())
    assert data["format"] == "vdnn times 1"
    assert all(seconds > 0 for seconds in data["seconds"].values())
    assert set(data["copy"]) == {"offload_bytes_per_second", "prefetch_bytes_per_second", "latency_seconds"}
    assert set(data["contention"]) == {"duplex", "link_share", "compute_slowdown", "copy_slowdown"}
    assert data["memory_bytes"] > 0
    about = data["about"]
    assert (about["network"], about["batch"], about["threads"], about["rounds"]) == ("tiny", 8, 1, 2)
    assert (about["optimizer"], about["algorithms"], about["device"]) == ("momentum", "all", "host")
    assert about.keys() >= {"processor", "vdnn", "python", "numpy", "date"}
    assert "link_bandwidth" not in about


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A file of times of all algorithms of digits_vgg."""
    path = tmp_path_factory.mktemp("times") / "times.json"
    assert run("digits_vgg", "--batch", 4, "--threads", 1, "--repeats", 1, "--out", path).exit_code == 0
    return path


@pytest.mark.parametrize("policy", OWN)
def test_the_file_predicts_every_policy(digits, policy):
    cost = vdnn.measured(digits)
    made = vdnn.plan(vdnn.models.digits_vgg(batch=4), policy, threads=1, cost=cost)
    assert vdnn.simulate(made, cost).step_seconds > 0


def test_one_choice_of_algorithms_is_timed_alone(here):
    choice = ("--threads", 1, "--repeats", 1, "--algorithms", "memory")
    run("digits_vgg", "--batch", 4, *choice, "--out", "times.json")
    cost = vdnn.measured(here / "times.json")
    made = vdnn.plan(
        vdnn.models.digits_vgg(batch=4), "vdnn_all", threads=1, algorithms="memory", hardware="host", budget="1GiB"
    )
    expected = {key_of(op, made.decisions.algorithms[op.name]) for op in made.tape.ops}
    assert set(cost.seconds) == expected
    assert any(" by " in key for key in expected)
    assert vdnn.simulate(made, cost).step_seconds > 0
    assert cost.about["algorithms"] == "memory"


def test_the_link_and_the_optimizer_are_those_asked_for(here):
    run(*TINY, "--link-bandwidth", "1GB/s", "--optimizer", "adam", "--out", "times.json")
    cost = vdnn.measured(here / "times.json")
    assert cost.copies.offload_bytes_per_second < 1.5e9  # a throttle only makes slower
    assert (cost.about["link_bandwidth"], cost.about["optimizer"]) == (10**9, "adam")


def test_nothing_but_the_file_is_left_behind(here):
    before = set(here.iterdir())
    run(*TINY, "--out", "times.json")
    assert set(here.iterdir()) - before - {here / "__pycache__"} == {here / "times.json"}


# ---- Ctrl-C, and a disk that fails


def test_ctrl_c_writes_the_medians_of_the_rounds_until_then(here, monkeypatch):
    interrupt_in_round(monkeypatch, 1)
    result = run(*TINY, "--repeats", 5, "--out", "times.json")
    assert result.exit_code == 130
    assert "stopped after 1 of 5 rounds: times.json has their medians" in result.stderr
    assert vdnn.measured(here / "times.json").about["rounds"] == 1


def test_ctrl_c_pressed_twice_leaves_the_old_file(here, monkeypatch):
    (here / "times.json").write_text("old")
    interrupt_in_round(monkeypatch, 1, presses=2)
    assert run(*TINY, "--out", "times.json").exit_code == 130
    assert (here / "times.json").read_text() == "old"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(here, monkeypatch, error):
    (here / "times.json").write_text("old")

    def fail(number):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    assert run(*TINY, "--out", "times.json").exit_code == (1 if isinstance(error, OSError) else 130)
    assert (here / "times.json").read_text() == "old"
    assert not list(here.glob(".times.json*"))


# ---- what a user can do wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg17", "--out", "o.json"), "did you mean"),
        (("tiny:nothing", "--out", "o.json"), "nothing"),
        (("tiny:headless",), "has no loss layer"),
        (("tiny:net", "--out", "o.json", "--again"), "--again is for the table"),
        (("tiny:net", "--device", "cuda"), "--device cuda is for --out"),
        (("tiny:net", "--algorithms", "memory"), "--algorithms memory is for --out"),
        (("tiny:net", "--link-bandwidth", "1GB"), "--link-bandwidth 1GB is for --out"),
        (("tiny:headless", "--out", "o.json"), "has no loss layer"),
        (("tiny:net", "--out", "missing/o.json"), "missing"),
        (("tiny:net", "--out", "."), "directory"),
        (("tiny:net", "--out", "o.json", "--repeats", 0), "--repeats"),
        (("tiny:net", "--out", "o.json", "--link-bandwidth", "fast"), "'fast'"),
        (("tiny:net", "--out", "o.json", "--device", "cuda", "--threads", 2), "--threads is for --device host"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2_before_anything_runs(here, monkeypatch, arguments, message):
    monkeypatch.setattr(Recorder, "round", lambda self, advance: pytest.fail("a round was run"))
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(here.glob("*.json"))


@pytest.mark.skipif(not missing(), reason="there is a GPU")
def test_where_there_is_no_gpu_it_says_why(here):
    result = run("tiny:net", "--out", "o.json", "--device", "cuda")
    assert result.exit_code == 1
    assert "no GPU" in result.stderr


def test_a_step_that_does_not_fit_is_said_with_status_3(here, monkeypatch):
    from vdnn.memory.host import HostDevice

    monkeypatch.setattr(HostDevice, "free_bytes", lambda self: 2048)
    result = run(*TINY, "--out", "o.json")
    assert result.exit_code == 3
    assert "2048" in result.stderr
    assert not (here / "o.json").exists()


def test_the_processor_has_a_name():
    assert module.processor()
