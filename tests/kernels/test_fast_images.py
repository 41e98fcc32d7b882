"""Batch normalisation and max pooling, compiled against NumPy's."""

import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import BatchNorm2d, MaxPool2d

REFERENCE = NumpyKernels(1, fast=False)
FAST = [NumpyKernels(1, fast=True), NumpyKernels(2, fast=True)]
SHAPES = [(2, 1, 3, 5), (3, 5, 7, 9), (4, 16, 9, 8), (6, 37, 40, 41), (2, 1030, 6, 5)]
WINDOWS = [
    MaxPool2d(2),
    MaxPool2d(3, 2),
    MaxPool2d(3, 1, 1),
    MaxPool2d((2, 3), (3, 1), (1, 0)),
    MaxPool2d(2, 2, 0, 2),
    MaxPool2d(3, 2, 0, 1, True),
]


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def random(shape, dtype="float32", seed=0):
    return nhwc(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def scratch(layer, phase, x, kernels):
    size = layer.algorithms(kernels, phase, x.dtype.name, x.shape)[0].workspace
    return np.full(size, 0xFF, np.uint8) if size else None


def normalised(kernels, x, dy, in_place=False):
    """Everything that batch normalisation writes, forward and backward."""
    C, layer = x.shape[1], BatchNorm2d()
    w, b = np.random.default_rng(9).standard_normal((2, C)).astype(x.dtype)
    y, saved, gradients = np.empty_like(x), np.empty((3, C), x.dtype), np.empty((2, C), x.dtype)
    layer.forward(kernels, x, w, b, y, *saved, scratch(layer, "forward", x, kernels))
    dy = dy.copy(order="K")
    dx = dy if in_place else np.empty_like(x)
    layer.backward(kernels, x, w, *saved[:2], dy, dx, *gradients, scratch(layer, "backward", x, kernels))
    return y, saved, dx, gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_normalisation_agrees_with_numpys(shape, dtype, tolerance):
    x, dy = random(shape, dtype) + 3, random(shape, dtype, 1)
    for expected, actual in zip(normalised(REFERENCE, x, dy), normalised(FAST[0], x, dy), strict=True):
        assert np.abs(actual - expected).max() < tolerance * max(1, np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_normalisation_has_the_same_bits_on_two_threads_and_in_place(shape):
    x, dy = random(shape), random(shape, seed=1)
    first, *others = [
        [a.tobytes("A") for a in normalised(kernels, x, dy, in_place)]
        for kernels, in_place in ((FAST[0], False), (FAST[1], False), (FAST[1], True))
    ]
    assert others == [first, first]


def test_nan_spoils_its_channel_alone():
    x = random((3, 5, 7, 9))
    x[1, 2, 3, 4] = np.nan
    y, _, dx, gradients = normalised(FAST[1], x, random((3, 5, 7, 9), seed=1))
    for a in (y, dx):
        assert np.isnan(a[:, 2]).all()
        assert np.isfinite(np.delete(a, 2, 1)).all()
    assert np.isnan(gradients).tolist() == [[False, False, True, False, False], [False] * 5]  # dw, db


def test_images_stored_by_channel_go_numpys_way():
    x, dy = (np.ascontiguousarray(random((3, 5, 7, 9), seed=seed)) for seed in (0, 1))
    for expected, actual in zip(normalised(REFERENCE, x, dy), normalised(FAST[0], x, dy), strict=True):
        assert np.array_equal(actual, expected)


def pooled(kernels, window, saves, x, dy):
    """y, the indices if any, and dx."""
    config = window.config()
    layer = MaxPool2d(**{**config, "saves": saves})
    y = nhwc(np.full(layer.shapes(x.shape).y, 7, x.dtype))
    indices = nhwc(np.full(y.shape, 77, np.uint8)) if saves == "indices" else None
    layer.forward(kernels, x, y, indices, scratch(layer, "forward", x, kernels))
    dx = nhwc(np.full(x.shape, 7, x.dtype))
    arrays = {"x": x, "y": y, "indices": indices, "dy": dy(y.shape), "dx": dx, "kernels": kernels}
    arrays["workspace"] = scratch(layer, "backward", x, kernels)
    layer.backward(**{n: arrays[n] for n in layer.needs("backward")})
    return [a for a in (y, indices, dx) if a is not None]


def whole(shape):
    """Gradients that add up exactly, in any order."""
    return nhwc(np.random.default_rng(3).integers(-9, 9, shape).astype("float32"))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("saves", ["indices", "input"])
@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (3, 5, 7, 9), (2, 64, 40, 41)], ids=str)
def test_max_pooling_agrees_with_numpys(window, saves, shape):
    x = nhwc(np.random.default_rng(0).integers(-3, 4, shape).astype("float32"))  # many ties
    x[0, 0, 1, 1], x[1, 0, 2, 2], x[1, 0, :2, :2] = np.nan, np.inf, -np.inf
    expected = pooled(REFERENCE, window, saves, x, whole)
    for kernels in FAST:
        for a, b in zip(pooled(kernels, window, saves, x, whole), expected, strict=True):
            assert np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize("saves", ["indices", "input"])
def test_max_pooling_takes_double_precision_and_threads_change_no_bit(saves):
    x = random((5, 24, 33, 32), "float64")
    dy = lambda shape: random(shape, "float64", 1)  # noqa: E731
    expected, first, second = (pooled(kernels, MaxPool2d(3, 2, 1), saves, x, dy) for kernels in (REFERENCE, *FAST))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]
    for a, b in zip(first, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-12)
