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
    storages,
    stored,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from vdnn.kernels.cuda import elementwise
from vdnn.layers import LeakyReLU, ReLU, ReLU6, Sigmoid, Tanh, check_layer

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [6, 30000])
def test_relu_gives_positive_zeros_and_keeps_nan(dtype, size):
    x = np.resize(np.array([-1, -0.0, 0.0, 2, NAN, INF], dtype), size)
    y = np.empty_like(x)
    call(CUDA, "relu", x, y)
    assert np.array_equal(y, np.resize(np.array([0, 0, 0, 2, NAN, INF], dtype), size), equal_nan=True)
    assert not np.signbit(y[~np.isnan(y)]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_backward_writes_positive_zero_whatever_dy_is(dtype):
    y = np.array([0, 0, 0, 0, 1, 1e-40, INF, NAN], dtype)
    dy = np.array([-3, INF, NAN, -0.0, -3, 4, -0.0, 5], dtype)
    dx = np.full_like(dy, NAN)
    call(CUDA, "relu_backward", y, dy, dx)
    assert dx.tobytes() == np.array([0, 0, 0, 0, -3, 4, -0.0, 5], dtype).tobytes()


@few
@given(st.one_of(images, rows), storages, st.booleans())
def test_relu_and_its_backward_have_numpys_bits(shape, storage, is_in_place):
    x, dy = normal(shape, storage), normal(shape, storage, seed=1)
    results = []
    for kernels in (KERNELS, CUDA):
        y, dx = (a.copy(order="K") if is_in_place else np.full_like(a, NAN) for a in (x, dy))
        call(kernels, "relu", y if is_in_place else x, y)
        call(kernels, "relu_backward", y, dx if is_in_place else dy, dx, scratch=("float32", shape))
        results.append((y, dx))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


@few
@given(
    st.one_of(images, rows, st.tuples(st.integers(1, 9000))),
    storages,
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
)
def test_relu_with_a_mask_has_the_bits_of_relu_and_numpys_mask(shape, storage, is_in_place, dtype):
    x, dy = normal(shape, storage, dtype=dtype), normal(shape, storage, 1, dtype)
    x.reshape(-1)[:4] = np.resize(np.array([-0.0, NAN, INF, 0.0]), x.size)[:4]
    expected, gradient = np.full_like(x, NAN), np.full_like(x, NAN)
    call(CUDA, "relu", x, expected)
    call(CUDA, "relu_backward", expected, dy, gradient)
    masks = []
    for kernels in (KERNELS, CUDA, BACKWARDS, ONE_BLOCK):
        y, dx = (a.copy(order="K") if is_in_place else np.full_like(a, NAN) for a in (x, dy))
        masks.append(np.full(-(-x.size // 8), 0xFF, np.uint8))
        call(kernels, "relu_mask", y if is_in_place else x, y, masks[-1], scratch=(dtype, shape))
        call(kernels, "relu_mask_backward", masks[-1], dx if is_in_place else dy, dx, scratch=(dtype, shape))
        assert same(y, expected)
        assert same(dx, gradient)
    assert all(same(mask, masks[0]) for mask in masks)


def test_arrays_that_are_stored_differently_are_refused():
    x, y = normal((2, 3, 4, 5)), poisoned((2, 3, 4, 5), "nhwc")
    with pytest.raises(ValueError, match="stored differently"):
        CUDA.relu(x, y)
    with pytest.raises(ValueError, match="stored differently"):
        CUDA.relu_mask(x, y, np.zeros(15, np.uint8))
    with pytest.raises(ValueError, match=r"shapes differ: \(3,\), \(1,\)"):
        CUDA.copy(x[0, :, 0, 0], y[0, :1, 0, 0])


@few
@given(st.one_of(images, rows), storages, storages)
def test_a_copy_takes_any_two_storages(shape, from_storage, to_storage):
    y = poisoned(shape, to_storage)
    call(CUDA, "copy", normal(shape, from_storage), y)
    assert same(y, normal(shape))


@few
@given(images, st.tuples(st.integers(0, 3), st.integers(0, 3)), storages, storages, st.booleans())
def test_a_copy_takes_slices_of_channels_and_touches_nothing_beside(shape, margin, inner, outer, is_target):
    N, C, H, W = shape
    whole = stored(np.full((N, sum(margin) + C, H, W), 7, "float32"), outer)
    part = whole[:, margin[0] : margin[0] + C]
    other = normal(shape, inner)
    expected = whole.copy()
    if is_target:
        expected[:, margin[0] : margin[0] + C] = other
        call(CUDA, "copy", other, part)
        assert same(whole, expected)
    else:
        part[...] = other
        target = poisoned(shape, inner)
        call(CUDA, "copy", part, target)
        assert same(target, other)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(3, 40, 30, 30), (2, 33, 65, 1), (1, 300, 5, 7)])
def test_large_slices_and_turned_arrays_span_many_blocks(shape, storage):
    N, C, H, W = shape
    whole = poisoned((N, 2 * C + 5, H, W), storage)
    for kind in ("nchw", "nhwc"):
        x, part = normal(shape, kind), whole[:, 5 : 5 + C]
        call(CUDA, "copy", x, part)
        assert same(part, x)
        assert np.isnan(whole[:, :5]).all()
        assert np.isnan(whole[:, 5 + C :]).all()
        back = poisoned(shape, kind)
        call(CUDA, "copy", part, back)
        assert same(back, x)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2, 1:, ::3, ::-1],
        lambda a: a.transpose(3, 2, 1, 0),
        lambda a: a[:, :, 0, 0],
        lambda a: a[1, 2, 3],
        lambda a: np.lib.stride_tricks.sliding_window_view(a, (2, 2), (2, 3)),
    ],
)
def test_a_copy_takes_odd_strides(view):
    x = view(normal((4, 5, 6, 7)))
    for y in (np.full(x.shape, NAN, "float32"), view(poisoned((4, 5, 6, 7), "nhwc"))):
        if y.flags.writeable:
            call(CUDA, "copy", x, y)
            assert same(y, x)


