"""Where NVIDIA's libraries are looked for, and what is said when they are not there."""

import ctypes
import shutil
import sys

import emulator
import pytest
from emulated_libraries import Stub

from vdnn.kernels.cuda import libraries
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.libraries import CUDNN, Cudnn, Library, cublas, load, places


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No library can be found; gives a folder that is on Python's path."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for variable in ("LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", [str(wheels)])
    monkeypatch.setattr(libraries.sysconfig, "get_path", lambda name: str(tmp_path / "purelib"))
    return wheels


def put(folder, file):
    """A library that loads, in this place."""
    if emulator.available():
        pytest.skip(emulator.available())
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.copy(Stub("cudnn", folder, "stub.so").path, folder / file)


def test_places_are_tried_in_order(nowhere, monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/first::/second")
    monkeypatch.setenv("CUDA_PATH", "/toolkit")
    assert [str(p) for p in places(cublas(13))] == [
        "/first/libcublas.so.13",
        "/second/libcublas.so.13",
        f"{nowhere}/nvidia/cublas/lib/libcublas.so.13",
        f"{nowhere}/nvidia/cu13/lib/libcublas.so.13",
        f"{tmp_path}/purelib/nvidia/cublas/lib/libcublas.so.13",
        f"{tmp_path}/purelib/nvidia/cu13/lib/libcublas.so.13",
        "/toolkit/lib64/libcublas.so.13",
    ]


def test_the_library_of_an_installed_wheel_is_loaded(nowhere):
    path = put(nowhere / "nvidia" / "cudnn" / "lib", CUDNN.file)
    assert load(CUDNN)._name == str(path)


def test_a_folder_of_ld_library_path_comes_first(nowhere, monkeypatch, tmp_path):
    put(nowhere / "nvidia" / "cudnn" / "lib", CUDNN.file)
    path = put(tmp_path / "own", CUDNN.file)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "own"))
    assert load(CUDNN)._name == str(path)


def test_a_file_that_does_not_load_is_passed_over(nowhere, monkeypatch, tmp_path):
    (tmp_path / CUDNN.file).write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    path = put(nowhere / "nvidia" / "cudnn" / "lib", CUDNN.file)
    assert load(CUDNN)._name == str(path)


def test_what_is_missing_is_told_with_places_and_a_remedy(nowhere, monkeypatch, tmp_path):
    wanted = libraries.Wanted("cuNothing 9", "libcunothing.so.9", ("nvidia/cunothing/lib",), "pip install it")
    folder = nowhere / "nvidia" / "cunothing" / "lib"
    folder.mkdir(parents=True)
    (tmp_path / wanted.file).write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(CudaError) as error:
        load(wanted)
    said = str(error.value)
    assert said.startswith(
        f"no cuNothing 9 (libcunothing.so.9): not in {folder}; {tmp_path}/libcunothing.so.9 does not"
    )
    assert "the system's loader says: libcunothing.so.9" in said
    assert said.endswith("; pip install it")


def test_nothing_anywhere_names_where_it_could_be(nowhere):
    wanted = libraries.Wanted("cuNothing 9", "libcunothing.so.9", ("nvidia/cunothing/lib",), "pip install it")
    with pytest.raises(CudaError, match="not in LD_LIBRARY_PATH and nvidia/cunothing/lib on Python's path"):
        load(wanted)


@pytest.mark.parametrize(("major", "file"), [(12, "libcublas.so.12"), (13, "libcublas.so.13")])
def test_cublas_is_that_of_the_cuda_version(major, file):
    assert cublas(major).file == file


def test_an_unknown_cuda_version_is_refused():
    with pytest.raises(CudaError, match="knows cuBLAS for CUDA 12 and 13, CuPy uses 11"):
        cublas(11)


@pytest.mark.parametrize(("number", "version"), [(8907, "0.89.7"), (100100, "10.1.0")])
def test_another_cudnn_is_refused_with_its_version(number, version, tmp_path):
    if emulator.available():
        pytest.skip(emulator.available())
    stub = Stub("cudnn", tmp_path, CUDNN.file)
    stub.cudnnGetVersion = lambda: number
    with pytest.raises(CudaError, match=rf"{stub.path} is cuDNN {version}; vdnn needs cuDNN 9: pip install"):
        Cudnn(stub.loaded)
    stub.cudnnGetVersion = lambda: 91900
    assert Cudnn(stub.loaded).version == "9.19.0"


def test_a_library_without_a_function_is_refused():
    with pytest.raises(CudaError, match="has no function cudnnDance"):
        Library(ctypes.CDLL(None), {"cudnnDance": "p"})


def test_a_status_without_words_is_a_number():
    with pytest.raises(CudaError, match="dance failed: status 3"):
        Library(ctypes.CDLL(None), {}).check("dance", 3)
