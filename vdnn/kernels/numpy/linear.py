"""Fully connected layers: plain products, cut into blocks of the result that the workers share."""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.conv_weights import sum_rows
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.layout import spans
from vdnn.kernels.numpy.threads import Workers
from vdnn.layers.base import Array

BLOCKS = 8  # of the result, fixed: the bits do not depend on the number of threads
NARROWEST = 64  # columns or rows of a block


def multiply(workers: Workers, a: Array, b: Array, out: Array) -> None:
    """Write out = a @ b, the longer side of out cut into blocks.  a: (M, L), b: (L, N), out: (M, N)."""
    (M, L), N = a.shape, b.shape[1]
    longer = max(M, N)
    blocks = spans(longer, max(NARROWEST, -(-longer // BLOCKS)))

    def run(task: int, worker: int) -> None:
        block = slice(*blocks[task])
        if M >= N:
            numpy.matmul(a[block], b, out=out[block])
        else:
            numpy.matmul(a, b[:, block], out=out[:, block])

    workers.parallel(run, len(blocks), 2 * M * N * L / FLOPS)


class LinearKernels(Workers):
    """y = x w^T + b and its gradients.  x: (N, IN), w: (OUT, IN), b: (OUT,), y: (N, OUT); no workspace."""

    def linear_forward(self, x: Array, w: Array, b: Array | None, y: Array) -> None:
        """Write y = x w^T + b."""
        multiply(self, x, w.T, y)
        if b is not None:
            numpy.add(y, b, out=y)

    def linear_backward_data(self, w: Array, dy: Array, dx: Array) -> None:
        """Write dx = dy w."""
        multiply(self, dy, w, dx)

    def linear_backward_weights(self, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
        """Write dw = dy^T x; db = dy summed over the batch."""
        multiply(self, dy.T, x, dw)
        if db is not None:
            sum_rows(self, dy, db)
