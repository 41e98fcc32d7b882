"""The tasks of a fully connected layer on few samples, compiled."""

from __future__ import annotations

from vdnn.kernels.numpy.compiled import linear
from vdnn.layers.base import Array

Block = tuple[int, int]


class LinearRoutines:
    """What NumPy leaves to the BLAS.  Arrays are 2-D and dense; block: its first feature, and the one behind it."""

    @staticmethod
    def linear_forward(x: Array, w: Array, y: Array, block: Block) -> None:
        """A block of y's columns = x w^T."""
        linear.forward(x.reshape(-1), w.reshape(-1), len(x), *block, y.reshape(-1))

    @staticmethod
    def linear_backward_data(w: Array, dy: Array, dx: Array, block: Block) -> None:
        """A block of dx's columns = dy w."""
        linear.backward_data(w.reshape(-1), dy.reshape(-1), len(dy), *block, dx.reshape(-1))

    @staticmethod
    def linear_backward_weights(x: Array, dy: Array, dw: Array, block: Block) -> None:
        """A block of dw's rows = dy^T x."""
        linear.backward_weights(x.reshape(-1), dy.reshape(-1), len(x), *block, dw.reshape(-1))
