"""Watching a number in memory that another thread writes."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from vdnn.kernels.numpy.compiled.jit import compiled
from vdnn.layers.base import Array

HAS_PAUSE = platform.machine() in ("x86_64", "AMD64")


def _look(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    if HAS_PAUSE:  # a hint to the processor, which else would run ahead of what it cannot know
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
    array = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.load_atomic(builder.gep(array.data, [values[1]]), "acquire", 8)


@intrinsic  # type: ignore[untyped-decorator]
def look(typing: Any, numbers: Any, index: Any) -> Any:
    """numbers[index], read from memory each time, and before all that this thread reads later."""
    return types.int64(numbers, types.int64), _look


def _put(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, values[0])
    builder.store_atomic(values[2], builder.gep(array.data, [values[1]]), "release", 8)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, numbers: Any, index: Any, value: Any) -> Any:
    """numbers[index] = value, after all that this thread wrote before."""
    return types.void(numbers, types.int64, types.int64), _put


@compiled
def meet(rung: Array, at: int, value: int, watched: Array, index: int, seen: int, looks: int) -> None:
    """rung[at] = value; then return when watched[index] is another than `seen`, or after so many looks.

    A look takes about 25 ns.  Numbers are 64-bit integers.
    """
    put(rung, at, value)
    for _ in range(looks):
        if look(watched, index) != seen:
            return
