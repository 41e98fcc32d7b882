"""Kernels that join and part arrays: sums and concatenation along channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdnn.kernels.numpy.chunks import Pieces
from vdnn.kernels.numpy.elementwise import ElementwiseKernels

Array = Any


class JoinKernels(ElementwiseKernels):
    """add, add_all, concat, concat_backward."""

    def add(self, x0: Array, x1: Array, y: Array) -> None:
        """y = x0 + x1.  y may be x0 or x1."""
        self.add_all((x0, x1), y)

    def add_all(self, x: Sequence[Array], y: Array) -> None:
        """y = ((x[0] + x[1]) + x[2]) + ...: two or more.  y may be x[0], or either of two."""
        pieces, add = Pieces((*x, y)), self.routines.add

        def work(index: int, _: int) -> None:
            x0, x1, *more, y = pieces[index]
            add(x0, x1, y)
            for xi in more:
                add(y, xi, y)

        self.parallel(work, len(pieces), self.estimate(1, *x, y))

    def concat(self, x: Sequence[Array], y: Array) -> None:
        """y = all x, one after the other along axis 1."""
        start = 0
        for xi in x:
            self.copy(xi, y[:, start : start + xi.shape[1]])
            start += xi.shape[1]

    def concat_backward(self, dy: Array, dx: Sequence[Array | None], channels: Sequence[int]) -> None:
        """The parts of dy along axis 1; `channels` gives the sizes, as a dx that is None tells none."""
        start = 0
        for dxi, size in zip(dx, channels, strict=True):
            if dxi is not None:
                self.copy(dy[:, start : start + size], dxi)
            start += size
