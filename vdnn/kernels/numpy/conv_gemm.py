"""Forward and backward_data of a convolution, laid out as gathers (see gemm.py), and their workspace."""

from __future__ import annotations

from typing import NamedTuple

import numpy

from vdnn.kernels.numpy.chunks import Sharing
from vdnn.kernels.numpy.gemm import Blocking, Gather, Limits, block, run_gathers
from vdnn.kernels.numpy.geometry import Geometry
from vdnn.kernels.numpy.layout import Scratch, array_bytes
from vdnn.kernels.numpy.window import Phase, backward_phases, forward_windows
from vdnn.layers.base import Array

MIB = 2**20
SMALL_FILTER = MIB // 4
LIMITS = {"direct": Limits(MIB, 16), "pack": Limits(3 * MIB, 8)}


def forward_blocking(g: Geometry, algorithm: str) -> Blocking:
    """How forward is cut up."""
    windows = forward_windows(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation)
    return block(g.N, *windows, g.C, g.K, g.dtype, LIMITS[algorithm], lands=True, whole=True)


def forward_workspace(g: Geometry, algorithm: str, threads: int) -> int:
    """Bytes of workspace."""
    return threads * forward_blocking(g, algorithm).scratch


def forward(
    workers: Sharing,
    g: Geometry,
    x: Array,
    w: Array,
    b: Array | None,
    y: Array,
    algorithm: str,
    space: Array | None,
    rectify: bool = False,
) -> None:
    """y = x * w + b.  x: (N, H, W, G C), w: (G K, R, S, C), b: (G K,), y: (N, OH, OW, G K).

    rectify: max(y, 0) in place of y.
    """
    windows = forward_windows(g.source, g.outputs, g.taps, g.stride, g.padding, g.dilation)
    blocking = forward_blocking(g, algorithm)
    gathers = []
    for i in range(g.groups):
        inner, outer = (i * g.C, (i + 1) * g.C), slice(i * g.K, (i + 1) * g.K)
        filters = tuple(
            w[outer, c.r0 : c.r1, c.s0 : c.s1].reshape(g.K, -1).T  # a view: single taps, whole rows or all
            for c in blocking.chunks
        )
        bias = None if b is None else b[outer]
        gathers.append(Gather(x, inner, *windows, filters, bias, y[..., outer], blocking, rectify))
    run_gathers(workers, gathers, space, 0, g.flops)


class DataPart(NamedTuple):
    """One residue of dx's rows and columns modulo the stride."""

    rows: Phase
    columns: Phase
    blocking: Blocking | None  # None: no output sees these pixels

    @property
    def taps(self) -> int:
        """Number of filter taps that reach these pixels."""
        return len(self.rows.taps) * len(self.columns.taps)


class DataPlan(NamedTuple):
    """How backward_data is cut up."""

    parts: tuple[DataPart, ...]
    filter_bytes: int  # for the filter rearranged to (taps in the parts' order, K, C); 0: single taps, read in place
    scratch: int  # bytes per worker


def data_plan(g: Geometry, algorithm: str) -> DataPlan:
    """How backward_data is cut up.  A filter of up to 256 KiB, or any with "pack", is rearranged once per call."""
    size = array_bytes(g.dtype, g.groups, *g.taps, g.K, g.C)
    copies = g.taps != (1, 1) and (algorithm == "pack" or size <= SMALL_FILTER)
    limits = LIMITS[algorithm]
    if copies and algorithm == "direct":
        limits = limits._replace(scratch=limits.scratch - size)
    rows, columns = (
        backward_phases(g.source[i], g.outputs[i], g.taps[i], g.stride[i], g.padding[i], g.dilation[i])
        for i in range(2)
    )
    parts = []
    for r in rows:
        for s in columns:
            blocking = None
            if r.taps and s.taps:
                lands = g.stride == (1, 1)
                blocking = block(g.N, r.axis, s.axis, g.K, g.C, g.dtype, limits, lands, whole=copies)
            parts.append(DataPart(r, s, blocking))
    scratch = max(part.blocking.scratch if part.blocking else 0 for part in parts)
    return DataPlan(tuple(parts), size if copies else 0, scratch)


def data_workspace(g: Geometry, algorithm: str, threads: int) -> int:
    """Bytes of workspace."""
    plan = data_plan(g, algorithm)
    return plan.filter_bytes + threads * plan.scratch


def part_filters(part: DataPart, w: Array, rearranged: Array | None) -> tuple[Array, ...]:
    """Per chunk the matrix (taps * K, C) of one group's filter w: (K, R, S, C).

    `rearranged`: (taps, K, C), to be filled; None: the chunks are single taps, and w's own columns serve.
    """
    taps = [(r, s) for r in part.rows.taps for s in part.columns.taps]
    if rearranged is None:
        return tuple(w[:, r, s] for r, s in taps)
    for (r, s), target in zip(taps, rearranged, strict=True):
        numpy.copyto(target, w[:, r, s])
    assert part.blocking is not None
    found, first = [], 0
    for chunk in part.blocking.chunks:
        found.append(rearranged[first : first + chunk.taps].reshape(-1, w.shape[3]))
        first += chunk.taps
    return tuple(found)


def backward_data(
    workers: Sharing, g: Geometry, w: Array, dy: Array, dx: Array, algorithm: str, space: Array | None
) -> None:
    """dx from dy.  Every element of dx is gathered by one worker, see window.backward_phases."""
    plan = data_plan(g, algorithm)
    rearranged = None
    if plan.filter_bytes:
        rearranged = Scratch(space).take((g.groups, g.taps[0] * g.taps[1], g.K, g.C), g.dtype)
    gathers = []
    for i in range(g.groups):
        inner, outer, first = slice(i * g.C, (i + 1) * g.C), (i * g.K, (i + 1) * g.K), 0
        for part in plan.parts:
            target = dx[:, part.rows.start :: g.stride[0], part.columns.start :: g.stride[1], inner]
            if part.blocking is None:
                target[...] = 0
                continue
            own = None if rearranged is None else rearranged[i, first : first + part.taps]
            filters = part_filters(part, w[slice(*outer)], own)
            first += part.taps
            gathers.append(Gather(dy, outer, part.rows.axis, part.columns.axis, filters, None, target, part.blocking))
    if gathers:
        run_gathers(workers, gathers, space, plan.filter_bytes, g.flops)
