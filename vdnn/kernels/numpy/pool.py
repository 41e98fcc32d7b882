"""Pooling kernels on channels-last storage.

N batch, C channels; H, W rows and columns of x; P, Q of y.  Work goes by blocks of output rows that stay in cache.
A window position is numbered row-major: k = r * S + s for row r and column s of the window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, Sharing, carve, carved_bytes, like, seconds, view
from vdnn.kernels.numpy.pool_windows import backward_specs
from vdnn.layers.window import Window

Array = Any
Pair = tuple[int, int]
SHORT = 512  # channels
LONG = 4 * CHUNK  # elements of y in a block of rows: short calls cost more in handing Python's lock to and fro


class _Blocks:
    """y: (N, P, Q, C) in blocks that the caches hold: whole images, or some rows of one."""

    def __init__(self, N: int, P: int, Q: int, C: int) -> None:
        self.images = max(1, CHUNK // (P * Q * C))
        self.step = -(-P // -(-P // max(1, LONG // (Q * C))))  # near-equal blocks
        self.size = min(N, self.images) * self.step * Q * C  # elements of the largest block
        self.groups = [slice(n, min(n + self.images, N)) for n in range(0, N, self.images)]
        self.rows = [(p, min(p + self.step, P)) for p in range(0, P, self.step)]

    def __len__(self) -> int:
        return len(self.groups) * len(self.rows)

    def __getitem__(self, index: int) -> tuple[slice, Pair]:
        """(images, rows of y from .. to) of one block."""
        group, rows = divmod(index, len(self.rows))
        return self.groups[group], self.rows[rows]


def _blocks_of(shape: tuple[int, ...]) -> _Blocks:
    """The blocks of y: (N, C, P, Q)."""
    N, C, P, Q = shape
    return _Blocks(N, P, Q, C)


def _last(x: Array) -> Array:
    return x.transpose(0, 2, 3, 1)


class PoolKernels(Sharing):
    """max_pool and avg_pool with their backwards; global_avg_pool."""

    def max_pool_workspace(self, dtype: str, y: tuple[int, ...]) -> int:
        """Bytes of scratch that max_pool needs if it writes indices."""
        return self.threads * carved_bytes(*2 * ((_blocks_of(y).size, "uint8"),))

    def max_pool(self, x: Array, y: Array, indices: Array | None, window: Window, workspace: Array | None) -> None:
        """y = the largest of each window, NaN if it holds one; indices: uint8, k of the first that is largest."""
        x, y = _last(x), _last(y)
        indices = None if indices is None else _last(indices)
        blocks, routine = _Blocks(*y.shape), self.routines.max_pool
        each = carved_bytes(*2 * ((blocks.size, "uint8"),))

        def work(task: int, worker: int) -> None:
            images, rows = blocks[task]
            place = images, slice(*rows)
            index = None if indices is None else indices[place]
            scratch = None if workspace is None else workspace[worker * each :]
            routine(x[images], y[place], index, window, rows, scratch)

        self.parallel(work, len(blocks), 2 * seconds(x))

    def max_pool_backward_workspace(self, dtype: str, y: tuple[int, ...]) -> int:
        """Bytes of scratch that either backward of max pooling needs."""
        return self.threads * carved_bytes(*backward_specs(dtype, _blocks_of(y).size))

    def max_pool_backward(self, indices: Array, dy: Array, dx: Array, window: Window, workspace: Array) -> None:
        """dx = dy at each window's winner, added up where windows overlap, from the winners' indices."""
        self._max_pool_backward(indices, None, None, dy, dx, window, workspace)

    def max_pool_backward_input(
        self, x: Array, y: Array, dy: Array, dx: Array, window: Window, workspace: Array
    ) -> None:
        """The same, bit for bit, from x and y instead of indices."""
        self._max_pool_backward(None, x, y, dy, dx, window, workspace)

    def _max_pool_backward(
        self, indices: Any, x: Any, y: Any, dy: Array, dx: Array, window: Window, workspace: Array
    ) -> None:
        indices, x, y, dy, dx = (None if a is None else _last(a) for a in (indices, x, y, dy, dx))
        blocks, routine = _Blocks(*dy.shape), self.routines.max_pool_backward
        each = carved_bytes(*backward_specs(dx.dtype, blocks.size))

        def work(task: int, worker: int) -> None:
            images = blocks.groups[task]
            index, seen, largest = (None if a is None else a[images] for a in (indices, x, y))
            scratch = workspace[worker * each :]
            routine(index, seen, largest, dy[images], dx[images], window, blocks.rows, scratch)

        self.parallel(work, len(blocks.groups), 3 * window.size[0] * window.size[1] * seconds(dy))

    def avg_pool(self, x: Array, y: Array, window: Window, include_padding: bool) -> None:
        """y = the mean of each window, divided as PyTorch does (see Window.counts)."""
        x, y = _last(x), _last(y)
        blocks = _Blocks(*y.shape)
        divisors = _divisors(window, x.shape, y.shape, include_padding, y.dtype)

        def work(task: int, _: int) -> None:
            images, rows = blocks[task]
            xb, yb = x[images], y[images, slice(*rows)]
            yb[...] = 0
            for _, out, into in window.positions(x.shape[1:3], rows, y.shape[2]):
                np.add(yb[out], xb[into], out=yb[out])
            _divide(yb, rows, *divisors)

        self.parallel(work, len(blocks), 2 * seconds(x))

    def avg_pool_backward_workspace(self, dtype: str, y: tuple[int, ...]) -> int:
        """Bytes of scratch that avg_pool_backward needs."""
        return self.threads * carved_bytes((_blocks_of(y).size, dtype))

    def avg_pool_backward(self, dy: Array, dx: Array, window: Window, include_padding: bool, workspace: Array) -> None:
        """dx = the sum over windows of dy / divisor."""
        dy, dx = _last(dy), _last(dx)
        blocks = _Blocks(*dy.shape)
        divisors = _divisors(window, dx.shape, dy.shape, include_padding, dy.dtype)
        spec = (blocks.size, dx.dtype)

        def work(task: int, worker: int) -> None:
            (scratch,) = carve(workspace[worker * carved_bytes(spec) :], spec)
            images = blocks.groups[task]
            target = dx[images]
            target[...] = 0
            for rows in blocks.rows:
                gradient = dy[images, slice(*rows)]
                share = like(scratch, gradient)
                np.copyto(share, gradient)
                _divide(share, rows, *divisors)
                for _, out, into in window.positions(dx.shape[1:3], rows, dy.shape[2]):
                    np.add(target[into], share[out], out=target[into])

        self.parallel(work, len(blocks.groups), 2 * seconds(dx))

    def global_avg_pool(self, x: Array, y: Array) -> None:
        """y: (N, C, 1, 1) = the mean of each channel's plane."""
        x, y = _last(x), _last(y)
        N, H, W, C = x.shape
        flat = view(x, (N, H * W, C))
        repeat = _row_repeat(H * W, C) if flat.flags.c_contiguous else 1

        def work(n: int, _: int) -> None:
            plane = flat[n] if repeat == 1 else view(flat[n], (-1, repeat * C))
            wide = np.add.reduce(plane, axis=0).reshape(-1, C)
            y[n, 0, 0] = np.add.reduce(wide, axis=0, dtype=np.float64) / (H * W)

        self.parallel(work, N, seconds(x))

    def global_avg_pool_backward(self, dy: Array, dx: Array) -> None:
        """dx = dy / (H * W) everywhere in a channel's plane."""
        dy, dx = _last(dy), _last(dx)
        N, H, W, _ = dx.shape
        self.parallel(lambda n, _: np.copyto(dx[n], dy[n] / (H * W)), N, seconds(dx))


def _row_repeat(rows: int, C: int) -> int:
    """How many rows of C channels to take as one: adding up short rows is slow."""
    repeat = 1
    while repeat * C < SHORT and rows % (2 * repeat) == 0:
        repeat *= 2
    return repeat


def _divisors(
    window: Window, x: tuple[int, ...], y: tuple[int, ...], include_padding: bool, dtype: Any
) -> tuple[Array, Array]:
    """The divisor along rows and along columns; x and y are shapes (N, H, W, C) and (N, P, Q, C)."""
    rows, columns = (np.array(window.counts(a, x[a + 1], y[a + 1], include_padding), dtype) for a in (0, 1))
    return rows, columns


def _divide(block: Array, rows: Pair, high: Array, wide: Array) -> None:
    """block: (images, rows, columns, C) divided by the product of both divisors."""
    high = high[slice(*rows)]
    if (high == high[0]).all() and (wide == wide[0]).all():
        np.divide(block, high[0] * wide[0], out=block)
        return
    np.divide(block, high[:, None, None], out=block)
    np.divide(block, wide[:, None], out=block)
