"""Work in pieces that stay in cache: how the memory-bound kernels share arrays among workers and scratch.

Pieces depend on shapes alone, never on the number of threads, so results do not depend on it either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.kernels.numpy.threads import Workers

if TYPE_CHECKING:
    from vdnn.kernels.numpy.routines import Routines

Array = Any
CHUNK = 32768  # elements of a block: 128 KiB of float32, a few of which fit into a core's L2 cache
PIECE = 262144  # elements of a piece, for a few ufuncs each: with less, threads hand the interpreter to and fro
ALIGNMENT = 64  # bytes, of each array in a workspace
BANDWIDTH = 8e9  # bytes per second of one core, roughly; only decides whether work is worth splitting
COMPILED_BANDWIDTH = 24e9  # that of a compiled routine, which makes one pass of NumPy's many


def seconds(*arrays: Array) -> float:
    """A rough estimate of the time that one pass over these arrays takes one thread."""
    return float(sum(a.size * a.itemsize for a in arrays)) / BANDWIDTH


class Sharing(Workers):
    """Workers, and the routines that they run."""

    wants_fast: bool | None = None

    @cached_property
    def routines(self) -> Routines:
        """What does one block of work; found at first use, as importing Numba takes a while."""
        from vdnn.kernels.numpy.routines import routines  # which imports the kernels, which import this

        found = routines(self.wants_fast)
        self._meet = found.meet
        return found

    @property
    def fast(self) -> bool:
        """Whether the compiled routines run, or, before any has run, are to; that needs no import of Numba."""
        return self.routines.fast if "routines" in vars(self) else self._fast_is_wanted

    @cached_property
    def _fast_is_wanted(self) -> bool:
        """Asked once: the answer is sought on the disk, and planning asks it for every convolution."""
        from vdnn.kernels.numpy.routines import are_wanted

        return are_wanted(self.wants_fast)

    def estimate(self, passes: int, *arrays: Array) -> float:
        """Roughly the seconds that a routine takes one thread; passes: how often NumPy's goes over the arrays."""
        return seconds(*arrays) * (BANDWIDTH / COMPILED_BANDWIDTH if self.fast else passes)


def _aligned(count: int, itemsize: int) -> int:
    return -(-count * itemsize // ALIGNMENT) * ALIGNMENT


def carved_bytes(*specs: tuple[int, Any]) -> int:
    """Bytes that `carve` takes for these (number of elements, dtype)."""
    return sum(_aligned(count, np.dtype(dtype).itemsize) for count, dtype in specs)


def carve(workspace: Array, *specs: tuple[int, Any]) -> list[Array]:
    """1-D arrays of (number of elements, dtype), one after the other from the start of `workspace`."""
    arrays, start = [], 0
    for count, dtype in specs:
        nbytes = count * np.dtype(dtype).itemsize
        arrays.append(workspace[start : start + nbytes].view(dtype))
        start += _aligned(count, np.dtype(dtype).itemsize)
    return arrays


def is_channels_last(x: Array) -> bool:
    """Whether x: (N, C, H, W) is stored with its channels innermost."""
    return x.ndim == 4 and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)


def view(x: Array, shape: tuple[int, ...]) -> Array:
    """x in another shape over the same bytes.  Raises ValueError where that would need a copy."""
    y = x.reshape(shape)
    if not np.may_share_memory(x, y):
        raise ValueError(f"array of shape {x.shape}, strides {x.strides} cannot be seen as {shape} without a copy")
    return y


def flat(arrays: Sequence[Array]) -> list[Array] | None:
    """1-D views of arrays that are dense and stored in one order, C's or channels-last; None if they are not."""
    if arrays[0].ndim == 4 and not all(a.flags.c_contiguous for a in arrays):
        arrays = [a.transpose(0, 2, 3, 1) for a in arrays]
    if all(a.flags.c_contiguous for a in arrays):
        return [a.reshape(-1) for a in arrays]
    return None


class Pieces(Sequence[tuple[Array, ...]]):
    """Arrays of one shape, cut alike into pieces of at most `limit` elements.

    Arrays that are dense in one common order (C or channels-last) give flat 1-D pieces; others strided blocks.
    """

    def __init__(self, arrays: Sequence[Array], limit: int = PIECE) -> None:
        shape = arrays[0].shape
        for a in arrays[1:]:
            if a.shape != shape:
                raise ValueError(f"shapes differ: {', '.join(str(a.shape) for a in arrays)}")
        dense = flat(arrays)
        if dense is not None:
            arrays = dense
        elif len(shape) == 4:
            arrays = [a.transpose(0, 2, 3, 1) for a in arrays]
        self.arrays = arrays
        shape = arrays[0].shape
        self.axis, inner = len(shape) - 1, 1  # pieces are blocks along this axis, whole in all later ones
        while self.axis and inner * shape[self.axis] <= limit:
            inner *= shape[self.axis]
            self.axis -= 1
        self.outer = shape[: self.axis]
        self.step = max(1, limit // inner)
        self.blocks = -(-shape[self.axis] // self.step)
        self.total: int = self.blocks * math.prod(self.outer)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: Any) -> tuple[Array, ...]:
        if not 0 <= index < self.total:
            raise IndexError(index)
        outer, block = divmod(index, self.blocks)
        where: tuple[Any, ...] = (slice(block * self.step, (block + 1) * self.step),)
        for size in reversed(self.outer):
            outer, place = divmod(outer, size)
            where = (place, *where)
        return tuple(a[where] for a in self.arrays)


def like(scratch: Array, piece: Array) -> Array:
    """The start of 1-D `scratch` in the shape of `piece`."""
    return scratch[: piece.size].reshape(piece.shape)
