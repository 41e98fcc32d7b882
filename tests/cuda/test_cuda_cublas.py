"""The binding to cuBLAS, over a stub that has its functions and multiplies column-major matrices."""

import ctypes

import emulator
import numpy as np
import pytest
from emulated import EmulatedDriver
from emulated_libraries import Stub, prototypes, put

from vdnn.kernels.cuda.cublas import WORKSPACE, CublasProducts, Matrix, cuda_major
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.libraries import CUBLAS_FUNCTIONS, Cublas

if emulator.available():
    pytest.skip(emulator.available(), allow_module_level=True)

HANDLE = 0x7123_4567_89A0
POINTERS = ("cublasHandle_t", "cudaStream_t")


class FakeCublas(Stub):
    def __init__(self, folder):
        super().__init__("cublas", folder, "libcublas.so.12")
        self.cublasSgemm_v2 = lambda *arguments: self.multiply(ctypes.c_float, *arguments)
        self.cublasDgemm_v2 = lambda *arguments: self.multiply(ctypes.c_double, *arguments)

    def cublasCreate_v2(self, address):  # noqa: N802
        put(ctypes.c_void_p, address, HANDLE)

    def cublasGetVersion_v2(self, handle, address):  # noqa: N802
        put(ctypes.c_int, address, 120903)

    def cublasGetStatusString(self, status):  # noqa: N802
        return self.text(f"stub status {status}")

    def multiply(self, kind, handle, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        """As BLAS defines it: C (m, n) = alpha op(A) op(B) + beta C, where columns are contiguous."""

        def matrix(address, rows, columns, leading):
            assert leading >= rows
            flat = np.ctypeslib.as_array((kind * (leading * columns)).from_address(address))
            return flat.reshape(columns, leading).T[:rows]

        left = matrix(a, k, m, lda).T if transa else matrix(a, m, k, lda)
        right = matrix(b, n, k, ldb).T if transb else matrix(b, k, n, ldb)
        out, scales = matrix(c, m, n, ldc), [kind.from_address(p).value for p in (alpha, beta)]
        assert scales == [1, 0]
        out[...] = left @ right


@pytest.fixture
def fake(tmp_path):
    return FakeCublas(tmp_path)


def products(fake, math="fp32"):
    driver = EmulatedDriver()
    driver.new_stream()
    return CublasProducts(driver, driver.new_stream(), math, Cublas(12, fake.loaded))


def test_the_table_of_functions_is_that_of_the_prototypes():
    expected = {}
    for name, (result, kinds) in prototypes("cublas")[1].items():
        letters = ["p" if k.endswith("*") or k in POINTERS else "z" if k == "size_t" else "i" for k in kinds]
        expected[name] = ("s:" if result == "const char *" else "") + "".join(letters)
    assert expected == CUBLAS_FUNCTIONS


@pytest.mark.parametrize(("math", "mode"), [("fp32", 0), ("tf32", 3)])
def test_a_handle_is_set_up_in_order(math, mode, fake):
    made = products(fake, math)
    workspace = made._workspace.address
    assert fake.calls[1:] == [
        ("cublasSetStream_v2", [HANDLE, 2]),
        ("cublasSetWorkspace_v2", [HANDLE, workspace, 32 << 20]),  # setting the stream would undo this
        ("cublasSetMathMode", [HANDLE, mode]),
        ("cublasSetPointerMode_v2", [HANDLE, 0]),
    ]
    assert made.workspace_bytes == WORKSPACE == made._workspace.nbytes
    assert made.version == "12.9.3"
    made.close()
    made.close()
    assert fake.called("cublasDestroy_v2") == [[HANDLE]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 4), (1, 5, 1), (4, 1, 3)])
def test_rows_are_multiplied_though_cublas_thinks_in_columns(dtype, transpose_a, transpose_b, sizes, fake):
    M, N, L = sizes
    random = np.random.default_rng(0)
    a, b = random.standard_normal((M, L)).astype(dtype), random.standard_normal((L, N)).astype(dtype)
    expected = a @ b
    a = np.ascontiguousarray(a.T) if transpose_a else a
    b = np.ascontiguousarray(b.T) if transpose_b else b
    out = np.full((M, N), np.nan, dtype)
    matrices = [Matrix(array.ctypes.data, array.shape) for array in (a, b, out)]
    products(fake).multiply(*matrices, dtype, transpose_a, transpose_b)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert len(fake.called({"float32": "cublasSgemm_v2", "float64": "cublasDgemm_v2"}[dtype])) == 1


def test_shapes_that_do_not_fit_are_refused(fake):
    made = products(fake)
    with pytest.raises(ValueError, match=r"\(2, 3\) times \(4, 3\)\^T is not \(2, 5\)"):
        made.multiply(Matrix(0, (2, 3)), Matrix(0, (4, 3)), Matrix(0, (2, 5)), "float32", transpose_b=True)
    with pytest.raises(ValueError, match=r"\(2, 3\)\^T times \(3, 4\) is not \(2, 4\)"):
        made.multiply(Matrix(0, (2, 3)), Matrix(0, (3, 4)), Matrix(0, (2, 4)), "float32", transpose_a=True)
    with pytest.raises(ValueError, match="sizes up to 2147483647"):
        made.multiply(Matrix(0, (1 << 31, 1)), Matrix(0, (1, 1)), Matrix(0, (1 << 31, 1)), "float32")
    assert not fake.called("cublasSgemm_v2")


@pytest.mark.parametrize("name", sorted(n for n, kinds in CUBLAS_FUNCTIONS.items() if ":" not in kinds))
def test_a_status_is_told_with_the_function_that_gave_it(name, fake):
    fake.failing = {name: 14}
    one = np.ones(1)
    matrix = Matrix(one.ctypes.data, (1, 1))
    with pytest.raises(CudaError, match=rf"{name} failed: stub status 14 \(14\)"):  # noqa: PT012
        made = products(fake)
        assert made.version
        made.multiply(matrix, matrix, matrix, "float32")
        made.multiply(matrix, matrix, matrix, "float64")
        made.close()


def test_the_version_of_cuda_is_cupys():
    driver = EmulatedDriver()
    driver.versions = lambda: {"runtime": "12.9"}
    assert cuda_major(driver) == 12
