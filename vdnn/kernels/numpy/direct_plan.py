"""How a direct convolution (vdnn.kernels.numpy.direct) is cut up.

N batch, C channels of the source, K of the result (both per group).  Blocks of result channels and parts of the pixels
are tasks; each worker has a block of the filter, or of its gradient, and what a box of pixels sees of the source, all
in at most LIMIT bytes.  Where that is not enough the convolution is done by im2col and GEMM (vdnn.kernels.numpy.gemm).
All is cut up by shape alone, so that bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div, spans
from vdnn.kernels.numpy.window import Tiles, Window, tiles
from vdnn.layers.base import Array

Pair = tuple[int, int]
LIMIT = 2**20 - 4096  # bytes per worker
BLOCK = 32  # result channels of a task
LINE = 64  # bytes of a vector
TASKS, ENOUGH = 16, 8
SMALL = 4 * 10**6  # products of a task: less than 0.1 ms
PARTIALS = 384 * 2**10  # bytes of partial sums of the filter's gradient, those of the first part aside
MOST, LEAST = 512, 48  # pixels of a box
FEW = 160  # of one whose channels the L1 cache is to hold


class DirectPlan(NamedTuple):
    """How one convolution, of one group, is cut up.

    blocks  spans of result channels
    boxes   of pixels
    parts   spans of their numbers: each is a task with each block
    width   elements of a row of the filter's block: whole vectors
    block   elements of a block of the filter, or of its gradient where that cannot be added up in place
    copies  whether what a box sees is copied
    piece   elements of that, at most
    pixels  of the largest box
    """

    blocks: tuple[Pair, ...]
    boxes: Tiles
    parts: tuple[Pair, ...]
    width: int
    block: int
    copies: bool
    piece: int
    pixels: int
    dtype: str

    @property
    def scratch(self) -> int:
        """Bytes per worker."""
        return array_bytes(self.dtype, self.block) + array_bytes(self.dtype, self.piece)


def scratch_bytes(plans: Sequence[DirectPlan]) -> int:
    """Bytes per worker of what `scratches` gives."""
    sizes = max(plan.block for plan in plans), max(plan.piece for plan in plans)
    return sum(array_bytes(plans[0].dtype, size) for size in sizes)


def scratches(plans: Sequence[DirectPlan], space: Array | None, start: int, threads: int) -> list[list[Array]]:
    """Of each worker a block and a piece that are large enough for all of these plans, from byte `start` on."""
    scratch, dtype = Scratch(space, start), plans[0].dtype
    sizes = max(plan.block for plan in plans), max(plan.piece for plan in plans)
    return [[scratch.take((size,), dtype) for size in sizes] for _ in range(threads)]


def is_inside(axis: Window) -> bool:
    """Whether no output sees padding."""
    last = (axis.outputs - 1) * axis.step + (axis.taps - 1) * axis.dilation + axis.offset
    return axis.offset >= 0 and last < axis.length


def seen(axis: Window, outputs: int) -> int:
    """How many neighbouring elements so many outputs see."""
    return (outputs - 1) * axis.step + (axis.taps - 1) * axis.dilation + 1


@lru_cache(maxsize=1024)
def gather_plan(N: int, rows: Window, columns: Window, C: int, K: int, groups: int, dtype: str) -> DirectPlan | None:
    """How to cut up a forward pass, or a part of backward_data; None if that takes more than LIMIT bytes."""
    width = ceil_div(min(K, BLOCK), lanes_of(dtype)) * lanes_of(dtype)
    copies = groups > 1 or not (is_inside(rows) and is_inside(columns))
    blocks = tuple(spans(K, BLOCK))
    cut = blocks, ceil_div(tasks(products(N, rows, columns, C, K * groups)), groups * len(blocks))
    return _fitted(N, rows, columns, C, dtype, cut, width, rows.taps * columns.taps * C * width, copies)


@lru_cache(maxsize=1024)
def weights_plan(N: int, rows: Window, columns: Window, C: int, K: int, groups: int, dtype: str) -> DirectPlan | None:
    """How to cut up the filter's gradient; None if that takes more than LIMIT bytes.

    Where rows of the gradient are no whole vectors they are added up apart, and what is beyond them reads spare
    elements of the piece.
    """
    lanes, length = lanes_of(dtype), columns.taps * C
    if columns.dilation == 1:
        is_ragged, padded = length % lanes > 0, ceil_div(length, lanes) * lanes
    else:
        is_ragged, padded = C % lanes > 0, columns.taps * ceil_div(C, lanes) * lanes
    nbytes = array_bytes(dtype, groups * K, rows.taps, columns.taps, C)
    wanted = tasks(products(N, rows, columns, C, K * groups))
    height, parts = BLOCK, min(1 + PARTIALS // nbytes, ceil_div(wanted, groups * ceil_div(K, BLOCK)))
    while height > 8 and groups * ceil_div(K, height) * parts < min(wanted, ENOUGH):
        height //= 2
    cut = tuple(spans(K, height)), parts
    block = min(K, height) * rows.taps * padded if is_ragged else 0
    copies = is_ragged or groups > 1 or not (is_inside(rows) and is_inside(columns))
    return _fitted(N, rows, columns, C, dtype, cut, lanes, block, copies, FEW)


def tasks(products: int) -> int:
    """How many tasks are worth having for so many products: handing out a small one takes longer than doing it."""
    return max(1, min(TASKS, products // SMALL))


def products(N: int, rows: Window, columns: Window, C: int, K: int) -> int:
    """What all windows take, multiplied with all filters."""
    return N * rows.outputs * rows.taps * columns.outputs * columns.taps * C * K


def lanes_of(dtype: str) -> int:
    """Elements of a vector."""
    return LINE // numpy.dtype(dtype).itemsize


def _fitted(
    N: int,
    rows: Window,
    columns: Window,
    C: int,
    dtype: str,
    cut: tuple[tuple[Pair, ...], int],
    width: int,
    block: int,
    copies: bool,
    most: int = MOST,
) -> DirectPlan | None:
    """The plan with the largest boxes that fit, of at most so many pixels, unless a row has more.

    cut: spans of result channels, and the number of parts of the pixels.
    """
    blocks, wanted = cut
    pixels = min(most, max(LEAST, ceil_div(N * rows.outputs * columns.outputs, wanted)))
    while pixels >= LEAST:
        boxes = tiles(N, rows.outputs, columns.outputs, pixels)
        images, high, wide = (max(b - a for a, b in cuts) for cuts in (boxes.images, boxes.rows, boxes.columns))
        piece = (images * seen(rows, high) * seen(columns, wide) * C + lanes_of(dtype)) * copies
        parts = tuple(spans(len(boxes), ceil_div(len(boxes), wanted)))
        found = DirectPlan(blocks, boxes, parts, width, block, copies, piece, images * high * wide, dtype)
        if found.scratch <= LIMIT:
            return found
        pixels = pixels * 3 // 4
    return None


@lru_cache(maxsize=1024)
def cuts_of(boxes: Tiles) -> tuple[Array, Array, Array]:
    """Where images, rows and columns of the boxes begin and end: (number, 2) each; made when a plan first runs."""
    images, rows, columns = (numpy.array(cuts, numpy.int64) for cuts in (boxes.images, boxes.rows, boxes.columns))
    return images, rows, columns
