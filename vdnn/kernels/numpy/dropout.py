"""Dropout from a counter-based generator: nothing is kept for backward, and no order of execution matters.

An element's random number is the output of SplitMix64 (Steele, Lea, Flood 2014; it passes BigCrush) at position
`element` of a sequence that (seed, step, layer) chooses, where `element` is the logical (N, C, H, W) index in the full
batch.  So recompute, sub-batches, storage and threads all see the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vdnn import clock as clocks
from vdnn.kernels.numpy.chunks import Sharing, carve, carved_bytes, seconds, view

Array = Any
CHUNK = 16384  # elements of a piece: two uint64 arrays of it stay in cache
WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64's step, 2**64 divided by the golden ratio
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # (shift, factor) of its three rounds


def mix(z: int) -> int:
    """SplitMix64's output for state z."""
    for shift, factor in MIX:
        z = ((z ^ (z >> shift)) * factor) % WORD
    return z


def key(clock: Array, layer: int) -> int:
    """Where the sequence of this seed, step and layer starts."""
    state = 0
    for word in (int(clock[clocks.SEED]), int(clock[clocks.STEP]), layer):
        state = mix((state + word + GOLDEN) % WORD)
    return state


def threshold(p: float) -> int:
    """An element is kept if its number reaches this; so it is dropped with probability p."""
    return min(int(p * WORD), WORD - 1)


def _mix_all(z: Array, spare: Array) -> None:
    """z = mix(z) for uint64 arrays, in place."""
    for shift, factor in MIX:
        np.right_shift(z, np.uint64(shift), out=spare)
        np.bitwise_xor(z, spare, out=z)
        if factor != 1:
            np.multiply(z, np.uint64(factor), out=z)


def _sequence_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(samples, positions, channels) for which the logical index is (n * channels + c) * positions + p."""
    N, C = shape[:2]
    positions = int(np.prod(shape[2:]))
    return (1, N * C, 1) if positions == 1 else (N, positions, C)


class DropoutKernels(Sharing):
    """dropout, which is its own backward."""

    def dropout_workspace(self, dtype: str, x: tuple[int, ...]) -> int:
        """Bytes of scratch that dropout needs."""
        size = self._dropout_piece(x)
        return carved_bytes((size, "uint64")) + self.threads * carved_bytes(*self._dropout_specs(size))

    @staticmethod
    def _dropout_piece(shape: tuple[int, ...]) -> int:
        _, positions, channels = _sequence_shape(shape)
        return min(positions, max(1, CHUNK // channels)) * channels

    @staticmethod
    def _dropout_specs(size: int) -> tuple[tuple[int, Any], ...]:
        return (size, "uint64"), (size, "uint64"), (size, "uint8")

    def dropout(self, clock: Array, x: Array, y: Array, p: float, layer: int, workspace: Array) -> None:
        """y = x / (1 - p) where the element is kept, 0 elsewhere.  y may be x.  dx of dy is the same function."""
        sample = x.size // len(x)  # elements of one
        samples, positions, channels = _sequence_shape(x.shape)
        size = self._dropout_piece(x.shape)
        step = size // channels
        blocks = -(-positions // step)
        if x.ndim == 4:
            x, y = x.transpose(0, 2, 3, 1), y.transpose(0, 2, 3, 1)
        x, y = (view(a, (samples, positions, channels)) for a in (x, y))
        (flat,) = carve(workspace, (size, "uint64"))
        grid = flat.reshape(step, channels)
        _fill_grid(grid, positions)
        start = key(clock, layer) + GOLDEN * sample * int(clock[clocks.SAMPLE])
        least = np.uint64(threshold(p))
        scale = 0.0 if p == 1 else 1 / (1 - p)
        specs = self._dropout_specs(size)
        rest = workspace[carved_bytes((size, "uint64")) :]

        def work(task: int, worker: int) -> None:
            n, block = divmod(task, blocks)
            first = block * step
            xb, yb = x[n, first : first + step], y[n, first : first + step]
            z, spare, kept = (
                a[: xb.size].reshape(xb.shape) for a in carve(rest[worker * carved_bytes(*specs) :], *specs)
            )
            element = n * positions * channels + first
            np.add(grid[: len(xb)], np.uint64((start + GOLDEN * element) % WORD), out=z)
            _mix_all(z, spare)
            np.greater_equal(z, least, out=kept.view(bool))
            np.multiply(xb, scale, out=yb)
            np.multiply(yb, kept, out=yb)

        self.parallel(work, samples * blocks, 20 * seconds(x))


def _fill_grid(grid: Array, positions: int) -> None:
    """grid[p, c] = GOLDEN * (c * positions + p): the sequence's state at each element of a piece, from its first."""
    grid[0] = np.arange(grid.shape[1], dtype=np.uint64) * np.uint64(positions)
    done = 1
    while done < len(grid):
        more = min(done, len(grid) - done)
        np.add(grid[:more], np.uint64(done), out=grid[done : done + more])
        done += more
    np.multiply(grid, np.uint64(GOLDEN), out=grid)
