import numpy as np
import pytest
from both import BACKWARDS, CUDA, KERNELS, ONE_BLOCK, call, normal, same, storages, stored
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vdnn.kernels.cuda.base import reciprocal
from vdnn.layers import AvgPool2d, GlobalAvgPool2d, MaxPool2d, ShapeError, check_layer

few = settings(max_examples=40, deadline=None, derandomize=True)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
images = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


def tied(shape, storage):
    return stored(np.random.default_rng(0).integers(-2, 3, shape).astype("float32"), storage)


def run(kernels, layer, x, storage):
    """y, indices or None, dx, with a dy that follows from y's shape."""
    shapes = layer.shapes(x.shape)
    y = stored(np.full(shapes.y, 77, x.dtype), storage)
    arrays = {"x": x, "y": y, "dx": stored(np.full(x.shape, 77, x.dtype), storage), "kernels": kernels}
    arrays["dy"] = normal(shapes.y, storage)
    if shapes.saved:
        arrays["indices"] = stored(np.full(shapes.y, 77, np.uint8), storage)
    for phase in ("forward", "backward"):
        workspace = layer.algorithms(kernels, phase, "float32", x.shape)[0].workspace
        arrays["workspace"] = np.empty(workspace, np.uint8) if workspace else None
        kernels.call(layer.method(phase), {n: arrays[n] for n in layer.needs(phase) if n in arrays})
    return y, arrays.get("indices"), arrays["dx"]


def close(found, expected):
    finite = np.abs(expected[np.isfinite(expected)])
    assert np.allclose(found, expected, rtol=0, atol=1e-6 * finite.max(initial=1e-30), equal_nan=True)


def fits(layer, shape):
    try:
        layer.shapes(shape)
    except ShapeError:
        return False
    return True


def agrees(layer, x, storage):
    """The layer gives by both kernel sets what it should."""
    y, indices, dx = run(CUDA, layer, x, storage)
    expected = run(KERNELS, layer, x, storage)
    if isinstance(layer, MaxPool2d):
        assert np.array_equal(y, expected[0], equal_nan=True)
        assert np.array_equal(indices, expected[1]) if indices is not None else expected[1] is None
    close(y, expected[0])
    close(dx, expected[2])


