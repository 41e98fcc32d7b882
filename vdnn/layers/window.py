"""Pooling windows: which elements of x each one covers.

A window position is numbered row-major: k = r * S + s for row r and column s of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Window:
    """What slides over the rows and columns of x: its size, stride, padding and dilation."""

    size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)

    def reach(self, axis: int, offset: int, inputs: int, first: int, last: int) -> tuple[slice, slice] | None:
        """For outputs first .. last - 1 along an axis, those whose `offset`-th window position lies inside x.

        Returns (slice of outputs counted from `first`, slice of inputs), or None if there are none.
        """
        stride, shift = self.stride[axis], offset * self.dilation[axis] - self.padding[axis]
        low = max(first, -(shift // stride))  # least o with o * stride + shift >= 0
        high = min(last, (inputs - 1 - shift) // stride + 1)
        if low >= high:
            return None
        start = low * stride + shift
        return slice(low - first, high - first), slice(start, start + (high - low - 1) * stride + 1, stride)

    def positions(self, hw: Pair, rows: Pair, columns: int) -> Iterator[tuple[int, Index, Index]]:
        """(k, where in a block (images, rows, columns, C) of y, where in x) for every window position that meets x.

        hw: rows and columns of x.  rows: those of y that the block holds, from .. to.  columns: those of y, all.
        """
        for r in range(self.size[0]):
            vertical = self.reach(0, r, hw[0], *rows)
            for s in range(self.size[1]):
                horizontal = self.reach(1, s, hw[1], 0, columns)
                if vertical and horizontal:
                    out, into = zip(vertical, horizontal, strict=True)
                    yield r * self.size[1] + s, (slice(None), *out), (slice(None), *into)

    def counts(self, axis: int, inputs: int, outputs: int, include_padding: bool) -> list[int]:
        """PyTorch's divisor along one axis, per output: window positions inside x, or inside x and its padding.

        What ceil_mode lets hang over the padding is never counted.
        """
        pad, size = self.padding[axis], self.size[axis]
        starts = [o * self.stride[axis] - pad for o in range(outputs)]
        if include_padding:
            return [min(start + size, inputs + pad) - start for start in starts]
        return [min(start + size, inputs) - max(start, 0) for start in starts]
