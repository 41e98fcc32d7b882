from __future__ import annotations

import json
import sys

import networks
import pytest
from click.testing import CliRunner

from vdnn import models
from vdnn.__main__ import main
from vdnn.ladder import FitError, make_ladder
from vdnn.largest import between, climb, fit, largest
from vdnn.memory.decisions import Decisions
from vdnn.memory.policy import OWN
from vdnn.memory.simulate import simulate
from vdnn.planning import BudgetError, plan
from vdnn.result_tables import fit_table
from vdnn.units import format_bytes

FIT = ("fit", "digits_vgg", "--hardware", "host", "--threads", "1")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fit_json(*arguments):
    result = run(*FIT, *arguments, "--json")
    return json.loads(result.stdout), result


# ---- bisection


@pytest.mark.parametrize("start", [1, 2, 7, 50, 100])
@pytest.mark.parametrize(("budget", "expected"), [(99, 9), (100, 10), (109, 10), (999, 99), (5, 0), (10**6, 100)])
def test_climbing_finds_the_last_rung_that_fits(start, budget, expected):
    asked = []

    def needs(rung):
        asked.append(rung)
        return 10 * rung

    rung, refused, refused_bytes = climb(needs, budget, start, 100)
    assert rung == expected
    assert (refused, refused_bytes) == ((0, 0) if expected == 100 else (expected + 1, 10 * (expected + 1)))
    assert len(asked) == len(set(asked)) <= 12


def test_climbing_copes_with_memory_that_is_no_line_and_with_steps():
    assert climb(lambda rung: rung**3, 10**6, 1, 10**6)[0] == 100
    assert climb(lambda rung: 7 if rung < 41 else 10**9, 100, 1, 10**6)[0] == 40
    assert climb(lambda rung: 1000 - rung, 2000, 1, 10**6)[0] == 10**6


def test_between_asks_for_nothing_if_there_is_nothing_between():
    assert between(lambda rung: 1 / 0, 10, (3, 5), (4, 11)) == (3, 4, 11)


# ---- networks


@pytest.mark.parametrize("policy", OWN)
def test_the_largest_batch_fits_and_one_more_does_not(policy):
    (found,) = fit(networks.chain(), budget="300KiB", policies=[policy], hardware="host", threads=1)
    made = plan(networks.chain(), policy, batch=found.value, budget="300KiB", hardware="host", threads=1)
    assert found.plan.arena_bytes == made.arena_bytes <= 300 * 1024
    with pytest.raises(BudgetError):
        plan(networks.chain(), policy, batch=found.value + 1, budget="300KiB", hardware="host", threads=1)
    assert (found.refused_value, found.policy) == (found.value + 1, policy)
    assert found.refused_bytes > 300 * 1024


def test_the_rate_is_that_of_the_simulated_step():
    (found,) = fit(networks.chain(), budget="300KiB", policies=["vdnn_all"], hardware="host")
    seconds = simulate(found.plan, make_ladder(networks.chain(), "batch", None, hardware="host").make(1).cost)
    assert found.step_seconds == seconds.step_seconds
    assert found.samples_per_second == found.value / found.step_seconds


def test_a_policy_is_asked_by_each_batch_for_itself():
    batches = []

    def kept(tape):
        batches.append(tape.batch)
        return Decisions()

    found = largest(make_ladder(networks.chain(), "batch", 4, budget="300KiB", hardware="host"), kept)
    assert batches[0] == 4
    assert found.value in batches
    assert found.policy == "kept"


def test_with_sub_batches_every_batch_that_is_tried_comes_in_so_many_parts():
    (found,) = fit(networks.chain(4), budget="100KiB", policies=["keep_all"], hardware="host", micro_batches=4)
    assert found.smallest == 4
    assert found.value % 4 == 0
    assert found.refused_value == found.value + 4
    assert found.summary()["micro_batches"] == 4
    more = plan(networks.chain(), "keep_all", batch=found.value, budget="100KiB", hardware="host", micro_batches=4)
    assert more.arena_bytes == found.plan.arena_bytes


def halved(tape, variant=None):
    """Everything kept, in two sub-batches where the batch has an even number of samples."""
    return (variant(2), Decisions()) if variant and tape.batch % 2 == 0 else Decisions()


def test_a_policy_that_chooses_sub_batches_may_go_below_the_floor_of_the_whole_batch():
    options = {"hardware": "host", "threads": 1, "algorithms": "memory"}
    parts = plan(networks.chain(64), halved, **options)
    budget = parts.arena_bytes
    assert plan(networks.chain(64), "keep_all", **options).floor_bytes > budget
    (found,) = fit(networks.chain(64), budget=budget, policies=[halved], **options)
    assert found.value >= 64
    assert found.plan.tape.micro_batches == 2
    assert not found.is_refused_by_floor


def test_the_table_has_the_parts_where_there_are_any():
    whole, parted = (
        fit(networks.chain(4), budget="100KiB", policies=["keep_all"], hardware="host", micro_batches=k) for k in (1, 2)
    )
    assert "parts" not in fit_table(whole)
    lines = fit_table([*whole, *parted]).splitlines()
    at = next(line for line in lines if "parts" in line).index("parts") + len("parts") - 1
    assert [line[at] for line in lines[-2:]] == ["1", "2"]


