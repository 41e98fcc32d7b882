"""Studies: rows, the file that they are kept in, and who computes them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import vdnn
from vdnn.memory.cost import roofline
from vdnn.planning import summary
from vdnn.studies.grid import resolve
from vdnn.studies.results import ABOUT, CELLS, TABLE, open_results
from vdnn.studies.running import outcomes, threads_of

SMALL = {
    "network": "digits_vgg",
    "batch": [2, 4],
    "policy": ["vdnn_all", "keep_all", "checkpoint"],
    "budget": "keep_all",
    "kernels": "cudnn4",
}
TOML = """
network = "digits_vgg"
batch = [2, 4]
policy = ["keep_all", "own:policy", "checkpoint"]
kernels = "cudnn4"
"""
# Kills its whole process group where there is a file named fatal, which is gone then; else it keeps everything
FATAL = """
import os, signal
from vdnn.memory.policy import keep_all

def policy(tape):
    if os.path.exists("fatal") and tape.batch == 4:
        os.remove("fatal")
        os.killpg(0, signal.SIGKILL)
    return keep_all()
"""
# Ends the process that computes the larger batch, each time
DEADLY = """
import os, signal
from vdnn.memory.policy import keep_all

def policy(tape):
    if tape.batch == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return keep_all()
"""

# Fails unless there is a file named wanted
WANTING = """
import os
from vdnn.memory.policy import keep_all

def policy():
    os.stat("wanted")
    return keep_all()
"""
MAPS = """
from vdnn import Network, layers

def net(batch):
    made = Network((batch, 1, 4, 4))
    made.add(layers.MeanSquaredError(), made.add(layers.Conv2d(2, 3, padding=1), made.input))
    return made
