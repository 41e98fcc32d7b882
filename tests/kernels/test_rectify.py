"""Kernels that are asked to `rectify` leave the bits of theirs and then relu's."""

import numpy as np
import pytest

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import BatchNorm2d, Conv2d

SETS = [NumpyKernels(threads, fast=False) for threads in (1, 2)]
try:
    import numba  # noqa: F401

    SETS += [NumpyKernels(threads, fast=True) for threads in (1, 2)]
except ImportError:
    pass


def stored(x, last):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else x


def arrays_of(layer, shape, dtype, last):
    """The arrays of a layer's forward pass, with infinities, zeros of both signs and NaN among them."""
    numbers, shapes = np.random.default_rng(1), layer.shapes(shape)
    x = stored(numbers.standard_normal(shape).astype(dtype), last)
    given = {"x": x} | {n: numbers.standard_normal(s.shape).astype(dtype) for n, s in shapes.parameters.items()}
    if "b" in given:
        given["b"][0] = -0.0
    if given["w"].ndim == 4:
        given["w"][0] = 0  # so that a channel of y is what b is
        given["w"] = stored(given["w"], last)
        x[0, 0, 0, 0], x[-1, -1, -1, -1] = -np.nan, -np.inf
    else:
        given["w"][0] = -0.0
    return given, shapes


def forward(kernels, layer, algorithm, given, shapes, last, **asked):
    y = stored(np.full(shapes.y, 7, given["x"].dtype), last)
    saved = {n: np.zeros(s.shape, y.dtype) for n, s in shapes.saved.items()}
    chosen = {"algorithm": algorithm.name} if isinstance(layer, Conv2d) else {}
    workspace = np.full(algorithm.workspace, 0xFF, np.uint8)
    with np.errstate(all="ignore"):
        layer.forward(kernels, workspace=workspace, y=y, **given, **saved, **chosen, **asked)
    return y


def assert_same(kernels, layer, shape, dtype, last):
    given, shapes = arrays_of(layer, shape, dtype, last)
    for algorithm in layer.algorithms(kernels, "forward", dtype, shape):
        expected = forward(kernels, layer, algorithm, given, shapes, last)
        assert np.signbit(expected).any()
        kernels.relu(expected, expected)
        found = forward(kernels, layer, algorithm, given, shapes, last, rectify=True)
        assert found.tobytes() == expected.tobytes(), algorithm
        assert not np.signbit(found).any()


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: f"{'compiled' if k.fast else 'numpy'}-{k.threads}")
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (3, 5, 7, 9), (4, 48, 40, 41), (2, 1030, 6, 5)])
def test_batch_norm_rectifies_as_relu_does(shape, last, kernels):
    for dtype in ("float32", "float64"):
        assert_same(kernels, BatchNorm2d(), shape, dtype, last)
    given, _ = arrays_of(BatchNorm2d(), shape, "float32", last)
    C, found = shape[1], []
    for rectify in (False, True):
        y = np.empty_like(given["x"])
        scratch = np.zeros(kernels.batch_norm_workspace("float32", shape), np.uint8)
        statistics = np.linspace(-1, 1, C, dtype="float32"), np.linspace(1, 2, C, dtype="float32")
        kernels.batch_norm_evaluate(given["x"], given["w"], given["b"], *statistics, y, 1e-5, scratch, rectify)
        found.append(y)
    kernels.relu(found[0], found[0])
    assert found[0].tobytes() == found[1].tobytes()


CONVOLUTIONS = [
    (Conv2d(32, 3, padding=1), (2, 96, 13, 9)),
    (Conv2d(37, 3, padding=1, bias=False), (2, 5, 9, 14)),
    (Conv2d(6, 5, padding=2), (1, 7, 12, 12)),
    (Conv2d(40, 1), (3, 24, 11, 13)),
    (Conv2d(33, 1, 2), (2, 8, 9, 9)),
    (Conv2d(64, 7, 2, padding=3), (2, 3, 23, 21)),
    (Conv2d(6, (3, 2), padding=(0, 1), dilation=2, groups=3), (2, 9, 10, 8)),
]


@pytest.mark.parametrize("kernels", SETS, ids=lambda k: f"{'compiled' if k.fast else 'numpy'}-{k.threads}")
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_every_algorithm_of_a_convolution_rectifies_as_relu_does(layer, shape, kernels):
    assert_same(kernels, layer, shape, "float32", True)
    assert_same(kernels, layer, shape, "float32", False)
