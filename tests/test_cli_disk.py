"""The command line's options of the disk tier."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from vdnn.__main__ import main
from vdnn.memory import spill

NET = ("digits_vgg", "--batch", "16", "--threads", "1")
ON_HOST = (*NET, "--hardware", "host", "--policy", "vdnn_all")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_plan_says_what_is_on_disk():
    whole = json.loads(run("plan", *ON_HOST, "--json").stdout)
    figures = json.loads(run("plan", *ON_HOST, "--host-budget", "256KiB", "--json").stdout)
    assert (whole["disk_bytes"], whole["host_budget_bytes"], whole["spilled"]) == (0, None, [])
    assert figures["host_bytes"] <= figures["host_budget_bytes"] == 256 << 10
    assert figures["disk_bytes"] > 0
    assert figures["spilled"]
    assert figures["fits"] is True
    assert figures["offloaded_bytes"] == whole["offloaded_bytes"]
    least = json.loads(run("plan", *ON_HOST, "--host-budget", "0", "--json").stdout)
    assert least["step_seconds"] > figures["step_seconds"] >= whole["step_seconds"]  # what is copied last is not hidden


def test_for_people_it_says_the_budget_and_the_file_and_the_tier_of_each_tensor():
    result = run("plan", *ON_HOST, "--host-budget", "256KiB", "--table", "--explain")
    lines = result.stdout.splitlines()
    assert any(line.startswith("disk  ") and line.endswith(" bytes") for line in lines)
    assert any(line.startswith("host budget") and " 262144 bytes" in line for line in lines)
    assert any(" tier " in line for line in lines)
    assert "to disk and back" in result.stdout
    assert not any(line.startswith(("disk", "host budget")) for line in run("plan", *ON_HOST).stdout.splitlines())


def test_a_host_budget_that_is_too_small_ends_with_status_3_and_the_numbers():
    result = run("plan", *ON_HOST, "--host-budget", "2KiB", "--json")
    figures = json.loads(result.stdout)
    assert result.exit_code == 3
    assert figures["fits"] is False
    assert f"needed     {figures['host_bytes'] / 1024:.2f} KiB ({figures['host_bytes']} bytes)" in result.stderr
    assert f"--host-budget {figures['host_bytes']}" in result.stderr
    assert run("plan", *ON_HOST, "--host-budget", figures["host_bytes"]).exit_code == 0


@pytest.mark.parametrize(("given", "message"), [("much", "'much' is no amount"), ("-1", "'-1' is no amount")])
def test_a_host_budget_that_is_no_amount_is_a_usage_error(given, message):
    result = run("plan", *ON_HOST, f"--host-budget={given}")
    assert result.exit_code == 2
    assert message in result.stderr


def test_compare_has_a_column_for_the_disk_and_figures_in_its_file(tmp_path):
    names = ("--policy", "keep_all", "--policy", "vdnn_all")
    options = (*NET, "--hardware", "host", *names, "--host-budget", 0)
    result = run("compare", *options, "--csv", tmp_path / "found.csv")
    assert " disk " in result.stdout
    header, _, offloaded = (tmp_path / "found.csv").read_text().splitlines()
    figures = dict(zip(header.split(","), offloaded.split(","), strict=True))
    assert int(figures["disk_bytes"]) > 0
    assert "relu1_1.y" in figures["spilled"].split()
    assert " disk " not in run("compare", *NET, "--hardware", "host", *names).stdout


def test_train_uses_the_folder_and_prints_the_resident_set(tmp_path, monkeypatch):
    folders = []
    made = spill._open
    monkeypatch.setattr(spill, "_open", lambda folder: folders.append(folder) or made(folder))
    options = ("--policy", "vdnn_all", "--epochs", 1, "--data", "synthetic", "--samples", 16)
    result = run("train", *NET, *options, "--host-budget", "64KiB", "--spill", tmp_path)
    assert result.exit_code == 0
    assert folders == [str(tmp_path)]
    assert os.listdir(tmp_path) == []
    lines = result.stdout.splitlines()
    at = lines.index("resident set of the whole process")
    assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["planned", "measured"]
    assert any(line.startswith("disk  ") for line in lines)
    figures = json.loads(run("train", *NET, *options, "--host-budget", 0, "--json").stdout)
    assert figures["disk_bytes"] > 0
    assert figures["host_budget_bytes"] == 0
    assert figures["resident_planned_bytes"] > figures["arena_bytes"] + figures["host_bytes"]
    assert figures["resident_measured_bytes"] > 0


def test_train_says_what_a_host_budget_lacks_and_that_a_folder_is_not_there(tmp_path):
    options = ("--policy", "vdnn_all", "--data", "synthetic", "--samples", 16)
    result = run("train", *NET, *options, "--host-budget", 512)
    assert result.exit_code == 3
    assert "stay in host memory" in result.stderr
    result = run("train", *NET, *options, "--host-budget", 0, "--spill", tmp_path / "none")
    assert result.exit_code == 1
    assert f"the spill file cannot be made in {tmp_path / 'none'}: No such file" in result.stderr
    result = run("train", "digits_vgg", "--device", "cuda", "--spill", tmp_path)
    assert result.exit_code == 2
    assert "--spill" in result.stderr


def test_measure_records_the_spill_file_and_plans_are_made_by_it(tmp_path):
    out = tmp_path / "times.json"
    options = ("--algorithms", "performance", "--repeats", 1, "--spill", tmp_path)
    assert run("measure", *NET, *options, "--out", out).exit_code == 0
    data = json.loads(out.read_text())
    assert set(data["disk"]) == {"offload_bytes_per_second", "prefetch_bytes_per_second", "latency_seconds"}
    assert os.listdir(tmp_path) == ["times.json"]
