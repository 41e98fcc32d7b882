from __future__ import annotations

import importlib.util
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels, linear

SHAPES = [  # N, IN, OUT
    *[(1, 1, 1), (3, 5, 2), (32, 700, 300), (300, 20, 1030), (64, 2000, 10)],
    *[(8, 512, 40), (5, 67, 33), (9, 4103, 10), (1, 5000, 6), (8, 31, 1001), (2, 100, 52)],  # few samples
]
HAS_NUMBA = importlib.util.find_spec("numba") is not None
KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_NUMBA, reason="needs Numba"), id="fast")]


def results(threads, N, IN, OUT, dtype, bias=True, fast=False):
    kernels = NumpyKernels(threads, fast)
    random = np.random.default_rng(0)
    x, w, b, dy = (random.standard_normal(s).astype(dtype) for s in ((N, IN), (OUT, IN), (OUT,), (N, OUT)))
    y, dx, dw, db = (np.full_like(a, np.nan) for a in (dy, x, w, b))
    kernels.linear_forward(x, w, b if bias else None, y)
    kernels.linear_backward_data(w, dy, dx)
    kernels.linear_backward_weights(x, dy, dw, db if bias else None)
    kernels.close()
    return (x, w, b, dy), (y, dx, dw, db)


@pytest.mark.parametrize("fast", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition(shape, fast):
    (x, w, b, dy), (y, dx, dw, db) = results(2, *shape, "float64", fast=fast)
    np.testing.assert_allclose(y, x @ w.T + b, atol=1e-11)
    np.testing.assert_allclose(dx, dy @ w, atol=1e-11)
    np.testing.assert_allclose(dw, dy.T @ x, atol=1e-11)
    np.testing.assert_allclose(db, dy.sum(0), atol=1e-11)


def test_works_without_bias():
    (x, w, _, _), (y, _, dw, db) = results(2, 3, 5, 2, "float64", bias=False)
    np.testing.assert_allclose(y, x @ w.T, atol=1e-12)
    assert np.isfinite(dw).all()
    assert np.isnan(db).all()


@pytest.mark.parametrize("fast", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_number_of_threads(shape, fast):
    _, one = results(1, *shape, "float32", fast=fast)
    for threads in (2, 3):
        for a, b in zip(one, results(threads, *shape, "float32", fast=fast)[1], strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_blas_that_packs_and_one_that_does_not_agree(shape, monkeypatch):
    found = {}
    for unpacked in (False, True):
        monkeypatch.setattr(linear, "BLAS", SimpleNamespace(multiplies_unpacked=unpacked))
        found[unpacked] = results(2, *shape, "float64")[1][0]
    np.testing.assert_allclose(found[True], found[False], atol=1e-12)


@pytest.mark.parametrize("fast", KERNELS)
def test_strided_arrays_of_few_samples_agree_with_the_definition(fast):
    kernels = NumpyKernels(1, fast)
    random = np.random.default_rng(0)
    x, w, dy = (random.standard_normal(s)[:, ::2] for s in ((4, 90), (20, 90), (4, 40)))
    y, dx, dw = np.empty((4, 20)), np.empty((4, 45)), np.empty((20, 45))
    kernels.linear_forward(x, w, None, y)
    kernels.linear_backward_data(w, dy, dx)
    kernels.linear_backward_weights(x, dy, dw, None)
    for found, expected in ((y, x @ w.T), (dx, dy @ w), (dw, dy.T @ x)):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs Numba")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_of_one_sample_stay_in_it(bad):
    x, w, y = np.ones((3, 40), np.float32), np.ones((7, 40), np.float32), np.empty((3, 7), np.float32)
    x[1, 39] = bad
    NumpyKernels(1, True).linear_forward(x, w, None, y)
    assert np.array_equal(np.isfinite(y), [[True] * 7, [False] * 7, [True] * 7])


def test_calls_allocate_next_to_nothing():
    kernels = NumpyKernels(2)
    x, w, y = (np.ones(s, np.float32) for s in ((128, 1000), (1500, 1000), (128, 1500)))
    b, dy = np.ones(1500, np.float32), np.zeros_like(y)
    for _ in range(2):  # the first round starts the threads
        tracemalloc.start()
        kernels.linear_forward(x, w, b, y)
        kernels.linear_backward_data(w, dy, x)
        kernels.linear_backward_weights(x, dy, w, b)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100 * 2**10
