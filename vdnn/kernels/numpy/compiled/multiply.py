"""The product that direct convolution is made of, kept in registers, written as LLVM instructions.

    sums[p, v] = first[v] or sums[p, v], + sum over t of a[p, t] * b[t, v]

for rows p, vectors v of neighbouring elements and terms t.  Sums are loaded once, added to in registers term by term in
order, and stored once.  A product and its sum are one rounding where the machine has such an instruction.  What differs
is how a's elements are found: `over_terms` for rows at any places and terms that are neighbours, `over_rows` the other
way round.  `over_lanes` is for sums over neighbours of both factors: it keeps a vector for each sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from vdnn.kernels.numpy.compiled.vectors import Emitter, whole

# 32 registers of 64 bytes, or 16 of 32, hold the sums, a row's element and b's vectors
IS_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
VECTORS = 2 if IS_WIDE else 1
ROWS = 8 if IS_WIDE else 6
FEWER_ROWS = 8 if IS_WIDE else 4  # divides usual numbers of channels
LINES, COLUMNS = (3, 8) if IS_WIDE else (2, 2)  # of over_lanes
FUSED = ("contract",)
WORD = ir.IntType(64)


class Product:
    """Writes the instructions for `rows` x `vectors` sums."""

    def __init__(self, context: Any, builder: Any, number: Any, rows: int, vectors: int) -> None:
        self.emit, self.builder = Emitter(context, builder, number), builder
        self.rows, self.vectors = range(rows), range(vectors)

    def places(self, start: Any, step: Any, count: range) -> list[Any]:
        """start, start + step, ..."""
        return [self.builder.add(start, self.builder.mul(step, ir.Constant(WORD, i))) for i in count]

    def vectors_at(self, place: Any) -> list[Any]:
        """Places of neighbouring vectors."""
        return self.places(place, ir.Constant(WORD, self.emit.lanes), self.vectors)

    def splat(self, value: Any) -> Any:
        """A vector with the value everywhere."""
        vector, index = self.emit.vector, ir.IntType(32)
        nothing = ir.Constant(vector, ir.Undefined)
        single = self.builder.insert_element(nothing, value, ir.Constant(index, 0))
        mask = ir.Constant(ir.VectorType(index, self.emit.lanes), [0] * self.emit.lanes)
        return self.builder.shuffle_vector(single, nothing, mask)

    def write(
        self,
        b: tuple[Any, Any],
        sources: list[list[Any]],
        targets: list[list[Any]],
        loops: tuple[Any, Any],
        at: Callable[[Any, Any], tuple[Any, list[Any]]],
    ) -> None:
        """b: its type and itself; pointers to where sums come from and go; loops: numbers of lines and their terms.

        at(line, t): b's place and the rows' elements.
        """
        builder, emit = self.builder, self.emit
        kept = [[cgutils.alloca_once(builder, emit.vector) for _ in self.vectors] for _ in self.rows]
        self.copy(sources, kept)
        lines, terms = loops
        with cgutils.for_range(builder, lines) as line, cgutils.for_range(builder, terms) as loop:
            place, elements = at(line.index, loop.index)
            factors = [emit.load(*b, each) for each in self.vectors_at(place)]
            for cells, element in zip(kept, elements, strict=True):
                row = self.splat(element)
                for cell, factor in zip(cells, factors, strict=True):
                    _add_product(builder, cell, row, factor)
        self.copy(kept, targets)

    def copy(self, sources: list[list[Any]], targets: list[list[Any]]) -> None:
        """Copy vectors; all are read before any is written."""
        values = [[self.builder.load(each, align=self.emit.bytes) for each in row] for row in sources]
        for row, places in zip(values, targets, strict=True):
            for value, place in zip(row, places, strict=True):
                self.builder.store(value, place, align=self.emit.bytes)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _entries(builder: Any, table: Any, first: Any, count: int) -> list[Any]:
    """Some neighbouring elements of an array."""
    indices = (builder.add(first, ir.Constant(WORD, i)) for i in range(count))
    return [builder.load(builder.gep(table, [index])) for index in indices]


def _add_product(builder: Any, cell: Any, a: Any, b: Any) -> None:
    """cell += a * b."""
    product = builder.fmul(a, b, flags=FUSED)
    builder.store(builder.fadd(builder.load(cell), product, flags=FUSED), cell)


def over_terms(rows: int, vectors: int) -> Any:
    """A row p lies at a[places[first + p] + shift], b's first term at start, the others `step` apart.

    The terms of a row are `lines` lines, `across` apart, of `terms` neighbours each.
    Its sums are those of `sums` at targets[to + p] + shift_to; with `begins`, they begin with `initial` at shift_to.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = signature.args
        a, places, first, shift, b, start, step, sums, targets, to, shift_to, begins, initial, *loops, across = whole(
            context, builder, values, kinds
        )
        lines, terms = loops
        product = Product(context, builder, kinds[0].dtype, rows, vectors)
        data = _data(context, builder, kinds[0], a)
        tables = _data(context, builder, kinds[1], places), _data(context, builder, kinds[8], targets)
        bases, old, new = [], [], []
        fresh = [product.emit.pointer(kinds[12], initial, each) for each in product.vectors_at(shift_to)]
        is_new = builder.icmp_signed("!=", begins, ir.Constant(WORD, 0))
        found = (_entries(builder, t, start, rows) for t, start in zip(tables, (first, to), strict=True))
        for place, target in zip(*found, strict=True):
            bases.append(builder.gep(data, [builder.add(place, shift)]))
            spots = product.vectors_at(builder.add(target, shift_to))
            new.append([product.emit.pointer(kinds[7], sums, each) for each in spots])
            old.append([builder.select(is_new, x, y) for x, y in zip(fresh, new[-1], strict=True)])

        def at(line: Any, t: Any) -> tuple[Any, list[Any]]:
            place = builder.add(start, builder.mul(builder.add(builder.mul(line, terms), t), step))
            term = builder.add(builder.mul(line, across), t)
            return place, [builder.load(builder.gep(base, [term])) for base in bases]

        product.write((kinds[4], b), old, new, (lines, terms), at)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        typing: Any,
        a: Any,
        places: Any,
        first: Any,
        shift: Any,
        b: Any,
        start: Any,
        step: Any,
        sums: Any,
        targets: Any,
        to: Any,
        shift_to: Any,
        begins: Any,
        initial: Any,
        lines: Any,
        terms: Any,
        across: Any,
    ) -> Any:
        return types.void(
            a, places, first, shift, b, start, step, sums, targets, to, shift_to, begins, initial, lines, terms, across
        ), write

    return multiply