@pytest.mark.parametrize("kernels", [BACKWARDS, ONE_BLOCK], ids=["backwards", "one block"])
@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_copies_depend_on_no_order_and_no_grid(kernels, storage):
    x, wide = normal((2, 70, 9, 11), "nhwc"), poisoned((2, 80, 9, 11), storage)
    y = wide[:, 7:77]
    call(kernels, "copy", x, y)
    assert same(y, x)


@pytest.mark.parametrize("momentum", [0, 0.1, 1])
def test_move_average_has_numpys_bits(momentum):
    results = []
    for kernels in (KERNELS, CUDA):
        value, average = normal((700,)), normal((700,), seed=1)
        call(kernels, "move_average", value, average, momentum)
        results.append(average)
    assert same(*results)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_elementwise_goes_through_pieces_with_scratch_of_their_size(storage, monkeypatch):
    monkeypatch.setattr(elementwise, "PIECE", 50)
    x = normal((2, 3, 4, 7), storage)
    y, seen = poisoned(x.shape, storage), []

    def double(xp, t, x, y):
        seen.append((t.shape, x.shape))
        xp.add(x, x, out=t)
        xp.copyto(y, t)

    assert CUDA.elementwise_workspace("float32", x.shape) == 50 * 4
    call(CUDA, "elementwise", double, np.full(200, 0xFF, np.uint8), x, y)
    assert same(y, 2 * x)
    assert seen == [((50,), (50,))] * 3 + [((18,), (18,))]


@few
@given(rows, st.sampled_from([LeakyReLU(0.2), Sigmoid(), Tanh()]))
def test_other_activations_are_near_numpys(shape, layer):
    results = []
    for kernels in (KERNELS, CUDA):
        x, dy = normal(shape), normal(shape, seed=1)
        y, dx = np.full_like(x, NAN), np.full_like(x, NAN)
        workspace = np.full(kernels.elementwise_workspace("float32", shape), 0xFF, np.uint8)
        call(kernels, "elementwise", layer._apply, workspace, x, y)
        call(kernels, "elementwise", layer._differentiate, workspace, y, dy, dx)
        results.append((y, dx))
    assert near(results[1][0], results[0][0])
    assert near(results[1][1], results[0][1])


@pytest.mark.parametrize(
    "layer", [ReLU(), ReLU("mask"), LeakyReLU(0.2), LeakyReLU(3), LeakyReLU(-0.5), ReLU6(), Sigmoid(), Tanh()], ids=str
)
@few
@given(shape=st.one_of(images, rows))
def test_activations_pass_the_check(layer, shape):
    assume(np.prod(shape) > 1)  # one element may be negative, and ReLU of it zero
    check_layer(layer, shape, kernels=CUDA)
