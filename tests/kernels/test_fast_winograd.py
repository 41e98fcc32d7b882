import numpy as np
import pytest

pytest.importorskip("numba", exc_type=ImportError)

from vdnn.kernels.numpy.compiled.multiply import VECTORS
from vdnn.kernels.numpy.layout import Scratch
from vdnn.kernels.numpy.routines import routines
from vdnn.kernels.numpy.transforms import TRANSFORMS
from vdnn.kernels.numpy.window import Tile

BOTH = routines(False), routines(True)
CHANNELS = [1, 5, 16, 37, 64]
each = pytest.mark.parametrize("winograd", TRANSFORMS.values(), ids=[f"F({m},{r})" for m, r in TRANSFORMS])
SPACE = 1 << 22


def random(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def same(a, b):
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a) & (a == a), np.signbit(b) & (b == b))


def scratch():
    return Scratch(np.full(SPACE, 0xFF, np.uint8))


def inputs(x, winograd, padding, before=3, behind=2):
    """All tiles of x, transformed by both, among others that must stay as they are."""
    N, H, W, C = x.shape
    m, halo = winograd.m, winograd.r - 1
    rows, columns = (max(1, -(-(size + 2 * p - halo) // m)) for size, p in zip((H, W), padding, strict=True))
    box = Tile(0, N, 0, rows, 0, columns)
    results = []
    for some in BOTH:
        out = np.full((winograd.a**2, before + box.pixels + behind, C), 7, x.dtype)
        some.transform_input(winograd, x, box, padding, out, before, scratch())
        assert (out[:, :before] == 7).all()
        assert (out[:, before + box.pixels :] == 7).all()
        results.append(out)
    return results


@each
@pytest.mark.parametrize("C", CHANNELS)
@pytest.mark.parametrize(("H", "W", "padding"), [(9, 7, (1, 1)), (8, 12, (0, 0)), (3, 5, (2, 0)), (1, 1, (1, 1))])
def test_input_transforms_have_numpys_bits(winograd, C, H, W, padding):
    assert same(*inputs(random(2, H, W, C), winograd, padding))


@each
def test_a_block_in_the_middle_of_an_image_sees_its_neighbours(winograd):
    x, results = random(3, 19, 18, 20), []
    for some in BOTH:
        out = np.zeros((winograd.a**2, 4, 20), "float32")
        some.transform_input(winograd, x, Tile(1, 2, 1, 3, 2, 4), (1, 0), out, 0, scratch())
        results.append(out)
    assert same(*results)


@each
@pytest.mark.parametrize("K", CHANNELS)
def test_gradient_transforms_have_numpys_bits(winograd, K):
    dy, results, m = random(2, 7, 10, K), [], winograd.m
    box = Tile(0, 2, 0, -(-7 // m), 0, -(-10 // m))
    for some in BOTH:
        out = np.full((winograd.a**2, box.pixels + 1, K), 7, "float32")
        some.transform_gradient(winograd, dy, box, out, 1, scratch())
        results.append(out)
    assert same(*results)


@each
@pytest.mark.parametrize("K", CHANNELS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_output_transforms_have_numpys_bits(winograd, K, has_bias):
    H, W, m = 7, 9, winograd.m
    box = Tile(1, 2, 0, -(-H // m), 0, -(-W // m))
    tiles, bias = random(winograd.a**2, box.pixels + 5, K), random(K) if has_bias else None
    tiles[:, 4] = -0.0  # of which the sum is -0.0 without bias
    results = []
    for some in BOTH:
        y = np.full((3, H, W, K), 7, "float32")
        some.transform_output(winograd, tiles.copy(), 4, box, bias, y, scratch())
        assert (y[[0, 2]] == 7).all()
        results.append(y)
    assert same(*results)


@each
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("K", "C", "dtype"), [(64, 37, "float32"), (160, 96, "float32"), (96, 64, "float64")])
def test_panels_are_numpys_transformed_filter_in_another_order(winograd, K, C, dtype, turned):
    if turned:
        K, C = C, K  # result channels are whole panels
    w, a = random(K, winograd.r, winograd.r, C, dtype=dtype), winograd.a
    expected = np.zeros((a * a, *((K, C) if turned else (C, K))), dtype)
    BOTH[0].transform_filter(winograd, w, (0, K), turned, not turned, expected, scratch())
    A, B = expected.shape[1:]
    wide = VECTORS * (64 // w.itemsize)
    found, first = np.zeros(expected.size, dtype), B - 32
    BOTH[1].transform_panels(winograd, w, (0, first), turned, found, A * B)
    BOTH[1].transform_panels(winograd, w, (first, B), turned, found[first * A :], A * B)
    assert same(found.reshape(a * a, B // wide, A, wide), expected.reshape(a * a, A, B // wide, wide).swapaxes(1, 2))


@pytest.mark.parametrize("T", [1, 8, 97, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_with_panels_are_matrix_products_and_leave_other_channels_alone(T, dtype):
    n, A, B, wide = 3, 100, 96, VECTORS * (64 // np.dtype(dtype).itemsize)
    tiles, matrices, out = random(n, T, A, dtype=dtype), random(n, A, B, dtype=dtype), np.full((n, T, B), 7, dtype)
    panels = matrices[:, :, 32:].reshape(n, A, 64 // wide, wide).swapaxes(1, 2).copy().reshape(-1)
    BOTH[1].multiply_tiles(tiles, panels, A * 64, (32, 96), out)
    assert (out[:, :, :32] == 7).all()
    error = np.abs(out[:, :, 32:] - tiles @ matrices[:, :, 32:]).max()
    assert error < (1e-4 if dtype == "float32" else 1e-12)


@each
@pytest.mark.parametrize(("K", "C"), [(1, 1), (5, 40), (37, 16), (64, 3)])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("across", [True, False])
def test_filter_transforms_have_numpys_bits(winograd, K, C, flip, across):
    w, results, shape = random(K, winograd.r, winograd.r, C), [], (C, K) if across else (K, C)
    for some in BOTH:
        out = np.full((winograd.a**2, *shape), 7, "float32")
        for rows in ((0, K // 3), (K // 3, K)):
            some.transform_filter(winograd, w, rows, flip, across, out, scratch())
        results.append(out)
    assert same(*results)


@each
@pytest.mark.parametrize(("K", "C"), [(1, 1), (5, 40), (7, 16)])
def test_tap_transforms_have_numpys_bits(winograd, K, C):
    sums, results = random(winograd.a**2, K, C), []
    for some in BOTH:
        dw = np.full((K, winograd.r, winograd.r, C), 7, "float32")
        for rows in ((0, K // 3), (K // 3, K)):
            some.transform_taps(winograd, sums, rows, dw, scratch())
        results.append(dw)
    assert same(*results)


@each
def test_nan_and_infinity_reach_the_same_elements(winograd):
    x = random(1, 9, 9, 17)
    x[0, 2, 3, 4], x[0, 8, 8, 16] = np.nan, np.inf
    expected, actual = inputs(x, winograd, (1, 1))
    assert np.isnan(expected).any()
    assert np.array_equal(expected, actual, equal_nan=True)


def test_double_precision_is_compiled_too():
    assert same(*inputs(random(2, 9, 7, 13, dtype="float64"), TRANSFORMS[4, 3], (1, 1)))
