"""Fully connected layers on few samples, compiled: the weights, far larger than all else, go through memory once.

A product of a batch of 8 with 400 MB of weights is as fast as the weights come.  A BLAS copies them into panels first,
which moves them twice more.  w, dw are flat (OUT * IN,), x, dx (N * IN,), y, dy (N * OUT,).
"""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.multiply import COLUMNS, LINES, ROWS, VECTORS, over_lanes, over_terms
from vdnn.kernels.numpy.compiled.vectors import VECTOR
from vdnn.layers.base import Array

dots, many = over_lanes(LINES, COLUMNS), over_terms(ROWS, VECTORS)
CHUNK = 4096  # features: of x so many that they stay in the L2 cache
TERMS = 8  # rows of w that are read at a time


@compiled
def places_of(first: int, last: int, step: int, spare: int) -> Array:
    """Where rows first .. last - 1 begin, and the last of them again and again."""
    places = numpy.empty(last - first + spare, numpy.int64)
    for i in range(places.size):
        places[i] = min(first + i, last - 1) * step
    return places


@compiled
def forward(x: Array, w: Array, N: int, first: int, last: int, y: Array) -> None:
    """y[:, first:last] = x w[first:last]^T."""
    IN, OUT = x.size // N, y.size // N
    lanes = VECTOR // x.itemsize
    whole = IN // lanes * lanes
    lines, samples = places_of(first, last, IN, LINES), places_of(0, N, IN, COLUMNS)
    sums = numpy.empty(LINES * COLUMNS, x.dtype)
    for n in range(N):
        y[n * OUT + first : n * OUT + last] = 0
    for c in range(0, whole, CHUNK):
        vectors = min(CHUNK, whole - c) // lanes
        for o in range(0, last - first, LINES):
            for n in range(0, N, COLUMNS):
                dots(w, lines, o, x, samples, n, c, vectors, sums)
                for p in range(min(LINES, last - first - o)):
                    for q in range(min(COLUMNS, N - n)):
                        y[(n + q) * OUT + first + o + p] += sums[p * COLUMNS + q]
    for n in range(N):
        for o in range(first, last):
            for c in range(whole, IN):
                y[n * OUT + o] += x[n * IN + c] * w[o * IN + c]


@compiled
def backward_data(w: Array, dy: Array, N: int, first: int, last: int, dx: Array) -> None:
    """dx[:, first:last] = dy w[:, first:last]."""
    IN, OUT = dx.size // N, dy.size // N
    width = VECTORS * (VECTOR // w.itemsize)
    whole = first + (last - first) // width * width
    samples, targets = places_of(0, N, OUT, ROWS), places_of(0, N, IN, ROWS)
    for n in range(N):
        dx[n * IN + first : n * IN + last] = 0
    for o in range(0, OUT, TERMS):
        terms = min(TERMS, OUT - o)
        for c in range(first, whole, width):
            for n in range(0, N, ROWS):
                many(dy, samples, n, o, w, o * IN + c, IN, dx, targets, n, c, 0, dx, 1, terms, 0)
    for n in range(N):
        for o in range(OUT):
            for c in range(whole, last):
                dx[n * IN + c] += dy[n * OUT + o] * w[o * IN + c]


@compiled
def backward_weights(x: Array, dy: Array, N: int, first: int, last: int, dw: Array) -> None:
    """dw[first:last] = dy[:, first:last]^T x."""
    IN, OUT = x.size // N, dy.size // N
    width = VECTORS * (VECTOR // x.itemsize)
    whole = IN // width * width
    targets, lines = places_of(first, last, IN, ROWS), places_of(0, last - first, N, ROWS)
    gradient = numpy.empty((last - first) * N, dy.dtype)  # of each output its samples, side by side
    for o in range(first, last):
        for n in range(N):
            gradient[(o - first) * N + n] = dy[n * OUT + o]
    zeros = numpy.zeros(width, x.dtype)
    for o in range(0, last - first, ROWS):
        for c in range(0, whole, width):
            many(gradient, lines, o, 0, x, c, IN, dw[c:], targets, o, 0, 1, zeros, 1, N, 0)
    for o in range(first, last):
        dw[o * IN + whole : (o + 1) * IN] = 0
        for n in range(N):
            for c in range(whole, IN):
                dw[o * IN + c] += gradient[(o - first) * N + n] * x[n * IN + c]
