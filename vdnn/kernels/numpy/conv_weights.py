"""backward_weights of a convolution, and the sum over pixels for its bias.

dw (K, taps * C) = dy^T (K, P) @ packed x (P, taps * C), summed over all pixels P.  The work is cut into chunks of
taps, whose results lie apart, and slices of pixels, whose partial sums are added in a fixed tree.  Both depend on
shapes only: dw has the same bits for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.gemm import FLOPS, Chunk, chunkings
from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div, spans
from vdnn.kernels.numpy.threads import Workers
from vdnn.kernels.numpy.window import Tile, forward_windows, pack, tiles
from vdnn.layers.base import Array

KIB = 2**10
BUDGET = {"direct": 640 * KIB, "pack": 3072 * KIB}  # scratch per worker
PARTIALS = {"direct": 384 * KIB, "pack": 4096 * KIB}  # for all slices but the first, which has dw itself
WIDE = {"direct": 640, "pack": 1280}  # columns of a chunk from which on it is not made wider
SLICES = 8
ENOUGH = 8  # tasks
AREA, SHORTEST = 32768, 16  # elements of dw in a block of a 1x1 product, and of its longer side
HEIGHT = 1024  # rows of dy per product with the vector of ones
ONES = {dtype: numpy.ones((1, HEIGHT), dtype) for dtype in ("float32", "float64")}
PARTIAL_SUMS = 8192  # elements of the slices' sums of dy; few enough to be allocated


class WeightsPlan(NamedTuple):
    """How backward_weights is cut up."""

    chunks: tuple[Chunk, ...]
    slices: tuple[Sequence[Tile], ...]
    filters: int  # rows of dw per GEMM
    pixels: int  # of the largest tile
    partial_bytes: int  # of one slice's partial dw
    scratch: int  # bytes per worker


@lru_cache(maxsize=1024)
def weights_plan(g: Geometry, algorithm: str) -> WeightsPlan:
    """How backward_weights is cut up: the widest chunks that leave enough tasks."""
    partial = array_bytes(g.dtype, g.groups * g.K, *g.taps, g.C)
    slices = SLICES
    while slices > 1 and (slices - 1) * partial > PARTIALS[algorithm]:
        slices //= 2
    for chunks in chunkings(*g.taps):
        width = chunks[0].taps * g.C
        if width <= WIDE[algorithm] and len(chunks) * slices * g.groups >= ENOUGH:
            break
    item = numpy.dtype(g.dtype).itemsize
    budget = BUDGET[algorithm] - 256
    filters = max(1, min(g.K, budget // 3 // (width * item)))
    pixels = max(1, (budget - filters * width * item) // (width * item))
    boxes = tiles(g.N, *g.outputs, pixels)
    pixels = boxes.most_pixels
    cut = tuple(boxes[a:b] for a, b in spans(len(boxes), -(-len(boxes) // slices)))
    scratch = array_bytes(g.dtype, pixels, width) + array_bytes(g.dtype, filters, width)
    return WeightsPlan(chunks, cut, filters, pixels, partial, scratch)


def weights_workspace(g: Geometry, algorithm: str, threads: int) -> int:
    """Bytes of workspace; a 1x1 product needs none."""
    if g.is_pointwise:
        return 0
    plan = weights_plan(g, algorithm)
    return (len(plan.slices) - 1) * plan.partial_bytes + threads * plan.scratch


def accumulate(
    g: Geometry,
    plan: WeightsPlan,
    chunk: Chunk,
    boxes: Sequence[Tile],
    group: int,
    arrays: tuple[Array, Array, Array],
    scratch: Scratch,
) -> None:
    """Sum one chunk of one group's dw: (K, R, S, C) over some tiles, in order.  arrays: x, dy, dw."""
    x, dy, dw = arrays
    rows, columns = forward_windows(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation)
    rows, columns = rows.only(chunk.r0, chunk.r1), columns.only(chunk.s0, chunk.s1)
    width = chunk.taps * g.C
    packed = scratch.take((plan.pixels * width,), g.dtype)
    terms = scratch.take((plan.filters, width), g.dtype)
    sums = dw[:, chunk.r0 : chunk.r1, chunk.s0 : chunk.s1].reshape(g.K, width)  # a view, as chunks are
    for i, tile in enumerate(boxes):
        matrix = packed[: tile.pixels * width]
        shape = (*tile.shape, chunk.r1 - chunk.r0, chunk.s1 - chunk.s0, g.C)
        pack(x, (group * g.C, (group + 1) * g.C), rows, columns, tile, matrix.reshape(shape))
        box = dy[tile.n0 : tile.n1, tile.h0 : tile.h1, tile.w0 : tile.w1, group * g.K : (group + 1) * g.K]
        gradient = box.reshape(tile.pixels, g.K).T
        for a, b in spans(g.K, plan.filters):
            out = sums[a:b] if i == 0 else terms[: b - a]
            numpy.matmul(gradient[a:b], matrix.reshape(tile.pixels, width), out=out)
            if i > 0:
                numpy.add(sums[a:b], out, out=sums[a:b])


