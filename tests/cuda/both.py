"""The NumPy kernels and, emulated, the CUDA kernels; and arrays for both."""

import emulator
import numpy as np
import pytest
from emulated import EmulatedDriver
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from vdnn import clock as clocks
from vdnn.kernels.cuda import CudaKernels
from vdnn.kernels.numpy import NumpyKernels

if emulator.available():
    pytest.skip(emulator.available(), allow_module_level=True)

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
sizes = st.integers(1, 9)
images = st.tuples(st.integers(1, 4), sizes, sizes, sizes)
rows = st.tuples(st.integers(1, 5), st.integers(1, 90))
storages = st.sampled_from(["nchw", "nhwc"])
KERNELS = NumpyKernels(1)


class OneBlockDriver(EmulatedDriver):
    """Gives every kernel one block, however many it asks for, and runs its threads from the last to the first."""

    def launch(self, name, dtype, grid, *rest):
        super().launch(name, dtype, (1,), *rest)


def cuda(driver):
    made = CudaKernels(driver, driver.new_stream(), None, None)
    made.storages = ("nchw", "nhwc")  # our own source takes both
    return made


CUDA, BACKWARDS = cuda(EmulatedDriver()), cuda(EmulatedDriver(backwards=True))
ONE_BLOCK = cuda(OneBlockDriver(backwards=True))


def call(kernels, name, *arguments, scratch=None, **keywords):
    """Call a kernel and wait for it; `scratch`, the arguments of <name>_workspace, makes its last argument."""
    if scratch is not None:
        declared = getattr(kernels, f"{name}_workspace", None)
        keywords["workspace"] = np.full(declared(*scratch) if declared else 0, 0xFF, np.uint8)
    if kernels is KERNELS:
        getattr(kernels, name)(*arguments, **keywords)
        return
    with kernels.driver.using(kernels.stream):
        getattr(kernels, name)(*arguments, **keywords)
    kernels.driver.synchronize(kernels.stream)


def stored(values, storage="nchw"):
    """A copy of (N, C, H, W) with its channels innermost if `storage` is nhwc; of any other shape as it is."""
    if storage == "nhwc" and values.ndim == 4:
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return np.array(values, order="C")


def normal(shape, storage="nchw", seed=0, dtype="float32"):
    return stored(np.random.default_rng(seed).standard_normal(shape).astype(dtype), storage)


def poisoned(shape, storage="nchw", dtype="float32"):
    return stored(np.full(shape, np.nan, dtype), storage)


def same(actual, expected):
    """Whether the values have the same bits, wherever they are stored."""
    return np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()


def near(actual, expected, tolerance=1e-6):
    """Whether no error exceeds `tolerance` times the largest element."""
    assert np.isfinite(expected).all()
    return np.abs(actual.astype("float64") - expected).max() <= tolerance * np.abs(expected).max()


def clock(step=0, sample=0, seed=0, rate=0.1, beta1=0.9, beta2=0.999):
    c = np.zeros(clocks.SIZE)
    c[clocks.STEP], c[clocks.SAMPLE], c[clocks.SEED], c[clocks.LEARNING_RATE] = step, sample, seed, rate
    c[clocks.BIAS_1], c[clocks.BIAS_2] = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    return c
