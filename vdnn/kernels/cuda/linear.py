"""Fully connected layers: products by cuBLAS, or what else multiplies; the bias by kernels of vdnn's own."""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cuda.base import Launching, is_contiguous
from vdnn.kernels.cuda.cublas import Matrix
from vdnn.layers.base import Array

MOST_COLUMNS = 8  # of a block of linear_column_sums: what they read of a row is a whole sector of memory
LEAST_BLOCKS = 32  # of it, where there are as many columns


class LinearKernels(Launching):
    """y = x w^T + b and its gradients.  x: (N, IN), w: (OUT, IN), b: (OUT,), y: (N, OUT); no workspace.

    blas  has multiply(a, b, out, dtype, transpose_a, transpose_b) of row-major matrices: CublasProducts
    """

    blas: Any

    def linear_forward(self, x: Array, w: Array, b: Array | None, y: Array) -> None:
        """Write y = x w^T + b."""
        self._multiply(x, w, y, transpose_b=True)
        if b is not None:
            self.add_rows(y, b, *y.shape)

    def linear_backward_data(self, w: Array, dy: Array, dx: Array) -> None:
        """Write dx = dy w."""
        self._multiply(dy, w, dx)

    def linear_backward_weights(self, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
        """Write dw = dy^T x; db = dy summed over the batch."""
        self._multiply(dy, x, dw, transpose_a=True)
        if db is not None:
            N, K = dy.shape
            columns = _columns(K)
            self.launch("linear_column_sums", dy, -(-K // columns), dy, db, N, K, columns)

    def _multiply(self, a: Array, b: Array, out: Array, transpose_a: bool = False, transpose_b: bool = False) -> None:
        for array in (a, b, out):
            if array.ndim != 2 or not is_contiguous(array) or array.dtype != out.dtype:
                raise ValueError(
                    f"a product takes contiguous matrices of one type, not {array.shape} by {array.strides} of "
                    f"{array.dtype} for a result of {out.dtype}"
                )
        matrices = [Matrix(self.driver.address(array), array.shape) for array in (a, b, out)]
        self.blas.multiply(*matrices, out.dtype.name, transpose_a, transpose_b)


def _columns(K: int) -> int:
    """How many of K columns a block adds up, a power of two; by the shape alone, so that every GPU adds up alike."""
    return min(MOST_COLUMNS, 1 << max(1, K // LEAST_BLOCKS).bit_length() - 1)
