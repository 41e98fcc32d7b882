"""Optimizer updates, in place: PyTorch's formulas; what changes from step to step comes from the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vdnn import clock as clocks
from vdnn.kernels.numpy.chunks import Pieces, Sharing, carve, carved_bytes, like

Array = Any
CHUNK = 131072  # elements of a piece: with less, threads hand the interpreter to and fro
KINDS = ("sgd", "momentum", "adam")


class Sgd(NamedTuple):
    """The numbers of one step of `sgd`."""

    rate: float
    is_first: bool
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


class Adam(NamedTuple):
    """The numbers of one step of `adam`."""

    rate: float
    bias1: float
    bias2: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


def sgd(step: Sgd, w: Array, g: Array, velocity: Sequence[Array], scratch: Array) -> None:
    """Update a piece of w and of its velocity, if there is one."""
    t, u = _two_like(scratch, w)
    if step.weight_decay:
        np.multiply(w, step.weight_decay, out=t)
        g = np.add(t, g, out=t)
    for v in velocity:
        if step.is_first:
            np.copyto(v, g)
        else:
            np.multiply(v, step.momentum, out=v)
            np.add(v, g if step.dampening == 0 else np.multiply(g, 1 - step.dampening, out=u), out=v)
        if step.nesterov:
            np.multiply(v, step.momentum, out=u)
            g = np.add(g, u, out=t)
        else:
            g = v
    np.multiply(g, step.rate, out=t)
    np.subtract(w, t, out=w)


def adam(step: Adam, w: Array, g: Array, m: Array, v: Array, scratch: Array) -> None:
    """Update a piece of w and of its moments."""
    t, u = _two_like(scratch, w)
    if step.weight_decay and step.decoupled:
        np.multiply(w, 1 - step.rate * step.weight_decay, out=w)
    elif step.weight_decay:
        np.multiply(w, step.weight_decay, out=t)
        g = np.add(t, g, out=t)
    np.subtract(g, m, out=u)
    np.multiply(u, 1 - step.beta1, out=u)
    np.add(m, u, out=m)
    np.multiply(g, g, out=u)
    np.multiply(u, 1 - step.beta2, out=u)
    np.multiply(v, step.beta2, out=v)
    np.add(v, u, out=v)
    np.sqrt(v, out=t)
    np.divide(t, step.bias2**0.5, out=t)
    np.add(t, step.eps, out=t)
    np.divide(m, t, out=t)
    np.multiply(t, step.rate / step.bias1, out=t)
    np.subtract(w, t, out=w)


def _two_like(scratch: Array, w: Array) -> tuple[Array, Array]:
    t, u = carve(scratch, (w.size, w.dtype), (w.size, w.dtype))
    return like(t, w), like(u, w)


class UpdateKernels(Sharing):
    """sgd, adam, update_workspace."""

    def update_workspace(self, kind: str, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of scratch that the update of a weight of this shape needs; kind: sgd, momentum or adam."""
        if kind not in KINDS:
            raise ValueError(f"update {kind!r} is none of {', '.join(KINDS)}")
        size = min(CHUNK, math.prod(shape))
        return self.threads * carved_bytes((size, dtype), (size, dtype))

    def sgd(
        self,
        clock: Array,
        w: Array,
        dw: Array,
        velocity: Array | None,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        workspace: Array,
    ) -> None:
        """g = dw + weight_decay * w; velocity = momentum * velocity + (1 - dampening) * g, or g in the first step;
        w -= rate * (velocity, or g + momentum * velocity if nesterov, or g without momentum).
        """
        step = Sgd(
            float(clock[clocks.LEARNING_RATE]),
            bool(clock[clocks.STEP] == 0),
            momentum,
            dampening,
            weight_decay,
            nesterov,
        )
        arrays = (w, dw) if velocity is None or not momentum else (w, dw, velocity)
        routine = self.routines.sgd

        def piece(scratch: Array, w: Array, g: Array, *velocity: Array) -> None:
            routine(step, w, g, velocity, scratch)

        self._update(piece, arrays, workspace)

    def adam(
        self,
        clock: Array,
        w: Array,
        dw: Array,
        m: Array,
        v: Array,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        workspace: Array,
    ) -> None:
        """m += (1 - beta1) * (g - m); v = beta2 * v + (1 - beta2) * g ** 2;
        w -= rate / bias1 * m / (sqrt(v / bias2) + eps).  Weight decay is added to g, or, decoupled (AdamW), first
        taken off w: w *= 1 - rate * weight_decay.
        """
        step = Adam(
            float(clock[clocks.LEARNING_RATE]),
            float(clock[clocks.BIAS_1]),
            float(clock[clocks.BIAS_2]),
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
        )
        routine = self.routines.adam

        def piece(scratch: Array, w: Array, g: Array, m: Array, v: Array) -> None:
            routine(step, w, g, m, v, scratch)

        self._update(piece, (w, dw, m, v), workspace)

    def _update(self, piece: Callable[..., None], arrays: tuple[Array, ...], workspace: Array) -> None:
        """Call piece(scratch, *pieces) for all pieces of `arrays`."""
        pieces = Pieces(arrays, CHUNK)
        spec = (min(CHUNK, arrays[0].size), arrays[0].dtype)
        each = carved_bytes(spec, spec)

        def work(index: int, worker: int) -> None:
            piece(workspace[worker * each :], *pieces[index])

        self.parallel(work, len(pieces), self.estimate(3, *arrays))
