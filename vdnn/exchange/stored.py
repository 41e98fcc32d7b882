"""StoredTensor: a tensor in a file, known by shape and type before any of it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vdnn.layers.base import Array, Shape

BFLOAT16 = "bfloat16"  # which NumPy does not have: the upper half of a float32
FLOATS = ("float32", "float64", "float16", BFLOAT16)
ITEM_BYTES = {
    name: 2 if name == BFLOAT16 else np.dtype(name).itemsize
    for name in (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool")
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by its shape and type, and how to read it: `read` gives it in that type, bfloat16 as float32."""

    shape: Shape
    dtype: str
    read: Callable[[], Array] = field(repr=False, compare=False)

    @property
    def is_float(self) -> bool:
        """Whether it can be a weight."""
        return self.dtype in FLOATS


def from_bytes(data: bytes, dtype: str, order: str = "<") -> Array:
    """The elements of `data`, in one row; read-only unless they had to be converted.  order: "<" or ">"."""
    if dtype == BFLOAT16:
        halves = np.frombuffer(data, f"{order}u2")
        return (halves.astype(np.uint32) << 16).view(np.float32)
    found = np.frombuffer(data, np.dtype(dtype).newbyteorder("<" if order == "<" else ">"))
    return found.astype(dtype, copy=False)
