"""Which input elements an output element sees, and packing them into the rows of a matrix (im2col), tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import NamedTuple, overload

import numpy

from vdnn.kernels.numpy.layout import spans, window
from vdnn.layers.base import Array

Cuts = list[tuple[int, int]]  # along one axis, as (first, after last)


@dataclass(frozen=True)
class Window:
    """One axis of a sliding window: output t sees source[t * step + j * dilation + offset] through tap j.

    Elements outside 0 .. length - 1 are padding: zero.
    """

    outputs: int
    taps: int
    step: int
    dilation: int
    offset: int
    length: int

    def only(self, first: int, last: int) -> Window:
        """The window with taps first .. last - 1."""
        return replace(self, taps=last - first, offset=self.offset + first * self.dilation)


class Run(NamedTuple):
    """Outputs first .. last - 1 of a window, which see the source through taps low .. high - 1 and padding else."""

    first: int
    last: int
    low: int
    high: int


@lru_cache(maxsize=65536)
def runs(axis: Window, first: int, last: int) -> tuple[Run, ...]:
    """Outputs first .. last - 1 cut into the longest runs that see the source through the same taps."""
    found: list[Run] = []
    for t in range(first, last):
        start = t * axis.step + axis.offset
        low = min(max(0, -(start // axis.dilation)), axis.taps)
        high = max(low, min(axis.taps, (axis.length - 1 - start) // axis.dilation + 1))
        if found and found[-1][2:] == (low, high):
            found[-1] = found[-1]._replace(last=t + 1)
        else:
            found.append(Run(t, t + 1, low, high))
    return tuple(found)


class Tile(NamedTuple):
    """A box of output pixels: images n0 .. n1 - 1, rows h0 .. h1 - 1, columns w0 .. w1 - 1."""

    n0: int
    n1: int
    h0: int
    h1: int
    w0: int
    w1: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(images, rows, columns)."""
        return self.n1 - self.n0, self.h1 - self.h0, self.w1 - self.w0

    @property
    def pixels(self) -> int:
        """Number of output pixels."""
        images, rows, columns = self.shape
        return images * rows * columns


class Tiles(Sequence[Tile]):
    """Tiles made when asked for: a large batch has many thousands, and a list of them would be memory of size."""

    def __init__(self, images: Cuts, rows: Cuts, columns: Cuts) -> None:
        self.images, self.rows, self.columns = images, rows, columns

    def __len__(self) -> int:
        return len(self.images) * len(self.rows) * len(self.columns)

    @property
    def pixels(self) -> int:
        """Output pixels of all tiles."""
        return prod(sum(b - a for a, b in cuts) for cuts in (self.images, self.rows, self.columns))

    @property
    def most_pixels(self) -> int:
        """Output pixels of the largest tile."""
        return prod(max(b - a for a, b in cuts) for cuts in (self.images, self.rows, self.columns))

    @property
    def distinct(self) -> tuple[Tile, ...]:
        """A tile of every shape that there is, without a look at each."""
        axes = [{b - a: (a, b) for a, b in cuts}.values() for cuts in (self.images, self.rows, self.columns)]
        return tuple(Tile(*image, *row, *column) for image, row, column in product(*axes))

    @overload
    def __getitem__(self, i: int) -> Tile: ...

    @overload
    def __getitem__(self, i: slice) -> tuple[Tile, ...]: ...

    def __getitem__(self, i: int | slice) -> Tile | tuple[Tile, ...]:
        if isinstance(i, slice):
            return tuple(self[j] for j in range(*i.indices(len(self))))
        if not 0 <= i < len(self):
            raise IndexError(i)
        above, column = divmod(i, len(self.columns))
        image, row = divmod(above, len(self.rows))
        return Tile(*self.images[image], *self.rows[row], *self.columns[column])


@lru_cache(maxsize=1024)
def tiles(N: int, H: int, W: int, pixels: int) -> Tiles:
    """N planes of H x W cut into boxes of at most `pixels`, each contiguous in memory: images, rows or parts of one."""
    if pixels >= H * W:
        return Tiles(spans(N, pixels // (H * W)), [(0, H)], [(0, W)])
    if pixels >= W:
        return Tiles(spans(N, 1), spans(H, pixels // W), [(0, W)])
    return Tiles(spans(N, 1), spans(H, 1), spans(W, pixels))


def forward_windows(
    source: tuple[int, int],
    outputs: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[Window, Window]:
    """The windows of a convolution's output pixels over its input."""
    rows, columns = (Window(outputs[i], taps[i], stride[i], dilation[i], -padding[i], source[i]) for i in range(2))
    return rows, columns


class Phase(NamedTuple):
    """Input pixels start, start + stride, ...: a stride-1 window over the output, through filter taps in order."""

    start: int
    taps: tuple[int, ...]
    axis: Window


def backward_phases(
    source: int, outputs: int, taps: int, stride: int, padding: int, dilation: int
) -> tuple[Phase, ...]:
    """One axis of backward_data: for each residue of the input index modulo the stride, its window over dy.

    Input i receives dy[o] through tap r where o * stride = i + padding - r * dilation.  For i = start + t * stride
    that is o = t + (start + padding - r * dilation) / stride, for the taps r that divide; in falling order of r the
    index rises.  So every element of dx is a sum that one worker gathers, and nothing is scattered.
    """
    phases = []
    for start in range(min(stride, source)):
        fitting = tuple(r for r in reversed(range(taps)) if (start + padding - r * dilation) % stride == 0)
        count = (source - start + stride - 1) // stride
        offset = (start + padding - fitting[0] * dilation) // stride if fitting else 0
        axis = Window(count, len(fitting), 1, dilation // gcd(stride, dilation), offset, outputs)
        phases.append(Phase(start, fitting, axis))
    return tuple(phases)


def pack(x: Array, channels: tuple[int, int], rows: Window, columns: Window, tile: Tile, out: Array) -> None:
    """Write what the tile's pixels see of x: (N, H, W, C), channels first .. last - 1, into out.

    out: (images, rows, columns, taps of rows, taps of columns, channels), contiguous; padding is written as zeros,
    so nothing of the buffer's former contents stays.
    """
    _, H, W, C = x.shape
    n, width = tile.n1 - tile.n0, channels[1] - channels[0]
    strides = (H * W * C, rows.step * W * C, columns.step * C, rows.dilation * W * C, columns.dilation * C, 1)
    for a, b, r0, r1 in runs(rows, tile.h0, tile.h1):
        band = out[:, a - tile.h0 : b - tile.h0]
        if r0 > 0:
            band[:, :, :, :r0] = 0
        if r1 < rows.taps:
            band[:, :, :, r1:] = 0
        if r0 == r1:
            continue
        h = a * rows.step + r0 * rows.dilation + rows.offset
        for c, d, s0, s1 in runs(columns, tile.w0, tile.w1):
            box = band[:, :, c - tile.w0 : d - tile.w0, r0:r1]
            if s0 > 0:
                box[..., :s0, :] = 0
            if s1 < columns.taps:
                box[..., s1:, :] = 0
            if s0 < s1:
                w = c * columns.step + s0 * columns.dilation + columns.offset
                offset = ((tile.n0 * H + h) * W + w) * C + channels[0]
                shape = (n, b - a, d - c, r1 - r0, s1 - s0, width)
                numpy.copyto(box[..., s0:s1, :], window(x, offset, shape, strides))
