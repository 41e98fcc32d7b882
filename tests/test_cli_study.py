"""`vdnn study`: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
from click.testing import CliRunner

from vdnn.__main__ import main
from vdnn.commands.study import EXAMPLE
from vdnn.studies.grid import resolve

TINY = 'network = "digits_vgg"\nbatch = 2\npolicy = "keep_all"\n'


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on a text in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vdnn.commands.study._default_processes", lambda path: None)

    def run(text, *options):
        (tmp_path / "tiny.toml").write_text(text)
        return CliRunner().invoke(main, ["study", "tiny.toml", *options])

    return run


def test_a_table_is_printed_and_results_are_beside_the_study(run, tmp_path):
    result = run(TINY)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("tiny: 1 cells, 1 fits; bytes planned, times simulated")
    assert {path.name for path in (tmp_path / "tiny.results").iterdir()} == {"cells.jsonl", "study.json", "table.csv"}


def test_json_is_the_rows(run):
    (row,) = json.loads(run(TINY, "--json").stdout)
    assert (row["network"], row["status"]) == ("digits_vgg", "fits")


def test_a_wrong_study_is_a_usage_error(run, tmp_path):
    result = run("netwrk = 3\n")
    assert result.exit_code == 2
    assert "did you mean network?" in result.stderr
    assert not (tmp_path / "tiny.results").exists()


def test_another_study_is_refused_with_what_to_do(run):
    run(TINY)
    result = run(TINY.replace("2", "4"))
    assert result.exit_code == 2
    assert "batch: 2 in the results, 4 now" in result.stderr
    assert run(TINY.replace("2", "4"), "--fresh").exit_code == 0


def test_the_status_is_3_if_nothing_fits(run):
    result = run(TINY + "budget = 1000\n")
    assert result.exit_code == 3
    assert "nothing fits" in result.stderr


def test_the_status_is_1_if_a_cell_failed(run):
    result = run(TINY + "micro_batches = [1, 3]\n")
    assert result.exit_code == 1
    assert "cell 1: MicroBatchError" in result.stderr
    assert "fits" in result.stdout


def test_list_computes_nothing(run, tmp_path):
    result = run(TINY.replace("2", "[2, 4]"), "--list")
    assert "tiny: 2 cells to simulate" in result.stdout
    assert not (tmp_path / "tiny.results").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--list", "--fresh"), "--fresh has no effect with --list"),
        (("--list", "--out", "x"), "--out has no effect with --list"),
        (("--keys", "--json"), "has no effect with --keys"),
    ],
)
def test_options_without_effect_are_refused(run, options, said):
    result = run(TINY, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_keys_are_listed():
    result = CliRunner().invoke(main, ["study", "--keys"])
    assert result.exit_code == 0
    assert "link_bandwidth" in result.stdout
    assert "[[include]] and [[exclude]]" in result.stdout


def test_the_study_in_the_help_is_one():
    study = tomllib.loads(EXAMPLE.removeprefix("\b"))
    found = resolve(study, threads=1)
    assert (found.title, len(found.cells)) == ("Which policy, in how much memory?", 3 * 8 + 8)
    assert EXAMPLE.splitlines()[-1].strip() in CliRunner().invoke(main, ["study", "--help"]).stdout


def test_mpi_that_is_not_installed_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    result = run(TINY, "--mpi")
    assert result.exit_code == 1
    assert "pip install 'vdnn[mpi]'" in result.stderr
