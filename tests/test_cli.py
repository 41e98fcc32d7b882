from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main

KEYS = {
    "network",
    "batch",
    "policy",
    "algorithms",
    "budget_bytes",
    "fits",
    "peak_bytes",
    "average_bytes",
    "arena_bytes",
    "host_bytes",
    "offloaded_bytes",
    "floor_bytes",
    "step_seconds",
    "oracle_seconds",
    "breakdown",
    "planning_seconds",
}


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def plan_json(*arguments):
    result = run("plan", *arguments, "--json")
    return json.loads(result.stdout), result


def test_plan_prints_one_object_with_all_figures():
    figures, result = plan_json("digits_vgg")
    assert result.exit_code == 0
    assert figures.keys() >= KEYS
    expected = {
        "batch": 32,
        "policy": "vdnn_dyn",
        "algorithms": "performance",
        "hardware": "titan-x",
        "optimizer": "momentum",
        "budget_bytes": 12 * 2**30,
        "fits": True,
    }
    assert {key: figures[key] for key in expected} == expected


def test_plan_agrees_with_the_python_surface():
    arguments = [
        "--batch",
        8,
        "--policy",
        "vdnn_all",
        "--algorithms",
        "memory",
        "--optimizer",
        "adam",
        "--budget",
        "50%",
    ]
    figures, _ = plan_json("digits_vgg", *arguments, "--hardware", "host", "--threads", 1)
    net = vdnn.models.get("digits_vgg", batch=8)
    made = vdnn.plan(net, "vdnn_all", algorithms="memory", optimizer="adam", hardware="host", threads=1)
    assert figures["arena_bytes"] == made.arena_bytes
    assert figures["host_bytes"] == made.host_bytes
    assert figures["step_seconds"] == vdnn.simulate(made, vdnn.roofline("host")).step_seconds
    assert figures["budget_bytes"] == vdnn.roofline("host").memory_bytes // 2


def test_vgg16_is_planned_within_a_second():
    figures, _ = plan_json("vgg16", "--batch", 64, "--policy", "vdnn_all")
    assert figures["offloaded_bytes"] > 3 * 2**30
    assert figures["planning_seconds"] < 2  # 0.3 s alone on two cores


def test_a_plan_that_does_not_fit_prints_the_smallest_and_what_would_fit():
    figures, result = plan_json("digits_vgg", "--policy", "vdnn_all", "--budget", "300KiB")
    assert result.exit_code == 3
    assert figures["fits"] is False
    assert figures["policy"] == "vdnn_all"
    assert figures["arena_bytes"] > figures["budget_bytes"] == 300 * 1024
    assert "does not fit under vdnn_all" in result.stderr
    assert "what would fit:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg61"], "no network is named 'vgg61' (did you mean vgg"),
        (["not_there:net"], "no module 'not_there'"),
        (["digits_vgg", "--policy", "vdnn_al"], "did you mean vdnn_all"),
        (["digits_vgg", "--policy", "os:getcwd"], "policy os:getcwd: a policy returns Decisions"),
        (["digits_vgg", "--hardware", "titan"], "did you mean titan-x?"),
        (["digits_vgg", "--budget", "12Gx"], "units are B, KiB"),
        (["digits_vgg", "--budget", "0"], "more than 0"),
        (["digits_vgg", "--batch", "0"], "--batch"),
        (["digits_vgg", "--optimizer", "lion"], "'sgd', 'momentum', 'adam'"),
        (["digits_vgg", "--algorithms", "fast"], "'performance', 'memory', 'mixed'"),
        (["digits_vgg", "--rules", "mine"], "'ours', 'paper'"),
        (["digits_vgg", "--count", "some"], "'all', 'weights', 'features'"),
        (["digits_vgg", "--kernels", "cudnn4", "--threads", "2"], "threads=2: the kernel set cudnn4"),
        (
            ["digits_vgg", "--rewrites", "all-relumask"],
            "'relumask' in 'all-relumask' is no rewrite (did you mean relu_mask",
        ),
        ([], "Missing argument 'NETWORK'"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2(arguments, message):
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_without_json_it_is_for_people():
    result = run("plan", "digits_vgg", "--policy", "vdnn_all", "--table")
    assert "digits_vgg, batch 32, momentum, on titan-x\nvdnn_all with algorithms performance: fits\n" in result.stdout
    assert "times simulated" in result.stdout
    assert "offload" in result.stdout


def test_pictures_and_traces_are_written(tmp_path):
    picture, trace = tmp_path / "memory.png", tmp_path / "trace.json"
    assert run("plan", "digits_vgg", "--picture", picture, "--trace", trace).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path):
    for option, name in (("--trace", "trace.json"), ("--picture", "memory.png")):
        result = run("plan", "digits_vgg", option, tmp_path / "no" / name)
        assert result.exit_code == 2
        assert "No such file" in result.stderr
        assert result.stdout == ""


