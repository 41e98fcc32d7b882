"""Two or three updates of one weight against values worked out by hand, or step by step in plain Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vdnn import clock as clocks
from vdnn.kernels.numpy import NumpyKernels
from vdnn.optimizers import NAMES, SGD, Adam, get
from vdnn.schedules import StepDecay


def weights(optimizer, gradients, w=1.0, dtype="float64"):
    """The weight after each update by one of the gradients, one number; the state starts at 0."""
    kernels = NumpyKernels(1)
    array = np.full(1, w, dtype)
    state = {name: np.zeros(1, dtype) for name in optimizer.state}
    workspace = np.empty(optimizer.workspace(kernels, (1,), dtype), np.uint8)
    found = []
    for step, gradient in enumerate(gradients):
        clock = np.zeros(clocks.SIZE)
        clock[clocks.STEP], clock[clocks.LEARNING_RATE] = step, optimizer.rate(step)
        beta1, beta2 = optimizer.betas
        clock[clocks.BIAS_1], clock[clocks.BIAS_2] = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        optimizer.update(kernels, clock, array, np.full(1, gradient, dtype), workspace, **state)
        found.append(float(array[0]))
    kernels.close()
    return pytest.approx(found, rel=1e-12)


# ---- SGD


def test_sgd_goes_down_the_gradient():
    assert weights(SGD(0.1), [2, -1]) == [0.8, 0.9]


def test_momentum_adds_up_gradients():
    # v = 2, then 0.5 * 2 + 2 = 3, then 0.5 * 3 - 4 = -2.5
    assert weights(SGD(0.1, momentum=0.5), [2, 2, -4]) == [0.8, 0.5, 0.75]


def test_dampening_spares_the_first_gradient_as_in_pytorch():
    # v = 2, then 0.5 * 2 + 0.75 * 2 = 2.5
    assert weights(SGD(0.1, momentum=0.5, dampening=0.25), [2, 2]) == [0.8, 0.55]


def test_nesterov_looks_ahead():
    # v = 2: step 2 + 0.5 * 2 = 3; v = 3: step 2 + 0.5 * 3 = 3.5
    assert weights(SGD(0.1, momentum=0.5, nesterov=True), [2, 2]) == [0.7, 0.35]


def test_weight_decay_pulls_to_zero():
    # gradients 0 + 0.5 * 1, then 0 + 0.5 * 0.95
    assert weights(SGD(0.1, weight_decay=0.5), [0, 0]) == [0.95, 0.9025]


def test_weight_decay_goes_through_momentum():
    # v = 0.5, then 0.5 * 0.5 + 0.5 * 0.95 = 0.725
    assert weights(SGD(0.1, momentum=0.5, weight_decay=0.5), [0, 0]) == [0.95, 0.8775]


def test_the_rate_may_change_from_step_to_step():
    assert weights(SGD(StepDecay(0.1, every=1, factor=0.5)), [2, 2, 2]) == [0.8, 0.7, 0.65]


# ---- Adam


def adam(gradients, rate=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False, w=1.0):
    """The formulas of Kingma and Ba, and of Loshchilov and Hutter, one number at a time."""
    m = v = 0.0
    found = []
    for t, g in enumerate(gradients, 1):
        if decoupled:
            w -= rate * weight_decay * w
        else:
            g += weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        w -= rate * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
        found.append(w)
    return found


def test_the_first_step_of_adam_is_the_rate_whatever_the_gradient():
    assert weights(Adam(0.1, eps=0), [5]) == [0.9]
    assert weights(Adam(0.1, eps=0), [-0.01]) == [1.1]


def test_adam_with_eps_by_hand():
    # m / c1 = g = 2, sqrt(v / c2) = 2: the step is 0.1 * 2 / (2 + 2)
    assert weights(Adam(0.1, eps=2.0), [2]) == [0.95]


@pytest.mark.parametrize(
    "options",
    [{}, {"betas": (0.5, 0.75), "eps": 0.1}, {"weight_decay": 0.3}, {"weight_decay": 0.3, "decoupled": True}],
)
def test_adam_follows_its_formulas(options):
    gradients = [2.0, -1.0, 0.5, 3.0]
    assert weights(Adam(0.1, **options), gradients) == adam(gradients, **options)


def test_decoupled_weight_decay_differs_from_that_in_the_gradient():
    assert adam([2.0, 1.0], weight_decay=0.3, decoupled=True) != pytest.approx(adam([2.0, 1.0], weight_decay=0.3))


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1), Adam(0.1, weight_decay=0.1)]
)
def test_every_element_of_a_large_weight_is_updated_alike(optimizer):
    kernels = NumpyKernels(2)
    shape = (300, 200)
    random = np.random.default_rng(0)
    w, dw = random.standard_normal(shape), random.standard_normal(shape)
    state = {name: random.random(shape) for name in optimizer.state}
    clock = np.array([3, 0, 0, 0.1, 0.4, 0.004, 0, 0])
    workspace = np.empty(optimizer.workspace(kernels, shape, "float64"), np.uint8)
    corner = tuple(slice(-7, None) for _ in shape)
    parts = {name: array[corner].copy() for name, array in state.items()}
    small = w[corner].copy()
    part_workspace = np.empty(optimizer.workspace(kernels, small.shape, "float64"), np.uint8)
    optimizer.update(kernels, clock, small, dw[corner].copy(), part_workspace, **parts)
    optimizer.update(kernels, clock, w, dw, workspace, **state)
    np.testing.assert_array_equal(w[corner], small)
    for name in state:
        np.testing.assert_array_equal(state[name][corner], parts[name])
    kernels.close()


# ---- names and settings


def test_optimizers_have_names_and_say_what_they_keep():
    assert NAMES == ("sgd", "momentum", "adam")
    assert [get(name).name for name in NAMES] == list(NAMES)
    assert [get(name).state for name in NAMES] == [(), ("velocity",), ("m", "v")]
    assert get("momentum") == SGD(0.01, momentum=0.9)
    optimizer = Adam(0.5)
    assert get(optimizer) is optimizer


def test_the_rate_of_a_step_is_the_number_or_the_schedules():
    assert SGD(0.5).rate(7) == 0.5
    assert Adam(StepDecay(0.5, every=7)).rate(7) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-0.1), r"learning_rate=-0\.1 is not a number of at least 0"),
        (lambda: SGD(float("nan")), "learning_rate=nan is not a number of at least 0"),
        (lambda: SGD(0.1, momentum=1), r"momentum=1 is not in \[0, 1\)"),
        (lambda: SGD(0.1, dampening=-1), r"dampening=-1 is not in \[0, 1\)"),
        (lambda: SGD(0.1, weight_decay=-1), r"weight_decay=-1 is not in \[0, inf\)"),
        (lambda: SGD(0.1, nesterov=True), "nesterov needs momentum and no dampening"),
        (lambda: SGD(0.1, momentum=0.9, dampening=0.1, nesterov=True), "nesterov needs momentum and no dampening"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), r"beta2=1\.0 is not in \[0, 1\)"),
        (lambda: Adam(0.1, eps=-1e-8), "eps=-1e-08 is not in"),
        (lambda: get("rmsprop"), "no optimizer 'rmsprop'; there are sgd, momentum, adam"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
