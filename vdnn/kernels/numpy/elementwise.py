"""Elementwise kernels: ReLU's two fast ones, and a frame for any other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import PIECE, Pieces, Sharing, carve, carved_bytes, like

Array = Any
ROW = 2048
# maximum() with a scalar operand has no SIMD path in NumPy; with a row of zeros it is twice as fast
ZEROS = {np.dtype(kind): np.zeros(ROW, kind) for kind in ("float32", "float64")}
INTEGER: dict[int, Any] = {4: np.dtype("int32"), 8: np.dtype("int64")}  # by the size of the float that is looked at
BYTE = 8  # bits, of a mask; element i is bit i % 8, from the least, of byte i // 8
# Eight bytes of 0 or 1, seen as a number, times this: the product's highest byte has the eight as its bits
GATHER = np.uint64(0x0102040810204080)
# {size of a float: for every byte of a mask eight integers, -1 where its bit is set}
SPREAD = {
    size: -np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(kind)
    for size, kind in INTEGER.items()
}


def relu(x: Array, y: Array) -> None:
    """y = max(x, 0); abs() turns -0.0 into +0.0, and a negative NaN into a positive one."""
    zeros = ZEROS[x.dtype]
    if x.ndim == 1 and x.size >= ROW:
        whole = x.size - x.size % ROW
        np.maximum(x[:whole].reshape(-1, ROW), zeros, out=y[:whole].reshape(-1, ROW))
        np.maximum(x[whole:], zeros[: x.size - whole], out=y[whole:])
    else:
        np.maximum(x, zeros[0], out=y)
    np.abs(y, out=y)


def relu_backward(y: Array, dy: Array, dx: Array, scratch: Array) -> None:
    """dx = dy where y > 0, +0.0 elsewhere.

    The bits of y >= +0.0, seen as an integer i, are positive where y is: -i is negative there, and its sign,
    shifted to fill the word, is the mask.
    """
    integer = INTEGER[y.itemsize]
    (t,) = carve(scratch, (y.size, integer))
    t = t.reshape(y.shape)
    np.negative(y.view(integer), out=t)
    np.right_shift(t, 8 * y.itemsize - 1, out=t)
    np.bitwise_and(t, dy.view(integer), out=dx.view(integer))


def relu_mask(x: Array, y: Array, bits: Array, scratch: Array) -> None:
    """y = max(x, 0); bits: whether y is not 0."""
    relu(x, y)
    (t,) = carve(scratch, (_whole(y.size), "uint8"))
    np.not_equal(y, 0, out=t[: y.size].view(bool))
    t[y.size :] = 0
    words = t.view(np.uint64)
    np.multiply(words, GATHER, out=words)
    np.copyto(bits, t[BYTE - 1 :: BYTE])  # the highest bytes


def relu_mask_backward(bits: Array, dy: Array, dx: Array, scratch: Array) -> None:
    """dx = dy where its bit is set, +0.0 elsewhere."""
    places, t = carve(scratch, *_spread_specs(dy.shape, dy.itemsize))
    places = places[: bits.size]
    np.copyto(places, bits)
    np.take(SPREAD[dy.itemsize], places, axis=0, out=t.reshape(-1, BYTE), mode="clip")  # "raise" would take a copy
    np.bitwise_and(t[: dy.size], dy.view(t.dtype), out=dx.view(t.dtype))


def add(x0: Array, x1: Array, y: Array) -> None:
    """y = x0 + x1; y may be either."""
    np.add(x0, x1, out=y)


def add_bias(rows: Array, bias: Array) -> None:
    """rows: (any, K) += bias: (K,), repeated to a long row where that can be: NumPy is slow with short ones."""
    K = bias.size
    times = -(-ROW // K)
    whole = len(rows) // times * times
    if whole and times > 1 and rows.flags.c_contiguous:
        wide = np.empty((times, K), bias.dtype)
        wide[...] = bias
        long = rows[:whole].reshape(-1, times * K)
        np.add(long, wide.reshape(-1), out=long)
        rows = rows[whole:]
    np.add(rows, bias, out=rows)


class ElementwiseKernels(Sharing):
    """relu, relu_mask and their backwards; elementwise, copy."""

    has_relu_mask = True

    def relu(self, x: Array, y: Array) -> None:
        """y = max(x, 0), never -0.0.  y may be x."""
        pieces, relu = Pieces((x, y)), self.routines.relu

        def work(index: int, _: int) -> None:
            xb, yb = pieces[index]
            relu(xb, yb)

        self.parallel(work, len(pieces), self.estimate(1, x, y))

    def relu_backward_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that relu_backward needs."""
        return self.elementwise_workspace(dtype, shape)

    def relu_backward(self, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """dx = dy where y > 0, +0.0 elsewhere (also where dy is inf or -0.0).  dx may be dy."""
        pieces, relu_backward = Pieces((y, dy, dx)), self.routines.relu_backward
        each = carved_bytes((min(PIECE, y.size), y.dtype))

        def work(index: int, worker: int) -> None:
            yb, gb, out = pieces[index]
            relu_backward(yb, gb, out, workspace[worker * each :])

        self.parallel(work, len(pieces), self.estimate(2, y, dy, dx))

    def relu_mask_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that relu_mask needs."""
        return self.threads * carved_bytes((_piece(shape), "uint8"))

    def relu_mask(self, x: Array, y: Array, mask: Array, workspace: Array) -> None:
        """y = max(x, 0), never -0.0; mask: uint8, a bit per element as stored, set where y is not 0.  y may be x.

        The bits behind the last element are 0.
        """
        pieces, relu_mask = _flat_pieces(x, y), self.routines.relu_mask
        each = carved_bytes((_piece(x.shape), "uint8"))

        def work(index: int, worker: int) -> None:
            xb, yb = pieces[index]
            relu_mask(xb, yb, _bits(mask, index * pieces.step, yb.size), workspace[worker * each :])

        self.parallel(work, len(pieces), self.estimate(2, x, y))

    def relu_mask_backward_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that relu_mask_backward needs."""
        return self.threads * carved_bytes(*_spread_specs(shape, np.dtype(dtype).itemsize))

    def relu_mask_backward(self, mask: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """dx = dy where the mask's bit is set, +0.0 elsewhere (also where dy is inf or -0.0).  dx may be dy."""
        pieces, relu_mask_backward = _flat_pieces(dy, dx), self.routines.relu_mask_backward
        each = carved_bytes(*_spread_specs(dy.shape, dy.itemsize))

        def work(index: int, worker: int) -> None:
            source, target = pieces[index]
            bits = _bits(mask, index * pieces.step, source.size)
            relu_mask_backward(bits, source, target, workspace[worker * each :])

        self.parallel(work, len(pieces), self.estimate(2, dy, dx))

    def elementwise_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that elementwise needs for arrays of this shape."""
        size = min(PIECE, math.prod(shape))
        return self.threads * carved_bytes((size, dtype))

    def elementwise(self, function: Callable[..., None], workspace: Array, *arrays: Array) -> None:
        """Call function(xp, t, *pieces) for every piece of `arrays`, with scratch `t` like a piece of the first.

        `function` is a few ufuncs with `out=`.  An output may be an input if `function` allows it.
        """
        pieces = Pieces(arrays)
        spec = (min(PIECE, arrays[0].size), arrays[0].dtype)
        each = carved_bytes(spec)

        def work(index: int, worker: int) -> None:
            (t,) = carve(workspace[worker * each :], spec)
            parts = pieces[index]
            function(np, like(t, parts[0]), *parts)

        self.parallel(work, len(pieces), self.estimate(2, *arrays))

    def copy(self, x: Array, y: Array) -> None:
        """y = x, whatever the strides of both."""
        if x is y:
            return
        pieces = Pieces((x, y))

        def work(index: int, _: int) -> None:
            source, target = pieces[index]
            np.copyto(target, source)

        self.parallel(work, len(pieces), self.estimate(1, x, y))


def _whole(count: int) -> int:
    """So many elements with those that fill up the last byte of a mask."""
    return -(-count // BYTE) * BYTE


def _piece(shape: tuple[int, ...]) -> int:
    """Elements of the largest piece, in whole bytes of a mask."""
    return _whole(min(PIECE, math.prod(shape)))


def _spread_specs(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, Any], ...]:
    size = _piece(shape)
    return (size // BYTE, np.intp), (size, INTEGER[itemsize])


def _bits(mask: Array, first: int, count: int) -> Array:
    """The bytes of a mask that belong to a piece of `count` elements from `first` on."""
    return mask[first // BYTE : first // BYTE + _whole(count) // BYTE]


def _flat_pieces(*arrays: Array) -> Pieces:
    """Pieces of dense arrays that are stored alike.  Raises ValueError for others: a mask has their order."""
    pieces = Pieces(arrays)
    if pieces.arrays[0].ndim != 1:
        raise ValueError(f"a mask takes arrays that are dense and stored alike, not {[a.strides for a in arrays]}")
    return pieces
