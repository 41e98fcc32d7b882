"""What needs a GPU says so where there is none, and is tested there over test doubles as far as that goes."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import conformance
import emulator
import pytest

import vdnn.layers
from vdnn.layers import Layer

ROOT = Path(__file__).resolve().parent.parent
without_gpu = pytest.mark.skipif(not conformance.why_no_gpu(), reason="there is a GPU here, so the real thing can run")


def run(*command, **environment):
    own = {k: v for k, v in os.environ.items() if not k.startswith("VDNN_")}
    own |= {"PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=own, capture_output=True, text=True, timeout=300, check=False
    )


@without_gpu
@pytest.mark.parametrize("name", ["gpu_about.py", "gpu_test.py", "gpu_bench.py"])
def test_a_command_says_in_one_line_why_there_is_no_gpu(name):
    command = ROOT / "experiments" / name
    found = run(str(command))
    assert found.returncode == 2
    assert found.stdout == ""
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("no GPU can be used: ")
    assert len(lines[0]) > len("no GPU can be used: ")


@without_gpu
def test_tests_on_a_gpu_are_collected_and_skipped_with_the_reason():
    """Of each file a few: that none is forgotten is up to the mark and to their folder's conftest."""
    found = run("-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-rs", "-m", "gpu", "-k", "3x3 or keep or numpy")
    assert found.returncode == 0, found.stdout + found.stderr
    last = found.stdout.strip().splitlines()[-1]
    assert "skipped" in last
    assert "passed" not in last
    assert "failed" not in last
    assert "no GPU can be used: " in found.stdout


@without_gpu
def test_where_a_gpu_is_required_its_absence_is_a_failure():
    found = run("-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-k", "described", VDNN_GPU="required")
    assert found.returncode == 1
    assert "no GPU can be used: " in found.stdout


def test_every_test_of_the_folder_is_marked():
    for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py")):
        assert "pytestmark = pytest.mark.gpu" in path.read_text(encoding="utf-8"), path.name


def test_every_layer_has_cases_for_a_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    from gpu_cases import DRAWS, LARGE, drawn

    kinds = {k for k, v in vars(vdnn.layers).items() if inspect.isclass(v) and issubclass(v, Layer) and v is not Layer}
    assert DRAWS.keys() == LARGE.keys() == kinds
    for name in DRAWS:
        layer, shapes = LARGE[name]
        layer.shapes(*shapes)
        assert all(type(case).__name__ == name for case, _ in drawn(name, 3))


PART = "small_case and nchw or checkpoint or cupy or uneven-nchw or grouped-nhwc-fp32 or (least_that and chain)"


@pytest.mark.skipif(bool(emulator.available()), reason=emulator.available())
def test_a_part_of_them_passes_over_test_doubles():
    """So the tests themselves are right; of the kernels, the libraries and the streams this says nothing new."""
    found = run("-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", "-k", PART, VDNN_GPU="emulated")
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr
    assert "passed" in found.stdout
