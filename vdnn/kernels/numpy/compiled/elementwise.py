"""Elementwise routines, compiled.

A result may lie where an argument does.  A loop that LLVM cannot prove free of that runs one element at a time, so
results go through a short array of their own, which stays in the L1 cache.
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.layers.base import Array

SHORT = 1024  # elements
BYTE = 8  # bits


@compiled
def relu(x: Array, y: Array) -> None:
    """y = max(x, 0); no -0.0, no negative NaN."""
    t = numpy.empty(SHORT, x.dtype)
    zero = x.dtype.type(0)
    for start in range(0, x.size, SHORT):
        xs, ys = x[start : start + SHORT], y[start : start + SHORT]
        for i in range(xs.size):
            t[i] = abs(zero if xs[i] <= zero else xs[i])
        for i in range(ys.size):
            ys[i] = t[i]


@compiled
def choose(y: Array, dy: Array, dx: Array) -> None:
    """dx = dy where y > 0, 0 elsewhere, for integers."""
    t = numpy.empty(SHORT, dy.dtype)
    zero = dy.dtype.type(0)
    for start in range(0, y.size, SHORT):
        ys, gs, ds = y[start : start + SHORT], dy[start : start + SHORT], dx[start : start + SHORT]
        for i in range(ys.size):
            t[i] = gs[i] if ys[i] > 0 else zero
        for i in range(ds.size):
            ds[i] = t[i]


@compiled
def pack(y: Array, bits: Array) -> None:
    """Bit i % 8 of byte i // 8 = whether y[i] is not 0."""
    flags = numpy.zeros(SHORT, numpy.uint8)
    zero = y.dtype.type(0)
    for start in range(0, y.size, SHORT):
        ys, bs = y[start : start + SHORT], bits[start // BYTE : (start + SHORT) // BYTE]
        for i in range(ys.size):
            flags[i] = ys[i] != zero
        for i in range(ys.size, SHORT):
            flags[i] = 0
        eights = flags.view(numpy.uint64)
        for i in range(bs.size):
            # eight bytes of 0 or 1 times this: the product's highest byte has them as its bits
            bs[i] = (eights[i] * numpy.uint64(0x0102040810204080)) >> numpy.uint64(56)


@compiled
def choose_by_bits(bits: Array, dy: Array, dx: Array) -> None:
    """dx = dy where its bit is set, 0 elsewhere, for integers."""
    t = numpy.empty(SHORT, dy.dtype)
    for start in range(0, dy.size, SHORT):
        gs, ds, bs = dy[start : start + SHORT], dx[start : start + SHORT], bits[start // BYTE : (start + SHORT) // BYTE]
        for b in range(gs.size // BYTE):
            for i in range(BYTE):
                t[b * BYTE + i] = -((bs[b] >> i) & 1)
        for i in range(gs.size // BYTE * BYTE, gs.size):
            t[i] = -((bs[i // BYTE] >> (i % BYTE)) & 1)
        for i in range(gs.size):
            t[i] &= gs[i]
        for i in range(gs.size):
            ds[i] = t[i]


@compiled
def add(x0: Array, x1: Array, y: Array) -> None:
    """y = x0 + x1."""
    t = numpy.empty(SHORT, y.dtype)
    for start in range(0, y.size, SHORT):
        a, b, ys = x0[start : start + SHORT], x1[start : start + SHORT], y[start : start + SHORT]
        for i in range(ys.size):
            t[i] = a[i] + b[i]
        for i in range(ys.size):
            ys[i] = t[i]
