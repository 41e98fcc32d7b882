"""The products of a Winograd convolution: the transformed filter, and how tiles are multiplied with it.

a x a transformed elements per tile, A, B channels of the source and of the result, T tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from vdnn.kernels.numpy.layout import multiples
from vdnn.kernels.numpy.winograd_plan import LARGE_FILTER
from vdnn.layers.base import Array

if TYPE_CHECKING:
    from vdnn.kernels.numpy.winograd import Convolution

PANEL = 32  # result channels that the compiled products take at a time
TASKS = 16  # that transform a filter into panels
DEEP = 96  # channels of the source from which on they are faster than the BLAS


class Matrices:
    """The transformed filter as matrices for the BLAS, (a * a, A, B).

    A small one is stored so, which the BLAS multiplies faster; a large one is not worth writing across the grain: it is
    stored as it comes, and the transposed view does as well.
    """

    def __init__(self, work: Convolution) -> None:
        self.work = work
        (n, K, C), filter = work.filter.shape, work.filter
        self.across = not work.turned and work.plan.filter_bytes < LARGE_FILTER
        self.filter = filter.reshape(n, C, K) if self.across else filter
        self.matrices = self.filter if work.turned or self.across else filter.transpose(0, 2, 1)

    def transform(self) -> None:
        """Transform the filter."""
        work, blocks = self.work, self.work.plan.filter_blocks

        def run(task: int, worker: int) -> None:
            about = work.winograd, work.w, blocks[task], work.turned, self.across
            work.routines.transform_filter(*about, self.filter, work.scratch(worker))

        work.workers.parallel(run, len(blocks), self.filter.nbytes / 1e9)

    def multiply(self, tiles: Array, out: Array) -> None:
        """All products of a block: out = tiles: (a * a, T, A) times the filter."""
        numpy.matmul(tiles, self.matrices, out=out)

    def multiply_one(self, element: int, tiles: Array, out: Array) -> None:
        """One product of a phase: out: (T, B) = tiles: (T, A) times the filter's matrix of one transformed element."""
        numpy.matmul(tiles, self.matrices[element], out=out)


class Panels:
    """The transformed filter in panels for the compiled products, (a * a, B / PANEL, A, PANEL)."""

    def __init__(self, work: Convolution) -> None:
        self.work, self.A, self.B = work, work.source.shape[3], work.result.shape[3]
        self.flat, self.plane = work.filter.reshape(-1), self.A * self.B

    @staticmethod
    def fits(source: Array, result: Array) -> bool:
        """Whether compiled products of these arrays' channels are faster than the BLAS, and panels are whole."""
        return bool(result.shape[3] % PANEL == 0 and source.shape[3] >= DEEP)

    def transform(self) -> None:
        """Transform the filter."""
        work, blocks = self.work, multiples(self.B, TASKS, PANEL)

        def run(task: int, worker: int) -> None:
            own = self.flat[blocks[task][0] * self.A :]
            work.routines.transform_panels(work.winograd, work.w, blocks[task], work.turned, own, self.plane)

        work.workers.parallel(run, len(blocks), work.filter.nbytes / 1e9)

    def multiply(self, tiles: Array, out: Array) -> None:
        """All products of a block: out = tiles: (a * a, T, A) times the filter."""
        self.work.routines.multiply_tiles(tiles, self.flat, self.plane, out)

    def multiply_one(self, element: int, tiles: Array, out: Array) -> None:
        """One product of a phase: out: (T, B) = tiles: (T, A) times the filter's matrix of one transformed element."""
        own = self.flat[element * self.plane :]
        self.work.routines.multiply_tiles(tiles[None], own, self.plane, out[None])
