"""The GPU benchmark, tried without a GPU: on toy networks, over test doubles of CUDA and of the other process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import emulator
import pytest

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from children import Child, ChildError  # noqa: E402
from gpu_about import why_no_gpu  # noqa: E402
from gpu_bench_plan import NothingFitsError  # noqa: E402
from gpu_bench_report import TABLES, Report, Section  # noqa: E402

needs_compiler = pytest.mark.skipif(bool(emulator.available()), reason=emulator.available())


def run(*arguments):
    command = [sys.executable, str(EXPERIMENTS / "gpu_bench.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(EXPERIMENTS.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """What a short dry run says and writes."""
    out = tmp_path_factory.mktemp("gpu_bench") / "emulated.json"
    sections = [f"--only={name}" for name in ("link", "steps", "algorithms")]
    ended = run("--dry", "--seconds", 4, "--out", out, *sections)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads(out.read_text())


@needs_compiler
def test_a_dry_run_says_that_it_measured_nothing(emulated):
    said, found = emulated
    assert "emulated" in said
    assert found["about"]["device"] == "emulated"


@needs_compiler
def test_sections_have_rows_and_no_errors(emulated):
    _, found = emulated
    for name in ("link", "steps"):
        section = found["sections"][name]
        assert section["rows"]
        assert not section["errors"]
    assert {"copy_bytes", "page_locked_bytes"} <= {key for row in found["sections"]["link"]["rows"] for key in row}


@needs_compiler
def test_a_step_needs_the_bytes_that_were_predicted_and_gives_the_bits_of_keep_all(emulated):
    rows = [row for row in emulated[1]["sections"]["steps"]["rows"] if row.get("fits", True)]
    for row in rows:
        assert row["peak_bytes_difference"] == 0
        assert row["arena_bytes_measured"] >= row["arena_bytes_predicted"]
        if "same_plan_as" in row:
            continue
        assert row["weights_identical_to_keep_all"] is (True if row["algorithms_equal_those_of_keep_all"] else None)
        assert row["graph"], row["graph_refusal"]


@needs_compiler
def test_every_time_and_rate_says_whether_it_was_measured(emulated):
    for section in emulated[1]["sections"].values():
        for row in section["rows"]:
            for key in row:
                if "seconds" in key or "per_second" in key:
                    assert key.endswith(("_measured", "_predicted")) or key.startswith("prediction_error"), key


def test_a_dry_run_does_not_write_among_the_results():
    ended = run("--dry", "--out", EXPERIMENTS / "results" / "x.json")
    assert ended.returncode == 2
    assert "measures nothing" in " ".join(ended.stderr.split())


@pytest.mark.skipif(not why_no_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line_and_exits_with_2():
    ended = run()
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "no GPU" in ended.stderr


# ---- the report


def test_a_row_that_fails_is_kept_and_the_run_goes_on(tmp_path):
    report = Report(tmp_path / "r.json", {})
    section = Section("steps", None, report, 60)
    assert section.row("bad", lambda: 1 / 0) is None
    assert section.row("good", lambda: 7) == 7
    (error,) = json.loads(report.path.read_text())["sections"]["steps"]["errors"]
    assert error["what"] == "bad"
    assert "ZeroDivisionError" in error["error"]
    assert report.failed


def test_a_budget_that_nothing_fits_is_a_result_and_no_failure(tmp_path):
    class Error:
        needed_bytes, budget_bytes, floor_bytes = 3, 2, 1

    report = Report(tmp_path / "r.json", {})

    def refuse():
        raise NothingFitsError(Error)

    Section("steps", None, report, 60).row("tight", refuse)
    (row,) = report.section("steps")["rows"]
    assert row["fits"] is False
    assert not report.failed


@pytest.mark.parametrize("wrong", [{"peak_bytes_difference": 512}, {"weights_identical_to_keep_all": False}])
def test_a_result_that_contradicts_the_plan_is_kept_and_is_a_failure(tmp_path, wrong):
    report = Report(tmp_path / "r.json", {})
    Section("steps", None, report, 60).add(wrong)
    assert report.failed
    assert report.section("steps")["rows"] == [wrong]


def test_what_is_not_reached_is_named(tmp_path):
    report = Report(tmp_path / "r.json", {})
    section = Section("steps", None, report, 0)
    assert section.row("late", lambda: 7) is None
    assert report.section("steps")["not_reached"] == ["late"]


def test_tables_show_a_dash_where_a_row_lacks_a_figure():
    rows = [{"network": "n", "batch": 1, "math": "fp32", "policy": "p", "step_seconds_predicted": None}]
    assert TABLES["steps"](rows).row_count == 1


# ---- the other process

ECHO = """
import json, sys, time
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "die": sys.exit("I fell")
    if command["do"] == "sleep": time.sleep(60)
    print(json.dumps({"error": "no"} if command["do"] == "refuse" else command), flush=True)
"""


@pytest.fixture
def child():
    found = Child([sys.executable, "-c", ECHO])
    yield found
    found.close(kill=True)


def test_commands_are_answered_in_order(child):
    assert [child.ask(30, do="echo", n=n)["n"] for n in range(3)] == [0, 1, 2]


def test_a_refusal_is_an_error_and_the_process_goes_on(child):
    with pytest.raises(ChildError, match="no"):
        child.ask(30, do="refuse")
    assert child.ask(30, do="echo")["do"] == "echo"


def test_a_process_that_ends_tells_why(child):
    with pytest.raises(ChildError, match="I fell"):
        child.ask(30, do="die")
    assert not child.alive
    with pytest.raises(ChildError):
        child.ask(30, do="echo")


def test_a_process_that_does_not_answer_is_ended(child):
    began = time.monotonic()
    with pytest.raises(ChildError, match="no answer to 'sleep'"):
        child.ask(0.2, do="sleep")
    assert time.monotonic() - began < 10
    assert not child.alive


# ---- PyTorch, where it is installed


@pytest.mark.parametrize("network", ["toy_chain", "toy_residual", "toy_inception"])
def test_the_translated_network_has_the_losses_of_vdnn_in_every_variant(network):
    pytest.importorskip("torch")
    from gpu_bench_plan import batch_for, network_of
    from gpu_torch import VARIANTS, Training

    import vdnn
    from vdnn.arrays import initial

    net = network_of(network, 4, {})
    batch = batch_for(net)
    trainer = vdnn.Trainer(net, optimizer=vdnn.SGD(0.01, momentum=0.9))
    expected = [trainer.step(*batch) for _ in range(3)]
    trainer.close()
    weights = {name: initial(tensor, spec, 0) for name, (tensor, spec) in net.parameters.items()}
    for variant in VARIANTS:
        for channels_last in (False, True):
            _, losses = Training(net, weights, batch, variant, channels_last, 0.01).run(3)
            assert losses == pytest.approx(expected, rel=1e-4), (variant, channels_last)
