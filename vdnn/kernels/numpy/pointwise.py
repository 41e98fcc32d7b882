"""1x1 convolutions without padding, forward and backward_data, compiled, with a copy of the filter in panels.

Of stride 1 they are plain products, for which the BLAS needs no workspace: that is "direct", this is "pack".  Of other
strides this is "direct".  Work is cut into parts of the pixels and blocks of the result's channels, by shape alone.  A
worker's scratch is at most LIMIT bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.direct_plan import LIMIT, tasks
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div, multiples, spans
from vdnn.layers.base import Array

Pair = tuple[int, int]
Triple = tuple[int, int, int]
PANEL = 32  # result channels that the compiled products take at a time
SHARE = 392  # pixels of a task, at least: each lays out the filter anew
IN_CACHE = 2**18  # bytes of pixels that are seen again and again
FEWEST, MOST = 16, 96  # pixels of a box


class PointwisePlan(NamedTuple):
    """How a product is cut up.

    parts, blocks   spans of the outputs' pixels and of the result's channels; each with each is a task
    pixels          of a box, which meets all filters of a block
    filters         elements of a block of the filter
    grid            rows and columns of the outputs
    source, target  how far their images, rows and columns lie apart in the arrays, in elements
    """

    parts: tuple[Pair, ...]
    blocks: tuple[Pair, ...]
    pixels: int
    filters: int
    grid: Pair
    source: Triple
    target: Triple
    dtype: str

    @property
    def scratch(self) -> int:
        """Bytes per worker."""
        return array_bytes(self.dtype, self.filters)


def strides_of(sizes: Pair, channels: int, step: Pair) -> Triple:
    """How far images, rows and columns of (N, *sizes, channels) lie apart if only each `step`th is seen."""
    return sizes[0] * sizes[1] * channels, step[0] * sizes[1] * channels, step[1] * channels


@lru_cache(maxsize=1024)
def plan_of(phase: str, g: Geometry) -> PointwisePlan | None:
    """How forward or backward_data is cut up.

    None where that is not 1x1 without padding, or a block of the filter takes more than LIMIT bytes.
    """
    if phase == "backward_weights" or g.taps != (1, 1) or g.padding != (0, 0) or g.groups > 1:
        return None
    terms, channels = (g.C, g.K) if phase == "forward" else (g.K, g.C)
    pixels, item = g.N * g.outputs[0] * g.outputs[1], numpy.dtype(g.dtype).itemsize
    high = LIMIT // (terms * item) // PANEL * PANEL
    if high == 0:
        return None
    wanted = tasks(pixels * terms * channels)
    parts = max(1, min(wanted, pixels // SHARE))
    blocks = max(ceil_div(channels, high), min(ceil_div(wanted, parts), ceil_div(channels, PANEL)))
    cut, cuts = multiples(channels, blocks, PANEL), tuple(spans(pixels, ceil_div(pixels, parts)))
    box = max(FEWEST, min(MOST, IN_CACHE // (terms * item)))
    filters = ceil_div(cut[0][1], PANEL) * PANEL * terms
    wide, dense = strides_of(g.source, g.C, g.stride), strides_of(g.outputs, g.K, (1, 1))
    source, target = (wide, dense) if phase == "forward" else (dense, wide)
    return PointwisePlan(cuts, cut, box, filters, g.outputs, source, target, g.dtype)


def workspace(phase: str, g: Geometry, threads: int) -> int:
    """Bytes of workspace; 0 where it cannot be done so."""
    plan = plan_of(phase, g)
    return threads * plan.scratch if plan else 0


def applies(phase: str, g: Geometry) -> bool:
    """Whether it can be done so."""
    return plan_of(phase, g) is not None


def forward(
    workers: Sharing,
    g: Geometry,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    space: Array | None,
    rectify: bool = False,
) -> None:
    """y = x * w + b.  x: (N, H, W, C), w: (K, 1, 1, C), b: (K,), y: (N, H, W, K).  rectify: max(y, 0) in place of y."""
    _multiply(workers, g, plan_of("forward", g), (x, w, b, y), (1, g.C), space, rectify)


def backward_data(workers: Sharing, g: Geometry, w: Array, dy: Array, dx: Array, space: Array | None) -> None:
    """dx from dy; pixels that a stride leaves out are 0."""
    if g.stride != (1, 1):
        dx[...] = 0
    _multiply(workers, g, plan_of("backward_data", g), (dy, w, None, dx), (g.C, 1), space)


def _multiply(
    workers: Sharing,
    g: Geometry,
    plan: PointwisePlan | None,
    arrays: tuple[Array, ...],
    steps: Pair,
    space: Array | None,
    rectify: bool = False,
) -> None:
    """steps: how far neighbours among the terms, and among the result's channels, lie apart in the filter."""
    assert plan
    tasks = [(part, block) for part in plan.parts for block in plan.blocks]
    scratch, routine = Scratch(space), workers.routines.multiply_pixels
    own = [scratch.take((plan.filters,), plan.dtype) for _ in range(workers.threads)]

    def run(task: int, worker: int) -> None:
        routine(plan, *tasks[task], arrays, steps, own[worker], rectify)

    workers.parallel(run, len(tasks), g.flops / FLOPS)
