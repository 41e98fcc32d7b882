"""Fully connected layers of the CUDA set: vdnn's own kernels emulated, products by a test double."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
from cuda_doubles import emulated_kernels
from emulated import EmulatedDriver

from vdnn.kernels.cuda.linear import _columns
from vdnn.layers import Linear, check_layer

if emulator.available():
    pytest.skip(emulator.available(), allow_module_level=True)

SHAPES = [(1, 1, 1), (3, 5, 2), (9, 20, 33), (70, 4, 100), (2, 6, 700), (300, 2, 10)]  # N, IN, OUT


def kernels_of(**options):
    driver = EmulatedDriver(**options)
    return emulated_kernels(driver, driver.new_stream())


def results(kernels, N, IN, OUT, dtype, bias=True):
    random = np.random.default_rng(0)
    x, w, b, dy = (random.standard_normal(s).astype(dtype) for s in ((N, IN), (OUT, IN), (OUT,), (N, OUT)))
    y, dx, dw, db = (np.full_like(a, np.nan) for a in (dy, x, w, b))
    kernels.linear_forward(x, w, b if bias else None, y)
    kernels.linear_backward_data(w, dy, dx)
    kernels.linear_backward_weights(x, dy, dw, db if bias else None)
    kernels.driver.synchronize(kernels.stream)
    return (x, w, b, dy), (y, dx, dw, db)


@pytest.mark.parametrize("layer", [Linear(7), Linear(40, bias=False)], ids=str)
def test_layers_pass_the_check(layer):
    check_layer(layer, (5, 6), kernels=kernels_of())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_the_definition(shape, dtype):
    (x, w, b, dy), (y, dx, dw, db) = results(kernels_of(), *shape, dtype)
    tolerance = {"float32": 1e-4, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(y, x @ w.T + b, atol=tolerance)
    np.testing.assert_allclose(dx, dy @ w, atol=tolerance)
    np.testing.assert_allclose(dw, dy.T @ x, atol=tolerance)
    np.testing.assert_allclose(db, dy.sum(0, dtype="float64"), rtol=1e-6, atol=1e-7)


def test_works_without_bias():
    (x, w, _, _), (y, _, dw, db) = results(kernels_of(), 3, 5, 2, "float64", bias=False)
    np.testing.assert_allclose(y, x @ w.T, atol=1e-12)
    assert np.isfinite(dw).all()
    assert np.isnan(db).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_order_of_threads(shape):
    one, other = (results(kernels_of(backwards=b), *shape, "float32")[1] for b in (False, True))
    for a, b in zip(one, other, strict=True):
        assert a.tobytes() == b.tobytes()


def test_sums_over_large_batches_keep_their_digits():
    kernels = kernels_of(eager=True)
    dy, db = np.full((50_000, 2), 0.1, np.float32), np.zeros(2, np.float32)
    kernels.launch("linear_column_sums", dy, 1, dy, db, *dy.shape, 2)
    assert np.abs(db - 50_000 * np.float64(np.float32(0.1))).max() < 1e-3


def test_few_columns_are_summed_by_many_blocks_and_many_by_whole_sectors():
    assert [_columns(K) for K in (1, 10, 64, 100, 255, 256, 1000)] == [1, 1, 2, 2, 4, 8, 8]


def test_matrices_with_gaps_or_of_other_types_are_refused():
    kernels, w, y = kernels_of(), np.ones((3, 4)), np.ones((2, 3))
    with pytest.raises(ValueError, match=r"contiguous matrices of one type, not \(2, 4\) by \(16, 8\)|by \(8, 16\)"):
        kernels.linear_forward(np.ones((4, 2)).T, w, None, y)
    with pytest.raises(ValueError, match="of float32 for a result of float64"):
        kernels.linear_forward(np.ones((2, 4), np.float32), w, None, y)
