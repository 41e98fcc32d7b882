"""Direct convolution, which only the compiled kernels have (vdnn.kernels.numpy.compiled.direct).

No matrix is packed: pixels and filter meet in registers.  N batch, C channels of the source, K of the result, both per
group.  What it cannot do within its workspace is done by im2col and GEMM (vdnn.kernels.numpy.gemm).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.conv_weights import add_tree
from vdnn.kernels.numpy.direct_plan import LIMIT, DirectPlan, gather_plan, scratch_bytes, scratches, weights_plan
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import Scratch, array_bytes
from vdnn.kernels.numpy.window import Window, backward_phases, forward_windows
from vdnn.layers.base import Array

Pair = tuple[int, int]
Numbers = tuple[int, ...]

# ---- forward and backward_data


class Sweep(NamedTuple):
    """One gather of one group: windows over the source's channels, times the filter, into the result.

    window  taps, step, dilation and offset of rows, and of columns
    source  H, W, channels of a pixel, the first of these, C
    start, taps, steps  of the filter: where it begins, its taps' places from there, and how far neighbours among the
                        source's and among the result's channels lie apart
    target  of the result: where it begins, and strides of images, rows and columns
    bias    the first of this group's, or -1
    """

    plan: DirectPlan
    window: Numbers
    source: Numbers
    start: int
    taps: Array
    steps: Pair
    target: Numbers
    bias: int = -1


def numbers_of(rows: Window, columns: Window) -> Numbers:
    """Taps, step, dilation and offset of rows, and of columns."""
    return tuple(n for axis in (rows, columns) for n in (axis.taps, axis.step, axis.dilation, axis.offset))


def pixels_of(sizes: Pair, channels: int, first: int) -> Numbers:
    """Where all pixels of (N, *sizes, channels) begin with channel `first`, and strides of images, rows and columns."""
    return first, sizes[0] * sizes[1] * channels, sizes[1] * channels, channels


@lru_cache(maxsize=1024)
def forward_sweeps(g: Geometry) -> tuple[Sweep, ...] | None:
    """The gathers of forward, one of each group; None if it cannot be done so, or is a plain product."""
    windows = forward_windows(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation)
    plan = None if g.is_pointwise else gather_plan(g.N, *windows, g.C, g.K, g.groups, g.dtype)
    if plan is None:
        return None
    taps, size = numpy.arange(g.taps[0] * g.taps[1]) * g.C, g.taps[0] * g.taps[1] * g.C
    found = []
    for i in range(g.groups):
        source, target = (*g.source, g.groups * g.C, i * g.C, g.C), pixels_of(g.outputs, g.groups * g.K, i * g.K)
        found.append(Sweep(plan, numbers_of(*windows), source, i * g.K * size, taps, (1, size), target, i * g.K))
    return tuple(found)


@lru_cache(maxsize=1024)
def data_sweeps(g: Geometry) -> tuple[Sweep, ...] | None:
    """The gathers of backward_data, one of each group and part of the pixels; None if it cannot be done so.

    Every element of dx is gathered by one worker, see window.backward_phases; what nothing reaches has no gather.
    """
    rows, columns = (
        backward_phases(g.source[i], g.outputs[i], g.taps[i], g.stride[i], g.padding[i], g.dilation[i])
        for i in range(2)
    )
    parts = [] if g.is_pointwise else [(r, s) for r in rows for s in columns if r.taps and s.taps]
    wanted = [gather_plan(g.N, r.axis, s.axis, g.K, g.C, g.groups, g.dtype) for r, s in parts]
    plans = [plan for plan in wanted if plan is not None]
    if len(plans) < len(wanted) or (plans and scratch_bytes(plans) > LIMIT):
        return None
    found, size, pixel = [], g.taps[0] * g.taps[1] * g.C, g.groups * g.C
    for i in range(g.groups):
        for (r, s), plan in zip(parts, plans, strict=True):
            taps = numpy.array([(p * g.taps[1] + q) * g.C for p in r.taps for q in s.taps])
            source = (*g.outputs, g.groups * g.K, i * g.K, g.K)
            first, image, row, _ = pixels_of(g.source, pixel, i * g.C)
            target = (first + r.start * row + s.start * pixel, image, g.stride[0] * row, g.stride[1] * pixel)
            found.append(Sweep(plan, numbers_of(r.axis, s.axis), source, i * g.K * size, taps, (size, 1), target))
    return tuple(found) or None


@lru_cache(maxsize=1024)
def reaches_all(g: Geometry) -> bool:
    """Whether every pixel of x is seen by an output through some tap, whatever its place."""
    return all(
        all(part.taps for part in backward_phases(*axis))
        for axis in zip(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation, strict=True)
    )


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
    """y = x * w + b.  x: (N, H, W, G C), w: (G K, R, S, C), b: (G K,), y: (N, OH, OW, G K).

    rectify: max(y, 0) in place of y.
    """
    run_sweeps(workers, forward_sweeps(g), (x.reshape(-1), w.reshape(-1), b, y.reshape(-1)), space, g.flops, rectify)


def backward_data(workers: Sharing, g: Geometry, w: Array, dy: Array, dx: Array, space: Array | None) -> None:
    """dx from dy."""
    if not reaches_all(g):
        dx[...] = 0
    run_sweeps(workers, data_sweeps(g), (dy.reshape(-1), w.reshape(-1), None, dx.reshape(-1)), space, g.flops)


def run_sweeps(
    workers: Sharing,
    sweeps: tuple[Sweep, ...] | None,
    arrays: tuple[Array, ...],
    space: Array | None,
    flops: int,
    rectify: bool = False,
) -> None:
    """Run all tasks of all gathers.  arrays: source, filter, bias, result; each worker has its scratch in `space`."""
    assert sweeps
    tasks = [(each, part, block) for each in sweeps for part in each.plan.parts for block in each.plan.blocks]
    scratch, gather = scratches([each.plan for each in sweeps], space, 0, workers.threads), workers.routines.gather

    def run(task: int, worker: int) -> None:
        gather(*tasks[task], arrays, *scratch[worker], rectify)

    workers.parallel(run, len(tasks), flops / FLOPS)


# ---- backward_weights


class Weighing(NamedTuple):
    """The filter's gradient of one group, as a Sweep has it; `size` elements belong to a channel of dy."""

    plan: DirectPlan
    window: Numbers
    source: Numbers
    target: Numbers
    size: int


