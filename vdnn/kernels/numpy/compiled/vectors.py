"""Winograd's transforms on vectors of neighbouring channels, written as LLVM instructions.

A loop that writes 36 places at once is beyond LLVM's vectoriser: it cannot rule out that they overlap.  So the
statements of `transforms.py` become vector instructions one by one.  A vector is 64 bytes: one AVX-512 register, or
several smaller ones on other machines.  All arrays are 1-D and contiguous, all places and strides count elements.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from vdnn.kernels.numpy.transforms import Program

VECTOR = 64  # bytes
FLOATS: dict[int, Any] = {32: numpy.float32, 64: numpy.float64}
Place = Callable[[int, int], Any]


def call(builder: Any, name: str, result: Any, *values: Any, flags: tuple[str, ...] = ()) -> Any:
    """Call an LLVM function."""
    kind = ir.FunctionType(result, [value.type for value in values])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, values, fastmath=flags)


class Emitter:
    """Writes vector instructions; `number` is the floating-point type that the kernel works in."""

    def __init__(self, context: Any, builder: Any, number: Any) -> None:
        self.context, self.builder = context, builder
        self.number, self.bytes = FLOATS[number.bitwidth], number.bitwidth // 8
        self.lanes = VECTOR // self.bytes
        self.vector = ir.VectorType(context.get_value_type(number), self.lanes)

    def constant(self, value: float | Fraction) -> Any:
        """A vector with `value`, rounded to the kernel's precision, everywhere."""
        return ir.Constant(self.vector, [float(self.number(value))] * self.lanes)

    def pointer(self, kind: Any, array: Any, place: Any) -> Any:
        """Where the vector that starts at an element of an array lies."""
        data = self.context.make_array(kind)(self.context, self.builder, array).data
        return self.builder.bitcast(self.builder.gep(data, [place]), self.vector.as_pointer())

    def load(self, kind: Any, array: Any, place: Any) -> Any:
        """The vector at an element of an array."""
        return self.builder.load(self.pointer(kind, array, place), align=self.bytes)

    def store(self, value: Any, kind: Any, array: Any, place: Any) -> None:
        """Write the vector at an element of an array."""
        self.builder.store(value, self.pointer(kind, array, place), align=self.bytes)

    def total(self, value: Any) -> Any:
        """The sum of a vector's elements: halves, then halves of halves, ..."""
        kind = value.type.element
        name, zero = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.bytes}", ir.Constant(kind, 0.0)
        return call(self.builder, name, kind, zero, value, flags=("reassoc",))

    def grid(self, start: Any, row: Any, column: Any) -> Place:
        """The place of element [i, j] of a grid."""

        def place(i: int, j: int) -> Any:
            integer = start.type
            down = self.builder.mul(row, ir.Constant(integer, i))
            across = self.builder.mul(column, ir.Constant(integer, j))
            return self.builder.add(start, self.builder.add(down, across))

        return place

    def run(self, program: Program, letters: str, given: list[Any], wanted: int) -> list[Any]:
        """The program's results; letters: those of its arguments and of its results."""
        names = {f"{letters[0]}{i}": value for i, value in enumerate(given)}
        operations = {"+": self.builder.fadd, "-": self.builder.fsub, "*": self.builder.fmul}
        for target, operation, first, second in program.statements:
            if operation == "=":
                names[target] = names[first]
            else:
                other = names[second] if isinstance(second, str) else self.constant(second)
                names[target] = operations[operation](names[first], other)
        return [names[f"{letters[1]}{i}"] for i in range(wanted)]

    def both_ways(self, code: str, load: Place) -> list[list[Any]]:
        """M X M^T for the matrix M of a program and the vectors X; code: as `code_of` gives it."""
        letters, inputs, outputs, text = code.split(" ", 3)
        program, n, m = Program(text), int(inputs), int(outputs)
        columns = [self.run(program, letters, [load(i, j) for i in range(n)], m) for j in range(n)]
        return [self.run(program, letters, [column[i] for column in columns], m) for i in range(m)]


