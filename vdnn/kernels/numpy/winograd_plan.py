"""How a Winograd convolution is cut up.

A, B channels of the source and of the result.  Two ways through the work, chosen by shape alone:

fused   each worker takes a block of tiles through transform, GEMM and back, in a block that its cache holds
phased  for few tiles and large filters: all transforms, then one GEMM per transformed element over all tiles, then
        all back transforms, so that no worker reads the whole filter
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.geometry import Geometry, Pair
from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div, spans
from vdnn.kernels.numpy.transforms import TRANSFORMS, Winograd
from vdnn.kernels.numpy.window import Tile, Tiles, tiles
from vdnn.kernels.numpy.winograd_tiles import (
    transform_filter,
    transform_gradient,
    transform_input,
    transform_output,
    transform_taps,
)
from vdnn.layers.base import Array

MIB = 2**20
BLOCK = 4 * MIB  # transformed input and output of a fused block: what the caches hold, in few calls of NumPy
GOOD_HEIGHT = 192  # tiles per GEMM
FEW_BLOCKS = 8
LARGE_FILTER = 2 * MIB  # transformed
PHASE = 512  # tiles of a phase
WEIGHTS_PHASE = 8 * MIB  # transformed x and dy of a phase of backward_weights
PARTS = 4  # blocks per phase of backward_weights
GROUPS = 8  # sums of products, each over consecutive blocks, of a fused backward_weights
SMALL_SUMS = 3 * MIB  # one of them
FILTER_BLOCK = 2 * MIB


def gain(g: Geometry, m: int) -> float:
    """How many times fewer multiplications F(m x m, r x r) needs, tiles that stick out counted in full."""
    OH, OW = g.outputs
    return transform_of(g, m).saving * OH * OW / (ceil_div(OH, m) * m * ceil_div(OW, m) * m)


def applies(g: Geometry, m: int) -> bool:
    """Whether this is a convolution that there is an F(m x m, r x r) for."""
    R, S = g.taps
    return R == S and (m, R) in TRANSFORMS and g.stride == (1, 1) and g.dilation == (1, 1) and g.groups == 1


def transform_of(g: Geometry, m: int) -> Winograd:
    """The F(m x m, r x r) of a convolution to which one applies."""
    return TRANSFORMS[m, g.taps[0]]


class ConvPlan(NamedTuple):
    """How a convolution is cut up."""

    phases: tuple[Sequence[Tile], ...]  # one, if fused
    fused: bool
    tiles: int  # in the largest phase
    filter_blocks: tuple[Pair, ...]
    filter_bytes: int
    block_bytes: int  # per worker of a transformed source block, if fused
    scratch: int  # bytes per worker, block_bytes included

    def shared(self, a: int, A: int, B: int, dtype: str) -> int:
        """Bytes for the transformed filter and, if phased, all transformed tiles of a phase."""
        if self.fused:
            return self.filter_bytes
        return self.filter_bytes + array_bytes(dtype, a, a, self.tiles, A) + array_bytes(dtype, a, a, self.tiles, B)


def phases_of(boxes: Tiles, most: int) -> tuple[Sequence[Tile], ...]:
    """Boxes in near-equal consecutive groups of about `most` tiles."""
    return tuple(boxes[a:b] for a, b in spans(len(boxes), ceil_div(len(boxes), ceil_div(boxes.pixels, most))))


def shape_only(C: int, dtype: str) -> Array:
    """An (N, H, W, C) array without elements, to measure with."""
    return numpy.empty((0, 0, 0, C), dtype)


def block_scratch(winograd: Winograd, boxes: Tiles, A: int, B: int, dtype: str, fused: bool) -> tuple[int, int]:
    """Bytes of a block's transformed source, if fused, and of everything a worker needs."""
    a, most = winograd.a, 0
    distinct = boxes.distinct
    inner = max(array_bytes(dtype, a, a, *box.shape, A) for box in distinct) if fused else 0
    for box in distinct:
        scratch = Scratch(None, inner, measures=True)
        transform_input(winograd, shape_only(A, dtype), box, (0, 0), None, 0, scratch)
        most, scratch.start = max(most, scratch.most), inner
        if fused:
            scratch.take((a, a, *box.shape, B), dtype)
        transform_output(winograd, None, 0, box, None, shape_only(B, dtype), scratch)
        most = max(most, scratch.most)
    return inner, most


