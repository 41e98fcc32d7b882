"""Elementwise kernels: ReLU, a frame for any other, and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vdnn.kernels.cuda.base import BLOCK, Launching, check_alike, dense_alike, strides_of
from vdnn.layers.base import Array
from vdnn.layers.common import elements

PIECE = 1 << 20  # elements: a few arrays of it stay in the L2 cache, from one function's end to the next one's start
BITS = 8  # of a byte of a mask
TILE = 32  # COPY_TILE of the source
MOST_AXES = 4  # of copy_strided
Axes = list[tuple[int, int, int]]  # (size, stride in x, stride in y), strides in elements


class ElementwiseKernels(Launching):
    """relu, relu_mask and their backwards; elementwise, copy, move_average."""

    has_relu_mask = True

    def relu(self, x: Array, y: Array) -> None:
        """y = max(x, 0), never -0.0.  y may be x."""
        self.each("relu", x, y, arrays=(x, y))

    def relu_backward(self, y: Array, dy: Array, dx: Array, workspace: Any = None) -> None:
        """dx = dy where y > 0, +0.0 elsewhere.  dx may be dy."""
        self.each("relu_backward", y, dy, dx, arrays=(y, dy, dx))

    def relu_mask(self, x: Array, y: Array, mask: Array, workspace: Any = None) -> None:
        """y = max(x, 0), never -0.0; mask: uint8, a bit per element as stored, set where y is not 0.  y may be x."""
        check_alike((x, y))
        tiles = -(-x.size // (BITS * BLOCK))
        self.launch("relu_mask", x, min(tiles, self.blocks(x.size)), x, y, mask, x.size)

    def relu_mask_backward(self, mask: Array, dy: Array, dx: Array, workspace: Any = None) -> None:
        """dx = dy where the mask's bit is set, +0.0 elsewhere.  dx may be dy."""
        self.each("relu_mask_backward", mask, dy, dx, arrays=(dy, dx))

    def elementwise_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that elementwise needs for arrays of this shape."""
        return min(PIECE, elements(shape)) * np.dtype(dtype).itemsize

    def elementwise(self, function: Callable[..., None], workspace: Array, *arrays: Array) -> None:
        """Call function(xp, t, *pieces) for every piece of `arrays`, with scratch `t` like a piece of the first.

        `function` is a few ufuncs with `out=`.  An output may be an input if `function` allows it.
        """
        check_alike(arrays)
        flats = [_flat(a) for a in arrays]
        first = flats[0]
        t = workspace[: min(PIECE, first.size) * first.itemsize].view(first.dtype)
        for start in range(0, first.size, PIECE):
            # one object for each address: CuPy copies an input that shares bytes with the output otherwise
            parts = {self.driver.address(a): a[start : start + PIECE] for a in flats}
            pieces = [parts[self.driver.address(a)] for a in flats]
            function(self.driver.xp, t[: pieces[0].size], *pieces)

    def copy(self, x: Array, y: Array) -> None:
        """y = x, whatever the strides of both."""
        start_copy(self, x, y)

    def move_average(self, value: Array, average: Array, momentum: float) -> None:
        """average = (1 - momentum) * average + momentum * value, in place."""
        if momentum == 0:
            return
        ratio = (1 - momentum) / momentum
        self.each("move_average", value, average, float(ratio), float(momentum), arrays=(value, average))


def _flat(a: Array) -> Array:
    """All elements of a dense array as they are stored."""
    return (a if a.flags.c_contiguous else a.transpose(0, 2, 3, 1)).reshape(-1)


def start_copy(kernels: Launching, x: Array, y: Array) -> None:
    """y = x.  A kernel does it rather than a copy engine: those are busy with offloads and prefetches."""
    if x is y:
        return
    if x.shape != y.shape:
        raise ValueError(f"shapes differ: {x.shape}, {y.shape}")
    if dense_alike(x, y):
        kernels.each("copy_flat", x, y, arrays=(x, y))
        return
    axes = _axes(x, y)
    turned = _turned(axes)
    if len(axes) <= 2 and axes[-1][1:] == (1, 1):
        _copy_rows(kernels, x, y, axes)
    elif turned:
        _copy_turned(kernels, x, y, turned)
    elif len(axes) <= MOST_AXES:
        sizes, from_x, from_y = zip(*[(1, 0, 0)] * (MOST_AXES - len(axes)), *axes, strict=True)
        kernels.launch("copy_strided", x, kernels.blocks(x.size), x, y, *sizes, *from_x, *from_y)
    else:
        for xi, yi in zip(x, y, strict=True):
            start_copy(kernels, xi, yi)


def _axes(x: Array, y: Array) -> Axes:
    """The axes in y's order of storage, joined where they lie one after the other in both arrays; at least one."""
    axes = [a for a in zip(x.shape, strides_of(x), strides_of(y), strict=True) if a[0] != 1]
    joined: Axes = []
    for size, in_x, in_y in sorted(axes, key=lambda a: -a[2]):
        if joined and joined[-1][1:] == (size * in_x, size * in_y):
            joined[-1] = (joined[-1][0] * size, in_x, in_y)
        else:
            joined.append((size, in_x, in_y))
    return joined or [(1, 1, 1)]


def _copy_rows(kernels: Launching, x: Array, y: Array, axes: Axes) -> None:
    (rows, x_row, y_row), (columns, _, _) = axes if len(axes) == 2 else [(1, 0, 0), *axes]
    grid, width = kernels.spread(rows, columns)
    kernels.launch("copy_rows", x, grid, x, y, rows, columns, width, x_row, y_row)


def _turned(axes: Axes) -> Axes:
    """[N, A, B] if x is contiguous along A and y along B, else nothing."""
    if axes[-1][2] != 1:
        return []
    along = [a for a in axes[:-1] if a[1] == 1]
    outer = [a for a in axes[:-1] if a[1] != 1] or [(1, 0, 0)]
    return [*outer, *along, axes[-1]] if len(along) == len(outer) == 1 else []


def _copy_turned(kernels: Launching, x: Array, y: Array, axes: Axes) -> None:
    (N, x_n, y_n), (A, _, y_a), (B, x_b, _) = axes
    tiles = -(-A // TILE) * -(-B // TILE)
    grid = tiles, min(N, 65535)
    kernels.launch("copy_turned", x, grid, x, y, N, A, B, x_n, x_b, y_n, y_a)
