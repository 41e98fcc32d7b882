"""Winograd's programs against the definition, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vdnn.kernels.numpy.transforms import TRANSFORMS, Program

INFINITY = None
POINTS = {4: (0, 1, -1, INFINITY), 6: (0, 1, -1, 2, -2, INFINITY)}
each = pytest.mark.parametrize("winograd", TRANSFORMS.values(), ids=[f"F({m},{r})" for m, r in TRANSFORMS])


def matrix(program, letters, inputs, outputs):
    """The matrix (outputs, inputs) that a program multiplies by, in fractions."""
    given = list(np.eye(inputs, dtype=object) * Fraction(1))
    found = [np.zeros(inputs, object) for _ in range(outputs)]
    read, written = letters
    arrays = {read: given} if read == written else {read: given, written: found}
    program.run([np.zeros(inputs, object) for _ in "tu"[: program.temporaries]], **arrays)
    return np.array(arrays[written][:outputs])


def matrices(winograd):
    """B^T, G, A^T."""
    m, r, a = winograd.m, winograd.r, winograd.a
    sizes = {"input": ("dv", a, a), "filter": ("gv", r, a), "output": ("vv", a, m)}
    return [matrix(getattr(winograd, name), *size) for name, size in sizes.items()]


def powers(point, count):
    """The powers 0 .. count - 1 of a point; those of infinity count from the other end."""
    return [Fraction(e == count - 1) if point is INFINITY else Fraction(point) ** e for e in range(count)]


@each
def test_the_matrices_give_the_convolution_exactly(winograd):
    B, G, A = matrices(winograd)  # y[p] = sum over taps s of g[s] d[p + s]
    for p in range(winograd.m):
        for s in range(winograd.r):
            factors = [sum(A[p, i] * G[i, s] * B[i, n] for i in range(winograd.a)) for n in range(winograd.a)]
            assert factors == [n == p + s for n in range(winograd.a)]


@each
def test_those_of_the_gradient_are_transposed(winograd):
    _, G, A = matrices(winograd)
    m, r, a = winograd.m, winograd.r, winograd.a
    assert matrix(winograd.gradient, "dv", m, a).tolist() == A.T.tolist()
    assert matrix(winograd.taps, "vg", a, r).tolist() == G.T.tolist()


@each
def test_their_rows_are_powers_of_the_points(winograd):
    _, G, A = matrices(winograd)
    for i, point in enumerate(POINTS[winograd.a]):
        sign = A[:, i][np.flatnonzero(A[:, i])[0]]
        assert (A[:, i] * sign).tolist() == powers(point, winograd.m)
        factor = G[i][np.flatnonzero(G[i])[0]]
        assert (G[i] / factor).tolist() == powers(point, winograd.r)


def test_transforms_of_equal_points_share_the_one_of_the_input():
    assert TRANSFORMS[4, 3].input is TRANSFORMS[2, 5].input


def test_a_tile_of_two_by_two_and_five_taps_saves_what_its_multiplications_say():
    assert TRANSFORMS[2, 5].a == 6
    assert TRANSFORMS[2, 5].saving == pytest.approx(100 / 36)
    assert TRANSFORMS[4, 3].saving == 4


def test_numbers_in_programs_are_exact():
    assert Program("v0 = g0 * -1/24").statements == [("v0", "*", "g0", Fraction(-1, 24))]
