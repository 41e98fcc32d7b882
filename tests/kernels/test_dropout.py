import zlib

import numpy as np
import pytest

from vdnn import clock as clocks
from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.dropout import GOLDEN, key, mix, threshold
from vdnn.layers import Dropout


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def clock(step=0, seed=0, sample=0):
    c = np.zeros(clocks.SIZE)
    c[clocks.STEP], c[clocks.SEED], c[clocks.SAMPLE] = step, seed, sample
    return c


def drop(x, p=0.5, name="drop1", threads=1, **when):
    layer, kernels = Dropout(p, name=name), NumpyKernels(threads)
    y = np.full_like(x, np.nan)
    size = layer.algorithms(kernels, "forward", x.dtype.name, x.shape)[0].workspace
    layer.forward(kernels, clock(**when), x, y, np.full(size, 0xFF, np.uint8))
    kernels.close()
    return y


def test_mix_is_splitmix64():
    """The first outputs of SplitMix64 for seed 0, as its reference implementation prints them."""
    assert [mix(GOLDEN * i % 2**64) for i in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_every_element_follows_the_scalar_formula():
    x = nhwc(np.ones((2, 3, 4, 5)))
    y = drop(x, 0.3, step=7, seed=11, sample=5)
    start = key(clock(7, 11), zlib.crc32(b"drop1"))
    for index in np.ndindex(x.shape):
        element = int(np.ravel_multi_index((index[0] + 5, *index[1:]), (7, 3, 4, 5)))
        kept = mix((start + GOLDEN * element) % 2**64) >= threshold(0.3)
        assert y[index] == (pytest.approx(1 / 0.7) if kept else 0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(64, 1000), (4, 16, 32, 32)])
def test_the_share_dropped_is_p_and_the_mean_stays(p, shape):
    x = np.ones(shape, "float32")
    y = drop(nhwc(x) if len(shape) == 4 else x, p)
    deviation = (p * (1 - p) / x.size) ** 0.5
    assert abs((y == 0).mean() - p) < 4 * deviation
    assert abs(y.mean(dtype="float64") - 1) < 4 * deviation / (1 - p)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}


def test_p_zero_keeps_and_p_one_drops_everything():
    x = np.arange(1.0, 13).reshape(3, 4)
    assert np.array_equal(drop(x, 0), x)
    assert not drop(x, 1).any()
    assert np.isfinite(drop(x, 1 - 1e-16)).all()


def test_seed_step_and_name_each_change_the_mask():
    x = np.ones((8, 200))
    masks = [drop(x), drop(x, seed=1), drop(x, step=1), drop(x, name="drop2"), drop(x, seed=2**52)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.4 < (a == b).mean() < 0.6


@pytest.mark.parametrize("shape", [(5, 700), (5, 6, 40, 30), (5, 300, 1, 1)])
def test_a_sub_batch_sees_its_part_of_the_full_batchs_mask(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    x = nhwc(x) if len(shape) == 4 else x
    whole = drop(x)
    assert np.array_equal(np.concatenate([drop(x[:2]), drop(x[2:], sample=2)]), whole)


def test_threads_and_storage_change_no_bit():
    x = np.random.default_rng(0).standard_normal((6, 24, 50, 60)).astype("float32")
    whole = drop(x)
    for threads in (1, 2, 3):
        assert np.array_equal(drop(nhwc(x), threads=threads), whole)


def test_backward_drops_the_same_elements():
    layer, kernels = Dropout(0.4, name="drop1"), NumpyKernels(1)
    x = np.ones((3, 50))
    dx = np.empty_like(x)
    workspace = np.empty(layer.algorithms(kernels, "backward", "float64", x.shape)[0].workspace, np.uint8)
    layer.backward(kernels, clock(), x, dx, workspace)
    assert np.array_equal(dx, drop(x, 0.4))


def test_evaluation_copies():
    x = np.arange(6.0).reshape(2, 3)
    y = np.empty_like(x)
    Dropout().evaluate(NumpyKernels(1), x, y)
    assert np.array_equal(y, x)


def test_neighbours_are_not_correlated():
    kept = drop(np.ones((1, 1 << 16))) > 0
    for lag in (1, 2, 3, 64, 1024):
        agree = (kept[0, lag:] == kept[0, :-lag]).mean()
        assert abs(agree - 0.5) < 0.01
