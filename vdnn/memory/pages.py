"""Memory that begins on a page."""

from __future__ import annotations

import numpy as np

from vdnn.layers.base import Array

PAGE = 4096  # bytes


def slab(nbytes: int) -> Array:
    """Bytes, all 0, that begin on a page; the system gives a page when it is first written to."""
    raw = np.zeros(nbytes + PAGE, np.uint8)
    first = -raw.ctypes.data % PAGE
    return raw[first : first + nbytes]
