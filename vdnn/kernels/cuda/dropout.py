"""Dropout from a counter-based generator, number by number as on the CPU."""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cuda.base import Launching, check_alike
from vdnn.kernels.numpy.dropout import WORD, threshold
from vdnn.layers.base import Array
from vdnn.layers.common import elements


class DropoutKernels(Launching):
    """dropout, which is its own backward."""

    def dropout(self, clock: Array, x: Array, y: Array, p: float, layer: int, workspace: Any = None) -> None:
        """y = x / (1 - p) where the element is kept, 0 elsewhere.  y may be x.  dx of dy is the same function."""
        check_alike((x, y))
        N, channels = len(x), 1 if x.flags.c_contiguous else x.shape[1]
        size = elements(x.shape[1:])
        scale = 0.0 if p == 1 else 1 / (1 - p)
        grid, width = self.spread(N, size)
        self.launch(
            "dropout", x, grid, clock, x, y, N, size, channels, width, _signed(layer), _signed(threshold(p)), scale
        )


def _signed(number: int) -> int:
    """The long long with the bits of this unsigned one."""
    number %= WORD
    return number - WORD if number >= WORD // 2 else number
