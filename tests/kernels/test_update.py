import tracemalloc

import numpy as np
import pytest

from vdnn import clock as clocks
from vdnn.kernels.numpy import NumpyKernels


def clock(step=0, rate=0.1, beta1=0.9, beta2=0.999):
    c = np.zeros(clocks.SIZE)
    c[clocks.STEP], c[clocks.LEARNING_RATE] = step, rate
    c[clocks.BIAS_1], c[clocks.BIAS_2] = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
    return c


def scratch(kernels, kind, w):
    return np.full(kernels.update_workspace(kind, w.shape, w.dtype.name), 0xFF, np.uint8)


def sgd(gradients, steps_start=0, **options):
    """w after these gradients, from w = 1."""
    kernels, w, velocity = NumpyKernels(1), np.array([1.0]), np.zeros(1)
    for step, g in enumerate(gradients, steps_start):
        given = velocity if options.get("momentum") else None
        kernels.sgd(clock(step), w, np.array([float(g)]), given, **options, workspace=scratch(kernels, "sgd", w))
    return w[0]


def test_plain_sgd():
    assert sgd([2]) == pytest.approx(1 - 0.1 * 2)


def test_weight_decay_is_added_to_the_gradient():
    assert sgd([2], weight_decay=0.5) == pytest.approx(1 - 0.1 * (2 + 0.5 * 1))


def test_momentum_adds_a_share_of_the_last_velocity():
    assert sgd([2, 3], momentum=0.9) == pytest.approx(1 - 0.1 * 2 - 0.1 * (0.9 * 2 + 3))


def test_nesterov_looks_ahead():
    expected = 1 - 0.1 * (2 + 0.9 * 2) - 0.1 * (3 + 0.9 * (0.9 * 2 + 3))
    assert sgd([2, 3], momentum=0.9, nesterov=True) == pytest.approx(expected)


def test_dampening_spares_the_first_step_as_in_pytorch():
    expected = 1 - 0.1 * 2 - 0.1 * (0.9 * 2 + 0.5 * 3)
    assert sgd([2, 3], momentum=0.9, dampening=0.5) == pytest.approx(expected)


def adam(gradients, **options):
    kernels, w, m, v = NumpyKernels(1), np.array([1.0]), np.zeros(1), np.zeros(1)
    for step, g in enumerate(gradients):
        kernels.adam(clock(step), w, np.array([float(g)]), m, v, **options, workspace=scratch(kernels, "adam", w))
    return w[0]


def test_adams_first_step_is_the_rate_whatever_the_gradient():
    assert adam([1e-3]) == pytest.approx(0.9, abs=1e-5)
    assert adam([-1e3]) == pytest.approx(1.1)


def test_adam_by_hand():
    m, v = 0.1 * 2, 0.001 * 4
    w = 1 - 0.1 * (m / 0.1) / ((v / 0.001) ** 0.5 + 1e-8)
    m, v = 0.9 * m + 0.1 * 3, 0.999 * v + 0.001 * 9
    w -= 0.1 * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)) ** 0.5 + 1e-8)
    assert adam([2, 3]) == pytest.approx(w)


def test_weight_decay_of_adam_is_part_of_the_gradient_or_decoupled():
    assert adam([0], weight_decay=0.5) == pytest.approx(0.9)
    assert adam([0], weight_decay=0.5, decoupled=True) == pytest.approx(1 - 0.1 * 0.5)


def test_an_unknown_kind_of_update_is_refused():
    with pytest.raises(ValueError, match="'rmsprop' is none of sgd, momentum, adam"):
        NumpyKernels(1).update_workspace("rmsprop", (3,), "float32")


def run(kernels, kind, arrays, workspace):
    """Two steps."""
    w, g, m, v = arrays
    for step in range(2):
        if kind == "sgd":
            kernels.sgd(clock(step), w, g, m, momentum=0.9, weight_decay=0.1, workspace=workspace)
        else:
            kernels.adam(clock(step), w, g, m, v, weight_decay=0.1, workspace=workspace)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_threads_and_storage_change_no_bit_and_dw_stays(kind):
    rng = np.random.default_rng(0)
    start, dw = rng.standard_normal((2, 96, 70, 9, 9), "float32")
    results = []
    for threads, channels_last in ((1, True), (2, True), (3, False)):
        kernels = NumpyKernels(threads)
        arrays = [start, dw, np.zeros_like(start), np.zeros_like(start)]
        if channels_last:
            arrays = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in arrays]
        w, g, m, v = (a.copy(order="K") for a in arrays)
        workspace = scratch(kernels, kind, w)
        run(kernels, kind, [a.copy(order="K") for a in (w, g, m, v)], workspace)  # what may be compiled is
        tracemalloc.start()
        run(kernels, kind, (w, g, m, v), workspace)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kernels.close()
        assert peak < 100 * 1024
        assert np.array_equal(g, dw)
        assert not np.array_equal(w, start)
        results.append(np.ascontiguousarray(w).tobytes())
    assert results[0] == results[1] == results[2]
