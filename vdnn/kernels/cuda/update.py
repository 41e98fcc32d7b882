"""Optimizer updates, in place and in one pass."""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cuda.base import Launching
from vdnn.kernels.numpy.update import KINDS
from vdnn.layers.base import Array


class UpdateKernels(Launching):
    """sgd, adam, update_workspace."""

    def update_workspace(self, kind: str, shape: tuple[int, ...], dtype: str) -> int:
        """0: no scratch is needed.  kind: sgd, momentum or adam."""
        if kind not in KINDS:
            raise ValueError(f"update {kind!r} is none of {', '.join(KINDS)}")
        return 0

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
        workspace: Any = None,
    ) -> None:
        """g = dw + weight_decay * w; velocity = momentum * velocity + (1 - dampening) * g, or g in the first step;
        w -= rate * (velocity, or g + momentum * velocity if nesterov, or g without momentum).
        """
        velocity = velocity if momentum else None
        numbers = float(momentum), float(1 - dampening), float(weight_decay), int(nesterov)
        arrays = (w, dw) if velocity is None else (w, dw, velocity)
        self.each("sgd", clock, w, dw, velocity, *numbers, arrays=arrays)

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
        workspace: Any = None,
    ) -> None:
        """m += (1 - beta1) * (g - m); v = beta2 * v + (1 - beta2) * g ** 2;
        w -= rate / bias1 * m / (sqrt(v / bias2) + eps).  Weight decay is added to g, or, decoupled (AdamW), first
        taken off w: w *= 1 - rate * weight_decay.
        """
        numbers = float(beta1), float(beta2), float(eps), float(weight_decay), int(decoupled)
        self.each("adam", clock, w, dw, m, v, *numbers, arrays=(w, dw, m, v))
