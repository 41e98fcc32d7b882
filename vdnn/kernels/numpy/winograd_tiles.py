"""Winograd's transforms of blocks of tiles: from an image, from a filter, and back.

a x a transformed elements per tile, m x m outputs, r x r taps.  Transformed tiles are a * a matrices (tiles, channels)
for the GEMM; a block of them, from `start` on, is worked on as (a, a, images, tile rows, tile columns, channels).  The
columns of a block are first sorted by their residue modulo m, so that all later operations run over long contiguous
rows.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.elementwise import relu
from vdnn.kernels.numpy.layout import Scratch, ceil_div
from vdnn.kernels.numpy.transforms import Program, Winograd
from vdnn.kernels.numpy.window import Tile
from vdnn.layers.base import Array

Pair = tuple[int, int]


def load(x: Array, tile: Tile, m: int, padding: Pair, patch: Array) -> None:
    """Copy what a block of tiles sees of x: (N, H, W, C), and zeros around it, into patch.

    patch: (images, rows, m, columns // m, C), column i of the source at [i % m, i // m].
    """
    _, H, W, _ = x.shape
    rows, columns = patch.shape[1], patch.shape[3]
    top, left = tile.h0 * m - padding[0], tile.w0 * m - padding[1]
    r0 = min(max(0, -top), rows)
    r1 = min(max(r0, H - top), rows)
    patch[:, :r0] = 0
    patch[:, r1:] = 0
    for residue in range(m):
        first = left + residue
        c0 = min(max(0, -(first // m)), columns)
        c1 = min(max(c0, -((first - W) // m)), columns)
        part = patch[:, r0:r1, residue]
        part[:, :, :c0] = 0
        part[:, :, c1:] = 0
        if r0 < r1 and c0 < c1:
            source = x[tile.n0 : tile.n1, top + r0 : top + r1, first + c0 * m : first + (c1 - 1) * m + 1 : m]
            numpy.copyto(part[:, :, c0:c1], source)


def block_view(matrices: Array, tile: Tile, start: int) -> Array:
    """The (a, a, *tile.shape, C) part of matrices: (a * a, T, C) that is a block, from tile `start` on."""
    a = round(len(matrices) ** 0.5)
    return matrices[:, start : start + tile.pixels].reshape(a, a, *tile.shape, -1)


def transform_input(
    winograd: Winograd, x: Array, tile: Tile, padding: Pair, out: Array, start: int, scratch: Scratch
) -> None:
    """Transform what a block's tiles see of x: (N, H, W, C) into out: (a * a, T, C), from tile `start` on.

    With a scratch that measures, nothing but its use is found out; x is then (N, H, W, C) with C alone looked at.
    """
    _transform(winograd.input, winograd, x, tile, winograd.r - 1, padding, out, start, scratch)


def transform_gradient(winograd: Winograd, dy: Array, tile: Tile, out: Array, start: int, scratch: Scratch) -> None:
    """Transform a block's tiles of dy: (N, OH, OW, K) into out: (a * a, T, K), from tile `start` on.

    A scratch may measure, as in `transform_input`.
    """
    _transform(winograd.gradient, winograd, dy, tile, 0, (0, 0), out, start, scratch)


def _transform(
    program: Program,
    winograd: Winograd,
    x: Array,
    tile: Tile,
    halo: int,
    padding: Pair,
    matrices: Array,
    start: int,
    scratch: Scratch,
) -> None:
    """Transform a block's tiles of (m + halo) x (m + halo) elements of x."""
    m, a, C, dtype = winograd.m, winograd.a, x.shape[3], x.dtype.name
    images, rows, columns = tile.shape
    across = columns + ceil_div(halo, m)
    half = scratch.take((a, images, rows, m, across, C), dtype)  # transformed along the rows
    mark = scratch.start
    patch = scratch.take((images, m * rows + halo, m, across, C), dtype)
    short = [scratch.take((images, rows, m, across, C), dtype) for _ in range(program.temporaries)]
    scratch.start = mark  # the patch is done with when the second pass starts
    long = [scratch.take((a, images, rows, columns, C), dtype) for _ in range(program.temporaries)]
    if scratch.measures:
        return
    load(x, tile, m, padding, patch)
    out = block_view(matrices, tile, start)
    program.run(short, d=[patch[:, i : i + m * (rows - 1) + 1 : m] for i in range(m + halo)], v=list(half))
    sorted_columns = [half[:, :, :, j % m, j // m : j // m + columns] for j in range(m + halo)]
    program.run(long, d=sorted_columns, v=[out[:, j] for j in range(a)])


def transform_output(
    winograd: Winograd,
    matrices: Array,
    start: int,
    tile: Tile,
    bias: Array | None,
    y: Array,
    scratch: Scratch,
    rectify: bool = False,
) -> None:
    """Transform a block of matrices: (a * a, T, K), from tile `start` on, back and write it, + bias, to y.

    y: (N, OH, OW, K); rectify: max(y, 0) in place of y.  The block is used up.  A scratch may measure, as in
    `transform_input`.
    """
    m, a, dtype, program = winograd.m, winograd.a, y.dtype.name, winograd.output
    K = y.shape[3]
    mark = scratch.start
    long = [scratch.take((a, *tile.shape, K), dtype) for _ in range(program.temporaries)]
    scratch.start = mark
    short = [scratch.take((m, *tile.shape, K), dtype) for _ in range(program.temporaries)]
    if scratch.measures:
        return
    block = block_view(matrices, tile, start)
    program.run(long, v=list(block))
    program.run(short, v=[block[:m, j] for j in range(a)])
    for i in range(m):
        for j in range(m):
            target = y[tile.n0 : tile.n1, tile.h0 * m + i : tile.h1 * m : m, tile.w0 * m + j : tile.w1 * m : m]
            pixels = block[i, j, :, : target.shape[1], : target.shape[2]]  # the last tiles may stick out
            if rectify:
                whole = block[i, j].reshape(-1)  # a view
                if bias is not None:
                    numpy.add(block[i, j], bias, out=block[i, j])
                relu(whole, whole)
            if rectify or bias is None:
                numpy.copyto(target, pixels)
            else:
                numpy.add(pixels, bias, out=target)


def transform_filter(
    winograd: Winograd, w: Array, rows: Pair, flip: bool, across: bool, matrices: Array, scratch: Scratch
) -> None:
    """Transform filters rows[0] .. rows[1] - 1 of w: (K, r, r, C), turned by 180 degrees if `flip`.

    matrices: (a * a, K, C), or (a * a, C, K) if `across`.  A scratch may measure; then C alone is looked at.
    """
    a, r, program = winograd.a, winograd.r, winograd.filter
    K, C, dtype = rows[1] - rows[0], w.shape[3], w.dtype.name
    half = scratch.take((a, K, r, C), dtype)
    mark = scratch.start
    short = [scratch.take((K, r, C), dtype) for _ in range(program.temporaries)]
    scratch.start = mark
    long = [scratch.take((a, K, C), dtype) for _ in range(program.temporaries)]
    if scratch.measures:
        return
    order = range(r)[::-1] if flip else range(r)
    w = w[slice(*rows)]
    out = matrices.reshape(a, a, *matrices.shape[1:])
    out = (out.transpose(0, 1, 3, 2) if across else out)[:, :, slice(*rows)]
    program.run(short, g=[w[:, i] for i in order], v=list(half))
    program.run(long, g=[half[:, :, j] for j in order], v=[out[:, j] for j in range(a)])


def transform_taps(winograd: Winograd, sums: Array, rows: Pair, dw: Array, scratch: Scratch) -> None:
    """Transform the summed products sums: (a * a, K, C) into filters rows[0] .. rows[1] - 1 of dw: (K, r, r, C).

    A scratch may measure; then C alone is looked at.
    """
    a, r, program = winograd.a, winograd.r, winograd.taps
    K, C, dtype = rows[1] - rows[0], dw.shape[3], dw.dtype.name
    half = scratch.take((r, a, K, C), dtype)
    mark = scratch.start
    short = [scratch.take((a, K, C), dtype) for _ in range(program.temporaries)]
    scratch.start = mark
    long = [scratch.take((r, K, C), dtype) for _ in range(program.temporaries)]
    if scratch.measures:
        return
    sums, dw = sums[:, slice(*rows)].reshape(a, a, K, C), dw[slice(*rows)]
    program.run(short, v=list(sums), g=list(half))
    program.run(long, v=[half[:, j] for j in range(a)], g=[dw[:, :, s].transpose(1, 0, 2) for s in range(r)])
