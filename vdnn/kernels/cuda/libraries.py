"""NVIDIA's libraries: which of their functions vdnn uses, where they lie, and calls with checked types and results."""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdnn.kernels.cuda.driver import CudaError

CUDNN_MAJOR = 9  # functions and enums stay as they are within one major version
CUDA_MAJORS = (12, 13)  # of the CUDA versions that CuPy 14 is built for

# one letter for each type in the tables below: those of the arguments, after a colon where the result is no status
KINDS: Mapping[str, Any] = {
    "p": ctypes.c_void_p,  # a handle, a descriptor, an address on the device, or where to put a result
    "i": ctypes.c_int,  # a number or an enum
    "z": ctypes.c_size_t,
    "s": ctypes.c_char_p,
    "v": None,
}


_KINDS = ("Tensor", "Filter", "Convolution")
_PHASES = ("Forward", "BackwardData", "BackwardFilter")
CUDNN_FUNCTIONS = {
    "cudnnGetVersion": "z:",
    "cudnnGetErrorString": "s:i",
    "cudnnGetLastErrorString": "v:pz",
    "cudnnCreate": "p",
    "cudnnDestroy": "p",
    "cudnnSetStream": "pp",
    **{f"cudnnCreate{kind}Descriptor": "p" for kind in _KINDS},
    **{f"cudnnDestroy{kind}Descriptor": "p" for kind in _KINDS},
    "cudnnSetTensor4dDescriptorEx": "piiiiiiiii",
    "cudnnSetFilter4dDescriptor": "piiiiii",
    "cudnnSetConvolution2dDescriptor": "piiiiiiii",
    "cudnnSetConvolutionMathType": "pi",
    "cudnnSetConvolutionGroupCount": "pi",
    "cudnnGetConvolution2dForwardOutputDim": "ppppppp",
    **{f"cudnnGetConvolution{phase}AlgorithmMaxCount": "pp" for phase in _PHASES},
    **{f"cudnnGetConvolution{phase}Algorithm_v7": "pppppipp" for phase in _PHASES},
    **{f"cudnnGetConvolution{phase}WorkspaceSize": "pppppip" for phase in _PHASES},
    **{f"cudnnFindConvolution{phase}AlgorithmEx": "ppppppppipppz" for phase in _PHASES},
    **{f"cudnnConvolution{phase}": "pppppppipzppp" for phase in _PHASES},
    "cudnnConvolutionBackwardBias": "ppppppp",
    "cudnnAddTensor": "ppppppp",
}
CUBLAS_FUNCTIONS = {
    "cublasCreate_v2": "p",
    "cublasDestroy_v2": "p",
    "cublasGetVersion_v2": "pp",
    "cublasGetStatusString": "s:i",
    "cublasSetStream_v2": "pp",
    "cublasSetWorkspace_v2": "ppz",
    "cublasSetMathMode": "pi",
    "cublasSetPointerMode_v2": "pi",
    "cublasSgemm_v2": "piiiiippipippi",
    "cublasDgemm_v2": "piiiiippipippi",
}


