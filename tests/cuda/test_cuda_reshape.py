import numpy as np
import pytest
from both import (
    BACKWARDS,
    CUDA,
    KERNELS,
    ONE_BLOCK,
    call,
    few,
    images,
    near,
    normal,
    poisoned,
    rows,
    same,
    sizes,
    storages,
)
from hypothesis import given
from hypothesis import strategies as st

from vdnn.layers import ConstantPad2d, Flatten, Upsample, check_layer

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
LARGE = [(2, 70, 33, 35), (40, 3, 5, 4), (1, 5, 90, 70)]


def flattened(shape, storage, kernels=CUDA):
    """y of flatten, and dx of flatten_backward of it."""
    y, dx = poisoned((shape[0], int(np.prod(shape[1:])))), poisoned(shape, storage)
    call(kernels, "flatten", normal(shape, storage), y)
    call(kernels, "flatten_backward", y, dx)
    return y, dx


@few
@given(st.one_of(images, rows), storages)
def test_flatten_gives_the_logical_order_and_its_backward_undoes_it(shape, storage):
    x = normal(shape)
    y, dx = flattened(shape, storage)
    assert same(y, x)
    assert same(dx, x)


@pytest.mark.parametrize("shape", LARGE)
def test_large_arrays_are_turned_tile_by_tile(shape):
    for kernels in (CUDA, BACKWARDS, ONE_BLOCK):
        y, dx = flattened(shape, "nhwc", kernels)
        assert same(y, normal(shape))
        assert same(dx, normal(shape))


def upsampled(kernels, name, shape, scale, storage, *options):
    """y, and dx of dy."""
    N, C, H, W = shape
    large = N, C, H * scale[0], W * scale[1]
    y, dx, scratch = poisoned(large, storage), poisoned(shape, storage), ("float32", shape, large)
    scratch = scratch if name == "upsample_bilinear" else None
    call(kernels, name, normal(shape, storage), y, *options, scratch=scratch)
    if scratch:
        bytes = getattr(kernels, "upsample_bilinear_workspace", lambda *_: 0)(*scratch)
        call(kernels, f"{name}_backward", normal(large, storage, 1), dx, *options, np.full(bytes, 0xFF, np.uint8))
    else:
        call(kernels, f"{name}_backward", normal(large, storage, 1), dx, *options)
    return y, dx


@few
@given(images, pairs, storages)
def test_nearest_upsampling_has_numpys_bits(shape, scale, storage):
    expected = upsampled(KERNELS, "upsample_nearest", shape, scale, storage, scale)
    actual = upsampled(CUDA, "upsample_nearest", shape, scale, storage, scale)
    assert same(actual[0], expected[0])
    assert same(actual[1], expected[1])


@few
@given(images, pairs, storages, st.booleans())
def test_bilinear_upsampling_is_near_numpys(shape, scale, storage, align_corners):
    expected = upsampled(KERNELS, "upsample_bilinear", shape, scale, storage, align_corners)
    actual = upsampled(CUDA, "upsample_bilinear", shape, scale, storage, align_corners)
    assert near(actual[0], expected[0])
    assert near(actual[1], expected[1])


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", LARGE)
def test_upsampling_of_large_arrays(shape, storage):
    for name, options in (("nearest", [(2, 3)]), ("bilinear", [True]), ("bilinear", [False])):
        expected = upsampled(KERNELS, f"upsample_{name}", shape, (2, 3), storage, *options)
        actual = upsampled(CUDA, f"upsample_{name}", shape, (2, 3), storage, *options)
        assert near(actual[0], expected[0])
        assert near(actual[1], expected[1])
        again = upsampled(ONE_BLOCK, f"upsample_{name}", shape, (2, 3), storage, *options)
        assert same(again[0], actual[0])
        assert same(again[1], actual[1])


@few
@given(sizes, sizes, sizes, sizes, st.booleans())
def test_bilinear_takes_any_two_sizes(H, W, P, Q, align_corners):
    results = []
    for kernels in (KERNELS, CUDA):
        x, y, dy, dx = (
            normal((2, 3, H, W)),
            poisoned((2, 3, P, Q)),
            normal((2, 3, P, Q), seed=1),
            poisoned((2, 3, H, W)),
        )
        bytes = getattr(kernels, "upsample_bilinear_workspace", lambda *_: 0)("float32", x.shape, y.shape)
        call(kernels, "upsample_bilinear", x, y, align_corners, np.full(bytes, 0xFF, np.uint8))
        call(kernels, "upsample_bilinear_backward", dy, dx, align_corners, np.full(bytes, 0xFF, np.uint8))
        results.append((y, dx))
    assert near(results[1][0], results[0][0])
    assert near(results[1][1], results[0][1])


def test_an_infinity_stays_where_it_was():
    x, y = np.zeros((1, 1, 1, 3), "float32"), poisoned((1, 1, 1, 5))
    x[..., 2] = np.inf
    call(CUDA, "upsample_bilinear", x, y, True)
    assert y.ravel().tolist() == [0, 0, 0, np.inf, np.inf]


@few
@given(st.one_of(images, rows))
def test_flatten_passes_the_check(shape):
    check_layer(Flatten(), shape, kernels=CUDA)


@few
@given(images, st.tuples(*[st.integers(0, 3)] * 4))
def test_padding_passes_the_check(shape, padding):
    check_layer(ConstantPad2d(padding, 0.5), shape, kernels=CUDA)


@few
@given(images, pairs, st.sampled_from([("nearest", False), ("bilinear", False), ("bilinear", True)]))
def test_upsampling_passes_the_check(shape, scale, mode):
    check_layer(Upsample(scale, *mode), shape, kernels=CUDA)
