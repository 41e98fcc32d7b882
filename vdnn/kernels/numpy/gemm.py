"""Convolution as tiled im2col and GEMM: forward and backward_data, which both gather.

N batch, C channels of the source, K channels of the result (both per group), P pixels, taps = R * S filter taps.
A tile of pixels is packed into a matrix (P, taps * C), multiplied with the filter (taps * C, K), and lands in the
result.  Where a tile of useful height does not fit the workspace, the taps are taken in several chunks that are added
up.  Tiles and chunks depend on shapes only, never on the number of threads, so neither do the bits of the result.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div
from vdnn.kernels.numpy.window import Tile, Tiles, Window, pack, tiles
from vdnn.layers.base import Array

if TYPE_CHECKING:
    from vdnn.kernels.numpy.routines import Routines

GOOD_HEIGHT = 128  # pixels of a tile; below about 100 rows the GEMM spends its time on reading the filter
FLOPS = 5e10  # per second and core, roughly: decides whether an operation is worth splitting


class Chunk(NamedTuple):
    """Filter taps r0 .. r1 - 1 by s0 .. s1 - 1, multiplied in one GEMM."""

    r0: int
    r1: int
    s0: int
    s1: int

    @property
    def taps(self) -> int:
        """Number of taps."""
        return (self.r1 - self.r0) * (self.s1 - self.s0)


def chunkings(R: int, S: int) -> tuple[tuple[Chunk, ...], ...]:
    """The ways to cut R x S taps: not at all, into rows, into single taps."""
    rows = tuple(Chunk(r, r + 1, 0, S) for r in range(R))
    single = tuple(Chunk(r, r + 1, s, s + 1) for r in range(R) for s in range(S))
    return (Chunk(0, R, 0, S),), rows, single


@dataclass(frozen=True)
class Blocking:
    """How one gather is cut up, and what each worker needs for it."""

    chunks: tuple[Chunk, ...]
    pixels: int  # of a tile
    packs: bool  # False: the source itself is the matrix (1x1, stride 1, no padding)
    lands: bool  # True: the GEMM can write into the result itself
    C: int
    K: int
    dtype: str

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of a worker's scratch arrays: packed matrix, sum where it cannot land, term to be added."""
        taps = max(chunk.taps for chunk in self.chunks)
        return (
            (self.pixels if self.packs else 0, taps * self.C),
            (0 if self.lands else self.pixels, self.K),
            (self.pixels if len(self.chunks) > 1 else 0, self.K),
        )

    @property
    def scratch(self) -> int:
        """Bytes per worker."""
        return sum(array_bytes(self.dtype, *shape) for shape in self.shapes())


def is_plain(rows: Window, columns: Window) -> bool:
    """Whether the windows are 1x1 with stride 1 and no padding, so that nothing needs packing."""
    return all(a.taps == 1 and a.step == 1 and a.offset == 0 and a.outputs == a.length for a in (rows, columns))


class Limits(NamedTuple):
    """What an algorithm may use."""

    scratch: int  # bytes per worker, about
    parts: int  # a large operation is cut into at least so many tiles, for several workers to share


def block(
    N: int, rows: Window, columns: Window, C: int, K: int, dtype: str, limits: Limits, lands: bool, whole: bool
) -> Blocking:
    """The blocking within the limits: the fewest chunks that allow tiles of a good height.

    `whole` False: only single taps, for filters that are not laid out for more.
    """
    item = numpy.dtype(dtype).itemsize
    total = N * rows.outputs * columns.outputs
    most = max(2 * GOOD_HEIGHT, ceil_div(total, limits.parts))
    choices = chunkings(rows.taps, columns.taps)
    packs = not is_plain(rows, columns)
    blocking = None
    for chunks in choices if whole else choices[2:]:
        # per pixel: its row of the matrix, its sum, its term
        per_pixel = (packs * chunks[0].taps * C + (not lands) * K + (len(chunks) > 1) * K) * item
        pixels = max(1, min(most, total, (limits.scratch - 256) // per_pixel if per_pixel else most))
        if blocking is None or (blocking.pixels < min(GOOD_HEIGHT, total) and pixels > blocking.pixels):
            blocking = Blocking(chunks, pixels, packs, lands, C, K, dtype)
    assert blocking is not None
    return blocking


class Gather(NamedTuple):
    """One product: windows over channels first .. last - 1 of the source, times the filter, into the result."""

    source: Array  # (N, H, W, all channels), contiguous
    channels: tuple[int, int]
    rows: Window
    columns: Window
    filters: tuple[Array, ...]  # per chunk: (taps * C, K)
    bias: Array | None  # (K,)
    result: Array  # (N, rows.outputs, columns.outputs, K), a view with any strides
    blocking: Blocking
    rectify: bool = False  # whether max(result, 0) is written in place of it

    def tiles(self) -> Tiles:
        """The tiles; each is one task."""
        return tiles(len(self.source), self.rows.outputs, self.columns.outputs, self.blocking.pixels)

    def matrix(self, chunk: Chunk, tile: Tile, scratch: Array) -> Array:
        """(pixels, taps * C): what the tile sees through the chunk's taps."""
        if not self.blocking.packs:
            view = self.source[tile.n0 : tile.n1, tile.h0 : tile.h1, tile.w0 : tile.w1, slice(*self.channels)]
            return view.reshape(tile.pixels, self.blocking.C)  # a view: a tile is contiguous
        matrix = scratch.reshape(-1)[: tile.pixels * chunk.taps * self.blocking.C]
        shape = (*tile.shape, chunk.r1 - chunk.r0, chunk.s1 - chunk.s0, self.blocking.C)
        rows, columns = self.rows.only(chunk.r0, chunk.r1), self.columns.only(chunk.s0, chunk.s1)
        pack(self.source, self.channels, rows, columns, tile, matrix.reshape(shape))
        return matrix.reshape(tile.pixels, -1)

    def run(self, tile: Tile, scratch: Scratch, routines: Routines) -> None:
        """Compute one tile of the result."""
        packed, sums, terms = (scratch.take(shape, self.blocking.dtype) for shape in self.blocking.shapes())
        box = self.result[tile.n0 : tile.n1, tile.h0 : tile.h1, tile.w0 : tile.w1]
        out = box.reshape(tile.pixels, -1) if self.blocking.lands else sums[: tile.pixels]
        for i, (chunk, filter) in enumerate(zip(self.blocking.chunks, self.filters, strict=True)):
            term = out if i == 0 else terms[: tile.pixels]
            numpy.matmul(self.matrix(chunk, tile, packed), filter, out=term)
            if i > 0:
                numpy.add(out, term, out=out)
        if self.bias is not None:
            routines.add_bias(out, self.bias)
        if self.rectify:
            flat = out.reshape(-1) if out.flags.c_contiguous else out
            routines.relu(flat, flat)
        if not self.blocking.lands:
            numpy.copyto(box, out.reshape(box.shape))


def run_gathers(workers: Sharing, gathers: list[Gather], workspace: Array | None, start: int, flops: int) -> None:
    """Run all gathers' tiles on the workers; each has its scratch in the workspace, from byte `start` on."""
    parts = [gather.tiles() for gather in gathers]
    firsts = list(accumulate(map(len, parts), initial=0))  # of each gather, the number of its first task
    size, routines = max(gather.blocking.scratch for gather in gathers), workers.routines

    def run(task: int, worker: int) -> None:
        n = bisect_right(firsts, task) - 1
        gathers[n].run(parts[n][task - firsts[n]], Scratch(workspace, start + worker * size), routines)

    workers.parallel(run, firsts[-1], flops / FLOPS)
