from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import Case, poisoned, stored, worst

from vdnn.kernels.numpy import NumpyKernels
from vdnn.kernels.numpy.winograd_error import TOLERANCE

PHASES = ("forward", "backward_data", "backward_weights")
# the algorithms' different ways through the work: padding, stride, 1x1, groups, small planes with large filters, ...
CASES = {
    "3x3": Case((2, 40, 19, 17), (48, 40, 3, 3), padding=(1, 1)),
    "3x3 small plane": Case((8, 160, 6, 6), (192, 160, 3, 3), padding=(1, 1)),
    "3x3 many channels": Case((2, 100, 9, 8), (64, 100, 3, 3), padding=(1, 1)),
    "3x3 few tiles": Case((1, 100, 7, 7), (288, 100, 3, 3), padding=(1, 1)),
    "3x3 many tiles": Case((3, 44, 40, 41), (40, 44, 3, 3), padding=(2, 0)),
    "5x5": Case((2, 40, 12, 11), (48, 40, 5, 5), padding=(2, 0)),
    "5x5 small plane": Case((9, 96, 5, 5), (128, 96, 5, 5), padding=(2, 2)),
    "5x5 stride 2": Case((2, 6, 23, 20), (8, 6, 5, 5), stride=(2, 2), padding=(2, 2)),
    "11x11 stride 4": Case((2, 3, 50, 47), (16, 3, 11, 11), stride=(4, 4), padding=(2, 2)),
    "1x1": Case((3, 40, 13, 11), (130, 40, 1, 1)),
    "1x1 many pixels": Case((4, 33, 40, 40), (48, 33, 1, 1)),
    "1x1 many channels": Case((2, 200, 9, 9), (70, 200, 1, 1)),
    "1x1 stride 2": Case((3, 12, 13, 10), (20, 12, 1, 1), stride=(2, 2)),
    "1x1 stride 3, 1": Case((2, 40, 13, 10), (70, 40, 1, 1), stride=(3, 1)),
    "1x1 padded": Case((2, 12, 6, 7), (20, 12, 1, 1), padding=(1, 0)),
    "depthwise": Case((2, 7, 12, 12), (14, 1, 3, 3), padding=(1, 1), groups=7),
}
FORMS = {"numpy": NumpyKernels(2, fast=False)}
if importlib.util.find_spec("numba"):
    FORMS["fast"] = NumpyKernels(2, fast=True)


@pytest.fixture(scope="module", params=FORMS)
def kernels(request):
    return FORMS[request.param]


def space(size, fill=255, offset=0):
    """A workspace of exactly `size` bytes, `offset` bytes into a cache line; 255 makes every float a NaN."""
    if size == 0:
        return None
    block = np.full(size + offset + 128, fill, np.uint8)
    start = -block.ctypes.data % 64 + offset
    return block[start : start + size]


def every(*phases):
    return [
        pytest.param(case, phase, algorithm, id=f"{name}-{phase}-{algorithm.name}")
        for name, case in CASES.items()
        for phase in phases or PHASES
        for algorithm in case.algorithms(FORMS["numpy"], phase, "float32")
    ]


def run(case, phase, algorithm, kernels, threads=2, dtype="float32", **how):
    other = NumpyKernels(threads, fast=kernels.fast)
    found = {a.name: a for a in case.algorithms(other, phase, dtype)}[algorithm.name]
    result = case.run(other, phase, found.name, space(found.workspace, **how), dtype)
    other.close()
    return result


@st.composite
def convolutions(draw):
    small = st.integers(1, 4)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    deep = 44 if groups == 1 and draw(st.booleans()) else 0  # deep enough for Winograd
    inner, outer = draw(small) + deep, draw(small) + deep
    winograd = deep and draw(st.sampled_from([0, 3, 5]))  # its taps
    R, S = (winograd, winograd) if winograd else (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride, dilation = [((1, 1) if winograd else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))) for _ in "sd"]
    padding = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    H, W = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    assume(H + 2 * padding[0] > dilation[0] * (R - 1) and W + 2 * padding[1] > dilation[1] * (S - 1))
    x, w = (draw(small), groups * inner, H, W), (groups * outer, inner, R, S)
    return Case(x, w, stride, padding, dilation, groups, draw(st.integers(0, 9)))


@given(case=convolutions())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_algorithm_agrees_with_the_definition(case, kernels):
    for phase in PHASES:
        for algorithm in case.algorithms(kernels, phase):
            results = case.run(kernels, phase, algorithm.name, space(algorithm.workspace))
            for actual, expected in zip(results, case.expected(phase), strict=True):
                scale = max(1, np.abs(expected).max())  # all of y may come from padding: then it is zero
                assert np.abs(actual - expected).max() < 1e-11 * scale, (phase, algorithm)


@pytest.mark.parametrize(("case", "phase", "algorithm"), every())
def test_float32_is_accurate(case, phase, algorithm, kernels):
    for actual, expected in zip(run(case, phase, algorithm, kernels), case.expected(phase), strict=True):
        accurate = algorithm.name in ("direct", "pack") or (algorithm.name, case.w.shape[2]) == ("winograd2", 3)
        assert worst(actual, expected) < (1e-5 if accurate else TOLERANCE)


