"""How far Winograd is off: the estimate against float64, and what is left out for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import Case, worst

from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.geometry import geometry
from vdnn.kernels.numpy.transforms import TRANSFORMS, Program
from vdnn.kernels.numpy.winograd_error import LARGEST, TOLERANCE, amplification, errors, linear, relative_error

PHASES = ("forward", "backward_data", "backward_weights")
ONE = (1, 1)
TWO, FOUR, FIVE = (TRANSFORMS[key] for key in ((2, 3), (4, 3), (2, 5)))
kernels = NumpyKernels(2)


def options(R):
    return {"stride": ONE, "padding": (R // 2, R // 2), "dilation": ONE, "groups": 1}


def shape(N, C, K, H, R=3, dtype="float32"):
    return geometry((N, C, H, H), (K, C, R, R), **options(R), dtype=dtype)


def offered(phase, N, C, K, H, R=3, kernels=kernels, dtype="float32"):
    found = kernels.conv2d_algorithms(phase, (N, C, H, H), (K, C, R, R), dtype=dtype, **options(R))
    return {a.name for a in found}


def test_a_program_is_taken_apart_into_its_matrix_and_its_roundings():
    found = linear(Program("t = d0 + d1; t = t * 4; v0 = t - d2; v1 = t * 1/3; v2 = d0"), "dv", 3, 3)
    assert found.matrix.tolist() == [[4, 4, -1], [4 / 3, 4 / 3, 0], [1, 0, 0]]
    # what a power of two multiplies, and a copy, is not rounded
    assert found.rounded.tolist() == [[1, 1, 0], [0, 0, 0], [4, 4, -1], [4 / 3, 4 / 3, 0], [0, 0, 0]]
    assert found.effects.tolist() == [[4, 0, 1, 0, 0], [4 / 3, 0, 0, 1, 0], [0] * 5]


def test_the_amplification_is_that_of_the_matrices():
    # F(2x2): |B^T rows|^2 = 2, |G rows|^2 = 1, 3/4, 3/4, 1; A^T rows are 1 1 1 0 and 0 1 -1 -1: 2 + 1.5 + 1.5 = 5 of 3
    assert amplification("forward", TWO) == pytest.approx(5 / 3)
    # F(4x4), last output: 34/12 twice, 64 x 10 x 21/576 twice, and 42, of 3
    assert amplification("forward", FOUR) == pytest.approx((2 * 34 / 12 + 128 * 10 * 21 / 576 + 42) / 3)
    # F(2x2, 5x5), last output: 34 x 5/36 twice, 4 x 10 x 341/576 twice, and 42, of 5
    assert amplification("forward", FIVE) == pytest.approx((2 * 34 * 5 / 36 + 8 * 10 * 341 / 576 + 42) / 5)
    # and its last tap: 34 x 2/36 twice, 10 x 5 x (16/24)^2 twice, and 42, of 2
    assert amplification("backward_weights", FIVE) == pytest.approx((2 * 34 * 2 / 36 + 100 * 4 / 9 + 42) / 2)


def test_roundings_of_the_transforms_are_those_of_a_hand_worked_program():
    # F(2x2), forward, per axis.  B^T rounds each of v0 .. v3 once, with variance 2, and G t = (g0 + g2) / 2, v1 and v2
    found = errors("forward", TWO)
    assert found.products.tolist() == [5, 5]
    # y0 = v0 + v1 + v2.  Roundings of B^T: 2 (1 + 3/4 + 3/4) = 5.  Of G: that of g0 + g2 goes halved to v1 and v2, and
    # on to (d1 + d2) + (d2 - d1) = 2 d2: 2 x (1/2)^2 x 4 = 2; those of v1 and v2, 3/4 x 2 each: 5 in all.  y1: the same
    assert found.factors.tolist() == [10, 10]
    assert found.terms == 3


def measured(x, K, R, phase, algorithm):
    """The error of an algorithm: (K, R, R) filters over x; in all, and as a standard deviation of the worst outputs."""
    case = Case(x, (K, x[1], R, R), padding=(R // 2, R // 2))
    space = np.empty(algorithm.workspace, np.uint8)
    actual, expected = case.run(kernels, phase, algorithm.name, space, "float32")[0], case.expected(phase)[0]
    step = R if phase == "backward_weights" else int(algorithm.name[-1])
    off = actual - expected
    parts = [off[:, :, i::step, j::step].std() for i in range(step) for j in range(step)]
    return worst(actual, expected), max(parts) / expected.std()


def winograds(phase, x, K, R):
    """The algorithms to measure and their m."""
    w = (K, x[1], R, R)
    found = kernels.conv2d_algorithms(phase, x, w, dtype="float32", **options(R))
    return [(a, int(a.name[-1])) for a in found if a.name.startswith("winograd")]


LAYERS = [
    ((1, 64, 12, 12), 64, 3), ((2, 160, 14, 14), 192, 3), ((2, 1024, 12, 12), 64, 3), ((4, 48, 56, 56), 48, 3),
    ((1, 64, 5, 9), 64, 3), ((2, 64, 14, 14), 96, 5), ((1, 256, 9, 9), 128, 5), ((4, 96, 28, 28), 88, 5),
    ((2, 1024, 10, 10), 64, 5),
]  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("x", "K", "R"), LAYERS)
def test_errors_stay_below_the_estimate_and_not_far_below(x, K, R, phase):
    g = geometry(x, (K, x[1], R, R), **options(R), dtype="float32")
    algorithms = winograds(phase, x, K, R)
    assert algorithms
    for algorithm, m in algorithms:
        estimate = relative_error(phase, g, m)
        largest, _ = measured(x, K, R, phase, algorithm)
        assert estimate / 10 < largest < estimate, algorithm.name


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("x", "K", "R"), [((2, 96, 28, 28), 96, 3), ((2, 96, 28, 28), 96, 5)])
def test_standard_deviations_are_as_worked_out(x, K, R, phase):
    g = geometry(x, (K, x[1], R, R), **options(R), dtype="float32")
    for algorithm, m in winograds(phase, x, K, R):
        _, deviation = measured(x, K, R, phase, algorithm)
        expected = relative_error(phase, g, m) / LARGEST
        # worked out for terms added one after the other: over the many tiles of a batch, which backward_weights adds,
        # some processors' BLAS adds in several runs, and is off by less
        least = 0.6 if phase == "backward_weights" else 0.8
        assert least * expected < deviation < 1.2 * expected, algorithm.name


@pytest.mark.parametrize(("count", "most"), [(16, 1e-3), (64, 1e-6)])
def test_the_largest_of_normal_errors_is_rarely_three_times_the_largest_of_as_many_results(count, most):
    sizes = np.linspace(0, 12, 6001)  # |x| of a normal x, by its probability
    below = np.array([math.erf(size / math.sqrt(2)) for size in sizes]) ** count  # that the largest of them is
    beyond = 1 - np.interp(LARGEST * sizes, sizes, below, right=1.0)
    middle = (beyond[1:] + beyond[:-1]) / 2
    assert (middle * np.diff(below)).sum() < most


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("N", "C", "K", "H"), [(64, 64, 64, 224), (256, 512, 512, 14), (32, 1024, 2048, 7)])
def test_layers_of_real_networks_keep_it(N, C, K, H, phase):
    assert relative_error(phase, shape(N, C, K, H), 4) < TOLERANCE


@pytest.mark.parametrize(
    ("phase", "N", "C", "K", "H"),
    [("forward", 1, 8192, 64, 16), ("backward_data", 1, 64, 8192, 16), ("backward_weights", 1024, 256, 256, 224)],
)
def test_a_long_reduction_loses_it_and_keeps_the_others(phase, N, C, K, H):
    assert relative_error(phase, shape(N, C, K, H), 4) > TOLERANCE
    assert offered(phase, N, C, K, H) >= {"direct", "winograd2"}
    assert "winograd4" not in offered(phase, N, C, K, H)
    assert "winograd4" in offered(phase, N, C, K, H, dtype="float64")


@pytest.mark.parametrize(
    ("phase", "N", "C", "K", "H"),
    [("forward", 1, 20000, 64, 16), ("backward_data", 1, 64, 20000, 16), ("backward_weights", 128, 256, 256, 224)],
)
def test_5x5_loses_its_winograd_by_a_long_reduction(phase, N, C, K, H):
    assert "winograd2" not in offered(phase, N, C, K, H, R=5)
    assert "winograd2" in offered(phase, N, C, K, H, R=5, dtype="float64")


@pytest.mark.parametrize("phase", PHASES)
def test_exact_kernels_have_plain_products_alone(phase):
    assert offered(phase, 3, 44, 40, 40, kernels=NumpyKernels(2, exact=True)) == {"direct", "pack"}


def test_exact_kernels_refuse_another_algorithm():
    case = Case((2, 40, 19, 17), (48, 40, 3, 3), padding=ONE)
    with pytest.raises(ValueError, match=r"no algorithm 'winograd4' .*: direct$"):
        case.run(NumpyKernels(1, exact=True), "forward", "winograd4", None)
