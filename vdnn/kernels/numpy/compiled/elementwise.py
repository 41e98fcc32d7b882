"""Elementwise routines, compiled.  A result may lie where an argument does: see `lanes`."""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import (
    absolute,
    kept,
    load,
    load_first,
    masked,
    rectified,
    signs,
    size,
    store,
    store_first,
)
from vdnn.layers.base import Array

BYTE = 8  # bits
LONG = 256  # elements of a repeated row, at least


@compiled
def relu(x: Array, y: Array) -> None:
    """y = max(x, 0); no -0.0, no negative NaN."""
    step = size(x)
    whole = x.size // step * step
    for i in range(0, whole, step):
        store(absolute(rectified(load(x, i))), y, i)
    rest = x.size - whole
    if rest:
        store_first(rest, absolute(rectified(load_first(rest, x, whole))), y, whole)


@compiled
def relu_backward(y: Array, dy: Array, dx: Array) -> None:
    """dx = dy where y > 0, 0 elsewhere."""
    step = size(y)
    whole = y.size // step * step
    for i in range(0, whole, step):
        store(kept(load(y, i), load(dy, i)), dx, i)
    rest = y.size - whole
    if rest:
        store_first(rest, kept(load_first(rest, y, whole), load_first(rest, dy, whole)), dx, whole)


@compiled
def relu_mask(x: Array, y: Array, words: Array, bits: Array) -> None:
    """y = max(x, 0); bits: whether y is not 0.  words: the whole vectors' bits, as integers of one vector each."""
    step = size(x)
    whole = x.size // step * step
    for i in range(0, whole, step):
        t = absolute(rectified(load(x, i)))
        store(t, y, i)
        words[i // step] = signs(t)
    rest = x.size - whole
    if rest:
        t = absolute(rectified(load_first(rest, x, whole)))
        store_first(rest, t, y, whole)
        last = signs(t)
        for i in range(whole // BYTE, bits.size):
            bits[i] = (last >> (i * BYTE - whole)) & 0xFF


@compiled
def relu_mask_backward(words: Array, bits: Array, dy: Array, dx: Array) -> None:
    """dx = dy where its bit is set, 0 elsewhere; words: as for relu_mask."""
    step = size(dy)
    whole = dy.size // step * step
    for i in range(0, whole, step):
        store(masked(words[i // step], load(dy, i)), dx, i)
    rest = dy.size - whole
    if rest:
        last = 0
        for i in range(whole // BYTE, bits.size):
            last |= bits[i] << (i * BYTE - whole)
        store_first(rest, masked(last, load_first(rest, dy, whole)), dx, whole)


@compiled
def add(x0: Array, x1: Array, y: Array) -> None:
    """y = x0 + x1."""
    step = size(y)
    whole = y.size // step * step
    for i in range(0, whole, step):
        store(load(x0, i) + load(x1, i), y, i)
    rest = y.size - whole
    if rest:
        store_first(rest, load_first(rest, x0, whole) + load_first(rest, x1, whole), y, whole)


@compiled
def add_bias(y: Array, bias: Array) -> None:
    """y += bias, again and again."""
    step, width = size(y), bias.size
    while width < LONG or width % step:
        width *= 2
    row = numpy.empty(width, y.dtype)
    for i in range(width):
        row[i] = bias[i % bias.size]
    whole = y.size // width * width
    for start in range(0, whole, width):
        for i in range(0, width, step):
            store(load(y, start + i) + load(row, i), y, start + i)
    for i in range(0, y.size - whole, step):
        rest = min(step, y.size - whole - i)
        store_first(rest, load_first(rest, y, whole + i) + load(row, i), y, whole + i)
