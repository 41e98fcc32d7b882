"""Every layer by CUDA kernels in float32 against the NumPy kernels in float64, in both storages."""

from __future__ import annotations

import conformance
import numpy as np
import pytest
from gpu_cases import CONVOLUTIONS, DRAWS, LARGE, Plain, drawn

from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d
from vdnn.layers.check import _Trial, check_layer

pytestmark = pytest.mark.gpu
NUMPY = NumpyKernels(2)
DRAWN = 12 if conformance.GPU != "emulated" else 3
BOUND = 1e-5  # relative to the largest element of an array; sums have up to about 25 000 terms


def errors(kernels, layer, shapes):
    """{array: largest error relative to its largest element} of one run of all phases, in float32."""
    expected = _Trial(layer, tuple(shapes), NUMPY, 0, None).run("float64")
    found = _Trial(layer, tuple(shapes), Plain(kernels), 0, None).run("float32", storage=kernels.storage)
    assert found.keys() == expected.keys()
    out = {}
    own = layer.shapes(*shapes).saved
    for name, value in expected.items():
        if name in own and own[name].follows_storage and kernels.storage != NUMPY.storage:
            continue  # the same bits in another order
        assert np.isfinite(found[name]).all(), f"{layer} {shapes}: {name} is not finite"
        error = np.abs(found[name].astype(np.float64) - value.astype(np.float64)).max(initial=0)
        out[name] = float(error / max(np.abs(value.astype(np.float64)).max(initial=0), 1e-3))
    return out


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_layer_agrees_with_numpy_for_random_shapes(kernels, name, storage, record_property):
    worst, refused = [], []
    for layer, shapes in drawn(name, DRAWN):
        try:
            found = errors(kernels(storage), layer, shapes)
        except CudaError as error:
            if storage == "nchw" or name not in CONVOLUTIONS:
                raise
            refused.append(f"{layer} {shapes}: {error}")  # cuDNN has not every convolution for channels-last arrays
            continue
        assert max(found.values()) <= BOUND, f"{layer} {shapes}: {found}"
        worst.append(max(found.values()))
    record_property("error", max(worst, default=float("nan")))
    record_property("refused", refused)
    assert worst


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", LARGE)
def test_a_layer_agrees_with_numpy_where_it_fills_the_gpu(kernels, name, storage, record_property):
    if conformance.GPU == "emulated":
        pytest.skip("too large to emulate")
    layer, shapes = LARGE[name]
    found = errors(kernels(storage), layer, shapes)
    for array, error in found.items():
        record_property(f"error of {array}", error)
    assert max(found.values()) <= BOUND, found


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", [n for n in DRAWS if n not in (*CONVOLUTIONS, "Linear")])
def test_one_small_case_of_a_raw_kernel(kernels, name, storage):
    """Few launches and no library: what is run again under a sanitizer."""
    layer, shapes = drawn(name, 1, seed="sanitizer")[0]
    assert max(errors(kernels(storage), layer, shapes).values()) <= BOUND


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_call_gives_the_same_bits_every_time(kernels, name):
    layer, shapes = LARGE[name] if conformance.GPU != "emulated" else drawn(name, 1)[0]
    trial = _Trial(layer, tuple(shapes), Plain(kernels()), 0, None)
    first = trial.run("float32", storage="nchw")
    for fill in (0x3C, 0xFF):
        for array, value in trial.run("float32", storage="nchw", fill=fill).items():
            assert value.tobytes() == first[array].tobytes(), array


@pytest.mark.parametrize("name", DRAWS)
def test_a_layer_passes_check_layer(kernels, name):
    """Gradients against differences in float64, guards, poison, aliases, both storages."""
    own = kernels()
    for layer, shapes in drawn(name, 3, seed=1):
        check_layer(layer, *shapes, kernels=Plain(own) if name in CONVOLUTIONS else own, tolerance=1e-5)


def test_tf32_rounds_and_stays_within_its_bound(kernels, record_property):
    if conformance.GPU == "emulated":
        pytest.skip("the test doubles do not round")
    worst = {}
    for math in ("fp32", "tf32"):
        for layer, shapes in (LARGE["Linear"], (Conv2d(48, 3, padding=1, bias=False), [(8, 32, 28, 28)])):
            worst[math, type(layer).__name__] = max(errors(kernels("nhwc", math), layer, shapes).values())
    for (math, layer), error in worst.items():
        record_property(f"{math} error of {layer}", error)
        assert error <= (BOUND if math == "fp32" else 5e-3), worst
    assert worst["tf32", "Linear"] > worst["fp32", "Linear"]
