"""Measured algorithms on disk: what is kept, when it counts, and that nothing goes wrong with broken files."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import emulator
import pytest
from emulated import EmulatedDriver
from fake_cudnn import FakeCudnn

import vdnn
from vdnn.kernels.cuda.cudnn import MARGIN, CudnnConvolutions
from vdnn.kernels.cuda.finding import Candidate, Findings, Problem, default_folder
from vdnn.kernels.cuda.libraries import Cudnn

PROBLEM = Problem((2, 4, 7, 6), (6, 2, 3, 3), (2, 6, 7, 6), (1, 1), (1, 1), (1, 1), 2, "float32", "nchw", "fp32")
FOUND = [Candidate("winograd", 4096, 1e-5, True), Candidate("algo_0", 0, 0.25, False)]
ARRAYS = 1536 + 512 + 2048  # bytes of x, w and y, each rounded up to 512


@pytest.fixture
def findings(tmp_path):
    return Findings("GPU 1", "9.28.0", "13.0", tmp_path)


def only_file(folder):
    (file,) = Path(folder).rglob("*.json")
    return file


def test_what_is_saved_is_loaded(findings, tmp_path):
    assert findings.load("forward", PROBLEM) is None
    findings.save("forward", PROBLEM, 5000, FOUND)
    assert findings.load("forward", PROBLEM) == (5000, FOUND)
    assert Findings("GPU 1", "9.28.0", "13.0", tmp_path).load("forward", PROBLEM) == (5000, FOUND)
    assert not list(tmp_path.rglob("*.part"))


def test_another_question_is_not_answered(findings, tmp_path):
    findings.save("forward", PROBLEM, 5000, FOUND)
    assert findings.load("backward_data", PROBLEM) is None
    changes = {"x": (3, 4, 7, 6), "dtype": "float64", "storage": "nhwc", "math": "tf32", "groups": 1, "stride": (2, 1)}
    for name, value in changes.items():
        assert findings.load("forward", replace(PROBLEM, **{name: value})) is None
    for versions in (("GPU 2", "9.28.0", "13.0"), ("GPU 1", "9.19.0", "13.0"), ("GPU 1", "9.28.0", "12.9")):
        assert Findings(*versions, tmp_path).load("forward", PROBLEM) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda e: "",
        lambda e: "[" * 100_000,
        lambda e: "\x00\xff",
        lambda e: "[]",
        lambda e: json.dumps({**e, "key": {}}),
        lambda e: json.dumps({**e, "workspace": -1}),
        lambda e: json.dumps({**e, "workspace": True}),
        lambda e: json.dumps({**e, "candidates": None}),
        lambda e: json.dumps({**e, "candidates": [{"name": "fft"}]}),
        *(
            lambda e, c=c: json.dumps({**e, "candidates": [{**e["candidates"][0], **c}]})
            for c in (
                {"name": 3},
                {"workspace": 1.5},
                {"seconds": -1.0},
                {"seconds": float("nan")},
                {"deterministic": 1},
            )
        ),
    ],
)
def test_a_broken_file_is_ignored_and_written_anew(change, findings, tmp_path):
    findings.save("forward", PROBLEM, 5000, FOUND)
    file = only_file(tmp_path)
    file.write_text(change(json.loads(file.read_text())), encoding="latin-1")
    assert findings.load("forward", PROBLEM) is None
    findings.save("forward", PROBLEM, 5000, FOUND)
    assert findings.load("forward", PROBLEM) == (5000, FOUND)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    findings = Findings("GPU", "9", "13", tmp_path / "file" / "folder")
    findings.save("forward", PROBLEM, 5000, FOUND)
    assert findings.load("forward", PROBLEM) is None


def test_a_failed_write_leaves_nothing_behind(findings, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    findings.save("forward", PROBLEM, 5000, FOUND)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VDNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_folder() == tmp_path / ".cache" / "vdnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "vdnn"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/vdnn")
    monkeypatch.setenv("VDNN_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    Findings("GPU", "9", "13").save("forward", PROBLEM, 1, FOUND)
    assert only_file(tmp_path / "own").parent.name == "GPU-cudnn-9-driver-13"


def test_without_a_home_nothing_is_kept(monkeypatch):
    for name in ("VDNN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def none():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", none)
    Findings("GPU", "9", "13").save("forward", PROBLEM, 1, FOUND)
    assert Findings("GPU", "9", "13").load("forward", PROBLEM) is None


WRITER = """
import sys
from pathlib import Path
from vdnn.kernels.cuda.finding import Candidate, Findings, Problem
problem = eval(sys.argv[2])
findings = Findings("GPU", "9", "13", Path(sys.argv[1]))
for i in range(200):
    findings.save("forward", problem, 10**9, [Candidate("fft" * 400, i, 1.0, True)] * 20)
    kept = findings.load("forward", problem)
    assert kept is not None and len(kept[1]) == 20, kept
