import numpy as np
import pytest
from both import BACKWARDS, CUDA, KERNELS, ONE_BLOCK, call, near, normal, poisoned, same, storages, stored
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vdnn.kernels.cuda.norm import _Call
from vdnn.layers import BatchNorm2d, check_layer

few = settings(max_examples=15, deadline=None, derandomize=True)
images = st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
LARGE = [(9, 5, 70, 90), (20, 33, 24, 24), (3, 70, 5, 7), (300, 70, 1, 1), (2, 1, 150, 201)]
EPS = 1e-5


def parameters(C):
    return normal((2, C), seed=7)


def launch(kernels, name, x, *arguments):
    scratch = np.full(kernels.batch_norm_workspace(x.dtype.name, x.shape), 0xFF, np.uint8)
    call(kernels, name, x, *arguments, scratch)


def normalise(kernels, x, storage):
    """y, mean, inverse deviation and unbiased variance."""
    y, *saved = poisoned(x.shape, storage, x.dtype), *(poisoned(x.shape[1:2], dtype=x.dtype) for _ in range(3))
    w, b = (a.astype(x.dtype) for a in parameters(x.shape[1]))
    launch(kernels, "batch_norm", x, w, b, y, *saved, EPS)
    return y, *saved


def gradients(kernels, x, mean, inverse, dy, storage, dx="apart"):
    """dw, db and dx."""
    w, _ = parameters(x.shape[1])
    dw, db, dy = np.empty_like(w), np.empty_like(w), dy.copy(order="K")
    dx = {"apart": poisoned(x.shape, storage), "dy": dy, "none": None}[dx]
    launch(kernels, "batch_norm_backward", x, w, mean, inverse, dy, dx, dw, db)
    return [a for a in (dw, db, dx) if a is not None]


def agrees(shape, storage):
    """Both kernel sets give the same; x and dy have deviation 1, and sums are compared with what they sum."""
    x, dy = normal(shape, storage), normal(shape, storage, 1)
    expected = normalise(KERNELS, x, storage)
    for found, right in zip(normalise(CUDA, x, storage), expected, strict=True):
        assert np.abs(found - right).max() <= 1e-6 * max(1, np.abs(right).max())
    found, right = (gradients(k, x, *expected[1:3], dy, storage) for k in (CUDA, KERNELS))
    total = np.abs(dy).sum((0, 2, 3)).max()
    for a, b, scale in zip(found, right, (total, total, 0), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * max(scale, np.abs(b).max())


@few
@given(images, storages)
def test_it_equals_numpys(shape, storage):
    assume(shape[0] * shape[2] * shape[3] > 3)  # of two values the gradient nearly cancels
    agrees(shape, storage)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_many_blocks_and_slices_agree(shape, storage):
    agrees(shape, storage)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_a_far_mean_costs_no_precision(storage):
    x = normal((6, 5, 40, 40), storage) + np.float32(1000)
    y, mean, inverse, variance = normalise(CUDA, x, storage)
    exact = x.astype("float64")
    centre, spread = exact.mean((0, 2, 3)), exact.var((0, 2, 3))
    assert mean == pytest.approx(centre, rel=1e-7)
    assert variance == pytest.approx(exact.var((0, 2, 3), ddof=1), rel=2e-7)
    assert inverse == pytest.approx((spread + EPS) ** -0.5, rel=2e-7)
    w, b = (a.reshape(5, 1, 1) for a in parameters(5))
    right = (exact - centre.reshape(5, 1, 1)) / np.sqrt(spread.reshape(5, 1, 1) + EPS) * w + b
    assert near(y, right, 1e-6)


def test_an_outlier_in_front_costs_little_precision():
    x = normal((4, 3, 100, 100))
    x[0, :, 0, 0] = 1e4
    _, mean, _, variance = normalise(CUDA, x, "nchw")
    exact = x.astype("float64")
    assert mean == pytest.approx(exact.mean((0, 2, 3)), rel=0, abs=1e-6 * exact.std())
    assert variance == pytest.approx(exact.var((0, 2, 3), ddof=1), rel=1e-5)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(9, 5, 60, 61), (7, 40, 14, 14)], ids=str)
def test_neither_grid_nor_order_of_threads_changes_a_bit(shape, storage):
    x, dy = normal(shape, storage), normal(shape, storage, 1)
    results = []
    for kernels in (CUDA, BACKWARDS, ONE_BLOCK):
        forward = normalise(kernels, x, storage)
        results.append([*forward, *gradients(kernels, x, *forward[1:3], dy, storage)])
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_dx_may_be_dy_or_left_out(storage):
    x, dy = normal((4, 6, 9, 10), storage), normal((4, 6, 9, 10), storage, 1)
    _, mean, inverse, _ = normalise(CUDA, x, storage)
    apart = gradients(CUDA, x, mean, inverse, dy, storage)
    over = gradients(CUDA, x, mean, inverse, dy, storage, "dy")
    without = gradients(CUDA, x, mean, inverse, dy, storage, "none")
    assert all(same(a, b) for a, b in zip(apart, over, strict=True))
    assert all(same(a, b) for a, b in zip(apart[:2], without, strict=True))


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_evaluation_uses_the_given_mean_and_variance(storage):
    x = normal((3, 40, 6, 7), storage)
    w, b, mean = normal((3, 40))
    variance = normal((40,), seed=2) ** 2
    results = []
    for kernels in (CUDA, KERNELS):
        y = poisoned(x.shape, storage)
        launch(kernels, "batch_norm_evaluate", x, w, b, mean, variance, y, EPS)
        results.append(y)
    assert near(*results)


def test_nan_in_one_channel_stays_there():
    x = normal((2, 3, 4, 4), "nhwc")
    x[1, 1, 2, 2] = np.nan
    arrays = normalise(CUDA, x, "nhwc")
    for a in arrays:
        channels = np.isnan(a).any((0, 2, 3)) if a.ndim == 4 else np.isnan(a)
        assert channels.tolist() == [False, True, False]


def test_small_images_are_summed_by_enough_blocks():
    """Of channels alone there are fewer than multiprocessors."""
    x = np.empty((32, 128, 28, 28), "float32")
    assert _Call(x).grid == (128, 6)
    assert _Call(stored(x, "nhwc")).grid == (4, 196)


def test_the_workspace_is_a_small_part_of_the_arrays():
    for shape in ((64, 64, 112, 112), (64, 256, 56, 56), (64, 2048, 7, 7), (256, 16, 32, 32)):
        assert CUDA.batch_norm_workspace("float32", shape) <= 4 * np.prod(shape) / 30


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (5, 1, 3, 1), (4, 7, 1, 1)], ids=str)
def test_the_layer_passes_the_check(shape):
    check_layer(BatchNorm2d(), shape, kernels=CUDA)