class AlgoPerf(ctypes.Structure):
    """cuDNN's record of one algorithm: `time` in milliseconds, `memory` in bytes."""

    _fields_ = [
        ("algo", ctypes.c_int),
        ("status", ctypes.c_int),
        ("time", ctypes.c_float),
        ("memory", ctypes.c_size_t),
        ("determinism", ctypes.c_int),
        ("mathType", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
    ]


@dataclass(frozen=True)
class Wanted:
    """A shared library: what it is called, its file, the folders of wheels that hold it, and how to get it."""

    title: str
    file: str
    folders: tuple[str, ...]
    install: str


CUDNN = Wanted(
    "cuDNN 9",
    "libcudnn.so.9",
    ("nvidia/cudnn/lib",),
    "pip install 'vdnn[cuda12x]' or 'vdnn[cuda13x]' brings it, as nvidia-cudnn-cu12 or nvidia-cudnn-cu13",
)


def cublas(cuda_major: int) -> Wanted:
    """The cuBLAS that belongs to a CUDA version.  Raises CudaError for one that vdnn does not know."""
    if cuda_major not in CUDA_MAJORS:
        raise CudaError(f"vdnn knows cuBLAS for CUDA {' and '.join(map(str, CUDA_MAJORS))}, CuPy uses {cuda_major}")
    package = "nvidia-cublas-cu12" if cuda_major == 12 else "nvidia-cublas"
    folders = ("nvidia/cublas/lib", f"nvidia/cu{cuda_major}/lib")
    install = f"install the CUDA {cuda_major} toolkit, or pip install {package}"
    return Wanted(f"cuBLAS {cuda_major}", f"libcublas.so.{cuda_major}", folders, install)


def places(wanted: Wanted) -> Iterator[Path]:
    """Where the library may lie, in the order of search: LD_LIBRARY_PATH, then installed wheels, then the toolkit."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        yield Path(folder) / wanted.file
    for root in dict.fromkeys([*sys.path, sysconfig.get_path("purelib")]):
        for folder in wanted.folders:
            yield Path(root or ".") / folder / wanted.file
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "lib64" / wanted.file


def load(wanted: Wanted) -> ctypes.CDLL:
    """The library, from the first place that has one that loads, or else as the system's loader finds it.

    Raises CudaError, which says where it was looked for, what was wrong there, and what to install.
    """
    wrong, searched = [], []
    for path in places(wanted):
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                wrong.append(f"{path} does not load ({error})")
        elif path.parent.is_dir():
            searched.append(str(path.parent))
    try:
        return ctypes.CDLL(wanted.file)
    except OSError as error:
        wrong.append(f"the system's loader says: {error}")
    folders = ", ".join(dict.fromkeys(searched)) or f"LD_LIBRARY_PATH and {wanted.folders[0]} on Python's path"
    raise CudaError(f"no {wanted.title} ({wanted.file}): not in {folders}; {'; '.join(wrong)}; {wanted.install}")


class Library:
    """A loaded library, with types set for the functions of a table.

    signatures  {function: a letter of KINDS for each argument}; functions give a status, of which 0 is success, unless
                another result is named before a colon
    """

    def __init__(self, loaded: ctypes.CDLL, signatures: Mapping[str, str]) -> None:
        self.loaded, self.path = loaded, str(loaded._name)
        self._functions: dict[str, Any] = {}
        for name, kinds in signatures.items():
            result, _, arguments = kinds.rpartition(":")
            try:
                function = getattr(loaded, name)
            except AttributeError:
                raise CudaError(f"{self.path} has no function {name}") from None
            function.argtypes = [KINDS[kind] for kind in arguments]
            function.restype = KINDS[result or "i"]
            self._functions[name] = function

    def plain(self, name: str, *arguments: Any) -> Any:
        """Call a function; gives its result, a status or another."""
        return self._functions[name](*arguments)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function that gives a status.  Raises CudaError unless that is success."""
        self.check(name, self._functions[name](*arguments))

    def check(self, name: str, status: int) -> None:
        """Raise CudaError unless this status of a function is success."""
        if status:
            raise CudaError(f"{name} failed: {self.reason(status)}")

    def reason(self, status: int) -> str:
        """What a status means, in the library's own words."""
        return f"status {status}"


class Cudnn(Library):
    """The functions of cuDNN that vdnn uses.  Raises CudaError."""

    def __init__(self, loaded: ctypes.CDLL | None = None) -> None:
        super().__init__(loaded or load(CUDNN), CUDNN_FUNCTIONS)
        number = self.plain("cudnnGetVersion")
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        if number // 10000 != CUDNN_MAJOR:
            raise CudaError(f"{self.path} is cuDNN {self.version}; vdnn needs cuDNN {CUDNN_MAJOR}: {CUDNN.install}")

    def reason(self, status: int) -> str:
        """The status by name, and what cuDNN says about the call that failed last."""
        text = ctypes.create_string_buffer(1024)
        self.plain("cudnnGetLastErrorString", text, len(text))
        name = self.plain("cudnnGetErrorString", status).decode()
        detail = text.value.decode(errors="replace").strip()
        return f"{name} ({status})" + (f": {detail}" if detail else "")


class Cublas(Library):
    """The functions of cuBLAS that vdnn uses, for the CUDA version that CuPy uses.  Raises CudaError."""

    def __init__(self, cuda_major: int, loaded: ctypes.CDLL | None = None) -> None:
        super().__init__(loaded or load(cublas(cuda_major)), CUBLAS_FUNCTIONS)

    def reason(self, status: int) -> str:
        """The status with its name."""
        return f"{self.plain('cublasGetStatusString', status).decode()} ({status})"
