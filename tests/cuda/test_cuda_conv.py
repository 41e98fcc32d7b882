"""Convolution kernels of the CUDA set: what they check and remember, over test doubles of cuDNN."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_doubles import emulated_kernels
from emulated import EmulatedDriver
from kernels.reference import Case, worst

from vdnn.kernels.cuda.conv import rates
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.finding import Candidate
from vdnn.layers import Conv2d, ConvTranspose2d, check_layer

PHASES = ("forward", "backward_data", "backward_weights")
CASE = Case((2, 4, 7, 6), (6, 2, 3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)


def kernels_of(storage="nchw", math="fp32", deterministic=True, eager=True):
    driver = EmulatedDriver(eager=eager)
    return emulated_kernels(driver, driver.new_stream(), math, storage, deterministic)


def contiguous(values, dtype="float64"):
    return np.ascontiguousarray(values, dtype)


def empty(shape, dtype="float64"):
    return np.full(shape, np.nan, dtype)


def scratch(size):
    return np.full(size, 0xFF, np.uint8) if size else None


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Conv2d(6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (2, 4, 7, 6)),
        (Conv2d(5, 1, bias=False), (3, 4, 1, 1)),
        (ConvTranspose2d(4, 3, 2, 1, 1, groups=2), (2, 4, 3, 4)),
        (ConvTranspose2d(3, 2, bias=False, dilation=2), (1, 2, 3, 3)),
    ],
    ids=str,
)
def test_layers_pass_the_check(layer, x, storage):
    check_layer(layer, x, kernels=kernels_of(storage, eager=False))
    check_layer(layer, x, kernels=kernels_of(storage, "tf32", deterministic=False))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_algorithm_agrees_with_the_definition(phase, dtype):
    kernels = kernels_of()
    for algorithm in CASE.algorithms(kernels, phase, dtype):
        results = CASE.run(kernels, phase, algorithm.name, scratch(algorithm.workspace), dtype, contiguous, empty)
        for actual, expected in zip(results, CASE.expected(phase), strict=True):
            assert worst(actual, expected) < {"float32": 1e-5, "float64": 1e-13}[dtype]


@pytest.mark.parametrize("phase", PHASES)
def test_algorithms_come_with_least_workspace_first_and_are_asked_for_once(phase):
    kernels = kernels_of()
    found = CASE.algorithms(kernels, phase)
    assert [a.workspace for a in found] == [0, kernels.convolutions.asked[0][1].y[2] * 8 + 3000]
    assert [(a.seconds, a.rate) for a in found] == [(2e-3, 0.8), (1e-3, 1.6)]
    assert CASE.algorithms(kernels, phase, np.float64) is found
    assert len(kernels.convolutions.asked) == 1
    kernels.find_limit = 1000
    assert [a.workspace for a in CASE.algorithms(kernels, phase)] == [0]
    assert [limit for _, _, limit in kernels.convolutions.asked] == [None, 1000]


def test_the_problem_has_the_sets_storage_and_math():
    kernels = kernels_of("nhwc", "tf32")
    CASE.algorithms(kernels, "backward_data", "float32")
    phase, problem, _ = kernels.convolutions.asked[0]
    assert (phase, problem.y, problem.storage, problem.math) == ("backward_data", CASE.y.shape, "nhwc", "tf32")
    assert (problem.stride, problem.padding, problem.dilation, problem.groups) == ((2, 1), (1, 0), (1, 2), 2)


def test_algorithms_that_are_not_deterministic_have_to_be_wanted():
    names = [a.name for a in CASE.algorithms(kernels_of(deterministic=False), "backward_weights")]
    assert names == ["algo_0", "algo_1", "fft"]
    assert "algo_0" not in [a.name for a in CASE.algorithms(kernels_of(), "backward_weights")]


def test_without_any_algorithm_the_problem_is_named():
    kernels = kernels_of()
    kernels.convolutions.candidates = lambda *_: [Candidate("algo_0", 0, 0.0, False)]
    with pytest.raises(CudaError, match=r"no deterministic algorithm for backward_data of Problem\(x=\(2, 4, 7, 6\)"):
        CASE.algorithms(kernels, "backward_data")


@pytest.mark.parametrize("phase", PHASES)
def test_a_workspace_too_small_is_refused_with_the_numbers(phase):
    kernels = kernels_of()
    algorithm = CASE.algorithms(kernels, phase)[-1]
    need = algorithm.workspace
    for given in (0, need - 1):
        with pytest.raises(ValueError, match=rf"{algorithm.name} for {phase} needs {need} bytes .*, got {given}"):
            CASE.run(kernels, phase, algorithm.name, scratch(given), "float64", contiguous, empty)
    assert kernels.convolutions.ran == []


def test_an_unknown_algorithm_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no algorithm 'best' for forward: implicit_gemm"):
        CASE.run(kernels_of(), "forward", "best", None, "float64", contiguous, empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": CASE.x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)}, "neither all contiguous nor all channels"),
        ({"y": np.empty((2, 6, 4, 5))}, r"give y \(2, 6, 4, 4\) of float64, not \(2, 6, 4, 5\)"),
        ({"w": CASE.w.astype("float32")}, r"w \(6, 2, 3, 2\) of float32"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change, message):
    arrays = {"x": CASE.x, "w": CASE.w, "b": None, "y": empty(CASE.y.shape), **change}
    with pytest.raises(ValueError, match=message):
        kernels_of().conv2d_forward(*arrays.values(), algorithm="implicit_gemm", workspace=None, **CASE.options)


def test_sizes_of_1_leave_the_storage_to_the_set():
    for storage in ("nchw", "nhwc"):
        kernels = kernels_of(storage)
        arrays = [np.ones(s) for s in ((3, 4, 1, 1), (5, 4, 1, 1))]
        options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        y = np.ones((3, 5, 1, 1))
        kernels.conv2d_forward(*arrays, None, y, algorithm="implicit_gemm", workspace=None, **options)
        assert kernels.convolutions.ran[0][1].storage == storage


def test_a_run_neither_waits_nor_allocates():
    kernels = kernels_of(eager=False)
    y = empty(CASE.y.shape)
    kernels.driver.synchronize = kernels.driver.allocate = None
    kernels.conv2d_forward(CASE.x, CASE.w, CASE.b, y, algorithm="implicit_gemm", workspace=None, **CASE.options)
    assert np.isnan(y).all()
    assert len(kernels.stream.queue) == 2  # the convolution and its bias


def test_rates_come_from_measured_times():
    times = {"implicit_gemm": 4.0, "winograd": 1.0, "fft": 3e4}
    assert rates([Candidate(n, 0, s, True) for n, s in times.items()]) == [0.8, 3.2, 0.001]
    times = {"fft": 1.0, "winograd": 2.0}  # without a plain product, the slowest is taken for one
    assert rates([Candidate(n, 0, s, True) for n, s in times.items()]) == [1.6, 0.8]


def test_rates_are_supposed_where_nothing_is_measured():
    names = ["implicit_gemm", "winograd.tensor_op", "never heard of"]
    slow, fast, unknown = rates([Candidate(n, 0, 0.0, True) for n in names])
    assert unknown < slow < fast


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_where_channels_last_has_no_algorithm_the_other_storage_is_named(storage, monkeypatch):
    kernels = kernels_of(storage)
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "dtype": "float64"}

    def refused(*_):
        raise CudaError("every algorithm failed: CUDNN_STATUS_NOT_SUPPORTED (3000)")

    for answer in (refused, lambda *_: []):
        monkeypatch.setattr(kernels.convolutions, "candidates", answer)
        with pytest.raises(CudaError) as caught:
            kernels.conv2d_algorithms("forward", (2, 4, 5, 5), (3, 4, 3, 3), **options)
        assert ("cuDNN has more with storage='nchw'" in str(caught.value)) == (storage == "nhwc")
