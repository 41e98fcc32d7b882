"""Max pooling, compiled: window by window, channels innermost.  Sizes and numbering as in `pool.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.routines import Routines
from vdnn.layers.base import Array
from vdnn.layers.window import Window

Pair = tuple[int, int]
Numbers = tuple[int, ...]
NOWHERE = numpy.uint8(255)  # the winner of a window that lies in the padding


@compiled
def begin(x: Array, y: Array, winners: Array, k: int) -> None:
    """The window's first element inside x is its largest so far."""
    for c in range(y.size):
        y[c] = x[c]
    for c in range(winners.size):
        winners[c] = k


@compiled
def improve(x: Array, y: Array, winners: Array, k: int) -> None:
    """Take x where it is larger than y, or NaN."""
    number = numpy.uint8(k)
    for c in range(y.size):
        takes = (x[c] > y[c]) | (x[c] != x[c])
        y[c] = x[c] if takes else y[c]
        winners[c] = number if takes else winners[c]


@compiled
def finish(y: Array, winners: Array, first: int) -> None:
    """Where y is NaN, the first element inside x wins."""
    number = numpy.uint8(first)
    for c in range(y.size):
        winners[c] = winners[c] if y[c] == y[c] else number


@compiled
def largest(
    x: Array, y: Array, index: Array, has_index: bool, n: int, rows: Pair, shape: Numbers, window: Numbers
) -> None:
    """y and index of output rows rows[0] .. rows[1] - 1 of n images; shape: H, W, Q, C."""
    H, W, Q, C = shape
    R, S, stride0, stride1, padding0, padding1, dilation0, dilation1 = window
    spare = numpy.empty(C, numpy.uint8)
    to = 0
    for image in range(n):
        for p in range(rows[0], rows[1]):
            for q in range(Q):
                best = y[to : to + C]
                winners = index[to : to + C] if has_index else spare
                first = -1
                for k in range(R * S):
                    h = p * stride0 - padding0 + k // S * dilation0
                    w = q * stride1 - padding1 + k % S * dilation1
                    if h < 0 or h >= H or w < 0 or w >= W:
                        continue
                    at = ((image * H + h) * W + w) * C
                    if first < 0:
                        first = k
                        begin(x[at : at + C], best, winners, k)
                    else:
                        improve(x[at : at + C], best, winners, k)
                if first < 0:  # a dilated window may step over all of a small x
                    first = 255
                    for c in range(C):
                        best[c] = -numpy.inf
                        winners[c] = 255
                finish(best, winners, first)
                to += C


@compiled
def match(x: Array, y: Array, winners: Array, k: int) -> None:
    """k wins where x is not below y and none has won yet."""
    number = numpy.uint8(k)
    for c in range(winners.size):
        takes = (winners[c] == NOWHERE) & (not x[c] < y[c])
        winners[c] = number if takes else winners[c]


@compiled
def give(winners: Array, k: int, dy: Array, dx: Array) -> None:
    """dx += dy where k has won."""
    number, zero = numpy.uint8(k), dy.dtype.type(0)
    for c in range(dy.size):
        dx[c] += dy[c] if winners[c] == number else zero


@compiled
def spread(
    index: Array, has_index: bool, x: Array, y: Array, dy: Array, dx: Array, n: int, shape: Numbers, window: Numbers
) -> None:
    """dx of n images from index, or from x and y; shape: H, W, P, Q, C."""
    H, W, P, Q, C = shape
    R, S, stride0, stride1, padding0, padding1, dilation0, dilation1 = window
    spare = numpy.empty(C, numpy.uint8)
    zero = dx.dtype.type(0)
    for i in range(dx.size):
        dx[i] = zero
    at = 0
    for image in range(n):
        for p in range(P):
            for q in range(Q):
                winners = index[at : at + C] if has_index else spare
                if not has_index:
                    for c in range(C):
                        spare[c] = NOWHERE
                for step in range(1 if has_index else 0, 2):  # find the winners, if need be; then give to them
                    for k in range(R * S):
                        h = p * stride0 - padding0 + k // S * dilation0
                        w = q * stride1 - padding1 + k % S * dilation1
                        if h < 0 or h >= H or w < 0 or w >= W:
                            continue
                        to = ((image * H + h) * W + w) * C
                        if step == 0:
                            match(x[to : to + C], y[at : at + C], winners, k)
                        else:
                            give(winners, k, dy[at : at + C], dx[to : to + C])
                at += C


def numbers(window: Window) -> Numbers:
    """A window as the kernels take it."""
    return (*window.size, *window.stride, *window.padding, *window.dilation)


def are_dense(*arrays: Array | None) -> bool:
    """Whether the arrays are contiguous."""
    return all(a is None or a.flags.c_contiguous for a in arrays)


NONE = numpy.zeros(1, numpy.uint8)  # in place of indices


class PoolRoutines:
    """Max pooling and its backward; NumPy's for arrays that are not channels-last."""

    @staticmethod
    def max_pool(x: Array, y: Array, index: Array | None, window: Window, rows: Pair, scratch: Array | None) -> None:
        """y and index of output rows `rows` of some images; x: (n, H, W, C), y: (n, rows, Q, C)."""
        if not are_dense(x, y, index):
            Routines.max_pool(x, y, index, window, rows, scratch)
            return
        shape = (*x.shape[1:3], *y.shape[2:])
        indices = NONE if index is None else index.reshape(-1)
        has_index = index is not None
        largest(x.reshape(-1), y.reshape(-1), indices, has_index, len(x), rows, shape, numbers(window))

    @staticmethod
    def max_pool_backward(
        index: Array | None,
        x: Array | None,
        y: Array | None,
        dy: Array,
        dx: Array,
        window: Window,
        rows: Sequence[Pair],
        scratch: Array,
    ) -> None:
        """dx of some images, from index or from x and y."""
        if not are_dense(index, x, y, dy, dx):
            Routines.max_pool_backward(index, x, y, dy, dx, window, rows, scratch)
            return
        shape = (*dx.shape[1:3], *dy.shape[1:])
        indices = NONE if index is None else index.reshape(-1)
        flat_dy, sizes = dy.reshape(-1), numbers(window)
        flat_x, flat_y = (flat_dy if a is None else a.reshape(-1) for a in (x, y))
        has_index = index is not None
        spread(indices, has_index, flat_x, flat_y, flat_dy, dx.reshape(-1), len(dx), shape, sizes)
