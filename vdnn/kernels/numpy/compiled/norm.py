"""Batch normalisation's passes over rows of channels, compiled.  A row is repeated until it is long (see `repeat`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.routines import Routines
from vdnn.layers.base import Array

if TYPE_CHECKING:
    from vdnn.kernels.numpy.norm_rows import Rows

FEW = 32  # long rows that are summed in the network's precision, before float64 takes over


@compiled
def fold(sums: Array, C: int, total: Array) -> None:
    """Add sums: (repeat * C,) to total: (C,), and clear them."""
    zero = sums.dtype.type(0)
    for start in range(0, sums.size, C):
        part = sums[start : start + C]
        for c in range(C):
            total[c] += part[c]
        for c in range(C):
            part[c] = zero


@compiled
def moments(x: Array, shift: Array, C: int, total: Array, square: Array) -> None:
    """Add the sums of x - shift and of its square."""
    width = shift.size
    s, q = numpy.zeros(width, x.dtype), numpy.zeros(width, x.dtype)
    for start in range(0, x.size, width):
        xs = x[start : start + width]
        for i in range(xs.size):
            t = xs[i] - shift[i]
            s[i] += t
            q[i] += t * t
        if start // width % FEW == FEW - 1:
            fold(s, C, total)
            fold(q, C, square)
    fold(s, C, total)
    fold(q, C, square)


@compiled
def gradient_sums(x: Array, g: Array, shift: Array, C: int, total: Array, moment: Array) -> None:
    """Add the sums of g and of g * (x - shift)."""
    width = shift.size
    s, q = numpy.zeros(width, x.dtype), numpy.zeros(width, x.dtype)
    for start in range(0, x.size, width):
        xs, gs = x[start : start + width], g[start : start + width]
        for i in range(xs.size):
            s[i] += gs[i]
            q[i] += (xs[i] - shift[i]) * gs[i]
        if start // width % FEW == FEW - 1:
            fold(s, C, total)
            fold(q, C, moment)
    fold(s, C, total)
    fold(q, C, moment)


@compiled
def scale_rows(x: Array, y: Array, scale: Array, offset: Array) -> None:
    """y = x * scale + offset."""
    width = scale.size
    for start in range(0, x.size, width):
        xs, ys = x[start : start + width], y[start : start + width]
        for i in range(xs.size):
            ys[i] = xs[i] * scale[i] + offset[i]


@compiled
def gradient_rows(x: Array, g: Array, dx: Array, a: Array, p: Array, c: Array) -> None:
    """dx = g * a + (x * p + c); dx may be g, so a row goes through one of its own."""
    width = a.size
    t = numpy.empty(width, x.dtype)
    for start in range(0, x.size, width):
        xs, gs, ds = x[start : start + width], g[start : start + width], dx[start : start + width]
        for i in range(xs.size):
            t[i] = gs[i] * a[i] + (xs[i] * p[i] + c[i])
        for i in range(ds.size):
            ds[i] = t[i]


class NormRoutines:
    """The four passes; NumPy's for arrays that are not channels-last."""

    @staticmethod
    def sum_moments(rows: Rows, index: int, parts: int, shift: Array, sums: Array, scratch: list[Array]) -> None:
        """Add the sums of x - shift and of its square over a part of the rows to sums: (2, C)."""
        if rows.is_flat:
            moments(rows.flat(index, parts)[0], shift, rows.channels, sums[0], sums[1])
        else:
            Routines.sum_moments(rows, index, parts, shift, sums, scratch)

    @staticmethod
    def sum_gradients(rows: Rows, index: int, parts: int, shift: Array, sums: Array, scratch: list[Array]) -> None:
        """Add the sums of dy and of dy * (x - shift) over a part of the rows to sums: (2, C)."""
        if rows.is_flat:
            x, dy, *_ = rows.flat(index, parts)
            gradient_sums(x, dy, shift, rows.channels, sums[0], sums[1])
        else:
            Routines.sum_gradients(rows, index, parts, shift, sums, scratch)

    @staticmethod
    def normalise(rows: Rows, index: int, parts: int, scale: Array, offset: Array) -> None:
        """y = x * scale + offset for a part of the rows."""
        if rows.is_flat:
            x, y = rows.flat(index, parts)
            scale_rows(x, y, scale, offset)
        else:
            Routines.normalise(rows, index, parts, scale, offset)

    @staticmethod
    def differentiate(rows: Rows, index: int, parts: int, terms: tuple[Array, ...], scratch: list[Array]) -> None:
        """dx = a * dy + p * x + c for a part of the rows; terms: a, p, c."""
        if rows.is_flat:
            x, dy, dx = rows.flat(index, parts)
            a, p, c = terms
            gradient_rows(x, dy, dx, a, p, c)
        else:
            Routines.differentiate(rows, index, parts, terms, scratch)
