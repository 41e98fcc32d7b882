"""The routines on pieces of arrays: which compiled function does what, or NumPy where a piece is strided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from vdnn.kernels.numpy.compiled import elementwise, update
from vdnn.kernels.numpy.routines import Routines
from vdnn.kernels.numpy.update import Adam, Sgd
from vdnn.layers.base import Array

WORDS = {4: numpy.dtype("uint16"), 8: numpy.dtype("uint8")}  # by the size of a float: as many bits as a vector has


def is_flat(*arrays: Array) -> bool:
    """Whether the arrays are 1-D and contiguous."""
    return all(a.ndim == 1 and a.flags.c_contiguous for a in arrays)


def words(bits: Array, x: Array) -> Array:
    """The bits of the whole vectors of x, as integers of one vector each."""
    kind: Any = WORDS[x.itemsize]
    return bits[: bits.size // kind.itemsize * kind.itemsize].view(kind)


class PieceRoutines:
    """ReLU, sums and updates."""

    @staticmethod
    def relu(x: Array, y: Array) -> None:
        """y = max(x, 0)."""
        (elementwise.relu if is_flat(x, y) else Routines.relu)(x, y)

    @staticmethod
    def relu_backward(y: Array, dy: Array, dx: Array, scratch: Array) -> None:
        """dx = dy where y > 0, +0.0 elsewhere."""
        if is_flat(y, dy, dx):
            elementwise.relu_backward(y, dy, dx)
        else:
            Routines.relu_backward(y, dy, dx, scratch)

    @staticmethod
    def relu_mask(x: Array, y: Array, bits: Array, scratch: Array) -> None:
        """y = max(x, 0); bits: whether y is not 0."""
        elementwise.relu_mask(x, y, words(bits, x), bits)

    @staticmethod
    def relu_mask_backward(bits: Array, dy: Array, dx: Array, scratch: Array) -> None:
        """dx = dy where its bit is set, +0.0 elsewhere."""
        elementwise.relu_mask_backward(words(bits, dy), bits, dy, dx)

    @staticmethod
    def add(x0: Array, x1: Array, y: Array) -> None:
        """y = x0 + x1."""
        (elementwise.add if is_flat(x0, x1, y) else Routines.add)(x0, x1, y)

    @staticmethod
    def add_bias(rows: Array, bias: Array) -> None:
        """rows: (any, K) += bias: (K,)."""
        if rows.flags.c_contiguous:
            elementwise.add_bias(rows.reshape(-1), bias)
        else:
            Routines.add_bias(rows, bias)

    @staticmethod
    def sgd(step: Sgd, w: Array, g: Array, velocity: Sequence[Array], scratch: Array) -> None:
        """Update a piece of w and of its velocity, if there is one."""
        if not is_flat(w, g, *velocity):
            Routines.sgd(step, w, g, velocity, scratch)
            return
        number = w.dtype.type
        rate, decay = number(step.rate), number(step.weight_decay)
        if velocity:
            kept, fresh = number(step.momentum), number(1 - step.dampening)
            update.momentum(w, g, velocity[0], rate, decay, kept, fresh, step.is_first, step.nesterov)
        else:
            update.sgd(w, g, rate, decay)

    @staticmethod
    def adam(step: Adam, w: Array, g: Array, m: Array, v: Array, scratch: Array) -> None:
        """Update a piece of w and of its moments."""
        if not is_flat(w, g, m, v):
            Routines.adam(step, w, g, m, v, scratch)
            return
        shrink = 1 - step.rate * step.weight_decay if step.decoupled else 1
        decay = 0 if step.decoupled else step.weight_decay
        numbers = shrink, decay, 1 - step.beta1, step.beta2, 1 - step.beta2
        scales = step.bias2**0.5, step.eps, step.rate / step.bias1
        update.adam(w, g, m, v, *map(w.dtype.type, (*numbers, *scales)))
