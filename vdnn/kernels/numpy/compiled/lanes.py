"""Vectors of neighbouring elements as values in compiled functions.

LLVM turns a loop into vector instructions where it can prove that no result lies in an argument's way, which in-place
work is.  Here a loop says so itself: it loads vectors, computes, and stores each result where its arguments were.
A vector is 64 bytes: one AVX-512 register, or several smaller ones on other machines.  Arrays are 1-D, contiguous.

    size(a)                       elements of a vector of the array's type
    load(a, i), store(v, a, i)    the vector from element i on
    load_first(n, a, i), store_first(n, v, a, i)
                                  its first n elements, the others 0 or left alone
    spread(number)                a vector of one number
    + - * /, absolute, root, rectified, kept, signs, masked
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from vdnn.kernels.numpy.compiled.vectors import VECTOR, call

WORD = ir.IntType(64)
OPERATIONS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}


class Vector(types.Type):
    """The type of a vector of floating-point numbers."""

    def __init__(self, number: Any) -> None:
        self.number = number
        self.lanes = VECTOR * 8 // number.bitwidth
        super().__init__(name=f"Vector({number})")

    def integers(self) -> Any:
        """LLVM's type of as many integers of the same size."""
        return ir.VectorType(ir.IntType(self.number.bitwidth), self.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """Vectors are kept as LLVM's."""

    def __init__(self, manager: Any, kind: Vector) -> None:
        number = manager.lookup(kind.number).get_value_type()
        super().__init__(manager, kind, ir.VectorType(number, kind.lanes))


def _arithmetic(operation: Any, instruction: str) -> None:
    """Make an operator work on two vectors of one type."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, arguments: Any, _: Any) -> Any:
            if len(arguments) == 2 and isinstance(arguments[0], Vector) and arguments[0] == arguments[1]:
                return signature(arguments[0], *arguments)
            return None

    infer_global(operation)(Template)
    lower_builtin(operation, Vector, Vector)(lambda _, builder, __, values: getattr(builder, instruction)(*values))


for _operation, _instruction in OPERATIONS.items():
    _arithmetic(_operation, _instruction)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, place: Any, to: Any) -> Any:
    """Where element `place` of an array lies, as a pointer to an LLVM type."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), to.as_pointer())


def _type(context: Any, kind: Vector) -> Any:
    return context.get_value_type(kind)


def _places(builder: Any, kind: Vector, count: Any) -> Any:
    """For every element of a vector whether it is one of the first `count`."""
    numbers = ir.VectorType(WORD, kind.lanes)
    empty, zeros = ir.Constant(numbers, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), None)
    first = builder.insert_element(empty, count, ir.Constant(ir.IntType(32), 0))
    counts = builder.shuffle_vector(first, empty, zeros)
    return builder.icmp_signed("<", ir.Constant(numbers, list(range(kind.lanes))), counts)


def _suffix(kind: Vector) -> str:
    return f"v{kind.lanes}f{kind.number.bitwidth}"


@intrinsic  # type: ignore[untyped-decorator]
def size(typing: Any, array: Any) -> Any:
    """Elements of a vector."""

    def lower(context: Any, *_: Any) -> Any:
        return context.get_constant(types.intp, Vector(array.dtype).lanes)

    return types.intp(array), lower


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, place: Any) -> Any:
    """The vector from an element on."""
    kind = Vector(array.dtype)

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, array, values[0], values[1], _type(context, kind))
        return builder.load(pointer, align=kind.number.bitwidth // 8)

    return kind(array, types.intp), lower


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, value: Any, array: Any, place: Any) -> Any:
    """Write a vector from an element on."""

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, array, values[1], values[2], _type(context, value))
        builder.store(values[0], pointer, align=value.number.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(value, array, types.intp), lower


@intrinsic  # type: ignore[untyped-decorator]
def load_first(typing: Any, count: Any, array: Any, place: Any) -> Any:
    """The first `count` elements of the vector from an element on; 0 for the others, which are not read."""
    kind = Vector(array.dtype)

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        vector = _type(context, kind)
        pointer = _pointer(context, builder, array, values[1], values[2], vector)
        alignment = ir.Constant(ir.IntType(32), kind.number.bitwidth // 8)
        places, others = _places(builder, kind, values[0]), ir.Constant(vector, None)
        name = f"llvm.masked.load.{_suffix(kind)}.p0"
        return call(builder, name, vector, pointer, alignment, places, others)

    return kind(types.intp, array, types.intp), lower


@intrinsic  # type: ignore[untyped-decorator]
def store_first(typing: Any, count: Any, value: Any, array: Any, place: Any) -> Any:
    """Write the first `count` elements of a vector from an element on."""

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, array, values[2], values[3], _type(context, value))
        alignment = ir.Constant(ir.IntType(32), value.number.bitwidth // 8)
        name = f"llvm.masked.store.{_suffix(value)}.p0"
        call(builder, name, ir.VoidType(), values[1], pointer, alignment, _places(builder, value, values[0]))
        return context.get_dummy_value()

    return types.void(types.intp, value, array, types.intp), lower


@intrinsic  # type: ignore[untyped-decorator]
def spread(typing: Any, number: Any) -> Any:
    """A vector of one number."""
    kind = Vector(number)

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        empty = ir.Constant(_type(context, kind), ir.Undefined)
        first = builder.insert_element(empty, values[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), None))

    return kind(number), lower


def _function(name: str) -> Callable[..., Any]:
    """One of LLVM's functions of one vector."""

    def typed(typing: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
            return call(builder, f"llvm.{name}.{_suffix(value)}", _type(context, value), *values)

        return value(value), lower

    return intrinsic(typed)  # type: ignore[no-any-return]


absolute, root = _function("fabs"), _function("sqrt")


@intrinsic  # type: ignore[untyped-decorator]
def rectified(typing: Any, value: Any) -> Any:
    """max(value, 0) as NumPy has it: NaN stays."""

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        zero = ir.Constant(_type(context, value), None)
        return builder.select(builder.fcmp_ordered("<=", values[0], zero), zero, values[0])

    return value(value), lower


@intrinsic  # type: ignore[untyped-decorator]
def kept(typing: Any, guard: Any, value: Any) -> Any:
    """`value` where the guard's bits, as an integer, are positive; 0 elsewhere."""

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        bits, integers = builder.bitcast(values[0], guard.integers()), ir.Constant(guard.integers(), None)
        return builder.select(builder.icmp_signed(">", bits, integers), values[1], ir.Constant(values[1].type, None))

    return value(guard, value), lower


@intrinsic  # type: ignore[untyped-decorator]
def signs(typing: Any, value: Any) -> Any:
    """An integer with a bit for every element, set where that is not 0."""
    integer = types.uint16 if value.lanes == 16 else types.uint8

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        found = builder.fcmp_unordered("!=", values[0], ir.Constant(values[0].type, None))
        return builder.bitcast(found, ir.IntType(value.lanes))

    return integer(value), lower


@intrinsic  # type: ignore[untyped-decorator]
def masked(typing: Any, bits: Any, value: Any) -> Any:
    """`value` where its bit is set, 0 elsewhere."""
    integer = types.uint16 if value.lanes == 16 else types.uint8

    def lower(context: Any, builder: Any, _: Any, values: Any) -> Any:
        chosen = builder.bitcast(values[0], ir.VectorType(ir.IntType(1), value.lanes))
        return builder.select(chosen, values[1], ir.Constant(values[1].type, None))

    return value(integer, value), lower
