"""Winograd's minimal filtering F(m x m, r x r), as short programs of array operations.

An output tile of m x m needs an input tile of a x a, a = m + r - 1.  Along one axis, with the matrices of Lavin & Gray,
"Fast algorithms for convolutional neural networks" (2016):

    y = A^T ((G g) * (B^T d))                  d: a inputs, g: r taps, y: m outputs, * elementwise
    dg = G^T sum over tiles ((A dy) * (B^T d))  the gradient of the taps

and the same along the other axis.  The matrices follow from a points (Toom and Cook): the rows of A and of G are the
powers 0 .. m - 1 and 0 .. r - 1 of each, those of infinity 0 .. 0 1, scaled in G so that B^T has whole numbers alone.
The points are 0, 1, -1 and infinity for a = 4, 2 and -2 besides for a = 6; B^T depends on them and not on r.

Each matrix is written out as statements that share common sums; a statement runs on whole arrays, one array per index.
t and u are temporaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy

from vdnn.layers.base import Array

OPERATIONS: Mapping[str, Any] = {"+": numpy.add, "-": numpy.subtract, "*": numpy.multiply}


class Program:
    """Statements `out = a + b`, `out = a - b`, `out = a * number` or `out = a`; names are a letter and an index."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.statements = [parse(line) for line in text.replace(";", "\n").splitlines() if line.strip()]
        self.temporaries = len({"t", "u"} & {target for target, *_ in self.statements})
        self._numbers: dict[str, list[Array]] = {}

    def run(self, temporaries: Sequence[Array], **arrays: Sequence[Array]) -> None:
        """Run on arrays by letter, x=[...] being x0, x1, ...; the temporaries have the shape of each."""
        names = {f"{letter}{i}": array for letter, items in arrays.items() for i, array in enumerate(items)}
        numbers = self.numbers(next(iter(names.values())).dtype)
        names.update(zip("tu", temporaries, strict=False))
        for (target, operation, first, second), value in zip(self.statements, numbers, strict=True):
            if operation == "=":
                numpy.copyto(names[target], names[first])
            else:
                other = names[second] if isinstance(second, str) else value
                OPERATIONS[operation](names[first], other, names[target])

    def numbers(self, dtype: Any) -> list[Array]:
        """Of each statement its number, 0 if it has none, as an array of the type: a number of Python's would be cast
        through a buffer, and a scalar of NumPy's made into an array, at each use.
        """
        found = self._numbers.get(dtype.char)
        if found is None:
            found = [numpy.array(0 if isinstance(second, str) else second, dtype) for *_, second in self.statements]
            self._numbers[dtype.char] = found
        return found


def parse(line: str) -> tuple[str, str, str, str | Fraction]:
    """The statement's target, operation ("=" for a copy), first and second operand."""
    target, _, first, *rest = line.split()
    if not rest:
        return target, "=", first, Fraction(1)
    operation, second = rest
    if operation != "*":
        return target, operation, first, second
    return target, operation, first, Fraction(second)


@dataclass(frozen=True, eq=False)
class Winograd:
    """The five matrices of F(m x m, r x r)."""

    m: int  # outputs of a tile, along an axis
    r: int  # taps
    input: Program  # B^T: d -> v
    filter: Program  # G: g -> v
    output: Program  # A^T, in place: v0 .. v(a-1) -> v0 .. v(m-1)
    gradient: Program  # A: d -> v
    taps: Program  # G^T: v -> g

    @property
    def a(self) -> int:
        """Length of an input tile."""
        return self.m + self.r - 1

    @property
    def saving(self) -> float:
        """How many times fewer multiplications a tile needs."""
        return (self.m * self.r / self.a) ** 2


