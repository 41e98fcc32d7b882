"""vdnn measure without --out: the table of this machine, what is timed for it, and what Ctrl-C leaves; and --exact."""

from __future__ import annotations

import json
import signal

import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main
from vdnn.memory import alone

SMALL = ("digits_vgg", "--batch", "2", "--threads", "1")
MEASURE = ("measure", *SMALL, "--repeats", "1")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VDNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def files(cache):
    return sorted(cache.glob("times/*/*/*.json"))


def count_timed(monkeypatch, stop_after=None):
    """Have no op run, count those that are timed, and press Ctrl-C after some."""
    timed = []

    def fake(question, device, rounds, stop):
        if stop():
            return {}
        timed.append(question.op.name)
        if len(timed) == stop_after:
            signal.raise_signal(signal.SIGINT)
        return dict.fromkeys(question.algorithms, 1e-3)

    monkeypatch.setattr(alone, "timed_alone", fake)
    return timed


def test_it_fills_the_table_and_a_trainer_then_chooses_by_it(cache):
    result = run(*MEASURE)
    assert result.exit_code == 0, result.output
    assert "0 known before" in result.stdout
    assert all(json.loads(path.read_text())["seconds"] for path in files(cache))
    trainer = vdnn.Trainer(vdnn.models.digits_vgg(batch=2), threads=1)
    assert trainer.algorithms_by == "measured"
    assert trainer.measured_ops == len(trainer.plan.tape.ops)
    trainer.close()


def test_what_is_known_is_not_timed_again_unless_asked(cache, monkeypatch):
    timed = count_timed(monkeypatch)
    run(*MEASURE)
    every = len(timed)
    assert every == len(files(cache)) > 0
    assert f"0 of 0 ops timed, {every} known before" in run(*MEASURE).stdout
    assert len(timed) == every
    run(*MEASURE, "--again")
    assert len(timed) == 2 * every


def test_ctrl_c_keeps_what_was_timed(cache, monkeypatch):
    count_timed(monkeypatch, stop_after=3)
    result = run(*MEASURE)
    assert result.exit_code == 130
    assert "stopped: 3 of" in result.stderr
    assert len(files(cache)) == 3


def test_no_folder_for_the_table_is_a_usage_error(monkeypatch):
    monkeypatch.setenv("VDNN_CACHE", "")
    result = run(*MEASURE)
    assert result.exit_code == 2
    assert "VDNN_CACHE" in result.stderr


def test_training_says_by_what_it_chose(monkeypatch):
    train = ("train", *SMALL, "--samples", 2, "--epochs", 1, "--data", "synthetic")
    assert "chosen by published rates" in run(*train).stdout
    count_timed(monkeypatch)
    run(*MEASURE)
    figures = json.loads(run(*train, "--json").stdout)
    assert (figures["algorithms_by"], figures["measured_ops"]) == ("measured", figures["ops"])


# ---- --exact


def algorithms(trainer):
    return {a.name for op in trainer.plan.tape.ops if op.kind == "conv" for a in op.algorithms}


def test_an_exact_trainer_has_plain_products_alone_and_goes_on_so(tmp_path):
    net = vdnn.models.digits_vgg(batch=2)
    usual, exact = vdnn.Trainer(net, threads=1), vdnn.Trainer(net, threads=1, exact=True)
    assert algorithms(exact) <= {"direct", "pack"}
    exact.save(str(tmp_path / "saved"))
    usual.save(str(tmp_path / "usual"))
    trainers = [usual, exact, vdnn.Trainer.load(str(tmp_path / "saved"))]
    assert trainers[2].device.kernels.exact
    trainers.append(vdnn.Trainer.load(str(tmp_path / "usual"), exact=True))  # its algorithms are left out
    assert algorithms(trainers[3]) <= {"direct", "pack"}
    for trainer in trainers:
        trainer.close()


def test_exact_training_and_planning_on_the_command_line():
    train = ("train", *SMALL, "--samples", 2, "--epochs", 1, "--data", "synthetic", "--exact")
    assert run(*train).exit_code == 0
    plan = ("plan", "vgg16", "--batch", 2, "--policy", "keep_all", "--threads", 1, "--json")
    usual, exact = (json.loads(run(*plan, *more).stdout) for more in ((), ("--exact",)))
    assert exact["step_seconds"] > usual["step_seconds"]


@pytest.mark.parametrize(
    "arguments", [("train", "digits_vgg", "--device", "cuda"), ("plan", "vgg16", "--kernels", "cudnn4")]
)
def test_exact_is_for_the_hosts_kernels(arguments):
    result = run(*arguments[:2], "--exact", *arguments[2:])
    assert result.exit_code == 2
    assert "--exact is for" in result.stderr
