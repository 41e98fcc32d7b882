import numpy as np
import pytest
from both import CUDA, KERNELS, call, few, images, normal, poisoned, rows, same, sizes, storages
from hypothesis import given
from hypothesis import strategies as st

from vdnn.layers import Add, Concat, check_layer


@few
@given(st.one_of(images, rows), st.integers(2, 5), storages, st.booleans())
def test_sums_are_taken_from_left_to_right_as_by_numpy(shape, count, storage, is_in_place):
    results = []
    for kernels in (KERNELS, CUDA):
        x = [normal(shape, storage, seed) for seed in range(count)]
        y = x[0] if is_in_place else poisoned(shape, storage)
        call(kernels, "add_all", x, y)
        results.append(y)
    assert same(*results)


def test_add_may_write_over_either_term():
    a, b = np.array([1, 2], "float32"), np.array([10, 20], "float32")
    call(CUDA, "add", a, b, b)
    assert b.tolist() == [11, 22]
    call(CUDA, "add", a, b, a)
    assert a.tolist() == [12, 24]


@pytest.mark.parametrize("size", [1, 255, 256, 257, 4095, 4096, 16385, 40000])
def test_every_element_is_added_once_however_many_there_are(size):
    x, y = normal((size,)), np.ones(size, "float32")
    call(CUDA, "add", x, y, y)
    assert same(y, x + np.float32(1))


@few
@given(images, st.lists(sizes, min_size=1, max_size=4), storages, storages)
def test_concat_and_back_in_any_storage(shape, channels, inner, outer):
    N, _, H, W = shape
    parts = [normal((N, c, H, W), inner, seed) for seed, c in enumerate(channels)]
    y = poisoned((N, sum(channels), H, W), outer)
    call(CUDA, "concat", parts, y)
    assert same(y, np.concatenate(parts, axis=1))
    back = [poisoned(p.shape, inner) for p in parts]
    call(CUDA, "concat_backward", y, [None, *back[1:]], channels)
    assert all(same(b, p) for b, p in zip(back[1:], parts[1:], strict=True))
    assert np.isnan(back[0]).all()


def test_rows_of_features_are_joined_too():
    x0, x1, y = normal((5, 3)), normal((5, 300)), poisoned((5, 303))
    call(CUDA, "concat", [x0, x1], y)
    assert same(y, np.concatenate([x0, x1], axis=1))


@few
@given(images, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_concat_passes_the_check(shape, channels):
    check_layer(Concat(), shape, *((shape[0], c, *shape[2:]) for c in channels), kernels=CUDA)


@few
@given(st.one_of(images, rows), st.integers(2, 4))
def test_add_passes_the_check(shape, count):
    check_layer(Add(), *[shape] * count, kernels=CUDA)
