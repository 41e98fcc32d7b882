"""How kernels are compiled: serial, without the GIL, kept on disk, with NumPy's arithmetic.

No fast-math flag is set, so NaN and infinity go where they go in NumPy, and elementwise results have its bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])
# Numba looks for changes in the file of a kernel alone; its name, which the cache goes by, tells of changes in others
FILES = sorted(Path(__file__).parent.glob("*.py"))
FINGERPRINT = zlib.crc32(b"".join(file.read_bytes() for file in FILES))


def compiled(function: Function) -> Function:
    """The function, compiled for each combination of argument types when that is first called.

    Machine code is kept beside the source, or in the user's cache folder, or, where neither can be written, not at
    all: then Numba refuses to cache, and every process compiles anew.
    """
    options = {"nogil": True, "error_model": "numpy"}
    function.__qualname__ = f"{function.__qualname__}.{FINGERPRINT}"
    try:
        return numba.njit(function, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:
        return numba.njit(function, **options)  # type: ignore[no-any-return]
