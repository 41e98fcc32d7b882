"""What every part of the CUDA kernel set uses: launches, and how arrays are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdnn.kernels.numpy.chunks import is_channels_last
from vdnn.layers.base import Array

BLOCK = 256  # threads of a block, THREADS of the source
WARP = 32  # threads that run together
WAVES = 8  # blocks for each multiprocessor at most; a thread takes several elements where there are more
IMAGES = 8  # of a thread of over_images, where there are enough
LARGEST = 2**31  # elements of one image, so that kernels count them in 32 bits
MOST_ROWS = 65535  # of a grid


class Launching:
    """Launches kernels of vdnn's source on one stream."""

    def __init__(self, driver: Any, stream: Any) -> None:
        self.driver, self.stream = driver, stream

    def launch(self, name: str, like: Array, grid: int | tuple[int, ...], *arguments: Any) -> None:
        """Start `name` for the type of `like`, with blocks of 256 threads.

        Arguments: arrays (their addresses are passed; None is a null pointer), integers, floats.
        """
        if like.size == 0:
            return  # CUDA takes a grid of no blocks for an error
        blocks = (grid,) if isinstance(grid, int) else grid
        self.driver.launch(name, like.dtype, blocks, BLOCK, [self._plain(a) for a in arguments], self.stream)

    def _plain(self, argument: Any) -> int | float:
        if argument is None:
            return 0
        if isinstance(argument, (int, float)):
            return argument
        return int(self.driver.address(argument))

    def blocks(self, count: int) -> int:
        """Blocks for so many elements: enough to fill the device, no more."""
        return max(1, min(-(-count // BLOCK), WAVES * int(self.driver.multiprocessors)))

    def spread(self, rows: int, columns: int) -> tuple[tuple[int, int], int]:
        """(grid, width) for EACH_ROW and EACH_COLUMN of the source, the width that needs fewest blocks."""

        def blocks(width: int) -> int:
            return -(-columns // width) * -(-rows * width // BLOCK)

        # a warp's threads lie side by side if a row is that long: apart, each of them would read a line of its own
        least = min(WARP, 1 << (columns - 1).bit_length())
        width = min((w for w in (BLOCK >> k for k in range(BLOCK.bit_length())) if w >= least), key=blocks)
        most = WAVES * int(self.driver.multiprocessors)
        across = max(1, min(-(-columns // width), most))
        down = max(1, min(-(-rows * width // BLOCK), most // across))
        return (across, down), width

    def each(self, name: str, *arguments: Any, arrays: Sequence[Array]) -> None:
        """Start an elementwise kernel on dense arrays that are stored alike; their size is its last argument."""
        check_alike(arrays)
        size = arrays[0].size
        self.launch(name, arrays[0], self.blocks(size), *arguments, size)

    def add_rows(self, y: Array, b: Array, rows: int, K: int) -> None:
        """y[n, k] += b[k], for y that lies as so many rows of K."""
        grid, width = self.spread(rows, K)
        self.launch("linear_add_rows", y, grid, y, b, rows, K, width)

    def over_images(self, size: int, N: int, each: int = 1) -> tuple[int, int]:
        """A grid for N images of `size` elements: a thread takes `each` of them, in about eight images where there are
        enough for all multiprocessors even so, and works out once what depends on their place.
        """
        if size >= LARGEST:
            raise ValueError(f"an image of {size} elements: kernels take fewer than {LARGEST}")
        wide = max(1, -(-size // (BLOCK * each)))
        enough = -(-WAVES * self.driver.multiprocessors // wide)
        return wide, min(max(-(-N // IMAGES), enough), N, MOST_ROWS)


def check_alike(arrays: Sequence[Array]) -> None:
    """Raise ValueError unless the arrays have one shape and are dense in one common order."""
    first = arrays[0]
    for other in arrays:
        if other.shape != first.shape or not dense_alike(first, other):
            raise ValueError(
                f"arrays are stored differently: {first.shape} by {first.strides}, {other.shape} by {other.strides}"
            )


def dense_alike(a: Array, b: Array) -> bool:
    """Whether both are C-contiguous, or both channels-last."""
    return any(order(a) and order(b) for order in (is_contiguous, is_channels_last))


def is_contiguous(a: Array) -> bool:
    """Whether `a` is stored in its logical order."""
    return bool(a.flags.c_contiguous)


def strides_of(a: Array) -> tuple[int, ...]:
    """Strides in elements; those of axes of size 1, which NumPy leaves open, as if `a` were dense."""
    return tuple(s // a.itemsize for s in a.strides)


def storage_of(*arrays: Array) -> str:
    """The storage, "nchw" or "nhwc", that all these 4-dimensional arrays have.  Raises ValueError."""
    for storage, order in (("nchw", is_contiguous), ("nhwc", is_channels_last)):
        if all(order(a) for a in arrays):
            return storage
    raise ValueError(f"arrays are neither all contiguous nor all channels-last: {[a.strides for a in arrays]}")


def reciprocal(divisor: int) -> int:
    """What kernels divide by, see `quotient` of common.cuh: a multiplier below 2**32, and a shift above it."""
    divisor = max(1, divisor)  # 0 is a size of arrays that hold nothing, of which none is divided
    shift = (divisor - 1).bit_length()
    return shift << 32 | ((1 << 32) * ((1 << shift) - divisor) // divisor + 1)
