"""Optimizer updates, compiled: one pass over memory, with NumPy's roundings."""

from __future__ import annotations

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.kernels.numpy.compiled.lanes import load, load_first, root, size, spread, store, store_first
from vdnn.layers.base import Array


@compiled
def sgd(w: Array, g: Array, rate: float, decay: float) -> None:
    """See `UpdateKernels.sgd`, without velocity."""
    step, rates, decays = size(w), spread(rate), spread(decay)
    for i in range(0, w.size, step):
        rest = w.size - i
        if rest >= step:
            a, t = load(w, i), load(g, i)
        else:
            a, t = load_first(rest, w, i), load_first(rest, g, i)
        if decay != 0:
            t = a * decays + t
        a = a - t * rates
        if rest >= step:
            store(a, w, i)
        else:
            store_first(rest, a, w, i)


@compiled
def momentum(
    w: Array,
    g: Array,
    v: Array,
    rate: float,
    decay: float,
    momentum: float,
    fresh: float,
    is_first: bool,
    nesterov: bool,
) -> None:
    """See `UpdateKernels.sgd`; fresh: 1 - dampening."""
    step, rates, decays, moments, freshes = size(w), spread(rate), spread(decay), spread(momentum), spread(fresh)
    for i in range(0, w.size, step):
        rest = w.size - i
        if rest >= step:
            a, t, b = load(w, i), load(g, i), load(v, i)
        else:
            a, t, b = load_first(rest, w, i), load_first(rest, g, i), load_first(rest, v, i)
        if decay != 0:
            t = a * decays + t
        b = t if is_first else b * moments + t * freshes
        t = t + b * moments if nesterov else b
        a = a - t * rates
        if rest >= step:
            store(b, v, i)
            store(a, w, i)
        else:
            store_first(rest, b, v, i)
            store_first(rest, a, w, i)


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
    step = size(w)
    shrinks, decays, roots, epsilons, rates = spread(shrink), spread(decay), spread(root2), spread(eps), spread(rate1)
    fresh1s, beta2s, fresh2s = spread(fresh1), spread(beta2), spread(fresh2)
    for i in range(0, w.size, step):
        rest = w.size - i
        if rest >= step:
            a, t, b, c = load(w, i), load(g, i), load(m, i), load(v, i)
        else:
            a, t = load_first(rest, w, i), load_first(rest, g, i)
            b, c = load_first(rest, m, i), load_first(rest, v, i)
        a = a * shrinks
        if decay != 0:
            t = a * decays + t
        b = b + (t - b) * fresh1s
        c = c * beta2s + t * t * fresh2s
        a = a - b / (root(c) / roots + epsilons) * rates
        if rest >= step:
            store(b, m, i)
            store(c, v, i)
            store(a, w, i)
        else:
            store_first(rest, b, m, i)
            store_first(rest, c, v, i)
            store_first(rest, a, w, i)
