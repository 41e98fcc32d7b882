"""Which routines run: compiled ones if Numba is there, NumPy's if not, or if told so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vdnn
from vdnn.kernels.numpy import NumpyKernels

PHASES = ("forward", "backward_data", "backward_weights")
OPTIONS = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "dtype": "float32"}


class WithoutNumba:
    """Finds no Numba."""

    def find_spec(self, name, path=None, target=None):
        if name == "numba" or name.startswith("numba."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def no_numba(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "numba" or n.startswith("vdnn.kernels.numpy.compiled")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutNumba(), *sys.meta_path])


def test_without_numba_numpys_routines_run(no_numba):
    assert not NumpyKernels(1).fast
    assert not NumpyKernels(1, fast=False).fast


def test_asking_for_numba_without_it_says_what_to_install(no_numba):
    with pytest.raises(
        ImportError, match=r"fast=True needs Numba.*No module named 'numba'.*pip install 'vdnn\[fast\]'"
    ):
        NumpyKernels(1, fast=True)


def test_the_environment_switches_compiled_routines_off(monkeypatch):
    monkeypatch.setenv("VDNN_FAST", "0")
    assert not NumpyKernels(1).fast


def test_numba_is_used_where_it_is_there(monkeypatch):
    pytest.importorskip("numba", exc_type=ImportError)
    monkeypatch.delenv("VDNN_FAST", raising=False)
    assert NumpyKernels(1).fast
    monkeypatch.setenv("VDNN_FAST", "0")
    assert NumpyKernels(1, fast=True).fast


def test_a_plan_is_made_without_importing_numba():
    pytest.importorskip("numba", exc_type=ImportError)
    code = "import sys, vdnn; vdnn.plan(vdnn.models.digits_vgg(), 'vdnn_all'); sys.exit('numba' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "VDNN_FAST"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(vdnn.__file__).parents[1])


@pytest.mark.parametrize("phase", PHASES)
def test_algorithms_and_their_workspaces_are_the_same_with_and_without(phase):
    pytest.importorskip("numba", exc_type=ImportError)
    shapes = (8, 64, 28, 28), (96, 64, 3, 3)
    fast, slow = (NumpyKernels(2, fast=fast).conv2d_algorithms(phase, *shapes, **OPTIONS) for fast in (True, False))
    assert {a.name: a.workspace for a in fast} == {a.name: a.workspace for a in slow}
    assert NumpyKernels(1, fast=True).name == "numpy"


PROGRAM = """
import numpy
from vdnn.kernels.numpy.compiled import CompiledRoutines, elementwise, winograd
from vdnn.kernels.numpy.transforms import TRANSFORMS
x, w, out = (numpy.ones(shape, "float32") for shape in ((5,), (2, 3, 3, 3), (16, 2, 3)))
CompiledRoutines.relu(x, x)
CompiledRoutines.transform_filter(TRANSFORMS[2, 3], w, (0, 2), False, False, out, None)
for kernel in (elementwise.relu, winograd.kernels_of(TRANSFORMS[2, 3])["filter"]):
    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    pytest.importorskip("numba", exc_type=ImportError)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(vdnn.__file__).parents[1])}
    runs = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["0", "1"] * 2, ["1", "0"] * 2]
