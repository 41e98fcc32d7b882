"""Dropout, from random numbers that can be had again, so that nothing is kept for backward."""

from __future__ import annotations

import zlib
from typing import Any

from vdnn.layers.base import DEFAULT, Algorithm, Array, Layer, LayerError, Shape
from vdnn.layers.common import elements, scratch


class Dropout(Layer):
    """y = x / (1 - p) for elements kept, 0 with probability p; in evaluation y = x.

    An element's fate follows from the seed, the step, the layer's name and the element's index in the full batch
    alone.  Backward asks the generator again: the mask costs arithmetic instead of memory.
    """

    inplace = {"y": "x", "dx": "dy"}

    def __init__(self, p: float = 0.5, name: str = "") -> None:
        self.p, self.name = float(p), name
        if not 0 <= self.p <= 1:
            raise LayerError(f"p={p!r} is no probability; 0 to 1 would fit")

    def algorithms(self, kernels: Any, phase: str, dtype: str, *x: Shape) -> tuple[Algorithm, ...]:
        """One, with scratch for the random numbers."""
        if phase == "evaluate":
            return DEFAULT
        return scratch(kernels, "dropout", dtype, x[0])

    def flops(self, phase: str, *x: Shape) -> int:
        """About twelve integer operations an element."""
        return elements(x[0]) * (0 if phase == "evaluate" else 12)

    def forward(self, kernels: Any, clock: Array, x: Array, y: Array, workspace: Array) -> None:
        """Write y."""
        kernels.dropout(clock, x, y, self.p, self._key(), workspace)

    def backward(self, kernels: Any, clock: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """Write dx."""
        # dx = dy / (1 - p) where x was kept, else 0
        kernels.dropout(clock, dy, dx, self.p, self._key(), workspace)

    def evaluate(self, kernels: Any, x: Array, y: Array) -> None:
        """Write y = x."""
        kernels.copy(x, y)

    def _key(self) -> int:
        return zlib.crc32(self.name.encode())  # the name may be given after the layer is made
