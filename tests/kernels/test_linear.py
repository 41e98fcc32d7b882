from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels

SHAPES = [(1, 1, 1), (3, 5, 2), (32, 700, 300), (300, 20, 1030), (64, 2000, 10)]  # N, IN, OUT


def results(threads, N, IN, OUT, dtype, bias=True):
    kernels = NumpyKernels(threads)
    random = np.random.default_rng(0)
    x, w, b, dy = (random.standard_normal(s).astype(dtype) for s in ((N, IN), (OUT, IN), (OUT,), (N, OUT)))
    y, dx, dw, db = (np.full_like(a, np.nan) for a in (dy, x, w, b))
    kernels.linear_forward(x, w, b if bias else None, y)
    kernels.linear_backward_data(w, dy, dx)
    kernels.linear_backward_weights(x, dy, dw, db if bias else None)
    kernels.close()
    return (x, w, b, dy), (y, dx, dw, db)


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition(shape):
    (x, w, b, dy), (y, dx, dw, db) = results(2, *shape, "float64")
    np.testing.assert_allclose(y, x @ w.T + b, atol=1e-11)
    np.testing.assert_allclose(dx, dy @ w, atol=1e-11)
    np.testing.assert_allclose(dw, dy.T @ x, atol=1e-11)
    np.testing.assert_allclose(db, dy.sum(0), atol=1e-11)


def test_works_without_bias():
    (x, w, _, _), (y, _, dw, db) = results(2, 3, 5, 2, "float64", bias=False)
    np.testing.assert_allclose(y, x @ w.T, atol=1e-12)
    assert np.isfinite(dw).all()
    assert np.isnan(db).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_number_of_threads(shape):
    _, one = results(1, *shape, "float32")
    for threads in (2, 3):
        for a, b in zip(one, results(threads, *shape, "float32")[1], strict=True):
            assert a.tobytes() == b.tobytes()


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