"""


def test_processes_that_write_at_once_leave_whole_files(tmp_path):
    root = str(Path(vdnn.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", WRITER, str(tmp_path), repr(PROBLEM)]
    writers = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [w.wait(60) for w in writers] == [0, 0, 0]
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def fake(tmp_path):
    if emulator.available():
        pytest.skip(emulator.available())
    return FakeCudnn(tmp_path)


def finds(fake):
    return len(fake.called("cudnnFindConvolutionForwardAlgorithmEx")) // 2


def start(fake, findings, driver=None):
    driver = driver or EmulatedDriver(eager=True)
    return CudnnConvolutions(driver, driver.new_stream(), Cudnn(fake.loaded), findings)


def test_a_second_start_does_not_measure_again(fake, findings):
    first = start(fake, findings).candidates("forward", PROBLEM)
    assert start(fake, findings).candidates("forward", PROBLEM) == first
    assert finds(fake) == 1


def test_what_was_measured_with_more_room_serves_with_less(fake, findings):
    fake.needs = {("Forward", 1): 3000, ("Forward", 4): 9000}
    engine = start(fake, findings)
    assert "fft" in {c.name for c in engine.candidates("forward", PROBLEM)}
    less = {c.name for c in engine.candidates("forward", PROBLEM, ARRAYS + 5000)}
    assert finds(fake) == 1
    assert "implicit_precomp_gemm" in less
    assert "fft" not in less


def test_what_was_measured_with_less_room_does_not_serve_with_more(fake, findings):
    fake.needs = {("Forward", 4): 9000}
    engine = start(fake, findings)
    assert "fft" not in {c.name for c in engine.candidates("forward", PROBLEM, ARRAYS)}
    assert "fft" in {c.name for c in engine.candidates("forward", PROBLEM)}
    assert finds(fake) == 2


def test_what_no_longer_is_the_exact_workspace_is_measured_anew(fake, findings):
    start(fake, findings).candidates("forward", PROBLEM)
    fake.needs = {("Forward", 4): 1}
    found = start(fake, findings).candidates("forward", PROBLEM)
    assert {c.name: c.workspace for c in found}["fft"] == 1
    assert finds(fake) == 2


def test_what_was_not_measured_is_not_kept(fake, findings, tmp_path):
    start(fake, findings).candidates("forward", PROBLEM, 0)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("failing", [range(8), [3]])
def test_what_failed_for_want_of_memory_is_not_kept_and_tried_again(failing, fake, findings, tmp_path):
    """A search that failed says nothing of the next one; with nothing measured, cudnn supposes."""
    fake.measured = {("Forward", n): 5000 for n in failing}
    first = start(fake, findings).candidates("forward", PROBLEM)
    assert not list(tmp_path.rglob("*.json"))
    assert any(c.seconds for c in first) == (len(failing) < 8)
    fake.measured = {}
    second = start(fake, findings).candidates("forward", PROBLEM)
    assert all(c.seconds for c in second)
    assert finds(fake) == 2
    assert list(tmp_path.rglob("*.json"))


def test_a_file_without_candidates_is_no_answer(fake, findings):
    findings.save("forward", PROBLEM, 1 << 40, [])
    assert start(fake, findings).candidates("forward", PROBLEM)
    assert finds(fake) == 1


def test_measuring_leaves_alone_what_is_not_free(fake, findings):
    fake.needs = {("Forward", 4): 10_000}
    driver = EmulatedDriver(eager=True, total=MARGIN + ARRAYS + 5000)
    names = {c.name for c in start(fake, findings, driver).candidates("forward", PROBLEM, 1 << 40)}
    assert names
    assert "fft" not in names


def test_algorithms_beyond_the_limit_are_left_out(fake, findings):
    fake.needs = {("Forward", 2): 70_000, ("Forward", 4): 10_000}
    names = [c.name for c in start(fake, findings).candidates("forward", PROBLEM, ARRAYS + 20_000)]
    assert "fft" in names
    assert "gemm" not in names
    assert fake.called("cudnnFindConvolutionForwardAlgorithmEx")[-1][-1] == 10_000


def test_without_room_for_the_arrays_cudnn_only_supposes(fake, findings):
    fake.needs = {("BackwardData", 2): 70_000}
    refusing = EmulatedDriver(eager=True, total=1000)
    refusing.memory_info = lambda: (2 * MARGIN, 2 * MARGIN)
    for driver, limit in ((None, ARRAYS - 1), (refusing, None)):
        found = start(fake, findings, driver).candidates("backward_data", PROBLEM, limit)
        assert {c.name: c.workspace for c in found}["fft"] == 70_000
        assert {c.seconds for c in found} == {0}
    assert not fake.called("cudnnFindConvolutionBackwardDataAlgorithmEx")
    assert len(fake.called("cudnnGetConvolutionBackwardDataAlgorithm_v7")) == 2