@lru_cache(maxsize=1024)
def conv_plan(winograd: Winograd, N: int, outputs: Pair, A: int, B: int, K: int, C: int, dtype: str) -> ConvPlan:
    """How a convolution of A to B channels with a filter (K, r, r, C) is cut up."""
    m, a, item = winograd.m, winograd.a, numpy.dtype(dtype).itemsize
    rows, columns = ceil_div(outputs[0], m), ceil_div(outputs[1], m)
    filter_bytes = array_bytes(dtype, a, a, K, C)
    tall = max(GOOD_HEIGHT, BLOCK // (a * a * (A + B) * item))
    if tall < rows * columns <= 1.5 * tall:
        tall = rows * columns  # one block rather than two low ones
    boxes = tiles(N, rows, columns, tall)
    fused = len(boxes) >= FEW_BLOCKS or filter_bytes < LARGE_FILTER
    phases: tuple[Sequence[Tile], ...] = (boxes,)
    if not fused:
        boxes = tiles(N, rows, columns, max(8, ceil_div(N * rows * columns, 2 * FEW_BLOCKS)))
        phases = phases_of(boxes, PHASE)
    block_bytes, scratch = block_scratch(winograd, boxes, A, B, dtype, fused)
    filter_blocks = blocks_of_filters(winograd, K, C, item)
    measuring = Scratch.measuring()
    transform_filter(winograd, shape_only(C, dtype), (0, height(filter_blocks)), False, False, None, measuring)
    most = max(scratch, measuring.most)
    return ConvPlan(phases, fused, largest(phases), filter_blocks, filter_bytes, block_bytes, most)


class WeightsPlan(NamedTuple):
    """How backward_weights is cut up.

    fused   for small filters and many tiles: a worker takes the blocks of a phase one by one through transforms and
            product, and adds the product to the phase's sum; the sums are added up in order
    phased  one phase after the other, its blocks and products shared out; products are added up in order
    """

    phases: tuple[Sequence[Tile], ...]
    fused: bool
    tiles: int  # in the largest phase; in the largest block, if fused
    filter_blocks: tuple[Pair, ...]
    scratch: int  # bytes per worker, the transformed tiles of a block included, if fused

    @property
    def products(self) -> int:
        """How many are added up, at most one after the other."""
        return max(map(len, self.phases)) + len(self.phases) if self.fused else len(self.phases)

    def shared(self, a: int, K: int, C: int, dtype: str) -> int:
        """Bytes for the sums and, if phased, for the transformed tiles of a phase."""
        if self.fused:
            return array_bytes(dtype, len(self.phases), a, a, K, C)
        return sum(array_bytes(dtype, a, a, *shape) for shape in ((self.tiles, C), (self.tiles, K), (K, C)))


@lru_cache(maxsize=1024)
def weights_plan(winograd: Winograd, N: int, outputs: Pair, K: int, C: int, dtype: str) -> WeightsPlan:
    """How backward_weights is cut up."""
    m, a, item = winograd.m, winograd.a, numpy.dtype(dtype).itemsize
    rows, columns = ceil_div(outputs[0], m), ceil_div(outputs[1], m)
    total, filter_blocks = N * rows * columns, blocks_of_filters(winograd, K, C, item)
    boxes = tiles(N, rows, columns, max(GOOD_HEIGHT, BLOCK // (a * a * (K + C) * item)))
    fused = len(boxes) >= 2 * GROUPS and array_bytes(dtype, a, a, K, C) <= SMALL_SUMS
    phases: tuple[Sequence[Tile], ...]
    if fused:
        phases = tuple(boxes[i:j] for i, j in spans(len(boxes), ceil_div(len(boxes), GROUPS)))
        most = fused_weights_scratch(winograd, boxes, K, C, dtype)
    else:
        tall = max(PHASE, WEIGHTS_PHASE // (a * a * (K + C) * item))
        boxes = tiles(N, rows, columns, max(8, ceil_div(min(total, tall), PARTS)))
        phases = phases_of(boxes, tall)
        most = max(source_scratch(winograd, boxes, K, C, dtype), array_bytes(dtype, K, C) if len(phases) > 1 else 0)
    measuring = Scratch.measuring()
    transform_taps(winograd, None, (0, height(filter_blocks)), shape_only(C, dtype), measuring)
    size = boxes.most_pixels if fused else largest(phases)
    return WeightsPlan(phases, fused, size, filter_blocks, max(most, measuring.most))


def source_scratch(winograd: Winograd, boxes: Tiles, K: int, C: int, dtype: str) -> int:
    """Bytes that a worker needs to transform blocks of x and of dy."""
    most = 0
    for box in boxes.distinct:
        source, gradient = Scratch.measuring(), Scratch.measuring()
        transform_input(winograd, shape_only(C, dtype), box, (0, 0), None, 0, source)
        transform_gradient(winograd, shape_only(K, dtype), box, None, 0, gradient)
        most = max(most, source.most, gradient.most)
    return most


def fused_weights_scratch(winograd: Winograd, boxes: Tiles, K: int, C: int, dtype: str) -> int:
    """Bytes of a worker's block, transformed, and of the transforms' scratch, which becomes the product."""
    a, size = winograd.a, boxes.most_pixels
    product = array_bytes(dtype, a, a, K, C)
    blocks = array_bytes(dtype, a, a, size, C) + array_bytes(dtype, a, a, size, K)
    return blocks + max(product, source_scratch(winograd, boxes, K, C, dtype))


def largest(phases: tuple[Sequence[Tile], ...]) -> int:
    """Tiles in the largest phase."""
    return max(p.pixels if isinstance(p, Tiles) else sum(box.pixels for box in p) for p in phases)


def blocks_of_filters(winograd: Winograd, K: int, C: int, item: int) -> tuple[Pair, ...]:
    """Spans of output channels whose transform takes about FILTER_BLOCK bytes; each is one task."""
    return tuple(spans(K, max(1, FILTER_BLOCK // (winograd.a * winograd.r * C * item))))


def height(filter_blocks: tuple[Pair, ...]) -> int:
    """Output channels in the largest block."""
    return max(last - first for first, last in filter_blocks)
