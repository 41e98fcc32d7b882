import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import BatchNorm2d, LocalResponseNorm


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def scratch(layer, phase, x, kernels):
    size = layer.algorithms(kernels, phase, x.dtype.name, x.shape)[0].workspace
    return np.full(size, 0xFF, np.uint8)


def normalise(x, w, b, threads=1):
    """y, mean, inverse deviation and unbiased variance."""
    layer, kernels = BatchNorm2d(), NumpyKernels(threads)
    y, *saved = np.empty_like(x), *(np.empty(x.shape[1], x.dtype) for _ in range(3))
    layer.forward(kernels, x, w, b, y, *saved, scratch(layer, "forward", x, kernels))
    kernels.close()
    return y, *saved


def test_batch_normalisation_by_hand():
    x = np.array([[[[1.0, 2]]], [[[3, 6]]]])  # mean 3, biased variance 14 / 4, unbiased 14 / 3
    y, mean, inverse, variance = normalise(x, np.array([2.0]), np.array([10.0]))
    deviation = (3.5 + 1e-5) ** 0.5
    assert mean == pytest.approx([3])
    assert inverse == pytest.approx([1 / deviation])
    assert variance == pytest.approx([14 / 3])
    assert y.ravel() == pytest.approx([10 + 2 * d / deviation for d in (-2, -1, 0, 3)])


def test_running_averages_follow_pytorchs_formula():
    layer = BatchNorm2d(momentum=0.1)
    mean, variance = np.array([1.0]), np.array([2.0])
    layer.update_statistics(NumpyKernels(1), np.array([5.0]), np.array([12.0]), mean, variance)
    assert mean == pytest.approx([0.9 * 1 + 0.1 * 5])
    assert variance == pytest.approx([0.9 * 2 + 0.1 * 12])


def test_momentum_zero_keeps_and_one_replaces():
    for momentum, expected in ((0, 1), (1, 5)):
        mean, variance = np.array([1.0]), np.array([1.0])
        layer, kernels = BatchNorm2d(momentum=momentum), NumpyKernels(1)
        layer.update_statistics(kernels, np.array([5.0]), np.array([5.0]), mean, variance)
        assert (mean[0], variance[0]) == (expected, expected)


def test_evaluation_uses_the_running_averages():
    layer, kernels = BatchNorm2d(eps=0), NumpyKernels(1)
    x, y = np.array([[[[1.0, 5]]]]), np.empty((1, 1, 1, 2))
    w, b, mean, variance = (np.array([v]) for v in (3.0, 1.0, 1.0, 4.0))
    layer.evaluate(kernels, x, w, b, mean, variance, y, scratch(layer, "evaluate", x, kernels))
    assert y.ravel() == pytest.approx([1, 7])


def test_variance_is_exact_far_from_zero():
    rng = np.random.default_rng(0)
    x = nhwc((rng.standard_normal((8, 5, 40, 40)) + 3000).astype("float32"))
    _, mean, _, variance = normalise(x, np.ones(5, "float32"), np.zeros(5, "float32"))
    exact = x.astype("float64")
    assert mean == pytest.approx(exact.mean((0, 2, 3)), rel=1e-7)
    assert variance == pytest.approx(exact.var((0, 2, 3), ddof=1), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 32, 56, 56), (40, 3, 31, 33), (3, 1030, 4, 5)])
def test_batch_normalisation_does_not_depend_on_threads(shape):
    rng = np.random.default_rng(0)
    x, dy = (nhwc(rng.standard_normal(shape, "float32")) for _ in range(2))
    w, b = rng.standard_normal((2, shape[1]), "float32")
    results = []
    for threads in (1, 2, 3):
        arrays = normalise(x, w, b, threads)
        layer, kernels = BatchNorm2d(), NumpyKernels(threads)
        gradients = np.empty_like(x), np.empty_like(w), np.empty_like(w)
        layer.backward(kernels, x, w, *arrays[1:3], dy, *gradients, scratch(layer, "backward", x, kernels))
        kernels.close()
        results.append([a.tobytes() for a in (*arrays, *gradients)])
    assert np.isfinite(gradients[0]).all()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(("size", "window"), [(1, "c"), (2, "bc"), (3, "bcd"), (4, "abcd"), (5, "abcde")])
def test_local_response_window_is_pytorchs(size, window):
    """For even sizes the window has one channel more before than after; the middle channel is c."""
    layer, kernels = LocalResponseNorm(size, alpha=1.0, beta=1.0, k=1.0), NumpyKernels(1)
    squares = dict(zip("abcde", [1.0, 4, 9, 16, 25], strict=True))
    x = np.sqrt(np.array(list(squares.values()))).reshape(1, 5, 1, 1)
    y = np.empty_like(x)
    layer.forward(kernels, x, y, scratch(layer, "forward", x, kernels))
    assert y[0, 2, 0, 0] == pytest.approx(3 / (1 + sum(squares[c] for c in window) / size))
