"""Winograd convolution: forward, backward_data (a forward with the filter turned round) and backward_weights.

a x a transformed elements per tile; A, B channels of the source and of the result; T tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from vdnn.kernels.numpy.gemm import FLOPS
from vdnn.kernels.numpy.geometry import Geometry, Pair
from vdnn.kernels.numpy.layout import Scratch
from vdnn.kernels.numpy.threads import Workers
from vdnn.kernels.numpy.transforms import TRANSFORMS, Winograd
from vdnn.kernels.numpy.window import Tile
from vdnn.kernels.numpy.winograd_plan import LARGE_FILTER, ConvPlan, conv_plan, weights_plan
from vdnn.kernels.numpy.winograd_tiles import store, transform, transform_filter, transform_taps
from vdnn.layers.base import Array


def workspace(phase: str, g: Geometry, m: int, threads: int) -> int:
    """Bytes of workspace."""
    a = m + 2
    if phase == "backward_weights":
        weights = weights_plan(m, g.N, g.outputs, g.K, g.C, g.dtype)
        return weights.shared(a, g.K, g.C, g.dtype) + threads * weights.scratch
    A, B, outputs = (g.C, g.K, g.outputs) if phase == "forward" else (g.K, g.C, g.source)
    plan = conv_plan(m, g.N, outputs, A, B, g.K, g.C, g.dtype)
    return plan.shared(a, A, B, g.dtype) + threads * plan.scratch


def forward(
    workers: Workers, g: Geometry, m: int, x: Array, w: Array, b: Array | None, y: Array, space: Array | None
) -> None:
    """y = x * w + b.  x: (N, H, W, C), w: (K, 3, 3, C), b: (K,), y: (N, OH, OW, K)."""
    plan = conv_plan(m, g.N, g.outputs, g.C, g.K, g.K, g.C, g.dtype)
    _Convolution(workers, TRANSFORMS[m], plan, g.padding, x, w, False, b, y, space).run(g.flops)


def backward_data(workers: Workers, g: Geometry, m: int, w: Array, dy: Array, dx: Array, space: Array | None) -> None:
    """dx = dy, padded by 2 - padding (cropped, if that is negative), * w turned round, K and C exchanged."""
    plan = conv_plan(m, g.N, g.source, g.K, g.C, g.K, g.C, g.dtype)
    padding = (2 - g.padding[0], 2 - g.padding[1])
    _Convolution(workers, TRANSFORMS[m], plan, padding, dy, w, True, None, dx, space).run(g.flops)


class _Convolution:
    """One convolution in progress: the arrays that its tasks share."""

    def __init__(
        self,
        workers: Workers,
        winograd: Winograd,
        plan: ConvPlan,
        padding: Pair,
        source: Array,
        w: Array,
        turned: bool,
        bias: Array | None,
        result: Array,
        space: Array | None,
    ) -> None:
        self.workers, self.winograd, self.plan, self.padding = workers, winograd, plan, padding
        self.source, self.w, self.turned, self.bias, self.result = source, w, turned, bias, result
        self.space, self.dtype, a = space, source.dtype.name, winograd.a
        scratch = Scratch(space)
        # A small filter is stored as (A, B), which the BLAS multiplies faster; for a large one that is not worth
        # writing across the grain, and the BLAS takes the transposed view of (B, A) as well.
        K, C = w.shape[0], w.shape[3]
        across = not turned and plan.filter_bytes < LARGE_FILTER
        self.filter = scratch.take((a, a, *((C, K) if across else (K, C))), self.dtype)
        if not plan.fused:
            self.inner = scratch.take((a * a, plan.tiles, source.shape[3]), self.dtype)
            self.outer = scratch.take((a * a, plan.tiles, result.shape[3]), self.dtype)
        self.start = scratch.start
        flat = self.filter.reshape(a * a, *self.filter.shape[2:])
        self.matrices = flat if turned or across else flat.transpose(0, 2, 1)  # (a * a, A, B)
        if across:
            self.filter = self.filter.transpose(0, 1, 3, 2)

    def scratch(self, worker: int) -> Scratch:
        """A worker's own part of the workspace."""
        return Scratch(self.space, self.start + worker * self.plan.scratch)

    def run(self, flops: int) -> None:
        """Compute the result."""
        blocks = self.plan.filter_blocks
        seconds = flops / FLOPS / self.winograd.m

        def transform_some(task: int, worker: int) -> None:
            k = slice(*blocks[task])
            transform_filter(self.winograd, self.w[k], self.turned, self.filter[:, :, k], self.scratch(worker))

        self.workers.parallel(transform_some, len(blocks), self.filter.nbytes / 1e9)
        if self.plan.fused:
            boxes = self.plan.phases[0]
            self.workers.parallel(lambda task, worker: self.fused(boxes[task], worker), len(boxes), seconds)
        else:
            for boxes in self.plan.phases:
                self.phase(boxes, seconds / len(self.plan.phases))

    def fused(self, tile: Tile, worker: int) -> None:
        """One block of tiles, from the source to the result."""
        a, scratch = self.winograd.a, self.scratch(worker)
        start = scratch.start
        inner = scratch.take((a, a, *tile.shape, self.source.shape[3]), self.dtype)
        scratch.start = start = start + self.plan.block_bytes
        transform(self.winograd.input, self.winograd, self.source, tile, 2, self.padding, inner, scratch)
        scratch.start = start  # the transform's scratch becomes the products'
        outer = scratch.take((a, a, *tile.shape, self.result.shape[3]), self.dtype)
        flat = (a * a, tile.pixels, -1)
        numpy.matmul(inner.reshape(flat), self.matrices, out=outer.reshape(flat))
        store(self.winograd, outer, tile, self.bias, self.result, scratch)

    def phase(self, boxes: Sequence[Tile], seconds: float) -> None:
        """Some blocks of tiles: all transforms, all products, all transforms back."""
        ends = block_ends(boxes)

        def before(task: int, worker: int) -> None:
            inner = block_view(self.inner, boxes[task], ends[task])
            scratch = self.scratch(worker)
            transform(self.winograd.input, self.winograd, self.source, boxes[task], 2, self.padding, inner, scratch)

        def product(task: int, worker: int) -> None:
            numpy.matmul(self.inner[task, : ends[-1]], self.matrices[task], out=self.outer[task, : ends[-1]])

        def after(task: int, worker: int) -> None:
            outer = block_view(self.outer, boxes[task], ends[task])
            store(self.winograd, outer, boxes[task], self.bias, self.result, self.scratch(worker))

        self.workers.parallel(before, len(boxes), seconds / 4)
        self.workers.parallel(product, len(self.inner), seconds / 2)
        self.workers.parallel(after, len(boxes), seconds / 4)


