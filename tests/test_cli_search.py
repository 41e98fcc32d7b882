from __future__ import annotations

import inspect
import io
import json

import pytest
from click.testing import CliRunner

from vdnn import progress
from vdnn.__main__ import main
from vdnn.checkpoint import describe
from vdnn.commands import searching as command
from vdnn.memory import search, searching

SEARCH = ("digits_vgg", "--policy", "search", "--seconds", "0.2")
TIGHT = ("--budget", "floor+50%")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def asked(monkeypatch):
    """The settings of every search that is made."""
    made = []
    call = searching.Searching.__call__

    def record(self, tape, *arguments, **options):
        made.append(self)
        return call(self, tape, *arguments, **options)

    record.__signature__ = inspect.signature(call)
    monkeypatch.setattr(searching.Searching, "__call__", record)
    return made


def test_plan_prints_the_certificate_of_a_search():
    text = run("plan", *SEARCH, *TIGHT).stdout
    figures = json.loads(run("plan", *SEARCH, *TIGHT, "--json").stdout)
    assert figures["gap"] == pytest.approx(figures["step_seconds"] / figures["bound_seconds"] - 1)
    (line,) = [line for line in text.splitlines() if line.startswith("bound")]
    assert line.endswith(f", gap {100 * figures['gap']:.1f} %, simulated")


def test_other_policies_have_no_certificate():
    assert "bound" not in run("plan", "digits_vgg").stdout
    figures = json.loads(run("plan", "digits_vgg", "--json").stdout)
    assert (figures["bound_seconds"], figures["gap"]) == (None, None)


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(search, "_bound", lambda *_: None)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = run("plan", *SEARCH, *TIGHT, "--seed", 99)  # nothing of it is kept
    assert result.exit_code == 0
    assert "no certificate for this budget: pip install vdnn[search]" in result.stdout.splitlines()


def test_the_options_reach_the_search(asked):
    run("plan", *SEARCH, *TIGHT, "--seed", 3, "--robust", "--jitter", "10%")
    settings = asked[0]
    assert (settings.seconds, settings.seed, settings.jitter, settings.cache) == (0.2, 3, 0.1, True)
    run("plan", *SEARCH, *TIGHT, "--jitter", "10%")
    assert asked[1].jitter == 0


def test_compare_searches_with_the_options_and_shows_the_budgets_as_given(asked):
    budgets = ("--budget", "floor+60%", "--budget", "floor+50%")
    result = run("compare", *SEARCH, "--policy", "keep_all", *budgets, "--seed", 2, "--json")
    rows = json.loads(result.stdout)
    assert [settings.seed for settings in asked] == [2, 2]
    assert [row["policy"] for row in rows] == ["search", "keep_all"] * 2
    assert rows[0]["budget_bytes"] > rows[2]["budget_bytes"]
    assert rows[0]["step_seconds"] <= rows[2]["step_seconds"]


def test_compare_claims_no_bound_for_a_plan_that_does_not_fit():
    (row,) = json.loads(run("compare", *SEARCH, "--budget", "10KiB", "--json").stdout)
    assert (row["fits"], row["bound_seconds"]) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "digits_vgg", "--seconds", "1"), "--seconds: for --policy search only"),
        (("plan", "digits_vgg", "--seed", "0", "--robust"), "--seed and --robust: for --policy search only"),
        (("compare", "digits_vgg", "--policy", "least", "--seed", "1"), "--seed: for --policy search only"),
        (("train", "digits_vgg", "--seconds", "1"), "--seconds: for --policy search only"),
        (("plan", *SEARCH, "--robust"), "--robust: by how much do times vary?"),
        (("compare", *SEARCH, "--robust"), "--robust: by how much do times vary?"),
        (("train", *SEARCH, "--robust"), "--robust: by how much do times vary?"),
        (("plan", *SEARCH, "--robust", "--jitter", "100%"), "jitter=1.0: a share of each duration"),
        (("plan", *SEARCH, "--robust", "--jitter", "much"), "--jitter much: a share"),
        (("train", *SEARCH, "--jitter", "5%"), "--jitter 5%: for --robust only"),
        (("plan", "digits_vgg", "--policy", "search", "--seconds", "nan"), "seconds=nan"),
        (("plan", "digits_vgg", "--policy", "search", "--seconds", "0"), "0.0 is not in the range x>0"),
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_does_not_fit_ends_with_status_3_and_the_least_budget(asked):
    result = run("plan", *SEARCH, "--budget", "10KiB", "--json")
    assert result.exit_code == 3
    assert len(asked) == 1  # the advice takes no search
    figures = json.loads(result.stdout)
    assert f"budget     {-(-figures['arena_bytes'] // 1024)}KiB, the least for search" in result.stderr
    assert (figures["fits"], figures["policy"], figures["bound_seconds"]) == (False, "search", None)


def test_training_searches_once_and_its_checkpoint_names_the_policy(asked, tmp_path):
    path = tmp_path / "saved.vdnn"
    arguments = ("train", *SEARCH, "--data", "synthetic", "--samples", 64, "--save", path, "--json")
    result = run(*arguments, "--epochs", 1, "--robust", "--jitter", "5%")
    assert result.exit_code == 0
    assert [settings.jitter for settings in asked] == [0.05]
    assert describe(str(path))["options"]["policy"] == "search"


def test_fit_looks_for_each_value_quickly(asked):
    result = run("fit", "digits_vgg", "--policy", "search", "--budget", "2MiB", "--batch", 4, "--json")
    assert json.loads(result.stdout)[0]["largest"] >= 1
    assert {(s.seconds, s.cache, s.others) for s in asked} == {(0.5, False, False)}


# ---- progress


def test_a_status_is_said_on_a_terminal_only(monkeypatch):
    for is_terminal in (False, True):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with progress.status_line("searching") as tell:
            tell("0.5 s from [kept]")
        assert ("searching" in stream.getvalue()) == is_terminal
