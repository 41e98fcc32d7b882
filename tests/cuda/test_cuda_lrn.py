import numpy as np
import pytest
from both import BACKWARDS, CUDA, KERNELS, ONE_BLOCK, call, near, normal, poisoned, same, storages
from hypothesis import given, settings
from hypothesis import strategies as st

from vdnn.layers import LocalResponseNorm, check_layer

few = settings(max_examples=40, deadline=None, derandomize=True)
images = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
SIZES = [1, 2, 3, 4, 5, 16, 33]


def run(kernels, x, dy, storage, size, alpha=0.5, beta=0.75, k=1.5, inplace=False):
    """y and dx, over x and dy if `inplace`."""
    x, dy = x.copy(order="K"), dy.copy(order="K")
    dx = dy if inplace else poisoned(x.shape, storage)
    scratch = np.empty(KERNELS.lrn_workspace("float32", x.shape, size), np.uint8) if kernels is KERNELS else None
    call(kernels, "lrn_backward", x, dy, dx, size, alpha, beta, k, scratch)
    y = x if inplace else poisoned(x.shape, storage)
    call(kernels, "lrn", x, y, size, alpha, beta, k, scratch)
    return y, dx


def agrees(shape, storage, *arguments):
    x, dy = normal(shape, storage), normal(shape, storage, 1)
    for found, expected in zip(*(run(kernels, x, dy, storage, *arguments) for kernels in (CUDA, KERNELS)), strict=True):
        assert near(found, expected)


@few
@given(images, st.integers(1, 16), st.floats(0.01, 1), st.sampled_from([0.5, 0.75, 1.0]), storages)
def test_it_equals_numpys(shape, size, alpha, beta, storage):
    agrees(shape, storage, size, alpha, beta)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES)
def test_many_blocks_and_channels_agree(size, storage):
    agrees((3, 131, 9, 13), storage, size)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("size", SIZES)
def test_results_may_lie_over_what_they_are_made_of(size, storage):
    x, dy = (normal((2, 100, 5, 9), storage, seed) for seed in (0, 1))
    apart = run(CUDA, x, dy, storage, size)
    for kernels in (CUDA, BACKWARDS, ONE_BLOCK):
        assert all(same(a, b) for a, b in zip(run(kernels, x, dy, storage, size, inplace=True), apart, strict=True))


def test_storages_give_the_same_bits():
    results = []
    for storage in ("nchw", "nhwc"):
        x, dy = (normal((2, 37, 5, 9), storage, seed) for seed in (0, 1))
        results.append(run(CUDA, x, dy, storage, 5))
    assert all(same(a, b) for a, b in zip(*results, strict=True))


def test_a_window_wider_than_all_channels_is_cut_to_them():
    agrees((2, 6, 3, 5), "nhwc", 100)


def test_a_window_of_too_many_channels_is_refused():
    x = np.ones((1, 64, 2, 2), "float32")
    with pytest.raises(ValueError, match="size=34 for 64 channels"):
        CUDA.lrn(x, x, 34, 1.0, 0.75, 1.0)


@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_layer_passes_the_check(size, beta):
    check_layer(LocalResponseNorm(size, 0.3, beta, 1.5), (2, 9, 3, 4), kernels=CUDA)
