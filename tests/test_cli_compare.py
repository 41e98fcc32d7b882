from __future__ import annotations

import csv
import json

import networks
import pytest
from click.testing import CliRunner

from vdnn import models, plot_front
from vdnn.__main__ import main
from vdnn.budgets import budget_bytes, is_relative, keep_all_bytes
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import Decisions
from vdnn.memory.jitter import jittered
from vdnn.memory.trial import fastest
from vdnn.planning import plan, summary
from vdnn.plot_front import front, front_picture, new_figure
from vdnn.result_tables import comparison_table
from vdnn.setting import Setting, make_setting
from vdnn.units import UnitError, parse_bytes

COMPARE = ("compare", "digits_vgg", "--policy", "keep_all", "--policy", "vdnn_all")


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def setting():
    return make_setting(networks.chain(), hardware="host", threads=1)


def budget(text, setting):
    return budget_bytes(text, setting, fastest(setting.tape, setting.cost))


# ---- budgets relative to the tape


def test_a_share_above_the_floor_is_of_the_span_up_to_keeping_all(setting):
    floor = setting.tape.floor_bytes
    all_kept = plan(networks.chain(), "keep_all", hardware="host", threads=1).arena_bytes
    assert keep_all_bytes(setting, fastest(setting.tape, setting.cost)) == all_kept
    assert budget("floor", setting) == budget("floor+0%", setting) == floor
    assert budget("keep_all", setting) == budget("floor+100%", setting) == all_kept
    assert budget("floor + 25%", setting) == floor + round((all_kept - floor) / 4)
    assert budget("keep_all-75%", setting) == all_kept - round((all_kept - floor) * 0.75)


def test_bytes_may_be_added_to_a_mark_or_taken_from_it(setting):
    assert budget("FLOOR+2KiB", setting) == setting.tape.floor_bytes + 2048
    assert budget("keep_all-1KiB", setting) == budget("keep_all", setting) - 1024


def test_other_budgets_are_what_they_were(setting):
    memory = setting.cost.memory_bytes
    assert budget(None, setting) == memory
    assert budget("50%", setting) == parse_bytes("50%", memory)
    assert budget(12345, setting) == 12345
    assert [is_relative(b) for b in ("floor", "keep_all-5%", "80%", 7, None)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [("floor+12Gx", "units are"), ("floor-900GiB", "more than 0 bytes"), ("flor+1%", "no amount")]
    + [(form.format("9" * 400), "no amount of memory") for form in ("floor+{}%", "floor+{}GiB", "keep_all-{}", "{}MB")],
)
def test_a_relative_budget_that_makes_no_sense_is_refused(text, message, setting):
    with pytest.raises(UnitError, match=message):
        budget(text, setting)


def test_plan_takes_relative_budgets_too():
    found = json.loads(run("plan", "digits_vgg", "--budget", "keep_all", "--policy", "keep_all", "--json").stdout)
    assert found["fits"] is True
    assert found["budget_bytes"] == found["arena_bytes"]
    refused = run("plan", "digits_vgg", "--budget", "keep_all-1KiB", "--policy", "keep_all")
    assert refused.exit_code == 3


# ---- the table, the file


def test_each_plan_is_the_one_that_plan_makes():
    arguments = ("--budget", "keep_all", "--budget", "floor+40%", "--json", "--threads", 1)
    found = json.loads(run(*COMPARE, *arguments).stdout)
    for each in found:
        own = ("--policy", each["policy"], "--budget", each["budget_bytes"], "--threads", 1, "--json")
        alone = json.loads(run("plan", "digits_vgg", *own).stdout)
        assert {**each, "planning_seconds": 0} == {**alone, "planning_seconds": 0}
    assert [each["policy"] for each in found] == ["keep_all", "vdnn_all"] * 2
    assert len({each["budget_bytes"] for each in found}) == 2


def test_the_tape_is_built_once(monkeypatch):
    from vdnn import setting as module

    built = []
    build = module.build
    monkeypatch.setattr(module, "build", lambda *a, **k: built.append(a) or build(*a, **k))
    run(*COMPARE, "--budget", "1GiB", "--budget", "2GiB", "--budget", "floor")
    assert len(built) == 1


def test_the_file_has_a_line_of_figures_per_plan(tmp_path):
    path = tmp_path / "arena.csv"
    found = json.loads(run(*COMPARE, "--budget", "1GiB", "--budget", "300KiB", "--csv", path, "--json").stdout)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(x["policy"], int(x["budget_bytes"]), x["fits"]) for x in lines] == [
        (x["policy"], x["budget_bytes"], str(x["fits"])) for x in found
    ]
    for line, figures in zip(lines, found, strict=True):
        assert float(line["step_seconds_simulated"]) == figures["step_seconds"]
        ratio = figures["step_seconds"] / figures["oracle_seconds"]
        assert float(line["step_over_oracle_simulated"]) == ratio
        parts = [int(line[k] or 0) for k in line if k.startswith("peak_") and k != "peak_bytes"]
        assert sum(parts) == figures["peak_bytes"]
    assert "planning_seconds_measured" in lines[0]
    assert lines[0]["rewrites"].split() == found[0]["rewrites"]
    assert not any(name.endswith("_seconds") for name in lines[0])


