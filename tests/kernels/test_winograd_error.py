"""How far Winograd is off: the estimate against float64, and what is left out for it."""

from __future__ import annotations

import numpy as np
import pytest
from reference import Case, worst

from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.geometry import geometry
from vdnn.kernels.numpy.transforms import TRANSFORMS
from vdnn.kernels.numpy.winograd_error import TOLERANCE, amplification, matrix, relative_error

PHASES = ("forward", "backward_data", "backward_weights")
ONE = (1, 1)
kernels = NumpyKernels(2)


def shape(N, C, K, H, dtype="float32"):
    return geometry((N, C, H, H), (K, C, 3, 3), ONE, ONE, ONE, 1, dtype)


def offered(phase, N, C, K, H, kernels=kernels, dtype="float32"):
    options = {"stride": ONE, "padding": ONE, "dilation": ONE, "groups": 1}
    found = kernels.conv2d_algorithms(phase, (N, C, H, H), (K, C, 3, 3), dtype=dtype, **options)
    return {a.name for a in found}


def test_the_matrices_are_those_that_the_programs_multiply_by():
    four = TRANSFORMS[4]
    assert matrix(four.input, "d", "v", 6, 6)[0].tolist() == [4, 0, -5, 0, 1, 0]
    assert matrix(four.output, "v", "v", 6, 4)[3].tolist() == [0, 1, -1, 8, -8, 1]
    assert matrix(four.gradient, "d", "v", 4, 6)[3].tolist() == [1, 2, 4, 8]
    np.testing.assert_allclose(matrix(four.taps, "v", "g", 6, 3)[1], [0, -1 / 6, 1 / 6, 1 / 12, -1 / 12, 0])


def test_the_amplification_is_that_of_the_matrices():
    # F(2x2): |B^T rows|^2 = 2, |G rows|^2 = 1, 3/4, 3/4, 1; A^T rows are 1 1 1 0 and 0 1 -1 -1: 2 + 1.5 + 1.5 = 5 of 3
    assert amplification("forward", 2) == pytest.approx(5 / 3)
    # F(4x4), last output: 34/12 twice, 64 x 10 x 21/576 twice, and 42, of 3
    assert amplification("forward", 4) == pytest.approx((2 * 34 / 12 + 128 * 10 * 21 / 576 + 42) / 3)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("x", "K"),
    [((1, 64, 12, 12), 64), ((2, 160, 14, 14), 192), ((1, 1024, 8, 8), 48), ((4, 48, 56, 56), 48), ((1, 64, 5, 9), 64)],
)
def test_errors_stay_below_the_estimate_and_not_far_below(x, K, phase):
    case = Case(x, (K, x[1], 3, 3), padding=ONE)
    g = geometry(x, (K, x[1], 3, 3), ONE, ONE, ONE, 1, "float32")
    for algorithm in case.algorithms(kernels, phase, "float32"):
        if not algorithm.name.startswith("winograd"):
            continue
        m = int(algorithm.name[-1])
        result = case.run(kernels, phase, algorithm.name, np.empty(algorithm.workspace, np.uint8), "float32")
        error = worst(result[0], case.expected(phase)[0])
        assert relative_error(phase, g, m) / 20 < error < relative_error(phase, g, m)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("N", "C", "K", "H"), [(64, 64, 64, 224), (256, 512, 512, 14), (32, 1024, 2048, 7)])
def test_layers_of_real_networks_keep_it(N, C, K, H, phase):
    assert relative_error(phase, shape(N, C, K, H), 4) < TOLERANCE


@pytest.mark.parametrize(
    ("phase", "N", "C", "K", "H"),
    [("forward", 1, 8192, 64, 16), ("backward_data", 1, 64, 8192, 16), ("backward_weights", 8192, 64, 64, 224)],
)
def test_a_long_reduction_loses_it_and_keeps_the_others(phase, N, C, K, H):
    assert relative_error(phase, shape(N, C, K, H), 4) > TOLERANCE
    assert offered(phase, N, C, K, H) >= {"direct", "winograd2"}
    assert "winograd4" not in offered(phase, N, C, K, H)
    assert "winograd4" in offered(phase, N, C, K, H, dtype="float64")


@pytest.mark.parametrize("phase", PHASES)
def test_exact_kernels_have_plain_products_alone(phase):
    assert offered(phase, 3, 44, 40, 40, NumpyKernels(2, exact=True)) == {"direct", "pack"}


def test_exact_kernels_refuse_another_algorithm():
    case = Case((2, 40, 19, 17), (48, 40, 3, 3), padding=ONE)
    with pytest.raises(ValueError, match=r"no algorithm 'winograd4' .*: direct$"):
        case.run(NumpyKernels(1, exact=True), "forward", "winograd4", None)
