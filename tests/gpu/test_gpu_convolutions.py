"""Every algorithm that cuDNN offers for a convolution, in exactly the workspace that it declares, against NumPy."""

from __future__ import annotations

import conformance
import numpy as np
import pytest

from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d, ConvTranspose2d
from vdnn.layers.check import _Trial

pytestmark = pytest.mark.gpu
NUMPY = NumpyKernels(2)
CASES = {
    "3x3": (Conv2d(24, 3, padding=1), (4, 16, 14, 14)),
    "1x1": (Conv2d(16, 1), (4, 32, 7, 7)),
    "5x5": (Conv2d(16, 5, padding=2), (2, 8, 12, 12)),
    "first": (Conv2d(16, 7, 2, 3), (2, 3, 32, 32)),
    "strided": (Conv2d(7, 3, 2, 1), (3, 5, 9, 11)),
    "uneven": (Conv2d(6, (1, 3), (2, 1), (0, 1), bias=False), (1, 5, 8, 6)),
    "grouped": (Conv2d(8, 3, padding=1, groups=4), (2, 8, 10, 10)),
    "depthwise": (Conv2d(12, 3, padding=1, groups=12), (2, 12, 10, 10)),
    "dilated": (Conv2d(8, 3, padding=2, dilation=2), (2, 4, 12, 12)),
    "point": (Conv2d(5, 1), (4, 8, 1, 1)),
    "wide": (Conv2d(64, 3, padding=1), (16, 64, 28, 28)),
    "transposed": (ConvTranspose2d(8, 4, 2, 1), (2, 6, 7, 9)),
}
PHASES = {"forward": ("y",), "backward_data": ("dx",), "backward_weights": ("dw", "db")}
BOUNDS = {  # relative to the largest element of an array
    "fp32": {"": 1e-5, "fft": 1e-4, "winograd": 1e-3},
    "tf32": {"": 5e-3, "fft": 1e-2, "winograd": 5e-2},  # ten bits of mantissa: 5e-4 each; transforms magnify it
}


def bound(math, algorithm):
    kind = next((k for k in ("fft", "winograd") if algorithm.startswith(k)), "")
    return BOUNDS[math][kind]


def worst(found, expected, names):
    """The largest error of these arrays, each relative to its largest element; infinity if one is not finite."""
    errors = []
    for name in (n for n in names if n in expected):
        error = np.abs(found[name].astype(np.float64) - expected[name]).max() / np.abs(expected[name]).max()
        errors.append(float(error) if np.isfinite(found[name]).all() else float("inf"))
    return max(errors)


def every(kernels, layer, shape, phase, expected):
    """{algorithm: (error, workspace in bytes)} of one phase."""
    trial = _Trial(layer, (shape,), kernels, 0, None)
    out = {}
    for algorithm in layer.algorithms(kernels, phase, "float32", shape):
        found = trial.run("float32", storage=kernels.storage, algorithms={phase: algorithm.name}, phases=[phase])
        out[algorithm.name] = worst(found, expected, PHASES[phase]), algorithm.workspace
    return out


@pytest.mark.parametrize("math", ["fp32", "tf32"])
@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("case", CASES)
def test_every_algorithm_is_right(kernels, case, storage, math, record_property):
    layer, shape = CASES[case]
    expected = _Trial(layer, (shape,), NUMPY, 0, None).run("float64")
    wrong = {}
    for phase in PHASES:
        try:
            found = every(kernels(storage, math, deterministic=False), layer, shape, phase, expected)
        except CudaError as error:
            if storage == "nchw":
                raise
            pytest.skip(f"cuDNN has not this one channels-last, {phase}: {error}")
        assert found
        for name, (error, workspace) in found.items():
            record_property(f"{phase} {name}", {"error": error, "workspace_bytes": workspace})
            if not error <= bound(math, name):
                wrong[phase, name] = error
    assert not wrong


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
@pytest.mark.parametrize("case", ["3x3", "1x1", "first", "wide"])
def test_an_algorithm_that_is_called_deterministic_gives_the_same_bits_every_time(kernels, case, storage):
    layer, shape = CASES[case]
    own = kernels(storage)
    trial = _Trial(layer, (shape,), own, 0, None)
    for phase in PHASES:
        for algorithm in layer.algorithms(own, phase, "float32", shape):
            options = {"storage": storage, "algorithms": {phase: algorithm.name}, "phases": [phase]}
            first, *others = (trial.run("float32", fill=fill, **options) for fill in (0xFF, 0x3C, 0xFF, 0x00))
            for other in others:
                for name, value in first.items():
                    assert other[name].tobytes() == value.tobytes(), (phase, algorithm.name, name)


@pytest.mark.parametrize("storage", ["nchw", "nhwc"])
def test_without_its_workspace_an_algorithm_is_refused_with_the_bytes(kernels, storage):
    layer, shape = CASES["wide"]
    own = kernels(storage)
    hungry = [a for a in layer.algorithms(own, "forward", "float32", shape) if a.workspace]
    if not hungry:
        pytest.skip("no algorithm needs a workspace here")
    arguments = {
        n: np.zeros(s, np.float32) for n, s in {"x": shape, "w": (64, 64, 3, 3), "y": (16, 64, 28, 28)}.items()
    }
    with pytest.raises(ValueError, match=f"needs {hungry[-1].workspace} bytes of workspace, got 0"):
        own.call(lambda x, w, y: layer.forward(own, hungry[-1].name, None, x, w, y), _in_storage(arguments, storage))


def _in_storage(arrays, storage):
    if storage == "nchw":
        return arrays
    return {k: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for k, a in arrays.items()}


def test_measured_algorithms_have_times_and_are_kept_on_disk(kernels, tmp_path, monkeypatch, record_property):
    if conformance.GPU == "emulated":
        pytest.skip("the test doubles measure nothing")
    monkeypatch.setenv("VDNN_CACHE", str(tmp_path))
    from vdnn.kernels.cuda import CudaKernels
    from vdnn.kernels.cuda.driver import CupyDriver

    layer, shape = CASES["wide"]
    found = []
    for _ in range(2):
        driver = CupyDriver()
        own = CudaKernels.on(driver, driver.new_stream())
        found.append(layer.algorithms(own, "forward", "float32", shape))
        own.close()
    assert found[0] == found[1]  # the second time from the file
    assert all(a.seconds > 0 for a in found[0])
    assert list(tmp_path.rglob("*.json"))
    record_property("seconds", {a.name: a.seconds for a in found[0]})