def code_of(program: Program, letters: str, inputs: int, outputs: int) -> str:
    """A program with the letters and numbers of its arguments and results, as a text: kernels are cached by it."""
    return f"{letters} {inputs} {outputs} {program.text}"


def whole(context: Any, builder: Any, values: Any, kinds: Any) -> list[Any]:
    """Arguments, integers among them as machine words."""
    return [
        context.cast(builder, value, kind, types.intp) if isinstance(kind, types.Integer) else value
        for value, kind in zip(values, kinds, strict=True)
    ]


def _transform(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    kinds = signature.args
    _, source, at, row, column, target, to, down, across, extra, extra_at = whole(context, builder, values, kinds)
    emit = Emitter(context, builder, kinds[1].dtype)
    place = emit.grid(at, row, column)
    results = emit.both_ways(kinds[0].literal_value, lambda i, j: emit.load(kinds[1], source, place(i, j)))
    place = emit.grid(to, down, across)
    added = None if kinds[9] == types.none else emit.load(kinds[9], extra, extra_at)
    for i, line in enumerate(results):
        for j, value in enumerate(line):
            final = value if added is None else builder.fadd(value, added)
            emit.store(final, kinds[5], target, place(i, j))
    return context.get_dummy_value()


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def transform(
    typing: Any,
    code: Any,
    source: Any,
    at: Any,
    row: Any,
    column: Any,
    target: Any,
    to: Any,
    down: Any,
    across: Any,
    extra: Any,
    extra_at: Any,
) -> Any:
    """Transform a grid of vectors of `source` (from `at`, strides row, column) into one of `target` (to; down, across).

    code: see `code_of`.  extra: None, or an array whose vector at extra_at is added to every result.
    """
    arguments = (code, source, at, row, column, target, to, down, across, extra, extra_at)
    return types.void(*arguments), _transform


def _move(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    source, at, target, to = whole(context, builder, values, signature.args)
    emit = Emitter(context, builder, signature.args[0].dtype)
    emit.store(emit.load(signature.args[0], source, at), signature.args[2], target, to)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def move(typing: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
    """Copy one vector."""
    return types.void(source, at, target, to), _move


def _clear(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    target, to = whole(context, builder, values, signature.args)
    emit = Emitter(context, builder, signature.args[0].dtype)
    emit.store(emit.constant(0.0), signature.args[0], target, to)
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def clear(typing: Any, target: Any, to: Any) -> Any:
    """Write one vector of zeros."""
    return types.void(target, to), _clear


def _transpose(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    source, at, row, target, to, column = whole(context, builder, values, signature.args)
    emit = Emitter(context, builder, signature.args[0].dtype)
    lanes, index = emit.lanes, ir.IntType(32)
    kinds = signature.args[0], signature.args[3]
    lines = [emit.load(kinds[0], source, emit.grid(at, row, row)(i, 0)) for i in range(lanes)]
    size = 1
    while size < lanes:  # swap squares of `size` elements across the diagonal of squares twice as large
        swapped = list(lines)
        for i in (i for i in range(lanes) if not i & size):
            upper = [k if not k & size else lanes + k - size for k in range(lanes)]
            lower = [k + size if not k & size else lanes + k for k in range(lanes)]
            for place, order in ((i, upper), (i + size, lower)):
                mask = ir.Constant(ir.VectorType(index, lanes), order)
                swapped[place] = builder.shuffle_vector(lines[i], lines[i + size], mask)
        lines, size = swapped, 2 * size
    for i, line in enumerate(lines):
        emit.store(line, kinds[1], target, emit.grid(to, column, column)(i, 0))
    return context.get_dummy_value()


@intrinsic  # type: ignore[untyped-decorator]
def transpose(typing: Any, source: Any, at: Any, row: Any, target: Any, to: Any, column: Any) -> Any:
    """Transpose a square as wide as a vector: rows of `source` (from `at`, stride row) become columns of `target`."""
    return types.void(source, at, row, target, to, column), _transpose