def backward_weights(
    workers: Workers, g: Geometry, x: Array, dy: Array, dw: Array, algorithm: str, space: Array | None
) -> None:
    """Write dw from x: (N, H, W, G C) and dy: (N, OH, OW, G K)."""
    if g.is_pointwise:
        pointwise(workers, g, x, dy, dw)
        return
    plan = weights_plan(g, algorithm)
    scratch = Scratch(space)
    partials = [dw, *(scratch.take(dw.shape, g.dtype) for _ in plan.slices[1:])]
    first = scratch.start
    tasks = [(s, c, i) for s in range(len(plan.slices)) for c in plan.chunks for i in range(g.groups)]

    def run(task: int, worker: int) -> None:
        s, chunk, i = tasks[task]
        arrays = (x, dy, partials[s][i * g.K : (i + 1) * g.K])
        accumulate(g, plan, chunk, plan.slices[s], i, arrays, Scratch(space, first + worker * plan.scratch))

    workers.parallel(run, len(tasks), g.flops / FLOPS)
    add_tree(partials)


def add_tree(partials: list[Array]) -> None:
    """Add all arrays into the first: neighbours, then neighbours of neighbours, ..."""
    step = 1
    while step < len(partials):
        for i in range(0, len(partials) - step, 2 * step):
            numpy.add(partials[i], partials[i + step], out=partials[i])
        step *= 2


def block_of(K: int, C: int, least: int) -> tuple[int, int]:
    """Rows and columns of dw in a task: halves of its longer side, until there are enough blocks of about AREA.

    In smaller ones the BLAS, which sums over many pixels, copies more than it multiplies.
    """
    tall, wide, wanted = K, C, max(least, min(ENOUGH, K * C // AREA))
    while ceil_div(K, tall) * ceil_div(C, wide) < wanted and max(tall, wide) > SHORTEST:
        tall, wide = (ceil_div(tall, 2), wide) if tall >= wide else (tall, ceil_div(wide, 2))
    return tall, wide


def pointwise(workers: Workers, g: Geometry, x: Array, dy: Array, dw: Array) -> None:
    """Write dw of a 1x1 product: blocks of dw, each one GEMM over all pixels, without workspace."""
    P = g.N * g.outputs[0] * g.outputs[1]
    source, gradient = x.reshape(P, -1), dy.reshape(P, -1).T
    tall, wide = block_of(g.K, g.C, 2 if g.groups == 1 else 1)
    tasks = [(i, k, c) for i in range(g.groups) for k in spans(g.K, tall) for c in spans(g.C, wide)]

    def run(task: int, worker: int) -> None:
        i, (k0, k1), (c0, c1) = tasks[task]
        filters = slice(i * g.K + k0, i * g.K + k1)
        numpy.matmul(gradient[filters], source[:, i * g.C + c0 : i * g.C + c1], out=dw.reshape(-1, g.C)[filters, c0:c1])

    workers.parallel(run, len(tasks), g.flops / FLOPS)


def sum_rows(workers: Workers, matrix: Array, out: Array) -> None:
    """out: (K,) = the sum of matrix: (P, K) over P, in slices fixed by the shape, added in a fixed tree."""
    P, K = matrix.shape
    cuts = spans(P, max(HEIGHT, -(-P // max(1, min(SLICES, PARTIAL_SUMS // K)))))
    sums = numpy.empty((len(cuts), 1, K), matrix.dtype) if len(cuts) > 1 else out.reshape(1, 1, K)
    ones = ONES[str(matrix.dtype)]

    def run(task: int, worker: int) -> None:
        first, last = cuts[task]
        numpy.matmul(ones[:, : min(HEIGHT, last - first)], matrix[first : min(first + HEIGHT, last)], out=sums[task])
        for row in range(first + HEIGHT, last, HEIGHT):
            sums[task] += ones[:, : min(HEIGHT, last - row)] @ matrix[row : min(row + HEIGHT, last)]

    workers.parallel(run, len(cuts), matrix.nbytes / 1e10)
    add_tree(list(sums))
    if len(cuts) > 1:
        numpy.copyto(out, sums[0, 0])
