import re

import numpy as np
import pytest
from both import CUDA, KERNELS, ONE_BLOCK, call, clock, few, images, normal, poisoned, rows, same, storages
from hypothesis import assume, given
from hypothesis import strategies as st

from vdnn import clock as clocks
from vdnn.kernels.cuda.sources import source
from vdnn.layers import Dropout, check_layer

layers = st.sampled_from([0, 1, 2**31, 2**32 - 1])


def test_the_source_finds_the_clocks_entries_where_they_are():
    found = {name: int(place) for name, place in re.findall(r"#define CLOCK_(\w+) (\d+)", source())}
    assert found == {name: getattr(clocks, name) for name in found}
    assert set(found) >= {"STEP", "SAMPLE", "SEED", "LEARNING_RATE", "BIAS_1", "BIAS_2"}


def dropped(kernels, x, p, layer, when, is_in_place=False):
    y = x.copy(order="K") if is_in_place else np.full_like(x, np.nan)
    call(kernels, "dropout", clock(**when), y if is_in_place else x, y, p, layer, scratch=(x.dtype.name, x.shape))
    return y


@few
@given(st.one_of(images, rows), storages, st.sampled_from([0, 0.1, 0.5, 0.9, 1]), layers, st.booleans())
def test_the_same_elements_are_dropped_as_on_the_cpu(shape, storage, p, layer, is_in_place):
    x = normal(shape, storage)
    for when in ({}, {"step": 7, "seed": 2**53 - 1, "sample": 12345}):
        expected = dropped(KERNELS, x, p, layer, when)
        actual = dropped(CUDA, x, p, layer, when, is_in_place)
        assert np.array_equal(actual, expected)
        assert not np.signbit(actual[actual == 0]).any()


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(3, 24, 50, 60), (70, 33, 3, 3), (40, 1000), (1, 7, 1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_larger_arrays_lose_the_same_elements_too(shape, storage, dtype):
    x, when = normal(shape, storage, dtype=dtype), {"seed": 3, "sample": 2**40}
    expected = dropped(KERNELS, x, 0.3, 99, when)
    assert np.array_equal(dropped(CUDA, x, 0.3, 99, when), expected)
    assert np.array_equal(dropped(ONE_BLOCK, x, 0.3, 99, when), expected)


def test_a_sub_batch_sees_its_part_of_the_full_batchs_mask():
    x = normal((5, 6, 4, 3), "nhwc")
    whole = dropped(CUDA, x, 0.5, 1, {})
    parts = [dropped(CUDA, x[:2], 0.5, 1, {}), dropped(CUDA, x[2:], 0.5, 1, {"sample": 2})]
    assert same(np.concatenate(parts), whole)


def test_the_clock_is_read_when_the_kernel_runs():
    x, y, now = normal((4, 50)), poisoned((4, 50)), clock()
    CUDA.dropout(now, x, y, 0.5, 1)
    now[clocks.STEP] = 5
    CUDA.driver.synchronize(CUDA.stream)
    assert np.array_equal(y, dropped(KERNELS, x, 0.5, 1, {"step": 5}))


@few
@given(st.one_of(images, rows), st.sampled_from([0, 0.1, 0.5]))
def test_dropout_passes_the_check(shape, p):
    assume(shape[0] * shape[1] > 8)
    check_layer(Dropout(p), shape, kernels=CUDA)
