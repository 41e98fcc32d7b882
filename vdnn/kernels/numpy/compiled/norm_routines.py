"""Batch normalisation's routines: which compiled function does what, or NumPy where arrays are not channels-last."""

from __future__ import annotations

from vdnn.kernels.numpy.compiled import norm
from vdnn.kernels.numpy.norm_rows import Rows, Scratch
from vdnn.kernels.numpy.routines import Routines
from vdnn.layers.base import Array


class NormRoutines:
    """The passes and what lies between them; NumPy's for arrays that are not channels-last."""

    @staticmethod
    def centre(rows: Rows, s: Scratch) -> None:
        """s.wide[0] = the mean of some rows."""
        if rows.flat is None:
            Routines.centre(rows, s)
        else:
            norm.centre(rows.flat[0], rows.channels, s.wide[0])

    @staticmethod
    def sum_moments(rows: Rows, s: Scratch, index: int, worker: int) -> None:
        """s.partial[index] = the sums of x - s.wide[0] and of its square over a part of the rows."""
        if rows.flat is None:
            Routines.sum_moments(rows, s, index, worker)
        else:
            norm.moments(rows.flat[0], s.wide[0], rows.channels, index, len(s.partial), s.partial)

    @staticmethod
    def settle_moments(rows: Rows, s: Scratch, eps: float, w: Array, b: Array, statistics: tuple[Array, ...]) -> None:
        """Statistics, and s.wide[:2] = scale and offset."""
        if rows.flat is None:
            Routines.settle_moments(rows, s, eps, w, b, statistics)
        else:
            norm.settle_moments(s.partial, s.wide, rows.all, eps, w, b, *statistics)

    @staticmethod
    def normalise(rows: Rows, s: Scratch, index: int, rectify: bool) -> None:
        """y = x * s.wide[0] + s.wide[1] for a part of the rows; rectify: max(y, 0) in place of y."""
        if rows.flat is None:
            Routines.normalise(rows, s, index, rectify)
        else:
            x, y = rows.flat
            norm.scale_rows(x, y, s.wide, rows.channels, index, rows.parts, rectify)

    @staticmethod
    def sum_gradients(rows: Rows, s: Scratch, index: int, worker: int) -> None:
        """s.partial[index] = the sums of dy and of dy * (x - s.wide[0]) over a part of the rows."""
        if rows.flat is None:
            Routines.sum_gradients(rows, s, index, worker)
        else:
            x, dy = rows.flat[:2]
            norm.gradient_sums(x, dy, s.wide[0], rows.channels, index, len(s.partial), s.partial)

    @staticmethod
    def settle_gradients(rows: Rows, s: Scratch, w: Array, saved: tuple[Array, Array], dw: Array, db: Array) -> None:
        """dw and db, and s.wide = a, p, c of dx = a * dy + p * x + c.  saved: mean and inverse deviation."""
        if rows.flat is None:
            Routines.settle_gradients(rows, s, w, saved, dw, db)
        else:
            norm.settle_gradients(s.partial, s.wide, rows.all, w, *saved, dw, db)

    @staticmethod
    def differentiate(rows: Rows, s: Scratch, index: int, worker: int) -> None:
        """dx = a * dy + p * x + c for a part of the rows; s.wide: a, p, c."""
        if rows.flat is None:
            Routines.differentiate(rows, s, index, worker)
        else:
            x, dy, dx = rows.flat
            norm.gradient_rows(x, dy, dx, s.wide, rows.channels, index, rows.parts)