TWO = Winograd(
    2,
    3,
    input=Program("v0 = d0 - d2; v1 = d1 + d2; v2 = d2 - d1; v3 = d1 - d3"),
    filter=Program("v0 = g0; v3 = g2; t = g0 + g2; t = t * 0.5; v2 = g1 * 0.5; v1 = t + v2; v2 = t - v2"),
    output=Program("v0 = v0 + v1; v0 = v0 + v2; v1 = v1 - v2; v1 = v1 - v3"),
    gradient=Program("v0 = d0; v1 = d0 + d1; v2 = d0 - d1; v3 = d1 * -1"),
    taps=Program("t = v1 + v2; t = t * 0.5; g0 = v0 + t; g2 = v3 + t; g1 = v1 - v2; g1 = g1 * 0.5"),
)

SIX_POINTS = Program(
    """v0 = d0 - d2; v0 = v0 * 4; t = d4 - d2; v0 = v0 + t
    u = d3 - d1; u = u * 2; v3 = t + u; v4 = t - u
    v5 = d5 - d3; u = u * 2; v5 = v5 - u
    t = d2 * 4; t = d4 - t; u = d1 * 4; u = d3 - u; v1 = t + u; v2 = t - u"""
)

FOUR = Winograd(
    4,
    3,
    input=SIX_POINTS,
    filter=Program(
        """v0 = g0 * 1/4; v5 = g2
        t = g0 + g2; t = t * -1/6; v2 = g1 * -1/6; v1 = t + v2; v2 = t - v2
        t = g0 * 1/24; u = g2 * 1/6; t = t + u; v4 = g1 * 1/12; v3 = t + v4; v4 = t - v4"""
    ),
    output=Program(
        """t = v1 + v2; v2 = v1 - v2; u = v3 + v4; v4 = v3 - v4
        v0 = v0 + t; v0 = v0 + u
        v1 = v4 * 2; v1 = v1 + v2
        v3 = v4 * 8; v3 = v3 + v2; v3 = v3 + v5
        v2 = u * 4; v2 = v2 + t"""
    ),
    gradient=Program(
        """v0 = d0; v5 = d3
        t = d0 + d2; u = d1 + d3; v1 = t + u; v2 = t - u
        t = d2 * 4; t = t + d0; u = d3 * 4; u = u + d1; u = u * 2; v3 = t + u; v4 = t - u"""
    ),
    taps=Program(
        """t = v1 + v2; t = t * 1/6; u = v3 + v4; u = u * 1/24
        g0 = v0 * 1/4; g0 = g0 - t; g0 = g0 + u
        u = u * 4; u = u - t; g2 = u + v5
        g1 = v2 - v1; g1 = g1 * 2; g1 = g1 + v3; g1 = g1 - v4; g1 = g1 * 1/12"""
    ),
)

TWO_OF_FIVE = Winograd(
    2,
    5,
    input=SIX_POINTS,
    filter=Program(
        """v0 = g0 * 1/4; v5 = g4
        t = g0 + g2; t = t + g4; t = t * -1/6; u = g1 + g3; u = u * -1/6; v1 = t + u; v2 = t - u
        t = g4 * 4; t = t + g2; t = t * 4; t = t + g0; t = t * 1/24
        u = g3 * 4; u = u + g1; u = u * 1/12; v3 = t + u; v4 = t - u"""
    ),
    output=Program(
        """t = v1 + v2; v1 = v1 - v2; u = v3 + v4; v0 = v0 + t; v0 = v0 + u
        u = v3 - v4; u = u * 2; v1 = v1 + u; v1 = v1 + v5"""
    ),
    gradient=Program("v0 = d0; v5 = d1; v1 = d0 + d1; v2 = d0 - d1; t = d1 * 2; v3 = d0 + t; v4 = d0 - t"),
    taps=Program(
        """t = v1 + v2; t = t * 1/6; u = v3 + v4; u = u * 1/24
        g0 = v0 * 1/4; g0 = g0 - t; g0 = g0 + u
        u = u * 4; g2 = u - t; u = u * 4; g4 = u - t; g4 = g4 + v5
        t = v2 - v1; t = t * 1/6; u = v3 - v4; u = u * 1/12; g1 = t + u; u = u * 4; g3 = t + u"""
    ),
)

TRANSFORMS: Mapping[tuple[int, int], Winograd] = {(w.m, w.r): w for w in (TWO, FOUR, TWO_OF_FIVE)}  # by m and r
