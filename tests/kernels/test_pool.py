import tracemalloc
from math import ceil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import AvgPool2d, GlobalAvgPool2d, MaxPool2d, ShapeError, Upsample

KERNELS = NumpyKernels(1)
few = settings(max_examples=30, deadline=None, derandomize=True)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def nhwc(shape, dtype="float64"):
    N, C, H, W = shape
    return np.full((N, H, W, C), 77, dtype).transpose(0, 3, 1, 2)


def scratch(layer, phase, x, kernels=KERNELS):
    size = layer.algorithms(kernels, phase, x.dtype.name, x.shape)[0].workspace
    return np.full(size, 0xFF, np.uint8) if size else None


def forward(layer, x, kernels=KERNELS):
    """y, and the winners' indices if the layer saves them."""
    y = nhwc(layer.shapes(x.shape).y, x.dtype)
    if not isinstance(layer, MaxPool2d):
        layer.forward(kernels, x, y)
        return y, None
    indices = nhwc(y.shape, "uint8") if layer.saves == "indices" else None
    layer.forward(kernels, x, y, indices, scratch(layer, "forward", x, kernels))
    return y, indices


def backward(layer, x, y, indices, dy, kernels=KERNELS):
    dx = nhwc(x.shape, x.dtype)
    arrays = {"x": x, "y": y, "indices": indices, "dy": dy, "dx": dx, "kernels": kernels}
    arrays["workspace"] = scratch(layer, "backward", x, kernels)
    layer.backward(**{n: arrays[n] for n in layer.needs("backward")})
    return dx


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """PyTorch's rule, along one axis: the positions of every window, those outside included."""
    span = dilation * (kernel - 1) + 1
    count = (size + 2 * padding - span) / stride
    count = (ceil(count) if ceil_mode else int(count)) + 1
    if (count - 1) * stride >= size + padding:  # the last window must start inside, or in the left padding
        count -= 1
    return [[o * stride - padding + i * dilation for i in range(kernel)] for o in range(count)]


def naive(x, layer, reduce):
    """reduce(values inside x, number of positions in x and its padding) for every window."""
    N, C, H, W = x.shape
    w = layer.window
    high, wide = (
        windows(s, w.size[a], w.stride[a], w.padding[a], w.dilation[a], layer.ceil_mode) for a, s in ((0, H), (1, W))
    )
    y = np.empty((N, C, len(high), len(wide)))
    for n, c, p, q in np.ndindex(y.shape):
        inside = [x[n, c, h, v] for h in high[p] for v in wide[q] if 0 <= h < H and 0 <= v < W]
        padded = sum(h < H + w.padding[0] for h in high[p]) * sum(v < W + w.padding[1] for v in wide[q])
        y[n, c, p, q] = reduce(inside, padded)
    return y


def drawn(shape, seed=0):
    x = nhwc(shape)
    x[...] = np.random.default_rng(seed).integers(-2, 3, shape)  # many ties
    return x


