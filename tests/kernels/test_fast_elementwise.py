import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

from vdnn import clock as clocks
from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.chunks import PIECE
from vdnn.kernels.numpy.update import CHUNK

REFERENCE = NumpyKernels(1, fast=False)
FAST = [NumpyKernels(1, fast=True), NumpyKernels(2, fast=True)]
SIZES = [1, 7, 8, 1023, 1024, 1025, PIECE + 13, 3 * PIECE]
ODD = [-0.0, 0.0, -1.5, 2, 1e-40, np.nan, -np.nan, np.inf, -np.inf]
DTYPES = ["float32", "float64"]


def scratch(size):
    return np.full(size, 0xFF, np.uint8)


def odd(size, dtype, seed=0):
    return np.random.default_rng(seed).choice(ODD, size).astype(dtype)


def random(size, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_relu_has_numpys_bits_in_place_or_not(size, dtype):
    x, expected = odd(size, dtype), np.empty(size, dtype)
    REFERENCE.relu(x, expected)
    for kernels in FAST:
        y, z = np.empty_like(x), x.copy()
        kernels.relu(x, y)
        kernels.relu(z, z)
        assert y.tobytes() == z.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_relu_backward_has_numpys_bits_in_place_or_not(size, dtype):
    y, dy, expected = np.abs(odd(size, dtype)), odd(size, dtype, 1), np.empty(size, dtype)
    workspace = scratch(REFERENCE.relu_backward_workspace(dtype, y.shape))
    REFERENCE.relu_backward(y, dy, expected, workspace)
    for kernels in FAST:
        workspace = scratch(kernels.relu_backward_workspace(dtype, y.shape))
        dx, over = np.empty_like(dy), dy.copy()
        kernels.relu_backward(y, dy, dx, workspace)
        kernels.relu_backward(y, over, over, workspace)
        assert dx.tobytes() == over.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_masks_have_numpys_bits_both_ways(size, dtype):
    x, dy = odd(size, dtype), odd(size, dtype, 1)
    results = []
    for kernels in (REFERENCE, *FAST):
        y, mask, dx = x.copy(), scratch(-(-size // 8)), dy.copy()
        kernels.relu_mask(y, y, mask, scratch(kernels.relu_mask_workspace(dtype, x.shape)))
        workspace = scratch(kernels.relu_mask_backward_workspace(dtype, x.shape))
        kernels.relu_mask_backward(mask, dx, dx, workspace)
        results.append((y.tobytes(), mask.tobytes(), dx.tobytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [2, 3])
def test_sums_have_numpys_bits_over_a_term_or_not(terms, dtype):
    x = [random(PIECE + 5, dtype, seed) for seed in range(terms)]
    expected = np.empty_like(x[0])
    REFERENCE.add_all(x, expected)
    for kernels in FAST:
        y, over = np.empty_like(x[0]), x[0].copy()
        kernels.add_all(x, y)
        kernels.add_all([over, *x[1:]], over)
        assert y.tobytes() == over.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1001, 16), (37, 1030), (90001, 7)], ids=str)
def test_a_bias_adds_to_every_row(shape, dtype):
    rows, bias = random(shape, dtype), random(shape[1], dtype, 1)
    expected = rows + bias
    for kernels in (REFERENCE, *FAST):
        actual = rows.copy()
        kernels.routines.add_bias(actual, bias)
        assert actual.tobytes() == expected.tobytes()


def test_a_bias_adds_to_rows_that_lie_apart():
    rows, bias = random((50, 2, 6), "float32"), random(6, "float32", 1)
    expected = rows.copy()
    expected[:, 1] += bias
    for kernels in (REFERENCE, *FAST):
        actual = rows.copy()
        kernels.routines.add_bias(actual[:, 1], bias)
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (4, 64, 60, 61)], ids=str)
def test_a_bias_adds_to_images_stored_either_way(shape):
    y, bias = random(shape, "float32"), random(shape[1], "float32", 1)
    expected = y + bias[:, None, None]
    for kernels in (REFERENCE, *FAST):
        for order in ("C", "channels last"):
            actual = y.copy() if order == "C" else y.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
            kernels.add_bias(actual, bias)
            assert np.array_equal(actual, expected)


def test_strided_arrays_go_numpys_way():
    x, expected = random((4, 6, 8, 10), "float32"), np.empty((4, 3, 8, 10), "float32")
    REFERENCE.relu(x[:, ::2], expected)
    for kernels in FAST:
        y = np.empty_like(expected)
        kernels.relu(x[:, ::2], y)
        assert np.array_equal(y, expected)


def clock(step):
    values = np.zeros(max(clocks.LEARNING_RATE, clocks.STEP, clocks.BIAS_1, clocks.BIAS_2) + 1)
    values[[clocks.LEARNING_RATE, clocks.STEP]] = 0.1, step
    values[[clocks.BIAS_1, clocks.BIAS_2]] = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
    return values


RULES = {
    "plain": ("sgd", {}),
    "decay": ("sgd", {"weight_decay": 1e-2}),
    "momentum": ("momentum", {"momentum": 0.9, "weight_decay": 1e-2, "dampening": 0.3}),
    "nesterov": ("momentum", {"momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"weight_decay": 1e-2}),
    "adamw": ("adam", {"weight_decay": 1e-2, "decoupled": True}),
}


def updated(kernels, kind, options, size, dtype):
    """w and its state after two steps."""
    w, g, *state = (random(size, dtype, seed) for seed in range(4))
    state[1] **= 2
    w[-1] = np.nan
    workspace = scratch(kernels.update_workspace(kind, w.shape, dtype))
    for step in (0, 1):
        if kind == "adam":
            kernels.adam(clock(step), w, g, *state, **options, workspace=workspace)
        else:
            velocity = state[0] if kind == "momentum" else None
            kernels.sgd(clock(step), w, g, velocity, **options, workspace=workspace)
    return [a.tobytes() for a in (w, *state)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 1025, CHUNK + 3])
@pytest.mark.parametrize("rule", RULES)
def test_updates_have_numpys_bits(rule, size, dtype):
    expected = updated(REFERENCE, *RULES[rule], size, dtype)
    for kernels in FAST:
        assert updated(kernels, *RULES[rule], size, dtype) == expected
