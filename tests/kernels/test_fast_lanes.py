"""Vectors in compiled functions, one by one."""

import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

import numba

from vdnn.kernels.numpy.compiled import jit
from vdnn.kernels.numpy.compiled.lanes import load, load_first, masked, root, signs, size, spread, store, store_first

LANES = {"float32": 16, "float64": 8}


def plain(function):
    return numba.njit(function, error_model="numpy")


@plain
def width(a):
    return size(a)


@plain
def copy_first(count, a, b):
    store_first(count, load_first(count, a, 1), b, 2)


@plain
def formula(a, b, number, y):
    store((load(a, 0) - load(b, 0)) * spread(number) / load(b, 0) + root(load(a, 0)), y, 0)


@plain
def through_bits(a, y):
    bits = signs(load(a, 0))
    store(masked(bits, load(a, 0)), y, 0)
    return bits


@pytest.mark.parametrize("dtype", LANES)
def test_a_vector_has_64_bytes(dtype):
    assert width(np.zeros(3, dtype)) == LANES[dtype]


@pytest.mark.parametrize("dtype", LANES)
def test_only_the_first_elements_are_read_and_written(dtype):
    for count in range(LANES[dtype] + 1):
        a, b = np.arange(count + 1).astype(dtype), np.full(count + 3, 7, dtype)
        copy_first(count, a, b)
        assert b.tolist() == [7, 7, *range(1, count + 1), 7]


@pytest.mark.parametrize("dtype", LANES)
def test_operators_round_one_by_one(dtype):
    random = np.random.default_rng(0)
    a, b = (random.uniform(1, 2, LANES[dtype]).astype(dtype) for _ in range(2))
    number, y = a.dtype.type(0.1), np.empty_like(a)
    formula(a, b, number, y)
    assert np.array_equal(y, (a - b) * number / b + np.sqrt(a))


@pytest.mark.parametrize("dtype", LANES)
def test_a_bit_stands_for_what_is_not_zero(dtype):
    a = np.zeros(LANES[dtype], dtype)
    a[[1, 3]], a[4], a[5] = -1, np.nan, -0.0
    y = np.empty_like(a)
    assert through_bits(a, y) == 0b11010
    assert y[[1, 3]].tolist() == [-1, -1]
    assert np.isnan(y[4])


def test_the_name_of_compiled_code_tells_of_changes_in_what_it_is_made_of():
    def kernel(a):
        return a

    assert jit.compiled(kernel).py_func.__qualname__.endswith(f".{jit.FINGERPRINT}")
