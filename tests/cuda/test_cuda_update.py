import numpy as np
import pytest
from both import CUDA, KERNELS, ONE_BLOCK, call, clock, few, images, normal, rows, same, storages
from hypothesis import given
from hypothesis import strategies as st

from vdnn import clock as clocks

weights = st.one_of(images, rows, st.tuples(st.integers(1, 700)))
decays = st.sampled_from([0, 0.1])
SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
]


def updated(kernels, name, kind, shape, storage, states, steps=3, **options):
    """The weight, and its states or None, after some steps; dw stays."""
    w, dw = normal(shape, storage), normal(shape, storage, seed=1)
    given = [np.zeros_like(w) for _ in range(states)]
    for step in range(steps):
        scratch = np.full(kernels.update_workspace(kind, shape, "float32"), 0xFF, np.uint8)
        call(kernels, name, clock(step), w, dw, *(given or [None]), **options, workspace=scratch)
    assert same(dw, normal(shape, storage, seed=1))
    return [w, *given]


@pytest.mark.parametrize("options", SGD, ids=str)
@few
@given(weights, storages, decays)
def test_sgd_has_numpys_bits(options, shape, storage, decay):
    states = 1 if options else 0
    results = [
        updated(k, "sgd", "momentum", shape, storage, states, weight_decay=decay, **options) for k in (KERNELS, CUDA)
    ]
    assert all(same(a, b) for a, b in zip(*results, strict=True))
    assert not same(results[1][0], normal(shape, storage))


@few
@given(weights, storages, decays, st.booleans())
def test_adam_has_numpys_bits(shape, storage, decay, decoupled):
    options = {"weight_decay": decay, "decoupled": decoupled, "beta1": 0.8, "beta2": 0.99}
    results = [updated(k, "adam", "adam", shape, storage, 2, **options) for k in (KERNELS, CUDA)]
    assert all(same(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_large_weight_spans_many_blocks(name):
    states, options = (1, {"momentum": 0.9}) if name == "sgd" else (2, {})
    results = [updated(k, name, name, (64, 65, 3, 3), "nhwc", states, **options) for k in (KERNELS, CUDA, ONE_BLOCK)]
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*results, strict=True))


def test_without_momentum_the_velocity_is_left_alone():
    w, dw, velocity = normal((5,)), normal((5,), seed=1), np.full(5, np.nan, "float32")
    call(CUDA, "sgd", clock(), w, dw, velocity)
    assert np.isnan(velocity).all()
    assert same(w, normal((5,)) - dw * np.float32(0.1))


def test_the_first_step_does_not_read_the_velocity():
    w, dw, velocity = normal((5,)), normal((5,), seed=1), np.full(5, np.nan, "float32")
    call(CUDA, "sgd", clock(), w, dw, velocity, momentum=0.9)
    assert same(velocity, dw)


def test_the_rate_is_read_when_the_kernel_runs():
    w, dw, now = normal((5,)), normal((5,), seed=1), clock()
    CUDA.sgd(now, w, dw, None)
    now[clocks.LEARNING_RATE] = 3
    CUDA.driver.synchronize(CUDA.stream)
    assert same(w, normal((5,)) - dw * np.float32(3))


def test_no_update_takes_scratch_and_an_unknown_kind_is_refused():
    assert [CUDA.update_workspace(kind, (3,), "float32") for kind in ("sgd", "momentum", "adam")] == [0, 0, 0]
    with pytest.raises(ValueError, match="'rmsprop' is none of sgd, momentum, adam"):
        CUDA.update_workspace("rmsprop", (3,), "float32")
