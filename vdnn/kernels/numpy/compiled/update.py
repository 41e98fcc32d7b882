"""Optimizer updates, compiled: one pass over memory, with NumPy's roundings."""

from __future__ import annotations

import numpy

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.layers.base import Array

SHORT = 1024  # elements of a part that stays in the L1 cache between the loops over it


@compiled
def decayed(w: Array, g: Array, decay: float, t: Array) -> None:
    """t = g + decay * w, or g alone without decay."""
    if decay == 0:
        for i in range(w.size):
            t[i] = g[i]
    else:
        for i in range(w.size):
            t[i] = w[i] * decay + g[i]


@compiled
def remember(t: Array, v: Array, is_first: bool, momentum: float, fresh: float, nesterov: bool) -> None:
    """v = momentum * v + fresh * t, or t at first; t = v, or t + momentum * v if nesterov."""
    if is_first:
        for i in range(v.size):
            v[i] = t[i]
    else:
        for i in range(v.size):
            v[i] = v[i] * momentum + t[i] * fresh
    if nesterov:
        for i in range(v.size):
            t[i] = t[i] + v[i] * momentum
    else:
        for i in range(v.size):
            t[i] = v[i]


@compiled
def sgd(
    w: Array,
    g: Array,
    v: Array,
    rate: float,
    decay: float,
    has_velocity: bool,
    is_first: bool,
    momentum: float,
    fresh: float,
    nesterov: bool,
) -> None:
    """See `UpdateKernels.sgd`; v is not looked at without has_velocity; fresh: 1 - dampening."""
    t = numpy.empty(SHORT, w.dtype)
    for start in range(0, w.size, SHORT):
        ws, gs = w[start : start + SHORT], g[start : start + SHORT]
        decayed(ws, gs, decay, t)
        if has_velocity:
            remember(t, v[start : start + SHORT], is_first, momentum, fresh, nesterov)
        for i in range(ws.size):
            ws[i] -= t[i] * rate


@compiled
def adam(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    shrink: float,
    decay: float,
    fresh1: float,
    beta2: float,
    fresh2: float,
    root2: float,
    eps: float,
    rate1: float,
) -> None:
    """See `UpdateKernels.adam`.

    shrink: what w is multiplied by, 1 for nothing; fresh1, fresh2: 1 - beta; root2: sqrt(bias2); rate1: rate / bias1.
    """
    t = numpy.empty(SHORT, w.dtype)
    one = w.dtype.type(1)
    for start in range(0, w.size, SHORT):
        stop = start + SHORT
        ws, gs, ms, vs = w[start:stop], g[start:stop], m[start:stop], v[start:stop]
        if shrink != one:
            for i in range(ws.size):
                ws[i] *= shrink
        decayed(ws, gs, decay, t)
        for i in range(ws.size):
            ms[i] += (t[i] - ms[i]) * fresh1
        for i in range(ws.size):
            vs[i] = vs[i] * beta2 + t[i] * t[i] * fresh2
        for i in range(ws.size):
            ws[i] -= ms[i] / (numpy.sqrt(vs[i]) / root2 + eps) * rate1
