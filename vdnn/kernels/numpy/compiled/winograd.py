"""Winograd's transforms, compiled: the routines of `winograd_tiles.py`, with their bits."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy

from vdnn.kernels.numpy.compiled import pointwise
from vdnn.kernels.numpy.compiled.tiles import Kernel, from_filter, from_tiles, into_panels, into_taps, into_tiles
from vdnn.kernels.numpy.compiled.vectors import code_of
from vdnn.kernels.numpy.transforms import Winograd
from vdnn.kernels.numpy.window import Tile
from vdnn.layers.base import Array

Pair = tuple[int, int]


@cache
def kernels_of(winograd: Winograd) -> dict[str, Kernel]:
    """The kernels of F(m x m, r x r)."""
    m, r, a = winograd.m, winograd.r, winograd.a
    return {
        "input": into_tiles(code_of(winograd.input, "dv", a, a), a),
        "gradient": into_tiles(code_of(winograd.gradient, "dv", m, a), a),
        "output": from_tiles(code_of(winograd.output, "vv", a, m), a),
        "filter": from_filter(code_of(winograd.filter, "gv", r, a), a, r),
        "panels": into_panels(code_of(winograd.filter, "gv", r, a), a, r),
        "taps": into_taps(code_of(winograd.taps, "vg", a, r), a, r),
    }


@lru_cache(maxsize=64)
def no_bias(K: int, dtype: str) -> Array:
    """Negative zeros: what, added to any number, gives that number, its sign included."""
    return numpy.full(K, -0.0, dtype)


class WinogradRoutines:
    """The routines of `winograd_tiles.py`.  All arrays must be contiguous; the scratch is not used."""

    @staticmethod
    def transform_input(
        winograd: Winograd, x: Array, tile: Tile, padding: Pair, out: Array, start: int, scratch: object
    ) -> None:
        """Transform what a block's tiles see of x: (N, H, W, C) into out: (a * a, T, C), from tile `start` on."""
        kernel, sizes = kernels_of(winograd)["input"], (winograd.m, winograd.a)
        plane = out.shape[1] * out.shape[2]
        kernel(x.reshape(-1), *x.shape[1:], out.reshape(-1), plane, start, *tile, *sizes, *padding)

    @staticmethod
    def transform_gradient(winograd: Winograd, dy: Array, tile: Tile, out: Array, start: int, scratch: object) -> None:
        """Transform a block's tiles of dy: (N, OH, OW, K) into out: (a * a, T, K), from tile `start` on."""
        kernel, sizes = kernels_of(winograd)["gradient"], (winograd.m, winograd.m)
        plane = out.shape[1] * out.shape[2]
        kernel(dy.reshape(-1), *dy.shape[1:], out.reshape(-1), plane, start, *tile, *sizes, 0, 0)

    @staticmethod
    def transform_output(
        winograd: Winograd,
        matrices: Array,
        start: int,
        tile: Tile,
        bias: Array | None,
        y: Array,
        scratch: object,
        rectify: bool = False,
    ) -> None:
        """Transform a block of matrices: (a * a, T, K) back and write it, + bias, to y: (N, OH, OW, K).

        rectify: max(y, 0) in place of y.
        """
        kernel = kernels_of(winograd)["output"]
        added = no_bias(y.shape[3], y.dtype.name) if bias is None else numpy.ascontiguousarray(bias)
        plane = matrices.shape[1] * matrices.shape[2]
        kernel(matrices.reshape(-1), plane, start, added, y.reshape(-1), *y.shape[1:], *tile, winograd.m, rectify)

    @staticmethod
    def transform_filter(
        winograd: Winograd, w: Array, rows: Pair, flip: bool, across: bool, matrices: Array, scratch: object
    ) -> None:
        """Transform filters rows[0] .. rows[1] - 1 of w: (K, r, r, C) into matrices: (a * a, K, C) or (a * a, C, K)."""
        kernel = kernels_of(winograd)["filter"]
        K, _, _, C = w.shape
        kernel(w.reshape(-1), C, *rows, flip, across, matrices.reshape(-1), K * C, K)

    @staticmethod
    def transform_panels(winograd: Winograd, w: Array, channels: Pair, turned: bool, panels: Array, plane: int) -> None:
        """Transform the filters of some of the result's channels, whole panels of them, for `multiply_tiles`.

        w: (K, r, r, C), turned by 180 degrees if `turned`.  panels: flat; of each transformed element `plane` numbers,
        in which the panels lie one after the other from the first of these channels on.
        """
        K, _, _, C = w.shape
        kernels_of(winograd)["panels"](w.reshape(-1), C, K if turned else C, *channels, turned, panels, plane)

    @staticmethod
    def multiply_tiles(tiles: Array, panels: Array, plane: int, channels: Pair, out: Array) -> None:
        """Some channels, whole panels, of out: (n, T, B) = tiles: (n, T, A) times n filters for these channels.

        The filters are flat, `plane` numbers apart; tiles and out are dense.
        """
        (n, T, A), B, (first, last) = tiles.shape, out.shape[2], channels
        flat, bias = (tiles.reshape(-1), panels, out.reshape(-1)), no_bias(last - first, out.dtype.name)
        pointwise.multiply_planes(*flat, n, T, A, B, plane, first, last - first, bias)

    @staticmethod
    def transform_taps(winograd: Winograd, sums: Array, rows: Pair, dw: Array, scratch: object) -> None:
        """Transform the summed products sums: (a * a, K, C) into filters rows[0] .. rows[1] - 1 of dw: (K, r, r, C)."""
        kernel = kernels_of(winograd)["taps"]
        _, K, C = sums.shape
        kernel(sums.reshape(-1), K * C, C, *rows, dw.reshape(-1))
