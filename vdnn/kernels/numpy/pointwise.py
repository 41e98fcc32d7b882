"""1x1 convolutions of stride 1 with a copy of the filter, or of what is multiplied, side by side: the compiled "pack".

They are plain products; NumPy's own way, and that without workspace, is the BLAS (vdnn.kernels.numpy.conv_gemm).  Work
is cut into parts of the pixels and blocks of the result's channels, by shape alone.  A worker's scratch is at most
LIMIT bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.conv_weights import add_tree
from vdnn.kernels.numpy.direct_plan import LIMIT, SMALL, TASKS
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import Scratch, array_bytes, ceil_div, multiples, spans
from vdnn.layers.base import Array

Pair = tuple[int, int]
BLOCK = 32  # result channels that meet the pixels at a time
FEWER = 8  # tasks of the filter's gradient
NARROWEST = 64  # rows or columns of the filter's gradient in a task, at least
SHARE = 392  # pixels of a task, at least: each lays out the filter anew
IN_CACHE = 2**18  # bytes of pixels that are seen again and again
FEWEST, MOST = 16, 96  # pixels of a box
SHORTEST, LONGEST = 32, 192  # pixels of a panel
PARTIALS = 2**19  # bytes of partial sums of the filter's gradient, those of the first part aside


class PointwisePlan(NamedTuple):
    """How a product is cut up.

    parts, blocks  spans of pixels and of channels of the result, or of the longer side of the filter's gradient;
                   each with each is a task
    pixels         of a box that meets all filters, or of a panel
    scratch        elements of a worker's arrays
    """

    parts: tuple[Pair, ...]
    blocks: tuple[Pair, ...]
    pixels: int
    scratch: tuple[int, ...]
    dtype: str

    @property
    def scratch_bytes(self) -> int:
        """Bytes per worker."""
        return sum(array_bytes(self.dtype, size) for size in self.scratch)


def wanted_tasks(g: Geometry) -> int:
    """How many tasks are worth having."""
    return max(1, min(TASKS, g.flops // 2 // SMALL))


def pixels_of(g: Geometry) -> int:
    """Pixels of all images."""
    return g.N * g.outputs[0] * g.outputs[1]


@lru_cache(maxsize=1024)
def product_plan(g: Geometry, terms: int, channels: int) -> PointwisePlan | None:
    """How to multiply all pixels' `terms` channels with a filter of so many result channels.

    None where that is no plain product, or a block of the filter takes more than LIMIT bytes.
    """
    pixels, item = pixels_of(g), numpy.dtype(g.dtype).itemsize
    high = LIMIT // (terms * item) // BLOCK * BLOCK
    if not g.is_pointwise or g.groups > 1 or high == 0:
        return None
    wanted = wanted_tasks(g)
    parts = max(1, min(wanted, pixels // SHARE))
    blocks = max(ceil_div(channels, high), min(ceil_div(wanted, parts), ceil_div(channels, BLOCK)))
    cut = multiples(channels, blocks, BLOCK)
    box = max(FEWEST, min(MOST, IN_CACHE // (terms * item)))
    filters = ceil_div(cut[0][1], BLOCK) * BLOCK * terms
    return PointwisePlan(tuple(spans(pixels, ceil_div(pixels, parts))), cut, box, (filters,), g.dtype)


@lru_cache(maxsize=1024)
def weights_plan(g: Geometry) -> PointwisePlan | None:
    """How to sum the filter's gradient, its longer side cut into blocks; None where that is no plain product."""
    if not g.is_pointwise or g.groups > 1:
        return None
    pixels, item, wanted, longer = pixels_of(g), numpy.dtype(g.dtype).itemsize, wanted_tasks(g), max(g.C, g.K)
    wanted = min(wanted, FEWER)
    parts = min(wanted, 1 + PARTIALS // array_bytes(g.dtype, g.K, g.C), ceil_div(pixels, LONGEST))
    cut = multiples(longer, max(1, min(ceil_div(wanted, parts), longer // NARROWEST)), BLOCK)
    wide = tuple(ceil_div(size, BLOCK) * BLOCK for size in (cut[0][1], min(g.C, g.K)))
    panel = max(SHORTEST, min(LONGEST, IN_CACHE // (sum(wide) * item)))
    scratch = tuple(panel * size for size in (wide if g.C > g.K else reversed(wide)))
    plan = PointwisePlan(tuple(spans(pixels, ceil_div(pixels, parts))), cut, panel, scratch, g.dtype)
    return plan if plan.scratch_bytes <= LIMIT else None


def plan_of(phase: str, g: Geometry) -> PointwisePlan | None:
    """How a phase is cut up; None if it cannot be done so."""
    if phase == "backward_weights":
        return weights_plan(g)
    return product_plan(g, *((g.C, g.K) if phase == "forward" else (g.K, g.C)))


def workspace(phase: str, g: Geometry, threads: int) -> int:
    """Bytes of workspace; 0 where it cannot be done so."""
    plan = plan_of(phase, g)
    if plan is None:
        return 0
    partials = len(plan.parts) - 1 if phase == "backward_weights" else 0
    return threads * plan.scratch_bytes + partials * array_bytes(g.dtype, g.K, g.C)


def applies(phase: str, g: Geometry) -> bool:
    """Whether it can be done so."""
    return plan_of(phase, g) is not None


def scratches(plan: PointwisePlan, scratch: Scratch, threads: int) -> list[list[Array]]:
    """Each worker's arrays."""
    return [[scratch.take((size,), plan.dtype) for size in plan.scratch] for _ in range(threads)]


def forward(workers: Sharing, g: Geometry, x: Array, w: Array, b: Array | None, y: Array, space: Array | None) -> None:
    """y = x * w + b.  x: (N, H, W, C), w: (K, 1, 1, C), b: (K,), y: (N, H, W, K)."""
    _multiply(workers, g, product_plan(g, g.C, g.K), (x, w, b, y), (1, g.C), space)


def backward_data(workers: Sharing, g: Geometry, w: Array, dy: Array, dx: Array, space: Array | None) -> None:
    """dx from dy."""
    _multiply(workers, g, product_plan(g, g.K, g.C), (dy, w, None, dx), (g.C, 1), space)


def _multiply(
    workers: Sharing,
    g: Geometry,
    plan: PointwisePlan | None,
    arrays: tuple[Array, ...],
    steps: Pair,
    space: Array | None,
) -> None:
    """steps: how far neighbours among the terms, and among the result's channels, lie apart in the filter."""
    assert plan
    tasks = [(part, block) for part in plan.parts for block in plan.blocks]
    own, routine = scratches(plan, Scratch(space), workers.threads), workers.routines.multiply_pixels

    def run(task: int, worker: int) -> None:
        routine(plan, *tasks[task], arrays, steps, own[worker][0])

    workers.parallel(run, len(tasks), g.flops / FLOPS)


def backward_weights(workers: Sharing, g: Geometry, x: Array, dy: Array, dw: Array, space: Array | None) -> None:
    """Write dw; parts of the pixels are added up in a fixed tree."""
    plan, scratch = weights_plan(g), Scratch(space)
    assert plan
    partials = [dw, *(scratch.take(dw.shape, g.dtype) for _ in plan.parts[1:])]
    own, routine = scratches(plan, scratch, workers.threads), workers.routines.weigh_pixels
    tasks = [(part, block, sums) for part, sums in zip(plan.parts, partials, strict=True) for block in plan.blocks]

    def run(task: int, worker: int) -> None:
        part, block, sums = tasks[task]
        routine(plan, part, block, (x, dy, sums), own[worker])

    workers.parallel(run, len(tasks), g.flops / FLOPS)
    add_tree(partials)
