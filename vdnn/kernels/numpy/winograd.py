"""Winograd convolution: forward, backward_data (a forward with the filter turned round) and backward_weights.

a x a transformed elements per tile; A, B channels of the source and of the result; T tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.geometry import Geometry, Pair
from vdnn.kernels.numpy.layout import Scratch
from vdnn.kernels.numpy.transforms import Winograd
from vdnn.kernels.numpy.window import Tile
from vdnn.kernels.numpy.winograd_plan import ConvPlan, WeightsPlan, conv_plan, transform_of, weights_plan
from vdnn.kernels.numpy.winograd_products import Matrices, Panels
from vdnn.layers.base import Array


def workspace(phase: str, g: Geometry, m: int, threads: int) -> int:
    """Bytes of workspace."""
    winograd = transform_of(g, m)
    a = winograd.a
    if phase == "backward_weights":
        weights = weights_plan(winograd, g.N, g.outputs, g.K, g.C, g.dtype)
        return weights.shared(a, g.K, g.C, g.dtype) + threads * weights.scratch
    A, B, outputs = (g.C, g.K, g.outputs) if phase == "forward" else (g.K, g.C, g.source)
    plan = conv_plan(winograd, g.N, outputs, A, B, g.K, g.C, g.dtype)
    return plan.shared(a, A, B, g.dtype) + threads * plan.scratch


def forward(
    workers: Sharing,
    g: Geometry,
    m: int,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    space: Array | None,
    rectify: bool = False,
) -> None:
    """y = x * w + b.  x: (N, H, W, C), w: (K, r, r, C), b: (K,), y: (N, OH, OW, K).  rectify: max(y, 0) instead."""
    winograd = transform_of(g, m)
    plan = conv_plan(winograd, g.N, g.outputs, g.C, g.K, g.K, g.C, g.dtype)
    Convolution(workers, winograd, plan, g.padding, x, w, False, b, y, space, rectify).run(g.flops)


def backward_data(workers: Sharing, g: Geometry, m: int, w: Array, dy: Array, dx: Array, space: Array | None) -> None:
    """dx = dy, padded by r - 1 - padding (cropped, if that is negative), * w turned round, K and C exchanged."""
    winograd = transform_of(g, m)
    plan = conv_plan(winograd, g.N, g.source, g.K, g.C, g.K, g.C, g.dtype)
    padding = (winograd.r - 1 - g.padding[0], winograd.r - 1 - g.padding[1])
    Convolution(workers, winograd, plan, padding, dy, w, True, None, dx, space).run(g.flops)


class Convolution:
    """One convolution in progress: the arrays that its tasks share."""

    def __init__(
        self,
        workers: Sharing,
        winograd: Winograd,
        plan: ConvPlan,
        padding: Pair,
        source: Array,
        w: Array,
        turned: bool,
        bias: Array | None,
        result: Array,
        space: Array | None,
        rectify: bool = False,
    ) -> None:
        self.rectify = rectify
        self.workers, self.winograd, self.plan, self.padding = workers, winograd, plan, padding
        self.routines = workers.routines
        self.source, self.w, self.turned, self.bias, self.result = source, w, turned, bias, result
        self.space, self.dtype, a = space, source.dtype.name, winograd.a
        scratch = Scratch(space)
        self.filter = scratch.take((a * a, w.shape[0], w.shape[3]), self.dtype)
        if not plan.fused:
            self.inner = scratch.take((a * a, plan.tiles, source.shape[3]), self.dtype)
            self.outer = scratch.take((a * a, plan.tiles, result.shape[3]), self.dtype)
        self.start = scratch.start
        kind = Panels if self.routines.fast and Panels.fits(source, result) else Matrices
        self.filters: Matrices | Panels = kind(self)

    def scratch(self, worker: int) -> Scratch:
        """A worker's own part of the workspace."""
        return Scratch(self.space, self.start + worker * self.plan.scratch)

    def run(self, flops: int) -> None:
        """Compute the result."""
        seconds = flops / FLOPS / self.winograd.saving
        self.filters.transform()
        if self.plan.fused:
            boxes = self.plan.phases[0]
            self.workers.parallel(lambda task, worker: self.fused(boxes[task], worker), len(boxes), seconds)
            return
        for boxes in self.plan.phases:
            self.phase(boxes, seconds / len(self.plan.phases))

    def fused(self, tile: Tile, worker: int) -> None:
        """One block of tiles, from the source to the result."""
        a, scratch = self.winograd.a, self.scratch(worker)
        start = scratch.start
        inner = scratch.take((a * a, tile.pixels, self.source.shape[3]), self.dtype)
        scratch.start = start = start + self.plan.block_bytes
        self.routines.transform_input(self.winograd, self.source, tile, self.padding, inner, 0, scratch)
        scratch.start = start  # the transform's scratch becomes the products'
        outer = scratch.take((a * a, tile.pixels, self.result.shape[3]), self.dtype)
        self.filters.multiply(inner, outer)
        self.transform_back(outer, 0, tile, scratch)

    def transform_back(self, matrices: Array, start: int, tile: Tile, scratch: Scratch) -> None:
        """Transform a block of matrices, from tile `start` on, back into the result."""
        how = self.bias, self.result, scratch, self.rectify
        self.routines.transform_output(self.winograd, matrices, start, tile, *how)

    def phase(self, boxes: Sequence[Tile], seconds: float) -> None:
        """Some blocks of tiles: all transforms, all products, all transforms back."""
        starts, tiles = block_starts(boxes)
        winograd, routines = self.winograd, self.routines

        def before(task: int, worker: int) -> None:
            scratch, start = self.scratch(worker), starts[task]
            routines.transform_input(winograd, self.source, boxes[task], self.padding, self.inner, start, scratch)

        def after(task: int, worker: int) -> None:
            self.transform_back(self.outer, starts[task], boxes[task], self.scratch(worker))

        self.workers.parallel(before, len(boxes), seconds / 4)
        self.filters.multiply_all(tiles, seconds / 2)
        self.workers.parallel(after, len(boxes), seconds / 4)


