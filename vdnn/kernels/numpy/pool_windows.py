"""Max pooling of a block: the largest of each window, the winners, and the gradients' way back to them.

n images, C channels; H, W rows and columns of x; P, Q of y.  All arrays are channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import carve, like
from vdnn.layers.window import Window

Array = Any
Pair = tuple[int, int]
INTEGER = {4: np.dtype("int32"), 8: np.dtype("int64")}


def max_pool(x: Array, y: Array, index: Array | None, window: Window, rows: Pair, scratch: Array | None) -> None:
    """y and index of output rows rows[0] .. rows[1] - 1 of some images; x: (n, H, W, C), y: (n, rows, Q, C).

    index needs scratch for a byte per element of y.
    """
    is_empty = True
    for _, out, into in window.positions(x.shape[1:3], rows, y.shape[2]):
        part = y[out]
        if is_empty and part.shape == y.shape:
            np.copyto(y, x[into])
        else:
            if is_empty:
                y[...] = -np.inf
            np.maximum(part, x[into], out=part)
        is_empty = False
    if is_empty:  # a dilated window may step over all of a small x
        y[...] = -np.inf
    if index is not None and scratch is not None:
        (match,) = carve(scratch, (y.size, "uint8"))
        _winners(x, y, index, window, rows, match)


def max_pool_backward(
    index: Array,
    x: Array,
    y: Array,
    dy: Array,
    dx: Array,
    window: Window,
    blocks: Sequence[Pair],
    scratch: Array,
) -> None:
    """dx: (n, H, W, C) of some images, from index, or from x and y if that is None.

    blocks: rows of y, from .. to, one by one.
    """
    size = dy[:, slice(*blocks[0])].size
    term, mask, match, found = carve(scratch, *backward_specs(dx.dtype, size))
    dx[...] = 0
    for rows in blocks:
        gradient = dy[:, slice(*rows)]
        if index is not None:
            winners = index[:, slice(*rows)]
        else:
            winners = like(found, gradient)
            _winners(x, y[:, slice(*rows)], winners, window, rows, match)
        for k, out, into in window.positions(dx.shape[1:3], rows, dy.shape[2]):
            _spread(gradient[out], winners[out], k, dx[into], term, mask, match)


def backward_specs(dtype: Any, size: int) -> tuple[tuple[int, Any], ...]:
    """Scratch that `max_pool_backward` carves for blocks of up to `size` elements of y."""
    kind = np.dtype(dtype)
    return (size, kind), (size, INTEGER[kind.itemsize]), (size, "uint8"), (size, "uint8")


def _winners(x: Array, y: Array, index: Array, window: Window, rows: Pair, match: Array) -> None:
    """index = the least k whose x is not below y, for a block of output rows; y NaN: the first k inside x.

    In numbers of one byte: `x < y` gives 1 or 0, minus that 255 or 0, so 255 stands for "not here", and the least
    over all k is the winner.
    """
    index[...] = 255
    for k, out, into in window.positions(x.shape[1:3], rows, y.shape[2]):
        part = index[out]
        m = like(match, part)
        np.less(x[into], y[out], out=m.view(bool))
        np.negative(m, out=m)
        np.bitwise_or(m, np.uint8(k), out=m)
        np.minimum(part, m, out=part)


def _spread(dy: Array, index: Array, k: int, dx: Array, term: Array, mask: Array, match: Array) -> None:
    """dx += dy where index == k; masked by bits, so that inf and NaN elsewhere do no harm."""
    m = like(match, dy)
    bits = like(mask, dy)
    t = like(term, dy)
    np.equal(index, np.uint8(k), out=m.view(bool))
    np.negative(m, out=m)
    np.copyto(bits, m.view(np.int8))
    np.bitwise_and(bits, dy.view(bits.dtype), out=t.view(bits.dtype))
    np.add(dx, t, out=dx)