def over_rows(rows: int, vectors: int) -> Any:
    """Rows are neighbours: a's term t at a_places[t] + row + p, b's at b_places[t] + shift; sums at to + p * across."""

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = signature.args
        a, a_places, row, b, b_places, shift, sums, to, across, terms = whole(context, builder, values, kinds)
        product = Product(context, builder, kinds[0].dtype, rows, vectors)
        data = _data(context, builder, kinds[0], a)
        tables = _data(context, builder, kinds[1], a_places), _data(context, builder, kinds[4], b_places)

        def at(_: Any, t: Any) -> tuple[Any, list[Any]]:
            a_place, b_place = (builder.load(builder.gep(table, [t])) for table in tables)
            base = builder.gep(data, [builder.add(a_place, row)])
            elements = [builder.load(builder.gep(base, [ir.Constant(WORD, p)])) for p in range(rows)]
            return builder.add(b_place, shift), elements

        spots = [product.vectors_at(each) for each in product.places(to, across, product.rows)]
        cells = [[product.emit.pointer(kinds[6], sums, each) for each in row] for row in spots]
        product.write((kinds[3], b), cells, cells, (ir.Constant(WORD, 1), terms), at)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        typing: Any,
        a: Any,
        a_places: Any,
        row: Any,
        b: Any,
        b_places: Any,
        shift: Any,
        sums: Any,
        to: Any,
        across: Any,
        terms: Any,
    ) -> Any:
        return types.void(a, a_places, row, b, b_places, shift, sums, to, across, terms), write

    return multiply


def over_lanes(rows: int, columns: int) -> Any:
    """sums[p * columns + q] = the products of row p of a and row q of b, over `vectors` vectors from `shift` on.

    A row lies at a[a_places[first + p]] or b[b_places[first_b + q]].
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = signature.args
        a, a_places, first, b, b_places, first_b, shift, vectors, sums = whole(context, builder, values, kinds)
        emit = Emitter(context, builder, kinds[0].dtype)

        def bases(kind: Any, places: Any, start: Any, count: int) -> list[Any]:
            table = _data(context, builder, kind, places)
            return [builder.add(place, shift) for place in _entries(builder, table, start, count)]

        lines = bases(kinds[1], a_places, first, rows), bases(kinds[4], b_places, first_b, columns)
        kept = [[cgutils.alloca_once(builder, emit.vector) for _ in range(columns)] for _ in range(rows)]
        for cell in (cell for line in kept for cell in line):
            builder.store(emit.constant(0.0), cell)
        with cgutils.for_range(builder, vectors) as loop:
            step = builder.mul(loop.index, ir.Constant(WORD, emit.lanes))
            left = [emit.load(kinds[0], a, builder.add(base, step)) for base in lines[0]]
            for q, base in enumerate(lines[1]):
                right = emit.load(kinds[3], b, builder.add(base, step))
                for p, factor in enumerate(left):
                    _add_product(builder, kept[p][q], factor, right)
        target = _data(context, builder, kinds[8], sums)
        for i, cell in enumerate(cell for line in kept for cell in line):
            builder.store(emit.total(builder.load(cell)), builder.gep(target, [ir.Constant(WORD, i)]))
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(
        typing: Any,
        a: Any,
        a_places: Any,
        first: Any,
        b: Any,
        b_places: Any,
        first_b: Any,
        shift: Any,
        vectors: Any,
        sums: Any,
    ) -> Any:
        return types.void(a, a_places, first, b, b_places, first_b, shift, vectors, sums), write

    return multiply
