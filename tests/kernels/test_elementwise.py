import tracemalloc

import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.chunks import PIECE, Pieces, view
from vdnn.layers import LeakyReLU, ReLU6, Sigmoid, Tanh

NAN, INF = np.nan, np.inf


def nhwc(x):
    """x: (N, C, H, W) in channels-last storage."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def scratch(nbytes):
    return np.full(nbytes, 0xFF, np.uint8)


def relu_backward(y, dy, dx, kernels=None):
    kernels = kernels or NumpyKernels(1)
    kernels.relu_backward(y, dy, dx, scratch(kernels.relu_backward_workspace(y.dtype.name, y.shape)))
    return dx


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [6, 3000])
def test_relu_gives_positive_zeros_and_keeps_nan(dtype, size):
    x = np.resize(np.array([-1, -0.0, 0.0, 2, NAN, INF], dtype), size)
    y = np.empty_like(x)
    NumpyKernels(1).relu(x, y)
    assert np.array_equal(y[:6], np.array([0, 0, 0, 2, NAN, INF], dtype), equal_nan=True)
    assert not np.signbit(y).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_backward_writes_positive_zero_whatever_dy_is(dtype):
    y = np.array([0, 0, 0, 0, 1, 1e-40, INF, NAN], dtype)
    dy = np.array([-3, INF, NAN, -0.0, -3, 4, -0.0, 5], dtype)
    dx = relu_backward(y, dy, np.full_like(dy, NAN))
    assert dx.tobytes() == np.array([0, 0, 0, 0, -3, 4, -0.0, 5], dtype).tobytes()


def test_relu_backward_may_overwrite_dy():
    y, dy = np.array([0, 1, 2], "float32"), np.array([5, -6, 7], "float32")
    assert relu_backward(y, dy, dy).tolist() == [0, -6, 7]


def relu_mask(x, kernels):
    y, mask = np.full_like(x, NAN), scratch(-(-x.size // 8))
    kernels.relu_mask(x, y, mask, scratch(kernels.relu_mask_workspace(x.dtype.name, x.shape)))
    return y, mask


def relu_mask_backward(mask, dy, dx, kernels):
    workspace = scratch(kernels.relu_mask_backward_workspace(dy.dtype.name, dy.shape))
    kernels.relu_mask_backward(mask, dy, dx, workspace)
    return dx


def test_a_mask_has_a_bit_for_what_is_not_zero_and_none_behind_the_last_element():
    x = np.array([1, -1, 0.0, -0.0, 2, NAN, -NAN, INF, -INF, 3], "float32")
    y, mask = relu_mask(x, NumpyKernels(1))
    assert mask.tolist() == [0b11110001, 0b10]
    assert np.array_equal(y, [1, 0, 0, 0, 2, NAN, NAN, INF, 0, 3], equal_nan=True)
    dy = np.array([-3, INF, NAN, -0.0, 4, 5, 6, -0.0, 7, 8], "float32")
    expected = np.array([-3, 0, 0, 0, 4, 5, 6, -0.0, 0, 8], "float32")
    assert relu_mask_backward(mask, dy, dy, NumpyKernels(1)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 7, 8, 9, PIECE, PIECE + 1, 2 * PIECE + 13])
def test_a_mask_gives_the_bits_of_relu_at_every_size_and_number_of_threads(size, dtype):
    random = np.random.default_rng(size)
    x, dy = (random.choice([-0.0, 0.0, -1.5, 2, 1e-40, NAN, INF, -INF], size).astype(dtype) for _ in range(2))
    expected = np.empty_like(x)
    NumpyKernels(1).relu(x, expected)
    gradient = relu_backward(expected, dy, np.full_like(dy, NAN))
    for threads in (1, 3):
        kernels = NumpyKernels(threads)
        y, mask = relu_mask(x, kernels)
        assert y.tobytes() == expected.tobytes()
        assert np.array_equal(mask, np.packbits(expected != 0, bitorder="little"))
        assert relu_mask_backward(mask, dy, np.full_like(dy, NAN), kernels).tobytes() == gradient.tobytes()
        kernels.close()


def test_a_mask_follows_the_order_in_which_elements_are_stored():
    x = np.arange(-20.0, 40).reshape(2, 3, 2, 5).astype("float32")
    _, mask = relu_mask(nhwc(x), NumpyKernels(1))
    assert np.array_equal(mask, np.packbits(x.transpose(0, 2, 3, 1) > 0, bitorder="little"))
    with pytest.raises(ValueError, match="dense and stored alike"):
        NumpyKernels(1).relu_mask(x[:, 1:], np.empty((2, 2, 2, 5), "float32"), mask, scratch(64))


def test_masks_take_no_memory_besides_their_scratch():
    kernels, x = NumpyKernels(1), np.ones(4 * PIECE, "float32")
    mask, workspace = scratch(x.size // 8), scratch(kernels.relu_mask_backward_workspace("float32", x.shape))
    kernels.relu_mask(x, x, mask, workspace)  # what may be compiled is
    kernels.relu_mask_backward(mask, x, x, workspace)
    tracemalloc.start()
    kernels.relu_mask(x, x, mask, workspace)
    kernels.relu_mask_backward(mask, x, x, workspace)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**10


def apply(layer, x):
    kernels, y = NumpyKernels(1), np.empty_like(x)
    layer.forward(kernels=kernels, x=x, y=y, workspace=scratch(kernels.elementwise_workspace(x.dtype.name, x.shape)))
    return y


def differentiate(layer, y):
    kernels, dx = NumpyKernels(1), np.empty_like(y)
    workspace = scratch(kernels.elementwise_workspace(y.dtype.name, y.shape))
    layer.backward(kernels=kernels, y=y, dy=np.ones_like(y), dx=dx, workspace=workspace)
    return dx.tolist()


def test_leaky_relu_by_hand():
    x = np.array([-2.0, 0, 3])
    assert apply(LeakyReLU(0.5), x).tolist() == [-1, 0, 3]
    assert apply(LeakyReLU(2), x).tolist() == [-4, 0, 3]
    assert differentiate(LeakyReLU(0.5), x) == [0.5, 0.5, 1]


def test_relu6_by_hand():
    y = apply(ReLU6(), np.array([-1, 0, 1e-30, 3, 6, 9], "float32"))
    assert y.tolist() == [0, 0, np.float32(1e-30), 3, 6, 6]
    assert differentiate(ReLU6(), y) == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_does_not_overflow(dtype):
    y = apply(Sigmoid(), np.array([-1e4, -10, 0, 10, 1e4], dtype))
    assert y == pytest.approx(np.array([0, 4.5397868702e-05, 0.5, 0.9999546021, 1]), rel=1e-6, abs=1e-37)
    assert differentiate(Sigmoid(), np.array([0.25], dtype)) == [0.1875]


def test_tanh_by_hand():
    assert apply(Tanh(), np.array([0.0, np.log(2)])) == pytest.approx([0, 0.6])
    assert differentiate(Tanh(), np.array([0.5])) == [0.75]


def test_add_may_write_over_either_term():
    kernels = NumpyKernels(1)
    a, b = np.array([1.0, 2]), np.array([10.0, 20])
    kernels.add(a, b, b)
    assert b.tolist() == [11, 22]
    kernels.add(a, b, a)
    assert a.tolist() == [12, 24]


def test_concat_and_back_in_mixed_storage():
    kernels, rng = NumpyKernels(2), np.random.default_rng(0)
    a, b = nhwc(rng.standard_normal((2, 3, 4, 5))), rng.standard_normal((2, 1, 4, 5))
    y = nhwc(np.empty((2, 4, 4, 5)))
    kernels.concat([a, b], y)
    assert np.array_equal(y, np.concatenate([a, b], axis=1))
    da, db = np.empty_like(a), np.empty_like(b)
    kernels.concat_backward(y, [da, db], [3, 1])
    assert np.array_equal(da, a)
    assert np.array_equal(db, b)
    kernels.concat_backward(-y, [None, db], [3, 1])
    assert np.array_equal(db, -b)


@pytest.mark.parametrize("shape", [(7,), (3, PIECE), (2, 3, 200, 300), (70000,), (2, 1, 3, 1)])
@pytest.mark.parametrize("storage", ["contiguous", "channels-last", "mixed", "sliced"])
def test_pieces_cover_every_element_once(shape, storage):
    x, y = np.zeros(shape, "float32"), np.zeros(shape, "float32")
    if len(shape) == 4:
        if storage == "sliced":
            x = np.zeros((2 * shape[0], *shape[1:]), "float32")[::2]
        x, y = (x if storage == "mixed" else nhwc(x)) if storage != "contiguous" else x, nhwc(y)
    pieces = Pieces((x, y), 1000)
    for i in range(len(pieces)):
        a, b = pieces[i]
        assert a.shape == b.shape
        assert a.size <= 1000
        a += 1
        b += a
    assert (x == 1).all()
    assert (y == 1).all()


def test_a_view_that_would_copy_is_refused():
    with pytest.raises(ValueError, match="without a copy"):
        view(np.zeros((4, 4))[:, :2], (8,))


def test_results_do_not_depend_on_threads_or_storage():
    rng = np.random.default_rng(0)
    x, dy = (nhwc(rng.standard_normal((4, 16, 96, 96), "float32")) for _ in range(2))
    results = []
    for threads in (1, 2, 3):
        kernels = NumpyKernels(threads)
        y, dx = np.empty_like(x), np.empty_like(x)
        kernels.relu(x, y)
        results.append((y.tobytes(), relu_backward(y, dy, dx, kernels).tobytes()))
        kernels.close()
    assert results[0] == results[1] == results[2]
    assert np.array_equal(y, np.maximum(x, 0))
    assert np.array_equal(dx, np.where(x > 0, dy, 0))
