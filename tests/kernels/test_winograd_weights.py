"""backward_weights by Winograd in many small pieces: either way through the work."""

from __future__ import annotations

import numpy as np
import pytest
from reference import Case, worst

from vdnn.kernels.numpy import NumpyKernels, winograd_plan
from vdnn.kernels.numpy.conv import kept_workspace
from vdnn.kernels.numpy.transforms import TRANSFORMS
from vdnn.kernels.numpy.winograd_plan import weights_plan

CASES = {R: Case((3, 44, 40, 41), (40, 44, R, R), padding=(2, 0)) for R in (3, 5)}
WAYS = {"fused": {"GOOD_HEIGHT": 8, "BLOCK": 0}, "phased": {"SMALL_SUMS": 0, "PHASE": 40, "WEIGHTS_PHASE": 0}}
TWO, FOUR = TRANSFORMS[2, 3], TRANSFORMS[4, 3]
ALGORITHMS = [(3, "winograd2"), (3, "winograd4"), (5, "winograd2")]


@pytest.fixture(params=list(WAYS))
def way(request, monkeypatch):
    """The name of a way through the work, of which every piece is small."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(winograd_plan, name, value)
    for kept in (weights_plan, kept_workspace):
        kept.cache_clear()
    yield request.param
    for kept in (weights_plan, kept_workspace):
        kept.cache_clear()


def gradient(taps, algorithm, threads=2, beyond=0):
    """dw, and what lies behind the workspace."""
    kernels, case = NumpyKernels(threads), CASES[taps]
    found = {a.name: a for a in case.algorithms(kernels, "backward_weights", "float32")}[algorithm]
    block = np.full(found.workspace + beyond, 255, np.uint8)
    dw, _ = case.run(kernels, "backward_weights", algorithm, block[: found.workspace], "float32")
    kernels.close()
    return dw, block[found.workspace :]


@pytest.mark.parametrize("winograd", [TWO, FOUR])
def test_the_pieces_are_many(way, winograd):
    plan = weights_plan(winograd, 3, (42, 39), 40, 44, "float32")
    assert plan.fused == (way == "fused")
    assert len(plan.phases) > 2
    assert min(map(len, plan.phases)) > 1


@pytest.mark.parametrize(("taps", "algorithm"), ALGORITHMS)
def test_the_gradient_is_that_of_the_definition(way, taps, algorithm):
    assert worst(gradient(taps, algorithm)[0], CASES[taps].dw) < 1e-4


@pytest.mark.parametrize(("taps", "algorithm"), ALGORITHMS)
def test_bits_do_not_depend_on_threads(way, taps, algorithm):
    two = gradient(taps, algorithm)[0].tobytes()
    assert gradient(taps, algorithm, threads=1)[0].tobytes() == two
    assert gradient(taps, algorithm, threads=3)[0].tobytes() == two


@pytest.mark.parametrize(("taps", "algorithm"), ALGORITHMS)
def test_nothing_is_written_behind_the_workspace(way, taps, algorithm):
    assert (gradient(taps, algorithm, beyond=4096)[1] == 255).all()


def test_small_filters_over_many_tiles_are_fused_and_large_ones_are_not():
    assert weights_plan(FOUR, 8, (224, 224), 64, 64, "float32").fused
    assert weights_plan(FOUR, 8, (112, 112), 128, 64, "float32").fused
    assert not weights_plan(FOUR, 8, (56, 56), 256, 256, "float32").fused
    assert not weights_plan(FOUR, 8, (14, 14), 64, 64, "float32").fused


def test_a_fused_plan_adds_each_block_once_and_then_the_sums():
    plan = weights_plan(FOUR, 8, (224, 224), 64, 64, "float32")  # 4 rows of 56 tiles each, 14 blocks an image
    assert [len(phase) for phase in plan.phases] == [14] * 8
    assert plan.tiles == 4 * 56
    assert plan.products == 14 + 8
    assert plan.shared(6, 64, 64, "float32") == 8 * 36 * 64 * 64 * 4