def test_a_depth_is_one_that_the_family_has():
    (found,) = fit("vgg16", vary="depth", batch=2, budget="2GiB", policies=["keep_all"])
    assert found.value in (11, 13, 16, 19, *range(21, 100, 5))
    assert found.plan.tape.network == f"vgg{found.value}"
    assert found.refused_value == found.value + 5


def test_the_deepest_of_a_family_is_said_to_be_the_largest_of_all():
    (found,) = fit("resnet18", vary="depth", batch=1, budget="64GiB", policies=["keep_all"])
    assert (found.value, found.refused_value, found.refused_bytes) == (152, None, 0)


def test_a_resolution_is_a_multiple_of_32_that_the_network_takes():
    (found,) = fit("alexnet", vary="resolution", batch=4, budget="1500MiB", policies=["keep_all"])
    assert found.value % 32 == 0
    assert found.plan.tape.tensors["input"].shape == (4, 3, found.value, found.value)
    assert found.smallest == 64  # at 32 pixels nothing is left for the last pooling layer
    assert found.refused_value == found.value + 32


@pytest.mark.parametrize(
    ("network", "vary", "message"),
    [
        ("alexnet", "depth", "alexnet has no depth to vary"),
        ("vgg17", "depth", "no vgg of depth 17; there are 11, 13, 16, 19, 21"),
        (networks.chain(), "resolution", "takes the name of a network"),
        ("networks:chain", "resolution", "takes no image="),
        ("vgg16", "width", "'width' is none of batch, depth, resolution"),
    ],
)
def test_what_cannot_be_varied_is_said(network, vary, message):
    with pytest.raises(FitError, match=message):
        make_ladder(network, vary, None)


# ---- the command


def test_the_command_prints_a_line_per_policy():
    result = run(*FIT, "--budget", "8MiB", "--policy", "keep_all", "--policy", "vdnn_all")
    assert result.exit_code == 0
    assert "digits_vgg, largest batch within 8.00 MiB; times simulated" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[-2:]] == ["keep_all", "vdnn_all"]
    assert all(name in result.stdout for name in ("peak", "arena", "step", "samples/s"))


def test_its_json_has_the_figures():
    (found,), _ = fit_json("--budget", "8MiB", "--policy", "vdnn_all", "--batch", 3)
    assert found["batch"] == found["largest"] == found["refused"] - 1
    assert found["arena_bytes"] <= 2**23 < found["refused_bytes"]
    assert found["samples_per_second"] == pytest.approx(found["batch"] / found["step_seconds"])
    assert (found["policy"], found["vary"], found["time"], found["fits"]) == ("vdnn_all", "batch", "simulated", True)


def test_where_not_even_one_sample_fits_it_says_the_numbers():
    result = run(*FIT, "--budget", "100KiB", "--policy", "keep_all", "--policy", "least")
    (least,) = [line for line in result.stderr.splitlines() if "not even" in line]
    assert result.exit_code == 3
    assert least.startswith("not even batch 1 fits: needed at least ")
    assert least.endswith("available 100 KiB (102400 bytes)")
    assert "none: batch 1 takes at least " in result.stdout


def test_what_a_plan_of_one_sample_takes_is_said_without_at_least():
    one = plan(models.get("digits_vgg", batch=1), "keep_all", threads=1, hardware="host")
    assert one.floor_bytes < one.arena_bytes - 1
    result = run(*FIT, "--budget", one.arena_bytes - 1, "--policy", "keep_all")
    assert f"needed {format_bytes(one.arena_bytes)} ({one.arena_bytes} bytes)" in result.stderr
    assert f"batch 1 takes {format_bytes(one.arena_bytes)}" in result.stdout


def test_what_is_needed_for_one_sample_is_the_floor_where_that_is_too_much():
    (found,), _ = fit_json("--budget", "100KiB", "--policy", "keep_all")
    one = plan(models.get("digits_vgg", batch=1), "keep_all", threads=1)
    assert (found["largest"], found["refused"], found["refused_bytes"]) == (None, 1, one.floor_bytes)
    assert found["is_refused_by_floor"] is True
    assert format_bytes(one.floor_bytes) in run(*FIT, "--budget", "100KiB", "--policy", "keep_all").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "floor+10%"], "changes with the batch"),
        (["--vary", "depth"], "digits_vgg has no depth to vary"),
        (["--policy", "vdnn_al"], "did you mean vdnn_all"),
        (["--budget", "12Gx"], "units are B, KiB"),
        (["--vary", "width"], "'batch', 'depth', 'resolution'"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2(arguments, message):
    result = run(*FIT, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_network_of_ones_own_is_fitted_too(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(
        "import vdnn\n"
        "def net(batch, image=(1, 32, 32)):\n"
        "    n = vdnn.Network((batch, *image), name='mine')\n"
        "    x = n.add(vdnn.layers.Conv2d(2, 3), n.input)\n"
        "    n.add(vdnn.layers.SoftmaxCrossEntropy(), n.add(vdnn.layers.Linear(3), n.add(vdnn.layers.Flatten(), x)))\n"
        "    return n\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for vary in ("batch", "resolution"):
        arguments = ("--budget", "8MiB", "--policy", "keep_all", "--vary", vary, "--json")
        (found,) = json.loads(run("fit", "of_mine:net", *arguments).stdout)
        assert found["network"] == "mine"
        assert found["arena_bytes"] <= 2**23