def block_starts(boxes: Sequence[Tile]) -> tuple[list[int], int]:
    """The number of each block's first tile among the tiles of its phase, and how many there are."""
    *starts, total = itertools.accumulate((box.pixels for box in boxes), initial=0)
    return starts, total


def backward_weights(
    workers: Sharing, g: Geometry, m: int, x: Array, dy: Array, dw: Array, space: Array | None
) -> None:
    """Write dw from x: (N, H, W, C) and dy: (N, OH, OW, K)."""
    winograd = transform_of(g, m)
    plan = weights_plan(winograd, g.N, g.outputs, g.K, g.C, g.dtype)
    work = _Weights(workers, winograd, plan, g, x, dy, space)
    seconds = g.flops / FLOPS / winograd.saving
    if plan.fused:
        workers.parallel(work.fused, len(plan.phases), seconds)
        workers.parallel(work.add_up, len(work.sums), work.groups.nbytes / 1e9)
    else:
        for number in range(len(plan.phases)):
            work.phase(number, seconds / len(plan.phases))

    def finish(task: int, worker: int) -> None:
        workers.routines.transform_taps(winograd, work.sums, plan.filter_blocks[task], dw, work.scratch(worker))

    workers.parallel(finish, len(plan.filter_blocks), work.sums.nbytes / 1e9)


class _Weights:
    """One backward_weights in progress: the arrays that its tasks share."""

    def __init__(
        self,
        workers: Sharing,
        winograd: Winograd,
        plan: WeightsPlan,
        g: Geometry,
        x: Array,
        dy: Array,
        space: Array | None,
    ) -> None:
        self.workers, self.winograd, self.plan, self.g, self.x, self.dy = workers, winograd, plan, g, x, dy
        self.routines, self.space, scratch, a = workers.routines, space, Scratch(space), winograd.a
        if plan.fused:
            self.groups = scratch.take((len(plan.phases), a * a, g.K, g.C), g.dtype)
            self.sums = self.groups[0]
        else:
            self.inner = scratch.take((a * a, plan.tiles, g.C), g.dtype)
            self.outer = scratch.take((a * a, plan.tiles, g.K), g.dtype)
            self.sums = scratch.take((a * a, g.K, g.C), g.dtype)
        self.start = scratch.start

    def scratch(self, worker: int) -> Scratch:
        """A worker's own part of the workspace."""
        return Scratch(self.space, self.start + worker * self.plan.scratch)

    def fused(self, task: int, worker: int) -> None:
        """The sum of the products of a phase's blocks."""
        g, a, total = self.g, self.winograd.a, self.groups[task]
        for number, box in enumerate(self.plan.phases[task]):
            scratch = self.scratch(worker)
            inner = scratch.take((a * a, box.pixels, g.C), g.dtype)
            outer = scratch.take((a * a, box.pixels, g.K), g.dtype)
            start = scratch.start
            self.routines.transform_input(self.winograd, self.x, box, g.padding, inner, 0, scratch)
            scratch.start = start
            self.routines.transform_gradient(self.winograd, self.dy, box, outer, 0, scratch)
            scratch.start = start
            product = total if number == 0 else scratch.take(total.shape, g.dtype)
            numpy.matmul(outer.transpose(0, 2, 1), inner, out=product)
            if number > 0:
                numpy.add(total, product, out=total)

    def add_up(self, task: int, worker: int) -> None:
        """Add the other phases' sums of one transformed element to the first's."""
        for group in self.groups[1:]:
            numpy.add(self.sums[task], group[task], out=self.sums[task])

    def phase(self, number: int, seconds: float) -> None:
        """All transforms, then per transformed element one product over the phase's tiles, added to the sum."""
        boxes, routines, g = self.plan.phases[number], self.routines, self.g
        starts, tiles = block_starts(boxes)

        def before(task: int, worker: int) -> None:
            box, start, scratch = boxes[task // 2], starts[task // 2], self.scratch(worker)
            if task % 2 == 0:
                routines.transform_input(self.winograd, self.x, box, g.padding, self.inner, start, scratch)
            else:
                routines.transform_gradient(self.winograd, self.dy, box, self.outer, start, scratch)

        def product(task: int, worker: int) -> None:
            out = self.sums[task] if number == 0 else self.scratch(worker).take((g.K, g.C), g.dtype)
            numpy.matmul(self.outer[task, :tiles].T, self.inner[task, :tiles], out=out)
            if number > 0:
                numpy.add(self.sums[task], out, out=self.sums[task])

        self.workers.parallel(before, 2 * len(boxes), seconds / 2)
        self.workers.parallel(product, len(self.sums), seconds / 2)
