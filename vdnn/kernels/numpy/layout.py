"""Channels-last views of logical (N, C, H, W) arrays, and arrays carved out of a workspace."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy

from vdnn.layers.base import Array, Shape

ALIGNMENT = 64  # bytes: a cache line


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def aligned(size: int) -> int:
    """`size` bytes rounded up to whole cache lines."""
    return ceil_div(size, ALIGNMENT) * ALIGNMENT


def channels_last(x: Array) -> Array:
    """The (N, H, W, C) view of x: (N, C, H, W), or of a filter; a copy if it is not stored so (slower)."""
    return numpy.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_last_output(y: Array) -> Array:
    """The (N, H, W, C) view of an array to be written; a temporary if it is not stored so (see `deliver`)."""
    view = y.transpose(0, 2, 3, 1)
    return view if view.flags.c_contiguous else numpy.empty(view.shape, view.dtype)


def deliver(result: Array, y: Array) -> None:
    """Copy `result` into y if it was a temporary of `channels_last_output`."""
    view = y.transpose(0, 2, 3, 1)
    if not view.flags.c_contiguous:
        numpy.copyto(view, result)


def window(base: Array, offset: int, shape: Shape, strides: Shape) -> Array:
    """A view of contiguous `base` from element `offset`, strides in elements.  as_strided is 10 times slower."""
    item = base.itemsize
    return numpy.ndarray(shape, base.dtype, base, offset * item, tuple(s * item for s in strides))


class Scratch:
    """Hands out arrays from a workspace, one after another.

    `Scratch.measuring()` has no workspace and hands out None: the same code then tells how much it would use.
    """

    def __init__(self, workspace: Array | None, start: int = 0, measures: bool = False) -> None:
        self.workspace = workspace
        self.start = start
        self.most = start
        self.measures = measures

    @classmethod
    def measuring(cls) -> Scratch:
        """A scratch that only counts; `most` is the result."""
        return cls(None, measures=True)

    def take(self, shape: Sequence[int], dtype: str) -> Array:
        """The next array; its contents are arbitrary."""
        start = self.start
        self.start += array_bytes(dtype, *shape)
        self.most = max(self.most, self.start)
        return None if self.measures else numpy.ndarray(tuple(shape), dtype, self.workspace, start)


def array_bytes(dtype: str, *shape: int) -> int:
    """What `Scratch.take` uses up for an array."""
    return aligned(math.prod(shape) * numpy.dtype(dtype).itemsize)


def spans(total: int, size: int) -> list[tuple[int, int]]:
    """0 .. total cut into near-equal spans of at most `size`."""
    count = ceil_div(total, size)
    edges = [total * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def multiples(total: int, count: int, unit: int) -> tuple[tuple[int, int], ...]:
    """0 .. total cut into at most `count` spans that begin at multiples of `unit`."""
    size = ceil_div(total, count * unit) * unit
    return tuple((first, min(first + size, total)) for first in range(0, total, size))
