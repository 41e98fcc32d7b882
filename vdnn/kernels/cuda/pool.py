"""Pooling: forward takes a thread per element of y, backward one per element of dx, which gathers what is its.

N batch, C channels; H, W rows and columns of x; P, Q of y.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from vdnn.kernels.cuda.base import BLOCK, Launching, is_contiguous, reciprocal, storage_of
from vdnn.layers.base import Array
from vdnn.layers.common import elements
from vdnn.layers.window import Pair, Window

RUN = 4  # elements of a plane for each thread, at least, that computes its mean


class PoolKernels(Launching):
    """max_pool and avg_pool with their backwards; global_avg_pool.  None of them needs scratch."""

    def max_pool(self, x: Array, y: Array, indices: Array | None, window: Window, workspace: Any = None) -> None:
        """y = the largest of each window, NaN if it holds one; indices: uint8, k of the first that is largest."""
        last = _is_last(x, y, indices)
        self._forward("max_pool", [x, y, indices], x, y, window, last)

    def max_pool_backward(self, indices: Array, dy: Array, dx: Array, window: Window, workspace: Any = None) -> None:
        """dx = dy at each window's winner, added up where windows overlap, from the winners' indices."""
        last = _is_last(indices, dy, dx)
        self._backward("max_pool_backward", [indices, dy, dx], dy, dx, window, last)

    def max_pool_backward_input(
        self, x: Array, y: Array, dy: Array, dx: Array, window: Window, workspace: Any = None
    ) -> None:
        """The same, bit for bit, from x and y instead of indices."""
        last = _is_last(x, y, dy, dx)
        self._backward("max_pool_backward_input", [x, y, dy, dx], dy, dx, window, last)

    def avg_pool(self, x: Array, y: Array, window: Window, include_padding: bool) -> None:
        """y = the mean of each window, divided as PyTorch does (see Window.counts)."""
        self._forward("avg_pool", [x, y], x, y, window, _is_last(x, y), int(include_padding))

    def avg_pool_backward(
        self, dy: Array, dx: Array, window: Window, include_padding: bool, workspace: Any = None
    ) -> None:
        """dx = the sum over windows of dy / divisor."""
        divisor = _common_divisor(window, dx.shape[2:], dy.shape[2:], include_padding)
        last = _is_last(dy, dx)
        self._backward("avg_pool_backward", [dy, dx], dy, dx, window, last, int(include_padding), divisor)

    def global_avg_pool(self, x: Array, y: Array) -> None:
        """y: (N, C, 1, 1) = the mean of each channel's plane."""
        N, C, H, W = x.shape
        last = _is_last(x)
        _check_flat(y)
        # threads of one plane: as many as it keeps busy; channels-last, at least 8 channels lie side by side
        least, most = (8, 32) if last else (1, BLOCK)
        threads = max(least, min(most, 1 << (max(1, H * W // RUN) - 1).bit_length()))
        columns = BLOCK // threads
        blocks = min(-(-N * C // columns), LARGEST_GRID)
        self.launch("global_avg_pool", x, blocks, x, y, N * C, C, H * W, int(last), columns)

    def global_avg_pool_backward(self, dy: Array, dx: Array) -> None:
        """dx = dy / (H * W) everywhere in a channel's plane."""
        N, C, H, W = dx.shape
        last = _is_last(dx)
        _check_flat(dy)
        inner = C if last else H * W
        grid = self.over_images(C * H * W, N)
        self.launch("global_avg_pool_backward", dx, grid, dy, dx, N, C, H * W, int(last), inner, reciprocal(inner))

    def _forward(
        self, name: str, arrays: list[Any], x: Array, y: Array, window: Window, last: bool, *more: int
    ) -> None:
        N, C, P, Q = y.shape
        self.over_images(elements(x.shape[1:]), N)  # x must not be too large either
        grid = self.over_images(C * P * Q, N)
        self.launch(name, x, grid, *arrays, N, C, *_sizes(window, x, y), int(last), *_inner(y, last), *more)

    def _backward(
        self, name: str, arrays: list[Any], dy: Array, dx: Array, window: Window, last: bool, *more: int
    ) -> None:
        N, C, H, W = dx.shape
        self.over_images(elements(dy.shape[1:]), N)
        grid = self.over_images(C * H * W, N)
        strides = [reciprocal(s) for s in window.stride]
        sizes = _sizes(window, dx, dy)
        self.launch(name, dx, grid, *arrays, N, C, *sizes, int(last), *_inner(dx, last), *strides, *more)


LARGEST_GRID = 2**31 - 1  # blocks


def _is_last(*arrays: Array | None) -> bool:
    return storage_of(*(a for a in arrays if a is not None)) == "nhwc"


def _check_flat(y: Array) -> None:
    if not is_contiguous(y):
        raise ValueError(f"array of {y.shape} by {y.strides} is not contiguous")


def _packed(pair: Pair) -> int:
    """Two sizes as the kernels take them."""
    return pair[0] << 32 | pair[1]


def _sizes(window: Window, x: Array, y: Array) -> list[int]:
    """hw, pq, size, stride, padding, dilation."""
    pairs = (x.shape[2:], y.shape[2:], window.size, window.stride, window.padding, window.dilation)
    return [_packed(p) for p in pairs]


def _inner(a: Array, last: bool) -> list[int]:
    """Reciprocals of the two innermost sizes of `a` as stored."""
    _, C, H, W = a.shape
    return [reciprocal(s) for s in ((C, W) if last else (W, H))]


@cache
def _common_divisor(window: Window, hw: Pair, pq: Pair, include_padding: bool) -> int:
    """What all windows are divided by, 0 if that differs."""
    divisor = 1
    for axis in (0, 1):
        first, *others = window.counts(axis, hw[axis], pq[axis], include_padding)
        divisor *= first if all(o == first for o in others) else 0
    return divisor