def test_the_table_has_the_step_over_the_oracle():
    text = run(*COMPARE, "--budget", "1GiB").stdout
    assert "step/oracle" in text
    assert "gap" not in text
    assert "median" not in text


def test_a_plan_with_a_certificate_shows_its_bound_and_the_gap():
    cost = roofline("host")
    one = summary(plan(networks.chain(), "keep_all", hardware="host"), cost)
    other = {**one, "policy": "search", "bound_seconds": one["step_seconds"] / 1.25}
    lines = comparison_table([one, other]).splitlines()
    assert "bound" in text_of(lines, "policy")
    assert "25.0%" in text_of(lines, "search")
    assert "25.0%" not in text_of(lines, "keep_all")


def text_of(lines, word):
    return next(line for line in lines if word in line.split())


def test_jitter_is_shown_and_is_that_of_the_plan():
    found = json.loads(run(*COMPARE, "--jitter", "10%", "--threads", 1, "--json").stdout)
    made = plan(models.get("digits_vgg"), "vdnn_all", threads=1)
    assert found[1]["jitter"] == jittered(made, roofline("titan-x"), 0.1).summary()
    text = run(*COMPARE, "--jitter", "10%").stdout
    assert "median" in text
    assert "p95" in text
    assert "times slower" in run("plan", "digits_vgg", "--jitter", "0.2").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "arena.gif"], "must end in one of .png, .svg, .pdf"),
        (["--csv", "no/such/arena.csv"], "No such file"),
        (["--csv", ""], "the name of a file to write is empty"),
        (["--picture", ""], "--picture '': its name must end in one of"),
        (["--jitter", ""], "such as 10% or 0.1, not ''"),
        (["--jitter", "much"], "such as 10% or 0.1, not 'much'"),
        (["--jitter", "150%"], "from 0 to 1"),
        (["--budget", "floor+3Gx"], "units are"),
        (["--policy", "vdnn_al"], "did you mean vdnn_all"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2(arguments, message):
    result = run(*COMPARE, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jitter", ""], "such as 10% or 0.1, not ''"),
        (["--trace", ""], "the name of a file to write is empty"),
        (["--picture", ""], "--picture '': its name must end in one of"),
        (["--budget", "floor+" + "9" * 400 + "%"], "no amount of memory"),
    ],
)
def test_plan_ignores_nothing_that_is_empty_or_beyond_all_bounds(options, message):
    result = run("plan", "digits_vgg", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_without_any_jitter_nothing_is_slower():
    assert "median 1.000, p95 1.000, worst 1.000, simulated" in run("plan", "digits_vgg", "--jitter", "0").stdout
    found = json.loads(run(*COMPARE, "--jitter", "0", "--json").stdout)
    assert [each["jitter"]["p95_slowdown"] for each in found] == [1.0, 1.0]
    assert "durations varying by 0%, simulated" in run(*COMPARE, "--jitter", "0%").stdout


def test_the_command_line_speaks_of_its_own_options():
    result = run("plan", "resnet18", "--batch", 2, "--micro-batches", 2)
    assert result.exit_code == 2
    assert "--allow-coupled accepts" in result.stderr
    assert "allow_coupled" not in result.stderr


def test_training_says_where_relative_budgets_are_for():
    result = run("train", "digits_vgg", "--budget", "floor+10%")
    assert result.exit_code == 2
    assert "are for vdnn plan and vdnn compare" in result.stderr
    assert "are for" not in run("train", "digits_vgg", "--budget", "12Gx").stderr


def test_where_nothing_fits_it_says_whose_floor_and_whose_policies_these_are():
    error = run("plan", "digits_vgg", "--budget", "100KiB").stderr
    assert "which no plan of the whole batch can undercut" in error
    assert "none of vdnn's own fits this budget; vdnn compare tries the published ones" in error
    parted = run("plan", "networks:chain", "--budget", "1KiB", "--micro-batches", 2).stderr
    assert "which no plan in 2 parts can undercut" in parted


def test_floor_and_oracle_are_those_of_the_batch_that_was_asked_for_whatever_a_policy_chooses():
    whole = plan(networks.chain(64), "keep_all", threads=1)
    arguments = ("--batch", 64, "--threads", 1, "--policy", "keep_all", "--policy", "test_cli_compare:halved")
    found = json.loads(run("compare", "networks:chain", *arguments, "--json").stdout)
    assert [each["micro_batches"] for each in found] == [1, 2]
    assert {each["floor_bytes"] for each in found} == {whole.floor_bytes}
    assert len({each["oracle_seconds"] for each in found}) == 1
    text = run("compare", "networks:chain", *arguments).stdout
    assert "parts" in text
    assert "floor of the whole batch" in text
    alone = run("plan", "networks:chain", *arguments[:4], *arguments[-2:]).stdout
    assert "floor and oracle are those of the whole batch" in alone


def halved(tape, variant=None):
    """Everything kept, in two sub-batches where the policy may choose."""
    return (variant(2), Decisions()) if variant else Decisions()


# ---- the picture


def made_up(policy, budget, seconds, fits=True, **others):
    figures = {"network": "net", "batch": 2, "optimizer": "sgd", "hardware": "host", "floor_bytes": 2 << 20}
    figures |= {"micro_batches": 1, "asked_micro_batches": 1}
    figures |= {"policy": policy, "budget_bytes": budget << 20, "step_seconds": seconds, "fits": fits}
    return figures | {"oracle_seconds": 1.0, "time": "simulated", **others}


ARENA = [
    made_up("slow", 1, 9.0, fits=False),
    made_up("quick", 1, 9.0, fits=False),
    made_up("slow", 3, 1.4),
    made_up("quick", 3, 2.0, fits=False),
    made_up("slow", 4, 1.4),
    made_up("quick", 4, 1.1, bound_seconds=1.05),
    made_up("large", 4, 1.0, fits=False),
]


def test_the_front_has_what_nothing_beats_in_time_and_budget():
    assert [(s["policy"], s["budget_bytes"] >> 20) for s in front(ARENA)] == [("slow", 3), ("quick", 4)]
    assert front(ARENA[:2]) == []


def test_the_picture_names_policies_oracle_bound_floor_and_where_nothing_fits(tmp_path):
    text = front_picture(ARENA, tmp_path / "arena.svg", title="a title").read_text()
    for words in ("slow", "quick", "large: never fits", "best of all", "oracle: unlimited memory", "lower bound"):
        assert f"<!-- {words} -->" in text
    assert "nothing fits" in text
    assert "floor 2.00 MiB" in text
    assert "<!-- step / oracle (simulated) -->" in text
    assert "<!-- a title -->" in text


def lines_of(arena, tmp_path, monkeypatch):
    """{label: line} of what is drawn."""
    figures = []
    monkeypatch.setattr(plot_front, "new_figure", lambda: figures.append(new_figure()) or figures[-1])
    front_picture(arena, tmp_path / "arena.png")
    (axes,) = figures[0].axes
    return axes, {line.get_label(): line for line in axes.lines}


def test_policies_are_drawn_in_steps_and_bounds_without_a_line(tmp_path, monkeypatch):
    axes, lines = lines_of(ARENA, tmp_path, monkeypatch)
    assert lines["slow"].get_drawstyle() == lines["quick"].get_drawstyle() == "steps-post"
    assert lines["lower bound"].get_linestyle() == "None"
    assert axes.get_title(loc="left") == "net, batch 2, sgd, on host, simulated: oracle 1.00 s"


def test_the_picture_says_whose_parts_and_whose_floor_it_shows(tmp_path, monkeypatch):
    asked = [made_up("slow", n, 1.4, micro_batches=2, asked_micro_batches=2) for n in (1, 3)]
    axes, _ = lines_of(asked, tmp_path, monkeypatch)
    assert "net, batch 2 in 2 parts, sgd" in axes.get_title(loc="left")
    assert [t.get_text().strip() for t in axes.texts] == ["floor 2.00 MiB"]
    axes, _ = lines_of([*ARENA, made_up("modnn", 4, 1.2, micro_batches=2)], tmp_path, monkeypatch)
    assert "net, batch 2, sgd" in axes.get_title(loc="left")
    assert "floor of the whole batch 2.00 MiB" in [t.get_text().strip() for t in axes.texts]


@pytest.mark.parametrize("arena", [ARENA[:2], [made_up("slow", 3, 1.0)], [*ARENA, made_up("least", 3, 60.0)]])
def test_there_is_a_picture_of_any_arena(tmp_path, arena):
    assert front_picture(arena, tmp_path / "arena.png").stat().st_size > 10_000


def test_compare_draws_it(tmp_path):
    path = tmp_path / "arena.png"
    assert run(*COMPARE, "--budget", "floor", "--budget", "keep_all", "--picture", path).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [COMPARE, ("plan", "digits_vgg")])
def test_without_matplotlib_it_says_what_to_install_before_it_plans(command, tmp_path, monkeypatch, without_package):
    without_package("matplotlib")
    planned = []
    monkeypatch.setattr(Setting, "decide", lambda *arguments: planned.append(arguments))
    result = run(*command, "--picture", tmp_path / "arena.png")
    assert result.exit_code == 2
    assert planned == []
    assert result.stdout == ""
    assert "pip install 'vdnn[plot]'" in result.stderr
