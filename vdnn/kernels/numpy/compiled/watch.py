"""Watching a number in memory that another thread writes."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.layers.base import Array

LOOKS = 4000  # about 0.1 ms
HAS_PAUSE = platform.machine() in ("x86_64", "AMD64")


def _look(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    if HAS_PAUSE:  # a hint to the processor, which else would run ahead of what it cannot know
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
    place = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.load_atomic(place, "monotonic", 8)


@intrinsic  # type: ignore[untyped-decorator]
def look(typing: Any, numbers: Any) -> Any:
    """The first of some 64-bit integers, read from memory each time."""
    return types.int64(numbers), _look


@compiled
def watch(numbers: Array, seen: int) -> None:
    """Return when the first number is another than `seen`, or after a while."""
    for _ in range(LOOKS):
        if look(numbers) != seen:
            return
