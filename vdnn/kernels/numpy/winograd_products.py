"""The products of a Winograd convolution: the transformed filter, and how tiles are multiplied with it.

a x a transformed elements per tile, A, B channels of the source and of the result, T tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from vdnn.kernels.numpy.layout import multiples
from vdnn.kernels.numpy.pointwise import PANEL
from vdnn.kernels.numpy.winograd_plan import LARGE_FILTER
from vdnn.layers.base import Array

if TYPE_CHECKING:
    from vdnn.kernels.numpy.winograd import Convolution

MUCH = 8  # times larger
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

    def multiply_all(self, tiles: int, seconds: float) -> None:
        """All products of a phase, which has so many tiles, and takes about so long."""
        work = self.work

        def run(task: int, worker: int) -> None:
            numpy.matmul(work.inner[task, :tiles], self.matrices[task], out=work.outer[task, :tiles])

        work.workers.parallel(run, len(work.inner), seconds)


class Panels:
    """The transformed filter in panels for the compiled products, (a * a, B / PANEL, A, PANEL).

    One that is much larger than the transformed tiles of the only phase is not kept, as it would go through memory
    twice: a worker transforms a panel, and multiplies all tiles with it while its cache holds it.
    """

    def __init__(self, work: Convolution) -> None:
        self.work, self.A, self.B = work, work.source.shape[3], work.result.shape[3]
        self.flat, self.plane = work.filter.reshape(-1), self.A * self.B
        self.panels = multiples(self.B, self.B // PANEL, PANEL)

    @staticmethod
    def fits(source: Array, result: Array) -> bool:
        """Whether compiled products of these arrays' channels are faster than the BLAS, and panels are whole."""
        return bool(result.shape[3] % PANEL == 0 and source.shape[3] >= DEEP)

    @property
    def is_kept(self) -> bool:
        """Whether the whole filter is transformed before it is multiplied; bits do not depend on it."""
        work = self.work
        if work.plan.fused or len(work.plan.phases) > 1 or work.workers.threads > len(self.panels):
            return True
        return bool(work.filter.nbytes <= MUCH * work.inner.nbytes)

    def transform(self) -> None:
        """Transform the filter, if it is kept."""
        if self.is_kept:
            self.work.workers.parallel(self.make, len(self.panels), self.work.filter.nbytes / 1e9)

    def make(self, task: int, worker: int) -> None:
        """Transform a panel."""
        work, own = self.work, self.flat[self.panels[task][0] * self.A :]
        work.routines.transform_panels(work.winograd, work.w, self.panels[task], work.turned, own, self.plane)

    def multiply(self, tiles: Array, out: Array) -> None:
        """All products of a block of tiles: out = tiles: (a * a, T, A) times the filter."""
        self.work.routines.multiply_tiles(tiles, self.flat, self.plane, (0, self.B), out)

    def multiply_all(self, tiles: int, seconds: float) -> None:
        """All products of a phase, which has so many tiles, and takes about so long."""
        work = self.work
        if not self.is_kept:
            work.workers.parallel(self.make_and_multiply, len(self.panels), seconds)
            return

        def run(task: int, worker: int) -> None:
            one, own = slice(task, task + 1), self.flat[task * self.plane :]
            work.routines.multiply_tiles(work.inner[one, :tiles], own, self.plane, (0, self.B), work.outer[one, :tiles])

        work.workers.parallel(run, len(work.inner), seconds)

    def make_and_multiply(self, task: int, worker: int) -> None:
        """Transform a panel into the worker's part of the filter's place, and multiply all tiles with it."""
        work, channels, plane = self.work, self.panels[task], self.A * PANEL
        own = self.flat[worker * len(work.filter) * plane :]
        work.routines.transform_panels(work.winograd, work.w, channels, work.turned, own, plane)
        work.routines.multiply_tiles(work.inner, own, plane, channels, work.outer)
