"""Matrix products by cuBLAS, on row-major matrices, with a handle and a workspace of their own."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import Any, NamedTuple

from vdnn.kernels.cuda.driver import Block, CudaError
from vdnn.kernels.cuda.libraries import Cublas

# The default mode never computes with fewer bits than the arrays have, so that it rules out TF32; the pedantic one (2)
# also rules out fast kernels that are as exact.  TF32 has to be asked for (3).
MATH = {"fp32": 0, "tf32": 3}
HOST_POINTERS = 0  # alpha and beta lie in host memory
PLAIN, TRANSPOSED = 0, 1
WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper; smaller devices need less
LARGEST = 2**31 - 1  # sizes are C ints


class Matrix(NamedTuple):
    """A row-major matrix without gaps: its address and (rows, columns)."""

    address: int
    shape: tuple[int, int]


class CublasProducts:
    """Products on one stream, one after the other; `workspace_bytes` of device memory are kept for them.

    The workspace is set so that a call neither allocates nor shares scratch, which keeps equal bits from run to run.
    """

    def __init__(self, driver: Any, stream: Any, math: str = "fp32", library: Cublas | None = None) -> None:
        self._handle = ctypes.c_void_p()
        self.library = library or Cublas(cuda_major(driver))
        self.library("cublasCreate_v2", ctypes.byref(self._handle))
        self.workspace_bytes = WORKSPACE
        self._workspace: Block | None = driver.allocate(WORKSPACE)
        self.library("cublasSetStream_v2", self._handle, driver.handle(stream))
        # after the stream, since setting that goes back to the library's own workspace
        self.library("cublasSetWorkspace_v2", self._handle, self._workspace.address, WORKSPACE)
        self.library("cublasSetMathMode", self._handle, MATH[math])
        self.library("cublasSetPointerMode_v2", self._handle, HOST_POINTERS)
        single, double = ctypes.c_float, ctypes.c_double
        self._calls = {
            "float32": ("cublasSgemm_v2", single(1), single(0)),
            "float64": ("cublasDgemm_v2", double(1), double(0)),
        }

    @property
    def version(self) -> str:
        """The library's version, such as 12.9.1."""
        number = ctypes.c_int()
        self.library("cublasGetVersion_v2", self._handle, ctypes.byref(number))
        return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"

    def multiply(
        self, a: Matrix, b: Matrix, out: Matrix, dtype: str, transpose_a: bool = False, transpose_b: bool = False
    ) -> None:
        """out = a b, a or b transposed on the way.  Raises ValueError if the shapes do not fit together."""
        M, N, L = sizes(a, b, out, transpose_a, transpose_b)
        function, one, zero = self._calls[dtype]
        # A row-major matrix is, to cuBLAS, the transposed one, its columns as long as our rows: out^T = b^T a^T.
        self.library(
            function,
            self._handle,
            TRANSPOSED if transpose_b else PLAIN,
            TRANSPOSED if transpose_a else PLAIN,
            N,
            M,
            L,
            ctypes.byref(one),
            b.address,
            b.shape[1],
            a.address,
            a.shape[1],
            ctypes.byref(zero),
            out.address,
            out.shape[1],
        )

    def close(self) -> None:
        """Give the handle back; the stream must be done with all products."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        self._workspace = None
        if handle:
            self.library("cublasDestroy_v2", handle)

    def __del__(self) -> None:
        with suppress(CudaError, AttributeError):
            if not sys.is_finalizing():  # CUDA may be gone by then, and all is given back anyway
                self.close()


def cuda_major(driver: Any) -> int:
    """The CUDA version that CuPy was built for, without its minor part."""
    return int(driver.versions()["runtime"].split(".")[0])


def sizes(a: Matrix, b: Matrix, out: Matrix, transpose_a: bool, transpose_b: bool) -> tuple[int, int, int]:
    """M, N, L of (M, L) times (L, N).  Raises ValueError."""
    M, L = reversed(a.shape) if transpose_a else a.shape
    inner, N = reversed(b.shape) if transpose_b else b.shape
    if inner != L or out.shape != (M, N):
        signs = ["^T" if transposed else "" for transposed in (transpose_a, transpose_b)]
        raise ValueError(f"{a.shape}{signs[0]} times {b.shape}{signs[1]} is not {out.shape}")
    if max(M, N, L) > LARGEST:
        raise ValueError(f"cuBLAS takes sizes up to {LARGEST}, not {(M, N, L)}")
    return M, N, L