def test_a_command_that_fails_leaves_the_files_as_they_were(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.png"
    old.write_text("old")
    result = run("plan", "digits_vgg", "--trace", old, "--picture", new, "--policy", "nothing")
    assert result.exit_code == 2
    assert old.read_text() == "old"
    assert not new.exists()


def test_rewrites_are_those_asked_for_and_the_standard_ones_otherwise():
    assert plan_json("digits_vgg")[0]["rewrites"] == ["inplace", "split", "sum_inplace", "early_update"]
    assert plan_json("digits_vgg", "--rewrites", "none")[0]["rewrites"] == []
    assert plan_json("digits_vgg", "--rules", "paper")[0]["rewrites"] == ["inplace", "sum_inplace", "early_update"]
    assert "rewrites all" in run("plan", "digits_vgg", "--rewrites", "all").stdout.splitlines()
    figures = json.loads(run("compare", "digits_vgg", "--rewrites", "all", "--json").stdout)
    assert {tuple(f["rewrites"])[4:] for f in figures} == {("relu_behind_pool", "relu_mask")}


def test_compare_puts_all_policies_on_one_tape_the_standard_one(monkeypatch):
    from vdnn.memory import policy

    monkeypatch.setitem(policy.REWRITES, "keep_all", ("split",))
    assert plan_json("digits_vgg", "--policy", "keep_all")[0]["rewrites"] == ["split"]
    arguments = ("digits_vgg", "--policy", "keep_all", "--policy", "vdnn_all", "--json")
    assert [f["rewrites"][0] for f in json.loads(run("compare", *arguments).stdout)] == ["inplace", "inplace"]


def test_compare_plans_every_pair_of_policy_and_budget():
    arguments = ["--policy", "keep_all", "--policy", "vdnn_all", "--budget", "1GiB", "--budget", "300KiB", "--json"]
    result = run("compare", "digits_vgg", *arguments)
    found = [(f["policy"], f["budget_bytes"], f["fits"]) for f in json.loads(result.stdout)]
    assert found == [
        ("keep_all", 2**30, True),
        ("vdnn_all", 2**30, True),
        ("keep_all", 300 * 2**10, False),
        ("vdnn_all", 300 * 2**10, False),
    ]
    assert result.exit_code == 0


def test_compare_shows_all_policies_by_default_and_fails_if_none_fits():
    result = run("compare", "digits_vgg", "--budget", "300KiB")
    assert result.exit_code == 3
    assert result.stderr == "nothing fits\n"
    assert all(
        name in result.stdout for name in ("keep_all", "baseline", "vdnn_all", "vdnn_conv", "vdnn_dyn", "checkpoint")
    )


def test_networks_and_policies_may_be_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import vdnn\n"
        "def net(batch):\n"
        "    n = vdnn.Network((batch, 1, 4, 4), name='mine')\n"
        "    x = n.add(vdnn.layers.Conv2d(2, 3), n.input)\n"
        "    n.add(vdnn.layers.SoftmaxCrossEntropy(), n.add(vdnn.layers.Linear(3), n.add(vdnn.layers.Flatten(), x)))\n"
        "    return n\n"
        "def first(tape):\n"
        "    return {tape.saved[0]: vdnn.OFFLOAD}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    figures, _ = plan_json("mine:net", "--policy", "mine:first")
    assert (figures["network"], figures["policy"], figures["fits"]) == ("mine", "mine:first", True)


def test_help_names_the_commands():
    result = run("--help")
    assert all(name in result.stdout for name in ("plan", "compare", "train"))


def test_a_command_that_does_not_exist_is_refused_with_the_one_that_was_meant():
    result = run("trian")
    assert result.exit_code == 2
    assert "No such command 'trian'" in result.stderr


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "googlenet", "--policy", "vdnn_all", "--table"),
        ("compare", "vgg16", "--budget", "3GiB", "--budget", "1GiB"),
    ],
)
def test_tables_are_no_wider_than_the_terminal(arguments, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run(*arguments).stdout.splitlines()
    assert len(lines) > 10
    assert max(map(len, lines)) <= columns


def test_it_says_its_version_whether_installed_or_not():
    assert run("--version").stdout == f"vdnn, version {vdnn.__version__}\n"


def test_output_that_nobody_reads_is_no_wrong_command():
    command = [sys.executable, "-m", "vdnn", "plan", "vgg16", "--table"]
    environment = {**os.environ, "PYTHONPATH": str(Path(vdnn.__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_budget_that_no_policy_fits_names_the_least_for_the_batch_and_that_fits():
    refused = CliRunner().invoke(main, ["plan", "vgg16", "--batch", "64", "--budget", "1GiB"])
    assert refused.exit_code == 3
    (line,) = (line for line in refused.stderr.splitlines() if "the least for this batch" in line)
    least = line.split()[1].rstrip(",")
    arguments = ["plan", "vgg16", "--batch", "64", "--policy", "least", "--algorithms", "memory", "--budget"]
    assert "under least with algorithms memory" in line
    assert CliRunner().invoke(main, [*arguments, least]).exit_code == 0
    smaller = f"{int(least.removesuffix('MiB')) - 1}MiB"
    assert CliRunner().invoke(main, [*arguments, smaller]).exit_code == 3


# ---- the paper's rules


def test_the_papers_rules_and_count_are_said_in_the_object():
    arguments = ["alexnet", "--batch", 128, "--policy", "vdnn_all", "--rules", "paper", "--count", "features"]
    found, result = plan_json(*arguments)
    assert result.exit_code == 0
    assert (found["rules"], found["count"], found["kernels"]) == ("paper", "features", "cudnn4")
    assert round(found["offloaded_bytes"] / 2**20) == 349
    assert sum(found["breakdown"].values()) == found["peak_bytes"]


def test_googlenet_under_the_papers_rules_has_no_lrn():
    found, _ = plan_json("googlenet", "--batch", 128, "--policy", "vdnn_conv", "--rules", "paper")
    assert round(found["offloaded_bytes"] / 2**20) == 1367


def test_our_rules_take_the_kernels_of_the_paper_too():
    found, _ = plan_json("vgg11", "--kernels", "cudnn4")
    assert (found["rules"], found["kernels"]) == ("ours", "cudnn4")


def test_a_comparison_says_whose_rules_and_what_is_counted():
    arguments = ["digits_vgg", "--policy", "vdnn_all", "--rules", "paper", "--count", "weights"]
    assert "rules paper, kernels cudnn4, counted weights" in run("compare", *arguments).stdout


def test_hardware_is_listed_with_its_sources():
    listed = run("hardware").stdout
    table = json.loads(run("hardware", "--json").stdout)
    assert {
        "titan-x",
        "k40",
        "p100",
        "v100",
        "t4",
        "rtx-3090",
        "rtx-4090",
        "a100",
        "h100-pcie",
        "h100-sxm",
        "gh200",
    } < set(table)
    assert all(name in listed for name in table)
    assert "12.8" in listed
    for figures in table.values():
        assert all(figure["source"] for name, figure in figures.items() if name != "description")
