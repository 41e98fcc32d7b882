"""Local response normalisation along channels, on channels-last storage.  N batch, C channels, H rows, W columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, Sharing, carve, carved_bytes, seconds, view

Array = Any


class LrnKernels(Sharing):
    """lrn, lrn_backward."""

    def lrn_workspace(self, dtype: str, x: tuple[int, ...], size: int) -> int:
        """Bytes of scratch that lrn and lrn_backward need."""
        return self.threads * carved_bytes(*_lrn_specs(dtype, x[1], size))

    def lrn(self, x: Array, y: Array, size: int, alpha: float, beta: float, k: float, workspace: Array) -> None:
        """y = x / (k + alpha / size * sum of x ** 2 over `size` channels around) ** beta.  y may be x."""

        def finish(xb: Array, yb: Array, scale: Array, *_: Array) -> None:
            np.power(scale, -beta, out=scale)
            np.multiply(xb, scale, out=yb)

        self._by_rows(finish, (x, y), size, alpha, k, workspace)

    def lrn_backward(
        self, x: Array, dy: Array, dx: Array, size: int, alpha: float, beta: float, k: float, workspace: Array
    ) -> None:
        """With s = k + alpha / size * window sum of x ** 2:
        dx[c] = dy[c] * s[c] ** -beta - 2 * alpha * beta / size * x[c] * sum of dy * x * s ** (-beta - 1)
        over the channels whose window holds c.  s is computed again, so that nothing but x is kept.  dx may be dy.
        """

        def finish(xb: Array, gb: Array, out: Array, scale: Array, padded: Array, total: Array, power: Array) -> None:
            np.power(scale, -beta, out=power)  # s ** -beta
            np.divide(power, scale, out=scale)
            np.multiply(scale, xb, out=scale)
            np.multiply(scale, gb, out=scale)  # dy * x * s ** (-beta - 1)
            np.multiply(power, gb, out=power)
            _window_sums(scale, padded, total, size, before=(size - 1) // 2)
            around = total.reshape(padded.shape)[:, : xb.shape[1]]
            np.multiply(around, -2 * alpha * beta / size, out=scale)
            np.multiply(scale, xb, out=scale)
            np.add(power, scale, out=out)

        self._by_rows(finish, (x, dy, dx), size, alpha, k, workspace)

    def _by_rows(
        self, finish: Any, arrays: tuple[Array, ...], size: int, alpha: float, k: float, workspace: Array
    ) -> None:
        """Call finish(*blocks, s, padded, total, power) for all blocks, with s computed from the first array."""
        N, C, H, W = arrays[0].shape
        views = [view(a.transpose(0, 2, 3, 1), (N, H * W, C)) for a in arrays]
        specs = _lrn_specs(arrays[0].dtype, C, size)
        step = _lrn_rows(C, size)
        blocks = -(-H * W // step)

        def work(task: int, worker: int) -> None:
            n, block = divmod(task, blocks)
            parts = [v[n, block * step : (block + 1) * step] for v in views]
            R = len(parts[0])
            padded, total, scale, power = carve(workspace[worker * carved_bytes(*specs) :], *specs)
            padded, total = padded[: R * (C + size - 1)].reshape(R, -1), total[: R * (C + size - 1)]
            scale, power = (a[: R * C].reshape(R, C) for a in (scale, power))
            np.multiply(parts[0], parts[0], out=scale)
            _window_sums(scale, padded, total, size, before=size // 2)
            np.multiply(total.reshape(padded.shape)[:, :C], alpha / size, out=scale)
            np.add(scale, k, out=scale)
            finish(*parts, scale, padded, total, power)

        self.parallel(work, N * blocks, (size + 8) * seconds(arrays[0]))


def _lrn_rows(C: int, size: int) -> int:
    return max(1, CHUNK // 2 // (C + size - 1))


def _lrn_specs(dtype: Any, C: int, size: int) -> list[tuple[int, Any]]:
    rows = _lrn_rows(C, size)
    padded = rows * (C + size - 1)
    return [(padded, dtype), (padded, dtype), (rows * C, dtype), (rows * C, dtype)]


def _window_sums(values: Array, padded: Array, total: Array, size: int, before: int) -> None:
    """total[r, c] = sum of values[r, c - before .. c - before + size - 1], zero outside: (R, C + size - 1) flat.

    With `size` - 1 zeros between rows, shifting the flat array never mixes two rows; columns from C on are garbage.
    """
    C = values.shape[1]
    padded[:, :before] = 0
    padded[:, before : before + C] = values
    padded[:, before + C :] = 0
    flat = padded.reshape(-1)
    np.copyto(total, flat)
    for shift in range(1, size):
        np.add(total[: total.size - shift], flat[shift:], out=total[: total.size - shift])