@few
@given(pairs, pairs, pairs, st.booleans(), st.booleans(), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_max_pooling_equals_a_naive_loop(kernel, stride, dilation, ceil_mode, pad, hw):
    layer = MaxPool2d(kernel, stride, tuple(k // 2 for k in kernel) if pad else 0, dilation, ceil_mode)
    x = drawn((2, 2, *hw))
    try:
        y, _ = forward(layer, x)
    except ShapeError:
        assume(False)
    assert np.array_equal(y, naive(x, layer, lambda inside, _: max(inside, default=-np.inf)))


@few
@given(pairs, pairs, st.booleans(), st.booleans(), st.booleans(), st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_average_pooling_equals_a_naive_loop(kernel, stride, ceil_mode, include, pad, hw):
    layer = AvgPool2d(kernel, stride, tuple(k // 2 for k in kernel) if pad else 0, ceil_mode, include)
    x = drawn((2, 2, *hw))
    try:
        y, _ = forward(layer, x)
    except ShapeError:
        assume(False)
    expected = naive(x, layer, lambda inside, padded: sum(inside) / (padded if include else len(inside)))
    assert y == pytest.approx(expected, rel=1e-12, abs=1e-12)


@few
@given(pairs, pairs, st.booleans(), st.booleans(), st.integers(0, 9))
def test_indices_and_input_give_the_same_bits(kernel, stride, ceil_mode, pad, seed):
    padding = tuple(k // 2 for k in kernel) if pad else 0
    x = drawn((2, 3, 5, 6), seed)
    gradients = []
    for saves in ("indices", "input"):
        layer = MaxPool2d(kernel, stride, padding, 1, ceil_mode, saves)
        y, indices = forward(layer, x)
        dy = nhwc(y.shape)
        dy[...] = np.random.default_rng(seed).standard_normal(y.shape)
        gradients.append(backward(layer, x, y, indices, dy))
    assert gradients[0].any()
    assert gradients[0].tobytes() == gradients[1].tobytes()


@pytest.mark.parametrize("saves", ["indices", "input"])
def test_the_first_of_equal_elements_wins(saves):
    layer = MaxPool2d(2, saves=saves)
    x = np.array([[[[1.0, 3, 0, 0], [3, 2, 0, 0]]]])
    y, indices = forward(layer, x)
    dx = backward(layer, x, y, indices, np.array([[[[5.0, 7]]]]))
    assert y.tolist() == [[[[3, 0]]]]
    assert dx.tolist() == [[[[0, 5, 7, 0], [0, 0, 0, 0]]]]
    if saves == "indices":
        assert indices.tolist() == [[[[1, 0]]]]


def test_overlapping_windows_add_their_gradients():
    layer = MaxPool2d((1, 2), (1, 1))
    x = np.array([[[[1.0, 3, 2]]]])
    y, indices = forward(layer, x)
    assert backward(layer, x, y, indices, np.array([[[[5.0, 7]]]])).tolist() == [[[[0, 12, 0]]]]


@pytest.mark.parametrize("saves", ["indices", "input"])
def test_nan_is_not_lost(saves):
    layer = MaxPool2d(3, 1, 1, saves=saves)
    x = drawn((1, 1, 4, 4))
    x[0, 0, 0, 0] = np.nan
    y, indices = forward(layer, x)
    assert np.isnan(y[0, 0, :2, :2]).all()
    assert np.isfinite(y[0, 0, 2:]).all()
    assert backward(layer, x, y, indices, np.ones_like(y)).sum() == 16


@pytest.mark.parametrize("saves", ["indices", "input"])
def test_rows_and_columns_behind_the_last_window_get_no_gradient(saves):
    layer = MaxPool2d(2, saves=saves)
    x = np.array([[[[1.0, 2, 9], [3, 4, 9], [9, 9, 9]]]])
    y, indices = forward(layer, x)
    assert backward(layer, x, y, indices, np.array([[[[5.0]]]])).tolist() == [[[[0, 0, 0], [0, 5, 0], [0, 0, 0]]]]


def test_a_dilated_window_that_meets_nothing_has_no_winner():
    layer = MaxPool2d(2, 1, 1, 3)  # sees -1 and 2 of an axis of two
    x = np.ones((1, 1, 2, 2))
    y, indices = forward(layer, x)
    assert y.tolist() == [[[[-np.inf]]]]
    assert indices.tolist() == [[[[255]]]]


def test_infinite_gradients_stay_with_the_winner():
    layer = MaxPool2d(2)
    x = np.array([[[[1.0, 2], [3, 4]]]])
    y, indices = forward(layer, x)
    dx = backward(layer, x, y, indices, np.full((1, 1, 1, 1), np.inf))
    assert dx.tolist() == [[[[0, 0], [0, np.inf]]]]


def test_global_average_by_hand():
    x = np.arange(12.0).reshape(1, 2, 2, 3)
    layer = GlobalAvgPool2d()
    y, _ = forward(layer, x)
    assert y.tolist() == [[[[2.5]], [[8.5]]]]
    assert backward(layer, x, y, None, np.array([[[[6.0]], [[12.0]]]])).tolist() == [[[[1] * 3] * 2, [[2] * 3] * 2]]


def test_upsampling_by_hand():
    x = np.array([[[[0.0, 4]]]])
    y = nhwc((1, 1, 1, 4))
    layer = Upsample((1, 2), "bilinear")
    layer.forward(KERNELS, x, y, scratch(layer, "forward", x))
    assert y.tolist() == [[[[0, 1, 3, 4]]]]
    KERNELS.upsample_nearest(x, y, (1, 2))
    assert y.tolist() == [[[[0, 0, 4, 4]]]]


BIG = [MaxPool2d(3, 2, 1), MaxPool2d(2, saves="input"), AvgPool2d(3, 2, 1), AvgPool2d(2), GlobalAvgPool2d()]


@pytest.mark.parametrize("layer", BIG, ids=str)
def test_threads_change_no_bit_and_nothing_large_is_allocated(layer):
    x = nhwc((6, 32, 56, 56), "float32")
    x[...] = np.random.default_rng(0).standard_normal(x.shape)
    results = []
    for threads in (1, 2):
        kernels = NumpyKernels(threads)
        y, indices = forward(layer, x, kernels)
        results.append((y.tobytes(), backward(layer, x, y, indices, y, kernels).tobytes()))
    arrays = [nhwc(a.shape, a.dtype) for a in (y, x)]
    workspaces = [scratch(layer, phase, x, kernels) for phase in ("forward", "backward")]
    tracemalloc.start()
    if isinstance(layer, MaxPool2d):
        layer.forward(kernels, x, arrays[0], indices, workspaces[0])
    else:
        layer.forward(kernels, x, arrays[0])
    given = {"x": x, "y": y, "indices": indices, "dy": y, "dx": arrays[1], "kernels": kernels}
    given["workspace"] = workspaces[1]
    layer.backward(**{n: given[n] for n in layer.needs("backward")})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kernels.close()
    assert results[0] == results[1]
    assert peak < 100 * 1024
