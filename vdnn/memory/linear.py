"""Program: a linear program that grows column by column and row by row, solved by SciPy's HiGHS."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

Terms = list[tuple[int, float]]  # (column, factor)


class Program:
    """Minimize the sum of cost x over x with 0 <= x <= most, such that every row holds.

    Equations and inequalities are kept apart, as (rows, columns, factors).
    """

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.most: list[float] = []
        self._entries: tuple[tuple[list[int], list[int], list[float]], ...] = (([], [], []), ([], [], []))
        self._right: tuple[list[float], list[float]] = ([], [])

    def column(self, cost: float = 0.0, most: float = inf) -> int:
        """A new variable between 0 and `most`."""
        self.cost.append(cost)
        self.most.append(most)
        return len(self.cost) - 1

    def at_most(self, terms: Terms, right: float = 0.0) -> None:
        """A row: the sum of the terms is at most `right`."""
        self._row(0, terms, right)

    def equal(self, terms: Terms, right: float = 0.0) -> None:
        """A row: the sum of the terms is `right`."""
        self._row(1, terms, right)

    def _row(self, kind: int, terms: Terms, right: float) -> None:
        rows, columns, factors = self._entries[kind]
        for column, factor in terms:
            rows.append(len(self._right[kind]))
            columns.append(column)
            factors.append(factor)
        self._right[kind].append(right)

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows)."""
        return len(self.cost), sum(map(len, self._right))

    def solve(self) -> Any:
        """SciPy's result: `status` (0 solved, 2 infeasible), `fun` and `x`.  Raises ImportError without SciPy."""
        try:
            from scipy.optimize import linprog
            from scipy.sparse import csr_array
        except ImportError as error:
            raise ImportError("a lower bound needs SciPy: pip install 'vdnn[search]'") from error
        matrices = []
        for (rows, columns, factors), right in zip(self._entries, self._right, strict=True):
            shape = (len(right), len(self.cost))
            matrices.append(csr_array((factors, (rows, columns)), shape=shape) if right else None)
        return linprog(
            self.cost,
            A_ub=matrices[0],
            b_ub=self._right[0] or None,
            A_eq=matrices[1],
            b_eq=self._right[1] or None,
            bounds=np.column_stack([np.zeros(len(self.most)), self.most]),
            method="highs-ipm",  # on programs of this shape twice as fast as the simplex method
        )
