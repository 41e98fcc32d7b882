"""Optimizer updates, in place: PyTorch's formulas; what changes from step to step comes from the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vdnn import clock as clocks
from vdnn.kernels.numpy.chunks import Pieces, Sharing, carve, carved_bytes, like, seconds

Array = Any
CHUNK = 16384  # elements of a piece: up to six arrays of it are in use at once
KINDS = ("sgd", "momentum", "adam")


class UpdateKernels(Sharing):
    """sgd, adam, update_workspace."""

    def update_workspace(self, kind: str, shape: tuple[int, ...], dtype: str) -> int:
        """Bytes of scratch that the update of a weight of this shape needs; kind: sgd, momentum or adam."""
        if kind not in KINDS:
            raise ValueError(f"update {kind!r} is none of {', '.join(KINDS)}")
        size = min(CHUNK, int(np.prod(shape)))
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
        rate = float(clock[clocks.LEARNING_RATE])
        is_first = clock[clocks.STEP] == 0

        def piece(t: Array, u: Array, w: Array, g: Array, *velocity: Array) -> None:
            if weight_decay:
                np.multiply(w, weight_decay, out=t)
                g = np.add(t, g, out=t)
            for v in velocity:
                if is_first:
                    np.copyto(v, g)
                else:
                    np.multiply(g, 1 - dampening, out=u)
                    np.multiply(v, momentum, out=v)
                    np.add(v, u, out=v)
                if nesterov:
                    np.multiply(v, momentum, out=u)
                    g = np.add(g, u, out=t)
                else:
                    g = v
            np.multiply(g, rate, out=t)
            np.subtract(w, t, out=w)

        self._update(piece, (w, dw) if velocity is None or not momentum else (w, dw, velocity), workspace)

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
        rate = float(clock[clocks.LEARNING_RATE])
        bias1, bias2 = float(clock[clocks.BIAS_1]), float(clock[clocks.BIAS_2])

        def piece(t: Array, u: Array, w: Array, g: Array, m: Array, v: Array) -> None:
            if weight_decay and decoupled:
                np.multiply(w, 1 - rate * weight_decay, out=w)
            elif weight_decay:
                np.multiply(w, weight_decay, out=t)
                g = np.add(t, g, out=t)
            np.subtract(g, m, out=u)
            np.multiply(u, 1 - beta1, out=u)
            np.add(m, u, out=m)
            np.multiply(g, g, out=u)
            np.multiply(u, 1 - beta2, out=u)
            np.multiply(v, beta2, out=v)
            np.add(v, u, out=v)
            np.sqrt(v, out=t)
            np.divide(t, bias2**0.5, out=t)
            np.add(t, eps, out=t)
            np.divide(m, t, out=t)
            np.multiply(t, rate / bias1, out=t)
            np.subtract(w, t, out=w)

        self._update(piece, (w, dw, m, v), workspace)

    def _update(self, piece: Callable[..., None], arrays: tuple[Array, ...], workspace: Array) -> None:
        """Call piece(t, u, *pieces) for all pieces of `arrays`, with scratch t and u."""
        pieces = Pieces(arrays, CHUNK)
        spec = (min(CHUNK, arrays[0].size), arrays[0].dtype)
        each = carved_bytes(spec, spec)

        def work(index: int, worker: int) -> None:
            t, u = carve(workspace[worker * each :], spec, spec)
            parts = pieces[index]
            piece(like(t, parts[0]), like(u, parts[0]), *parts)

        self.share(work, len(pieces), 3 * seconds(*arrays))
