import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import MeanSquaredError

KERNELS = NumpyKernels(1)


def cross_entropy(x, labels):
    """(loss, p, dx)"""
    x, labels = np.asarray(x), np.asarray(labels)
    p, y, dx = np.empty_like(x), np.empty(1, x.dtype), np.empty_like(x)
    KERNELS.softmax_cross_entropy(x, labels, p, y, None)
    KERNELS.softmax_cross_entropy_backward(p, labels, dx)
    return y[0], p, dx


def test_cross_entropy_by_hand():
    loss, p, dx = cross_entropy([[0.0, np.log(3)], [0.0, 0.0]], [0, 1])
    assert p == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert loss == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert dx == pytest.approx(np.array([[-0.375, 0.375], [0.25, -0.25]]))


def test_cross_entropy_is_stable_for_large_scores():
    loss, p, dx = cross_entropy(np.array([[1e4, 0, -1e4]], "float32"), [1])
    assert loss == 1e4
    assert p.tolist() == [[1, 0, 0]]
    assert dx.tolist() == [[1, -1, 0]]


def test_cross_entropy_of_many_rows_is_summed_in_double():
    x = np.tile(np.array([[0, 5]], "float32"), (5000, 1))
    loss, _, dx = cross_entropy(x, np.zeros(5000, "int64"))
    assert loss == np.float32(np.log1p(np.exp(5)))
    assert dx.sum(dtype="float64") == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_out_of_range_is_refused_before_it_is_used(label):
    with pytest.raises(IndexError, match=f"label {label} is outside 0 .. 2"):
        cross_entropy(np.zeros((2, 3)), [0, label])


def test_mean_squared_error_by_hand():
    x, labels = np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 0], [0, 0]])
    y, dx = np.empty(1), np.empty_like(x)
    workspace = np.full(
        MeanSquaredError().algorithms(KERNELS, "forward", "float64", (2, 2))[0].workspace, 0xFF, "uint8"
    )
    KERNELS.mean_squared_error(x, labels, y, workspace)
    KERNELS.mean_squared_error_backward(x, labels, dx)
    assert y[0] == (4 + 9 + 16) / 4
    assert dx.tolist() == [[0, 1], [1.5, 2]]


def test_the_gradient_of_a_part_is_that_of_the_mean_over_all_samples():
    """Of 2 rows among 6, a third of what they have as the whole batch."""
    p, labels = np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([0, 1])
    dx = np.empty_like(p)
    KERNELS.softmax_cross_entropy_backward(p, labels, dx, 6)
    assert dx == pytest.approx(np.array([[-0.75, 0.75], [0.5, -0.5]]) / 6)
    x, wanted = np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 0], [0, 0]])
    KERNELS.mean_squared_error_backward(x, wanted, dx, 6)
    assert dx == pytest.approx(np.array([[0, 4], [6, 8]]) / 12)