"""


class Counting(Executor):
    """Computes at once, counts, and breaks after so many cells."""

    def __init__(self, most=10**9):
        self.most, self.indices = most, []

    def submit(self, function, cell):
        future = Future()
        if len(self.indices) == self.most:
            future.set_exception(BrokenExecutor("no more"))
        else:
            self.indices.append(cell.index)
            future.set_result(function(cell))
        return future


def study(given=SMALL, **options):
    return vdnn.study(given, progress=False, **options)


@pytest.fixture(scope="module")
def whole():
    """The small study, uninterrupted."""
    return study()


# ---- rows


def test_a_row_is_what_plan_and_simulate_say(whole):
    row = whole.rows[1]
    assert (row["settings"]["batch"], row["settings"]["policy"]) == (2, "keep_all")
    plan = vdnn.plan(vdnn.models.digits_vgg(batch=2), "keep_all", kernels="cudnn4")
    expected = summary(plan, roofline("titan-x"), plan.arena_bytes)
    assert row["status"] == "fits"
    for name in ("arena_bytes", "peak_bytes", "budget_bytes", "step_seconds", "oracle_seconds", "breakdown"):
        assert row["figures"][name] == expected[name], name


def test_a_cell_that_does_not_fit_says_how_much_it_takes():
    (row,) = study({"network": "digits_vgg", "batch": 2, "policy": "keep_all", "budget": "floor"})
    assert row["status"] == "does not fit"
    arena, floor = row["figures"]["arena_bytes"], row["figures"]["floor_bytes"]
    assert arena > floor == row["figures"]["budget_bytes"]
    assert f"takes {arena} bytes, of {floor} allowed" in row["error"]


def test_a_planned_row_has_bytes_and_no_times():
    (row,) = study({"network": "digits_vgg", "batch": 2, "mode": "plan"})
    assert row["figures"]["time"] == "planned"
    assert row["figures"]["peak_bytes"] > 0
    assert not [name for name in row["figures"] if name.endswith("_seconds")]


def test_a_slower_link_makes_a_slower_step():
    given = {"network": "digits_vgg", "batch": 8, "policy": "vdnn_all", "link_bandwidth": ["own", "1MB"]}
    fast, slow = (row["figures"]["step_seconds"] for row in study(given))
    assert slow > 2 * fast


def test_jitter_is_among_the_figures():
    found = study({"network": "digits_vgg", "batch": 2, "jitter": 0.1})
    (row,), (record,) = found, found.records
    assert row["figures"]["jitter"]["jitter"] == record["jitter"] == 0.1
    assert record["jitter_p95_seconds_simulated"] == row["figures"]["jitter"]["p95_seconds"] > 0
    assert "p95" in found.table()


def test_a_cell_that_fails_is_a_row_that_says_why(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text("def policy(tape):\n    raise RuntimeError('never mind')\n")
    monkeypatch.syspath_prepend(tmp_path)
    failed, fine = study({"network": "digits_vgg", "batch": 2, "policy": ["failing:policy", "keep_all"]})
    assert (failed["status"], failed["figures"]) == ("failed", {})
    assert failed["error"] == "RuntimeError: never mind; in policy failing:policy"
    assert fine["status"] == "fits"


def test_a_search_is_one_of_the_policies():
    given = {"network": "digits_vgg", "batch": 2, "policy": "search", "search_seconds": 0.1, "budget": "floor+10%"}
    (row,) = study(given)
    assert row["status"] == "fits"
    assert row["figures"]["bound_seconds"] <= row["figures"]["step_seconds"]


def test_a_run_measures_real_steps():
    given = {"network": "digits_vgg", "batch": 4, "mode": "run", "policy": ["keep_all", "vdnn_all"], "steps": 2}
    kept, moved = (row["figures"] for row in study(given | {"threads": 1, "algorithms": "memory"}))
    assert kept["time"] == "measured"
    assert kept["measured_peak_bytes"] == kept["peak_bytes"]
    assert kept["fastest_step_seconds"] <= kept["step_seconds"] <= kept["slowest_step_seconds"]
    assert math.isfinite(kept["last_loss"])
    assert (kept["first_loss"], kept["last_loss"]) == (moved["first_loss"], moved["last_loss"])


def test_a_run_in_too_little_memory_does_not_fit():
    given = {"network": "digits_vgg", "batch": 4, "mode": "run", "policy": "keep_all", "budget": ["floor", 1000]}
    for row in study(given | {"threads": 1}):
        assert row["status"] == "does not fit"
        assert row["figures"]["arena_bytes"] > row["figures"]["budget_bytes"]


def test_a_run_of_a_network_without_classes_has_labels_as_its_loss_takes_them(tmp_path, monkeypatch):
    (tmp_path / "maps.py").write_text(MAPS)
    monkeypatch.syspath_prepend(tmp_path)
    given = {"network": "maps:net", "batch": 1, "mode": "run", "steps": 1, "warm_up": 0, "threads": 1}
    (row,) = study(given)
    assert row["status"] == "fits", row["error"]


# ---- results that are kept


def test_a_study_goes_on_after_its_executor_broke_and_computes_no_cell_twice(tmp_path, whole):
    dying, after = Counting(most=3), Counting()
    with pytest.raises(vdnn.StudyStopped, match="the executor failed for 3 cells"):
        study(out=tmp_path, executor=dying)
    found = study(out=tmp_path, executor=after)
    assert sorted(dying.indices + after.indices) == list(range(6))
    assert found.to_csv() == whole.to_csv() == (tmp_path / TABLE).read_text()


@pytest.mark.parametrize("left", [1, 100, -1])
def test_a_torn_last_line_is_dropped_and_its_cell_computed_again(tmp_path, whole, left):
    with pytest.raises(vdnn.StudyStopped):
        study(out=tmp_path, executor=Counting(most=3))
    path = tmp_path / CELLS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    after = Counting()
    assert study(out=tmp_path, executor=after).to_csv() == whole.to_csv()
    assert after.indices == list(range(2, 6))


def test_a_torn_header_begins_anew(tmp_path, whole):
    (tmp_path / CELLS).write_bytes(b'{"format": "vdnn st')
    assert study(out=tmp_path).to_csv() == whole.to_csv()


@pytest.mark.parametrize("terminal", ["1", ""])
def test_a_title_is_text_whatever_is_in_it(monkeypatch, terminal, capsys):
    monkeypatch.setenv("FORCE_COLOR", terminal)
    monkeypatch.setattr("vdnn.progress.EVERY", 0.0)
    given = {"title": "peak [/step] [red]", "network": "digits_vgg", "batch": [1, 2], "mode": "plan"}
    vdnn.study(given)
    assert "peak [/step] [red]" in capsys.readouterr().err


def test_a_study_that_is_done_computes_nothing(tmp_path):
    study(out=tmp_path)
    nobody = Counting(most=0)
    assert len(study(out=tmp_path, executor=nobody)) == 6
    assert nobody.indices == []


def test_results_of_another_study_are_refused_by_name_and_left_alone(tmp_path):
    study(SMALL | {"batch": 2}, out=tmp_path)
    before = (tmp_path / CELLS).read_bytes()
    with pytest.raises(vdnn.StudyError) as error:
        study(SMALL | {"batch": 4, "optimizer": "adam"}, out=tmp_path)
    assert "batch: 2 in the results, 4 now" in str(error.value)
    assert "optimizer: momentum in the results, adam now" in str(error.value)
    assert (tmp_path / CELLS).read_bytes() == before


def test_results_of_the_same_values_in_other_combinations_are_refused(tmp_path):
    given = SMALL | {"policy": ["vdnn_all", "keep_all"]}
    study(given, out=tmp_path)
    with pytest.raises(vdnn.StudyError, match="which combinations: 4 cells in the results, 3 now"):
        study(given | {"exclude": {"batch": 2, "policy": "vdnn_all"}}, out=tmp_path)


def test_results_by_another_policy_of_the_same_name_are_refused(tmp_path, monkeypatch):
    module = tmp_path / "policy_of_a_study.py"
    module.write_text("from vdnn.memory.policy import keep_all as policy\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"network": "digits_vgg", "batch": 2, "policy": "policy_of_a_study:policy"}
    study(given, out=tmp_path / "out")
    module.write_text("from vdnn.memory.policy import vdnn_all as policy\n")
    with pytest.raises(vdnn.StudyError, match="the code of policy_of_a_study: "):
        study(given, out=tmp_path / "out")


def test_fresh_forgets_results_of_another_study(tmp_path):
    study(SMALL | {"batch": 2}, out=tmp_path)
    found = study(SMALL | {"batch": 4}, out=tmp_path, fresh=True)
    assert {row["settings"]["batch"] for row in found} == {4}
    assert len((tmp_path / CELLS).read_bytes().splitlines()) == 1 + 3


def test_retry_computes_again_what_failed(tmp_path, monkeypatch):
    (tmp_path / "wanting.py").write_text(WANTING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = {"network": "digits_vgg", "batch": [2, 4], "policy": ["wanting:policy", "keep_all"]}
    assert study(given, out="out").counts["failed"] == 2
    Path("wanted").touch()
    assert study(given, out="out").counts["failed"] == 2
    again = Counting()
    assert study(given, out="out", retry=True, executor=again).counts == {"fits": 4, "does not fit": 0, "failed": 0}
    assert again.indices == [0, 2]


@pytest.mark.parametrize("text", ["my precious notes", '{"format": "vdnn study"'])
def test_a_file_of_somebody_elses_is_left_alone(tmp_path, text):
    (tmp_path / CELLS).write_text(text + "\nand more")
    with pytest.raises(vdnn.StudyError, match=r"line 1 is no JSON"):
        study(out=tmp_path)
    (tmp_path / CELLS).write_text(f"x{text}")
    with pytest.raises(vdnn.StudyError, match="is no file of results"):
        study(out=tmp_path)
    assert (tmp_path / CELLS).read_text() == f"x{text}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"format": "vdnn study", "version": 1}, "line 1 has no study"),
        ({"format": "vdnn study", "version": 1, "study": {}}, "its header has no mode, common, cells, sources"),
        ([], "line 1 has no format, version, study"),
    ],
)
def test_a_damaged_header_is_said(tmp_path, line, said):
    (tmp_path / CELLS).write_text(json.dumps(line) + "\n")
    with pytest.raises(vdnn.StudyError, match=said):
        study(out=tmp_path)


def test_a_row_that_lacks_something_is_said(tmp_path):
    study(out=tmp_path)
    with (tmp_path / CELLS).open("ab") as file:
        file.write(b'{"index": 0}\n')
    with pytest.raises(vdnn.StudyError, match="line 8 has no settings, status, figures, error"):
        study(out=tmp_path)


def test_rows_of_an_onnx_file_that_changed_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parent / "exchange")
    from onnx_graphs import Graph

    monkeypatch.chdir(tmp_path)
    for channels in (4, 8):
        graph = Graph()
        graph.save(tmp_path, graph("Flatten", graph.conv("x", 3, channels)))
        given = {"network": "model.onnx", "batch": 2, "mode": "plan"}
        if channels == 4:
            study(given, out="out")
    with pytest.raises(vdnn.StudyError, match=r"the code of model\.onnx: \w+ in the results, \w+ now"):
        study(given, out="out")


def test_code_in_no_file_has_no_results_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typed", type(sys)("typed"))
    sys.modules["typed"].policy = lambda tape: {}
    given = {"network": "digits_vgg", "batch": 2, "policy": "typed:policy", "mode": "plan"}
    assert study(given).counts["fits"] == 1
    with pytest.raises(vdnn.StudyError, match="typed is no file, so results cannot say"):
        study(given, out=tmp_path)


@pytest.mark.parametrize("fast", ["0", "1"])
def test_whether_kernels_are_compiled_is_said_once_for_all_cells(monkeypatch, fast):
    pytest.importorskip("numba", reason="Numba is not installed")
    monkeypatch.setenv("VDNN_FAST", fast)
    made = resolve({"network": "digits_vgg", "batch": [1, 2]}, 1)
    assert [cell.settings["fast"] for cell in made.cells] == [fast == "1"] * 2
    assert resolve({"network": "digits_vgg", "kernels": "cudnn4"}, 1).cells[0].settings["fast"] is None


def test_a_line_that_is_no_row_is_an_error_with_its_number(tmp_path):
    study(out=tmp_path)
    path = tmp_path / CELLS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"nonsense\n", *lines[3:]]))
    with pytest.raises(vdnn.StudyError, match="line 4 is no JSON"):
        study(out=tmp_path)


def test_what_made_the_rows_is_kept_beside_them(tmp_path):
    with pytest.raises(vdnn.StudyStopped):
        study(out=tmp_path, executor=Counting(most=3))
    study(out=tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    assert about["common"]["optimizer"] == "momentum"
    assert about["cells"][1] == {"batch": 2, "policy": "keep_all"}
    first, second = about["made_by"]
    assert (first["rows_there"], second["rows_there"]) == (0, 3)
    assert first["versions"]["vdnn"] == vdnn.__version__
    assert first["machine"]["cores"] >= 1
    assert set(first["commits"]) == {"vdnn", "study"}


def test_two_processes_do_not_write_the_same_results(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "small.toml").write_text(TOML.replace('"own:policy", ', ""))
    with open_results(tmp_path / "small.results", resolve(SMALL, 1), tmp_path):
        ended = subprocess.run([*COMMAND, "small.toml"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "is being written by another process" in ended.stderr


# ---- processes

COMMAND = (sys.executable, "-m", "vdnn", "study", "--json")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(vdnn.__file__).parent.parent)}


def killed(command, folder):
    """Compute the study in a folder by a command that one of its cells kills; how many rows there are then."""
    (folder / "own.py").write_text(FATAL)
    (folder / "killed.toml").write_text(TOML)
    (folder / "fatal").touch()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ended = subprocess.run([*command, "killed.toml"], cwd=folder, env=ENVIRONMENT, start_new_session=True, **quiet)
    assert ended.returncode != 0
    assert not (folder / "fatal").exists()
    return len((folder / "killed.results" / CELLS).read_bytes().splitlines()) - 1


def resumed(command, folder):
    """The table of the study when the command is given again."""
    ended = subprocess.run([*command, "killed.toml"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return (folder / "killed.results" / TABLE).read_text()


def uninterrupted(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    return study(folder / "killed.toml", out=folder / "whole").to_csv()


def test_a_study_whose_processes_were_killed_goes_on_to_the_same_table(tmp_path, monkeypatch):
    there = killed([*COMMAND, "--processes", "1"], tmp_path)
    assert 0 < there < 6
    assert resumed([*COMMAND, "--processes", "1"], tmp_path) == uninterrupted(tmp_path, monkeypatch)
    assert len((tmp_path / "killed.results" / CELLS).read_bytes().splitlines()) == 1 + 6


def test_a_study_killed_under_mpi_goes_on_to_the_same_table(tmp_path, monkeypatch):
    pytest.importorskip("mpi4py", reason="MPI is not there: pip install 'vdnn[mpi]' mpich")
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if not mpiexec.exists():
        pytest.skip("there is no mpiexec beside this Python: pip install mpich")
    command = [str(mpiexec), "-n", "2", sys.executable, "-m", "mpi4py.futures", *COMMAND[1:], "--mpi"]
    assert killed(command, tmp_path) < 6
    assert resumed(command, tmp_path) == uninterrupted(tmp_path, monkeypatch)


def test_a_cell_that_ends_its_process_is_a_row_and_all_others_are_computed(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    given = {"network": "digits_vgg", "batch": [4, 2], "policy": ["deadly:policy", "keep_all"]}
    found = study(given, processes=1)
    assert [row["status"] for row in found] == ["failed", "fits", "fits", "fits"]
    assert "was killed, perhaps for want of memory" in found.rows[0]["error"]


def test_threads_compute_the_same_rows(whole):
    with ThreadPoolExecutor(2) as executor:
        assert study(executor=executor).to_csv() == whole.to_csv()


def test_an_executor_that_was_shut_down_is_said():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(vdnn.StudyStopped, match="takes no cells"):
        study(executor=executor)


class Breaking(Executor):
    """Computes one cell, and refuses the next ones as a pool does whose process was killed meanwhile."""

    def __init__(self):
        self.taken = 0

    def submit(self, function, cell):
        self.taken += 1
        if self.taken > 1:
            raise BrokenExecutor("a process was killed")
        future = Future()
        future.set_result(function(cell))
        return future


def test_a_cell_that_a_broken_executor_refuses_is_not_lost():
    cells = iter(resolve(SMALL, 1).cells)
    found = list(outcomes(cells, Breaking(), most=1))
    assert [cell.index for cell, _ in found] == [0, 1]
    assert isinstance(found[1][1], BrokenExecutor)
    assert next(cells).index == 2


def test_a_cell_that_its_executor_cancelled_stops_the_study():
    executor = Counting()
    executor.submit = lambda function, cell: _cancelled()
    with pytest.raises(vdnn.StudyStopped, match="CancelledError"):
        study(executor=executor)


def _cancelled():
    future = Future()
    future.cancel()
    return future


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("vdnn.studies.running.available_threads", lambda: 8)
    assert threads_of(None, 2, is_run=True) == 4
    assert threads_of(None, 2, is_run=False) == 8
    with pytest.raises(vdnn.StudyError, match="this machine has 8 cores"):
        threads_of(None, 9, is_run=False)


def test_threads_of_a_run_must_be_given_if_the_executor_does_not_say_how_much_it_does_at_a_time():
    with pytest.raises(vdnn.StudyError, match="threads is missing"):
        study({"network": "digits_vgg", "mode": "run"}, executor=Counting())


# ---- what is found


def test_the_table_has_what_varies_and_says_that_times_are_simulated(whole):
    title, *_ = whole.table().splitlines()
    assert title == "study: 6 cells, 6 fits; bytes planned, times simulated"
    header = next(line for line in whole.table().splitlines() if line.strip().startswith("batch"))
    assert header.split()[:3] == ["batch", "policy", "fits"]


def test_csv_names_each_time_by_its_kind(whole):
    rows = list(csv.DictReader(io.StringIO(whole.to_csv())))
    assert len(rows) == 6
    assert float(rows[0]["step_seconds_simulated"]) == whole.rows[0]["figures"]["step_seconds"]
    assert rows[0]["planned_algorithms"] == whole.rows[0]["figures"]["algorithms"]
    assert "step_seconds" not in rows[0]


def test_json_has_the_same_records(whole, tmp_path):
    assert json.loads(whole.to_json(tmp_path / "rows.json")) == whole.records
    assert json.loads((tmp_path / "rows.json").read_text()) == whole.records


def test_html_has_a_row_for_each_cell(whole):
    assert whole._repr_html_().count("<tr>") == 7


def test_pandas_is_named_where_it_is_missing(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        whole.to_pandas()