@pytest.mark.parametrize(("case", "phase", "algorithm"), every())
def test_bits_do_not_depend_on_address_workspace_contents_or_threads(case, phase, algorithm, kernels):
    first = run(case, phase, algorithm, kernels)
    for other in (
        run(case, phase, algorithm, kernels, fill=0, offset=64 * 5),
        run(case, phase, algorithm, kernels, threads=1),
        run(case, phase, algorithm, kernels, threads=3),
    ):
        for a, b in zip(first, other, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("case", "phase", "algorithm"), every())
def test_nothing_is_written_beyond_the_declared_workspace(case, phase, algorithm, kernels):
    block = np.full(algorithm.workspace + 4096, 77, np.uint8)
    case.run(kernels, phase, algorithm.name, block[: algorithm.workspace] if algorithm.workspace else None, "float32")
    assert (block[algorithm.workspace :] == 77).all()


@pytest.mark.parametrize(("case", "phase", "algorithm"), every())
def test_plain_contiguous_arrays_give_the_same_result(case, phase, algorithm, kernels):
    scratch = space(algorithm.workspace)
    plain = {"store": lambda a, dtype: a.astype(dtype), "result": np.empty}
    results = case.run(kernels, phase, algorithm.name, scratch, "float32", **plain)
    for a, b in zip(results, run(case, phase, algorithm, kernels), strict=True):
        assert a.tobytes() == b.tobytes()


SHAPES = [  # x, w, stride, padding
    ((8, 64, 56, 56), (64, 64, 3, 3), 1, 1),
    ((4, 512, 14, 14), (512, 512, 3, 3), 1, 1),
    ((4, 512, 28, 28), (1024, 512, 3, 3), 1, 1),
    ((16, 3, 224, 224), (64, 3, 11, 11), 4, 2),
    ((16, 64, 27, 27), (192, 64, 5, 5), 1, 2),
    ((2, 2048, 7, 7), (2048, 2048, 3, 3), 2, 1),
    ((1, 64, 1, 4000), (64, 64, 1, 9), 1, 4),
    ((64, 832, 7, 7), (384, 832, 1, 1), 1, 0),
]


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("x", "w", "stride", "padding"), SHAPES)
def test_direct_needs_at_most_one_mebibyte_per_worker(x, w, stride, padding, phase, threads):
    options = {"stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
    found = NumpyKernels(threads).conv2d_algorithms(phase, x, w, dtype="float32", **options)
    assert [a.workspace for a in found] == sorted(a.workspace for a in found)
    direct = next(a for a in found if a.name == "direct")
    assert direct.workspace <= (0 if w[2:] == (1, 1) else threads * 2**20)


@pytest.mark.parametrize("phase", PHASES)
def test_3x3_has_four_algorithms_and_1x1_one_without_workspace(phase, kernels):
    names = {a.name for a in CASES["3x3 many tiles"].algorithms(kernels, phase)}
    assert names == {"direct", "pack", "winograd2", "winograd4"}
    plain, *others = CASES["1x1"].algorithms(kernels, phase)
    assert (plain.name, plain.workspace) == ("direct", 0)
    assert [a.name for a in others] == ([] if phase == "backward_weights" else ["pack"])
    assert all(a.workspace > 0 for a in others)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["5x5", "5x5 small plane"])
def test_5x5_has_the_one_winograd_that_there_is_for_it(name, phase, kernels):
    names = {a.name for a in CASES[name].algorithms(kernels, phase)}
    assert names - {"pack"} == {"direct", "winograd2"}


@pytest.mark.parametrize("phase", PHASES)
def test_calls_allocate_next_to_nothing(phase, kernels):
    big = Case((2, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1))
    x, w, dy = (stored(a, "float32") for a in (big.x, big.w, big.dy))
    y, dx, dw = (poisoned(a.shape, "float32") for a in (dy, x, w))
    b, db = np.zeros(64, np.float32), np.zeros(64, np.float32)
    calls = {
        "forward": lambda **o: kernels.conv2d_forward(x, w, b, y, **o),
        "backward_data": lambda **o: kernels.conv2d_backward_data(w, dy, dx, **o),
        "backward_weights": lambda **o: kernels.conv2d_backward_weights(x, dy, dw, db, **o),
    }
    for algorithm in big.algorithms(kernels, phase, "float32"):
        options = {**big.options, "algorithm": algorithm.name, "workspace": space(algorithm.workspace)}
        calls[phase](**options)  # plans are computed and kept
        tracemalloc.start()
        calls[phase](**options)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**10, algorithm
        tracemalloc.stop()


def test_db_is_a_sum_in_float32_as_accurate_as_pairwise(kernels):
    random = np.random.default_rng(0)
    dy, db = stored(random.random((4, 3, 300, 300)), "float32"), np.zeros(3, np.float32)
    kernels.bias_gradient(dy, db)
    assert worst(db, dy.sum((0, 2, 3), dtype=np.float64)) < 1e-6


def test_too_small_a_workspace_is_an_error_with_both_sizes(kernels):
    case = CASES["3x3"]
    needed = case.algorithms(kernels, "forward", "float32")[0]
    with pytest.raises(ValueError, match=f"needs {needed.workspace} bytes of workspace, got {needed.workspace - 1}"):
        case.run(kernels, "forward", needed.name, space(needed.workspace - 1), "float32")


def test_an_unknown_algorithm_is_an_error_that_names_the_known(kernels):
    with pytest.raises(ValueError, match=r"no algorithm 'fft' .*: direct"):
        CASES["1x1"].run(kernels, "forward", "fft", None)
