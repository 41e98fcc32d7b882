import numpy as np
import pytest
from both import BACKWARDS, CUDA, KERNELS, ONE_BLOCK, call, few, images, near, normal, poisoned, rows, same, storages
from hypothesis import given
from hypothesis import strategies as st

from vdnn.kernels.cuda import loss
from vdnn.layers import MeanSquaredError, SoftmaxCrossEntropy, check_layer


def cross_entropy(kernels, x, labels, is_in_place=False):
    """(y, p, dx)"""
    x, labels = np.array(x, getattr(x, "dtype", "float32")), np.array(labels, "int64")
    y, p = np.full(1, np.nan, x.dtype), x if is_in_place else np.full_like(x, np.nan)
    call(kernels, "softmax_cross_entropy", x, labels, p, y, scratch=("float32", x.shape))
    dx = p.copy() if is_in_place else np.full_like(x, np.nan)
    call(kernels, "softmax_cross_entropy_backward", dx if is_in_place else p, labels, dx)
    return y, p, dx


def labelled(N, K, spread=3):
    return normal((N, K)) * np.float32(spread), np.random.default_rng(1).integers(0, K, N)


@few
@given(st.integers(1, 40), st.integers(1, 600), st.sampled_from([0.1, 3, 100]), st.booleans())
def test_cross_entropy_is_near_numpys(N, K, spread, is_in_place):
    x, labels = labelled(N, K, spread)
    expected, actual = cross_entropy(KERNELS, x, labels), cross_entropy(CUDA, x, labels, is_in_place)
    assert abs(actual[0][0] - expected[0][0]) <= 1e-6 * max(1, abs(expected[0][0]))
    assert near(actual[1], expected[1])
    assert np.abs(actual[2] - expected[2]).max() <= 1e-6 / N


@pytest.mark.parametrize(("N", "K"), [(300, 10), (2, 1000), (257, 2), (64, 1000), (1, 3000)])
def test_loss_has_float64s_value_and_no_order_of_threads_matters(N, K):
    x, labels = labelled(N, K)
    wide = x.astype("float64")
    wide -= wide.max(axis=1, keepdims=True)
    rows = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(N), labels]
    first = cross_entropy(CUDA, x, labels)
    assert first[0][0] == pytest.approx(rows.mean(), rel=1e-6)
    assert first[1].sum(axis=1) == pytest.approx(np.ones(N), abs=1e-6)
    for kernels in (CUDA, BACKWARDS, ONE_BLOCK):
        for is_in_place in (False, True):
            found = cross_entropy(kernels, x.copy(), labels, is_in_place)
            assert all(same(a, b) for a, b in zip(found, first, strict=True))


def test_losses_of_many_rows_share_a_sum(monkeypatch):
    x, labels = labelled(300, 10)  # sixteen rows to a block
    assert CUDA.softmax_cross_entropy_workspace("float32", x.shape) == 19 * 8
    expected = cross_entropy(CUDA, x, labels)
    monkeypatch.setattr(loss, "MOST_PARTS", 4)
    assert CUDA.softmax_cross_entropy_workspace("float32", x.shape) == 4 * 8
    for kernels in (CUDA, BACKWARDS, ONE_BLOCK):
        for a, b in zip(cross_entropy(kernels, x, labels), expected, strict=True):
            assert near(a, b)


def test_cross_entropy_is_stable_for_large_scores():
    y, p, dx = cross_entropy(CUDA, [[1e4, 0, -1e4]], [1])
    assert y[0] == 1e4
    assert p.tolist() == [[1, 0, 0]]
    assert dx.tolist() == [[1, -1, 0]]


def test_cross_entropy_of_many_rows_is_summed_in_double():
    y, _, dx = cross_entropy(CUDA, np.tile(np.array([[0, 5]], "float32"), (5000, 1)), np.zeros(5000))
    assert y[0] == np.float32(np.log1p(np.exp(5)))
    assert dx.sum(dtype="float64") == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("label", [-1, 3, 2**40, -(2**62)])
def test_a_label_out_of_range_makes_the_loss_nan_and_reads_nothing(label):
    y, p, dx = cross_entropy(CUDA, np.zeros((2, 3), "float32"), [0, label])
    assert np.isnan(y[0])
    assert near(p, np.full((2, 3), 1 / 3))
    assert np.isfinite(dx).all()


def test_a_score_that_is_nan_shows_in_the_loss():
    y, p, _ = cross_entropy(CUDA, [[0, np.nan, 1], [0, 1, 2]], [0, 1])
    assert np.isnan(y[0])
    assert np.isnan(p[0]).all()
    assert np.isfinite(p[1]).all()


def squared_error(kernels, shape, storage, is_in_place=False):
    """(y, dx)"""
    x, labels, y = normal(shape, storage), normal(shape, storage, seed=1), poisoned((1,))
    call(kernels, "mean_squared_error", x, labels, y, scratch=("float32", shape))
    dx = x if is_in_place else poisoned(shape, storage)
    call(kernels, "mean_squared_error_backward", x, labels, dx)
    return y, dx


@few
@given(st.one_of(images, rows), storages, st.booleans())
def test_mean_squared_error_is_near_numpys(shape, storage, is_in_place):
    expected, actual = squared_error(KERNELS, shape, storage), squared_error(CUDA, shape, storage, is_in_place)
    assert near(actual[0], expected[0])
    assert same(actual[1], expected[1])


def test_mean_squared_error_of_many_parts_depends_on_no_order():
    shape = (5, 7, 60, 61)
    first = squared_error(CUDA, shape, "nhwc")
    difference = normal(shape) - normal(shape, seed=1)
    assert CUDA.mean_squared_error_workspace("float32", shape) == 32 * 8
    assert first[0][0] == pytest.approx(np.mean(difference.astype("float64") ** 2), rel=1e-6)
    for kernels in (BACKWARDS, ONE_BLOCK):
        assert all(same(a, b) for a, b in zip(squared_error(kernels, shape, "nhwc"), first, strict=True))


def test_gradients_of_a_part_are_numpys():
    p, labels = np.abs(normal((3, 7))), np.array([0, 6, 2])
    x, wanted = normal((3, 7)), normal((3, 7), seed=1)
    found = []
    for kernels in (KERNELS, CUDA):
        dx, dx_squared = np.empty_like(p), np.empty_like(x)
        call(kernels, "softmax_cross_entropy_backward", p, labels, dx, 12)
        call(kernels, "mean_squared_error_backward", x, wanted, dx_squared, 12)
        found.append((dx, dx_squared))
    assert found[0][0][1, 0] == pytest.approx(p[1, 0] / 12)
    assert near(found[1][0], found[0][0])
    assert same(found[1][1], found[0][1])


@few
@given(st.integers(1, 5), st.integers(2, 9))
def test_softmax_cross_entropy_passes_the_check(N, K):
    check_layer(SoftmaxCrossEntropy(), (N, K), kernels=CUDA)


@few
@given(st.one_of(images, rows))
def test_mean_squared_error_passes_the_check(shape):
    check_layer(MeanSquaredError(), shape, kernels=CUDA)
