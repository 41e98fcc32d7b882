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

    index needs scratch for two bytes per element of y.
    """
    positions = [(out, into) for _, out, into in window.positions(x.shape[1:3], rows, y.shape[2])]
    whole = [into for out, into in positions if y[out].shape == y.shape]
    done = whole[:2]
    if len(done) == 2:
        np.maximum(x[done[0]], x[done[1]], out=y)
    elif done:
        np.copyto(y, x[done[0]])
    else:  # a dilated window may even step over all of a small x
        y[...] = -np.inf
    for out, into in positions:
        if into not in done:
            np.maximum(y[out], x[into], out=y[out])
    if index is not None and scratch is not None:
        _winners(x, y, index, window, rows, *carve(scratch, (y.size, "uint8"), (y.size, "uint8")))


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
    tiled = _are_tiles(window)
    if not tiled:
        dx[...] = 0
    for rows in blocks:
        gradient = dy[:, slice(*rows)]
        if index is not None:
            winners = index[:, slice(*rows)]
        else:
            winners = like(found, gradient)
            _winners(x, y[:, slice(*rows)], winners, window, rows, match, term.view("uint8"))
        if tiled:
            _place(gradient, winners, dx, window, rows[0], scratch)
            continue
        for k, out, into in window.positions(dx.shape[1:3], rows, dy.shape[2]):
            _spread(gradient[out], winners[out], k, dx[into], term, mask, match)
    if tiled:
        (R, S), (_, P, Q, _) = window.size, dy.shape
        dx[:, P * R :] = 0
        dx[:, : P * R, Q * S :] = 0


def backward_specs(dtype: Any, size: int) -> tuple[tuple[int, Any], ...]:
    """Scratch that `max_pool_backward` carves for blocks of up to `size` elements of y."""
    kind = np.dtype(dtype)
    return (size, kind), (size, INTEGER[kind.itemsize]), (size, "uint8"), (size, "uint8")


def _winners(x: Array, y: Array, index: Array, window: Window, rows: Pair, match: Array, alive: Array) -> None:
    """index = the least k whose x is not below y, for a block of output rows; y NaN: the first k inside x.

    That is the number of positions before it: of those up to which all were below y or outside x.  Nothing inside x,
    which takes dilation: 255.
    """
    R, S = window.size
    is_dilated = window.dilation != (1, 1)
    places = {k: (out, into) for k, out, into in window.positions(x.shape[1:3], rows, y.shape[2])}
    below, none = like(match, index), like(alive, index)  # at k; at all positions up to k
    for k in range(R * S if is_dilated else R * S - 1):  # where all before the last are below y, the last is not
        out, into = places.get(k, (None, None))
        if into is None or below[out].shape != below.shape:
            below[...] = 1
        if into is not None:
            np.less(x[into], y[out], out=below[out].view(bool))
        if k == 0:
            np.copyto(none, below)
            np.copyto(index, below)
        else:
            np.bitwise_and(none, below, out=none)
            np.add(index, none, out=index)
    if R * S == 1 and not is_dilated:
        index[...] = 0
    if is_dilated:
        np.negative(none, out=none)
        np.bitwise_or(index, none, out=index)


def _are_tiles(window: Window) -> bool:
    """Whether windows lie side by side from the first element on, and are small enough for the scratch of `_place`."""
    R, S = window.size
    return window.stride == (R, S) and window.padding == (0, 0) and window.dilation == (1, 1) and R * S <= 4


def _place(dy: Array, index: Array, dx: Array, window: Window, first: int, scratch: Array) -> None:
    """dx = dy where index == k and 0 elsewhere, for windows side by side, rows of y from `first` on."""
    (R, S), (n, P, Q, C) = window.size, dy.shape
    target = dx[:, first * R : (first + P) * R, : Q * S].view(INTEGER[dx.itemsize]).reshape(n, P, R, Q, S, C)
    m = scratch[: dy.size * R * S].reshape(target.shape)  # in place of the term of `_spread`
    numbers = np.arange(R * S, dtype=np.uint8).reshape(R, 1, S, 1)
    np.equal(index[:, :, None, :, None], numbers, out=m.view(bool))
    np.negative(m, out=m)
    np.copyto(target, m.view(np.int8))
    np.bitwise_and(target, dy.view(target.dtype)[:, :, None, :, None], out=target)


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