def block_ends(boxes: Sequence[Tile]) -> list[int]:
    """Where each block ends among the tiles of its phase."""
    ends, total = [], 0
    for box in boxes:
        total += box.pixels
        ends.append(total)
    return ends


def block_view(transformed: Array, box: Tile, end: int) -> Array:
    """The (a, a, *box.shape, C) part of transformed: (a * a, T, C) that belongs to a block ending at `end`."""
    a = round(len(transformed) ** 0.5)
    return transformed[:, end - box.pixels : end].reshape(a, a, *box.shape, -1)


def backward_weights(
    workers: Workers, g: Geometry, m: int, x: Array, dy: Array, dw: Array, space: Array | None
) -> None:
    """Write dw from x: (N, H, W, C) and dy: (N, OH, OW, K).

    Per phase: all transforms, then per transformed element one product over the phase's tiles, added to the sum.
    """
    winograd, plan = TRANSFORMS[m], weights_plan(m, g.N, g.outputs, g.K, g.C, g.dtype)
    a, scratch = winograd.a, Scratch(space)
    inner, outer, sums = (
        scratch.take((a * a, *shape), g.dtype) for shape in ((plan.tiles, g.C), (plan.tiles, g.K), (g.K, g.C))
    )
    start, seconds = scratch.start, g.flops / FLOPS / m / len(plan.phases)

    def own(worker: int) -> Scratch:
        return Scratch(space, start + worker * plan.scratch)

    def phase(number: int, boxes: Sequence[Tile]) -> None:
        ends = block_ends(boxes)

        def before(task: int, worker: int) -> None:
            box, end = boxes[task // 2], ends[task // 2]
            if task % 2 == 0:
                transform(winograd.input, winograd, x, box, 2, g.padding, block_view(inner, box, end), own(worker))
            else:
                transform(winograd.gradient, winograd, dy, box, 0, (0, 0), block_view(outer, box, end), own(worker))

        def product(task: int, worker: int) -> None:
            out = sums[task] if number == 0 else own(worker).take((g.K, g.C), g.dtype)
            numpy.matmul(outer[task, : ends[-1]].T, inner[task, : ends[-1]], out=out)
            if number > 0:
                numpy.add(sums[task], out, out=sums[task])

        workers.parallel(before, 2 * len(boxes), seconds / 2)
        workers.parallel(product, a * a, seconds / 2)

    for number, boxes in enumerate(plan.phases):
        phase(number, boxes)
    blocks, squares = plan.filter_blocks, sums.reshape(a, a, g.K, g.C)

    def finish(task: int, worker: int) -> None:
        k = slice(*blocks[task])
        transform_taps(winograd, squares[:, :, k], dw[k], own(worker))

    workers.parallel(finish, len(blocks), sums.nbytes / 1e9)
