"""Fully connected layers: plain products, cut into blocks of the result that the workers share.

On few samples a product is as fast as the weights come from memory, and the compiled routines read or write them once,
in long lines; the BLAS copies them into panels first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy

from vdnn.kernels.numpy.blas import BLAS, MULTIPLICATIONS
from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.conv_weights import sum_rows
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.layout import multiples, spans
from vdnn.kernels.numpy.pointwise import PANEL
from vdnn.kernels.numpy.threads import Workers
from vdnn.layers.base import Array

BLOCKS = 8  # of the result, fixed: the bits do not depend on the number of threads
NARROWEST = 64  # columns or rows of a block
FEW = 32  # samples, at most, of which compiled routines are faster than the BLAS
FEWEST = 8  # of backward_data; and of products in small pieces
ROWS = 4  # of the weights, in a product so small that the BLAS packs nothing
LONG = 4096  # features, at most, of the lines of the weights that are read for one block of the result

Span = tuple[int, int]


def multiply(workers: Workers, a: Array, b: Array, out: Array) -> None:
    """Write out = a @ b, cut into blocks of rows, or of columns if there are more and rows are few.

    a: (M, L), b: (L, N), out: (M, N).
    """
    (M, L), N = a.shape, b.shape[1]
    by_rows = min(N, BLOCKS * NARROWEST) <= M
    longer = M if by_rows else N
    blocks = spans(longer, max(NARROWEST, -(-longer // BLOCKS)))

    def run(task: int, worker: int) -> None:
        block = slice(*blocks[task])
        if by_rows:
            numpy.matmul(a[block], b, out=out[block])
        else:
            numpy.matmul(a, b[:, block], out=out[:, block])

    workers.parallel(run, len(blocks), 2 * M * N * L / FLOPS)


def multiply_rows(workers: Workers, x: Array, w: Array, y: Array) -> None:
    """Write y = x w^T; where samples are few and the BLAS lets it, by products so small that it does not copy w.

    x: (N, IN), w: (OUT, IN), y: (N, OUT).
    """
    (N, IN), OUT = x.shape, len(w)
    rows = math.gcd(OUT, ROWS)
    if not BLAS.multiplies_unpacked or rows * N * IN > MULTIPLICATIONS or N > FEWEST or not w.flags.c_contiguous:
        multiply(workers, x, w.T, y)
        return
    factors, results = w.reshape(-1, rows, IN).transpose(0, 2, 1), y.reshape(N, -1, rows).transpose(1, 0, 2)
    blocks = spans(len(results), max(NARROWEST // rows, -(-len(results) // BLOCKS)))

    def run(task: int, worker: int) -> None:
        block = slice(*blocks[task])
        numpy.matmul(x, factors[block], out=results[block])

    workers.parallel(run, len(blocks), 2 * N * w.size / FLOPS)


def by_outputs(count: int) -> tuple[Span, ...]:
    """Blocks of rows of the weights."""
    return multiples(count, 2 * BLOCKS, 24)  # outputs are taken by 3 forward, by 8 in backward_weights


def by_inputs(count: int) -> tuple[Span, ...]:
    """Blocks of columns of the weights: few, since short pieces of far rows come slowly from memory."""
    return multiples(count, 4 * -(-count // (4 * LONG)), PANEL)


class LinearKernels(Sharing):
    """y = x w^T + b and its gradients.  x: (N, IN), w: (OUT, IN), b: (OUT,), y: (N, OUT); no workspace."""

    def linear_forward(self, x: Array, w: Array, b: Array | None, y: Array) -> None:
        """Write y = x w^T + b."""
        if self._streams(FEW, x, w, y):
            self._stream(self.routines.linear_forward, by_outputs(len(w)), x, w, y)
        else:
            multiply_rows(self, x, w, y)
        if b is not None:
            numpy.add(y, b, out=y)

    def linear_backward_data(self, w: Array, dy: Array, dx: Array) -> None:
        """Write dx = dy w."""
        if self._streams(FEWEST, dy, w, dx):
            self._stream(self.routines.linear_backward_data, by_inputs(w.shape[1]), w, dy, dx)
        else:
            multiply(self, dy, w, dx)

    def linear_backward_weights(self, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
        """Write dw = dy^T x; db = dy summed over the batch."""
        if self._streams(FEW, x, dy, dw):
            self._stream(self.routines.linear_backward_weights, by_outputs(len(dw)), x, dy, dw)
        else:
            multiply(self, dy.T, x, dw)
        if db is not None:
            sum_rows(self, dy, db)

    def _streams(self, most: int, samples: Array, *others: Array) -> bool:
        """Whether the compiled routines do it: for at most so many samples, in dense arrays."""
        return self.fast and len(samples) <= most and all(a.flags.c_contiguous for a in (samples, *others))

    def _stream(self, routine: Callable[..., None], blocks: tuple[Span, ...], *arrays: Array) -> None:
        def run(task: int, worker: int) -> None:
            routine(*arrays, blocks[task])

        self.parallel(run, len(blocks), self.estimate(1, *arrays))