@few
@given(images, pairs, pairs, pairs, st.booleans(), st.booleans(), st.sampled_from(["indices", "input"]), storages)
def test_max_pooling_equals_numpys(shape, kernel, stride, dilation, ceil_mode, pad, saves, storage):
    layer = MaxPool2d(kernel, stride, tuple(k // 2 for k in kernel) if pad else 0, dilation, ceil_mode, saves)
    assume(fits(layer, shape))
    agrees(layer, tied(shape, storage), storage)


@few
@given(images, pairs, pairs, st.booleans(), st.booleans(), st.booleans(), storages)
def test_average_pooling_equals_numpys(shape, kernel, stride, ceil_mode, pad, include, storage):
    layer = AvgPool2d(kernel, stride, tuple(k // 2 for k in kernel) if pad else 0, ceil_mode, include)
    assume(fits(layer, shape))
    agrees(layer, normal(shape, storage), storage)


@few
@given(images, storages)
def test_global_average_pooling_equals_numpys(shape, storage):
    agrees(GlobalAvgPool2d(), normal(shape, storage), storage)


LARGE = [
    MaxPool2d(2),
    MaxPool2d(3, 2, 1),
    MaxPool2d(3, 1, 1),
    MaxPool2d(2, saves="input"),
    MaxPool2d(3, 1, 1, saves="input"),
    MaxPool2d((5, 3), (1, 2), (2, 1), (2, 1)),
    AvgPool2d(3, 1, 1),
    AvgPool2d(3, 2, 1, True, False),
    AvgPool2d(5, 1),
    GlobalAvgPool2d(),
]


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("layer", LARGE, ids=str)
def test_many_blocks_and_images_agree(layer, storage):
    agrees(layer, normal((9, 35, 21, 19), storage), storage)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("layer", LARGE, ids=str)
def test_neither_grid_nor_order_of_threads_changes_a_bit(layer, storage):
    x = tied((3, 33, 13, 11), storage)
    first = run(CUDA, layer, x, storage)
    for kernels in (BACKWARDS, ONE_BLOCK):
        assert all(a is None or same(a, b) for a, b in zip(run(kernels, layer, x, storage), first, strict=True))


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_indices_and_input_give_the_same_bits(kernel, storage):
    x = tied((5, 6, 14, 15), storage)
    gradients = [run(CUDA, MaxPool2d(kernel, 2, 1, saves=s), x, storage)[2] for s in ("indices", "input")]
    assert gradients[0].any()
    assert same(*gradients)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("saves", ["indices", "input"])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_nan_and_infinity_are_treated_as_by_numpy(kernel, saves, storage):
    x = tied((2, 3, 9, 8), storage)
    x[0, 0, 0, 0] = x[0, 1, 4, 4] = x[1, 2, 8, 7] = np.nan
    x[0, 2] = -np.inf
    x[1, 0, 3:5, 2:6] = np.inf
    agrees(MaxPool2d(kernel, 2, 1, saves=saves), x, storage)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_a_window_that_steps_over_all_of_x_is_empty(storage):
    layer = MaxPool2d((2, 2), 1, 1, (2, 2))
    x = normal((1, 2, 1, 1), storage)
    y, indices, dx = run(CUDA, layer, x, storage)
    assert np.isneginf(y).all()
    assert (indices == 255).all()
    assert not dx.any()


@pytest.mark.parametrize("saves", ["indices", "input"])
def test_infinite_gradients_stay_with_the_winner(saves):
    x, y, dx = np.array([[[[1.0, 2], [3, 4]]]]), np.empty((1, 1, 1, 1)), np.empty((1, 1, 2, 2))
    dy, indices = np.full_like(y, np.inf), np.empty(y.shape, np.uint8)
    window = MaxPool2d(2).window
    call(CUDA, "max_pool", x, y, indices, window, None)
    if saves == "indices":
        call(CUDA, "max_pool_backward", indices, dy, dx, window, None)
    else:
        call(CUDA, "max_pool_backward_input", x, y, dy, dx, window, None)
    assert dx.tolist() == [[[[0, 0], [0, np.inf]]]]


def test_arrays_of_different_storage_are_refused():
    x, y = normal((2, 3, 4, 4), "nchw"), normal((2, 3, 2, 2), "nhwc")
    with pytest.raises(ValueError, match="neither all contiguous nor all channels-last"):
        CUDA.avg_pool(x, y, AvgPool2d(2).window, True)


def test_images_that_32_bits_do_not_count_are_refused():
    with pytest.raises(ValueError, match="kernels take fewer than 2147483648"):
        CUDA.over_images(2**31, 1)


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
@settings(few, max_examples=200)
def test_reciprocals_divide_exactly(divisor, n):
    """As `quotient` of common.cuh does."""
    packed = reciprocal(divisor)
    multiplier, shift = packed & 0xFFFFFFFF, packed >> 32
    for k in (n, n // divisor * divisor, max(0, n // divisor * divisor - 1)):
        above = (k * multiplier >> 32) + k
        assert above < 2**32
        assert above >> shift == k // divisor


CHECKED = [
    MaxPool2d(3, 2, 1),
    MaxPool2d(3, 2, 1, saves="input"),
    MaxPool2d(2, ceil_mode=True),
    AvgPool2d(3, 2, 1, True, False),
    AvgPool2d(2),
    GlobalAvgPool2d(),
]


@pytest.mark.parametrize("layer", CHECKED, ids=str)
def test_layers_pass_the_check(layer):
    check_layer(layer, (2, 3, 7, 5), kernels=CUDA)
