"""Local response normalisation along channels."""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cuda.base import Launching, storage_of
from vdnn.layers.base import Array

WIDE = 128  # bytes of each channel that a block holds
LONGEST = 32  # channels around one that its window may reach: LRN_RING - LRN_STEP of the source
LARGEST_GRID = 2**31 - 1  # blocks


class LrnKernels(Launching):
    """lrn, lrn_backward.  Neither needs scratch: sums are kept in shared memory."""

    def lrn(self, x: Array, y: Array, size: int, alpha: float, beta: float, k: float, workspace: Any = None) -> None:
        """y = x / (k + alpha / size * sum of x ** 2 over `size` channels around) ** beta.  y may be x."""
        self._launch("lrn", (x, y), size, alpha / size, float(beta), float(k))

    def lrn_backward(
        self, x: Array, dy: Array, dx: Array, size: int, alpha: float, beta: float, k: float, workspace: Any = None
    ) -> None:
        """With s = k + alpha / size * window sum of x ** 2:
        dx[c] = dy[c] * s[c] ** -beta - 2 * alpha * beta / size * x[c] * sum of dy * x * s ** (-beta - 1)
        over the channels whose window holds c.  s is computed again, so that nothing but x is kept.  dx may be dy.
        """
        factor = 2 * alpha * beta / size
        self._launch("lrn_backward", (x, dy, dx), size, alpha / size, float(beta), float(k), factor)

    def _launch(self, name: str, arrays: tuple[Array, ...], size: int, *numbers: float) -> None:
        x = arrays[0]
        N, C, H, W = x.shape
        HW = H * W
        rows, columns = HW, 1  # strides of channels and positions
        if storage_of(*arrays) == "nhwc":
            N, HW, rows, columns = 1, N * HW, 1, C
        before, after = min(size // 2, C - 1), min((size - 1) // 2, C - 1)
        if before + after > LONGEST:
            raise ValueError(f"size={size} for {C} channels: windows of at most {LONGEST + 1} channels are supported")
        blocks = min(N * -(-HW * x.itemsize // WIDE), LARGEST_GRID)
        self.launch(name, x, blocks, *arrays, N, C, HW, rows, columns, before, after, *numbers)