@lru_cache(maxsize=1024)
def weighings(g: Geometry) -> tuple[Weighing, ...] | None:
    """The sums of backward_weights, one of each group; None if it cannot be done so, or is a plain product."""
    windows = forward_windows(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation)
    plan = None if g.is_pointwise else weights_plan(g.N, *windows, g.C, g.K, g.groups, g.dtype)
    if plan is None:
        return None
    found, size = [], g.taps[0] * g.taps[1] * g.C
    for i in range(g.groups):
        source, target = (*g.source, g.groups * g.C, i * g.C, g.C), pixels_of(g.outputs, g.groups * g.K, i * g.K)
        found.append(Weighing(plan, numbers_of(*windows), source, target, size))
    return tuple(found)


def backward_weights(workers: Sharing, g: Geometry, x: Array, dy: Array, dw: Array, space: Array | None) -> None:
    """Write dw from x: (N, H, W, G C) and dy: (N, OH, OW, G K); parts are added up in a fixed tree."""
    groups = weighings(g)
    assert groups
    plan, shared = groups[0].plan, Scratch(space)
    partials = [dw, *(shared.take(dw.shape, g.dtype) for _ in plan.parts[1:])]
    own, arrays = scratches([plan], space, shared.start, workers.threads), (x.reshape(-1), dy.reshape(-1))
    tasks = []
    for part, sums in zip(plan.parts, partials, strict=True):
        for each, gradient in zip(groups, sums.reshape(g.groups, -1), strict=True):
            tasks += [(each, part, gradient, block) for block in plan.blocks]
    weigh = workers.routines.weigh

    def run(task: int, worker: int) -> None:
        weigh(*tasks[task], arrays, *own[worker])

    workers.parallel(run, len(tasks), g.flops / FLOPS)
    add_tree(partials)


# ---- which convolutions


def workspace(phase: str, g: Geometry, threads: int) -> int:
    """Bytes of workspace; 0 where the compiled form does not do it."""
    if phase != "backward_weights":
        sweeps = (forward_sweeps(g) if phase == "forward" else data_sweeps(g)) or ()
        return threads * scratch_bytes([each.plan for each in sweeps]) if sweeps else 0
    groups = weighings(g)
    if groups is None:
        return 0
    plan = groups[0].plan
    return threads * scratch_bytes([plan]) + (len(plan.parts) - 1) * array_bytes(g.dtype, g.groups * g.K, *g.taps, g.C)


def applies(phase: str, g: Geometry) -> bool:
    """Whether the compiled form can do this."""
    pieces: dict[str, Callable[[Geometry], object]] = {
        "forward": forward_sweeps,
        "backward_data": data_sweeps,
        "backward_weights": weighings,
    }
    return pieces[phase](g) is not None
