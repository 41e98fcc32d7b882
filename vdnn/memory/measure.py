"""What a step really used: live bytes, from the address ranges that kernels and copies were handed.

Nothing here reads a plan's alloc and free steps, nor its offsets, so that it can contradict them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from vdnn.tape import GRANULE


@dataclass(frozen=True, slots=True)
class Access:
    """One array that one step was handed: bytes [start, stop) from the slab's first; `how` is read, write or both."""

    start: int
    stop: int
    reads: bool
    writes: bool


def measured_peak(steps: Sequence[Iterable[Access]], held: Collection[tuple[int, int]] = ()) -> int:
    """Most bytes that held something of use at one time, over a step that is repeated; in granules of 512 bytes.

    steps   the accesses of every step, in the order in which the steps were issued
    held    ranges that hold something whether this step touches it or not (weights, optimizer state)

    Bytes hold something from a write that does not read them to the last read before the next such write.  Bytes that
    are read before they are written hold something from one step to the next, so all the time.
    """
    rounded = [[_round(a) for a in step] for step in steps]
    spans = [*((a.start, a.stop) for step in rounded for a in step), *((_down(a), _up(b)) for a, b in held)]
    edges = sorted({edge for span in spans for edge in span})
    where = {edge: n for n, edge in enumerate(edges)}
    always = [False] * len(edges)
    for start, stop in spans[len(spans) - len(held) :]:
        always[where[start] : where[stop]] = [True] * (where[stop] - where[start])
    lives: list[list[list[int]]] = [[] for _ in edges]  # per range of bytes [first step, last step] of each life
    for i, step in enumerate(rounded):
        read = {n for a in step if a.reads for n in range(where[a.start], where[a.stop])}
        made = {n for a in step for n in range(where[a.start], where[a.stop])} - read
        for n in read:
            always[n] = always[n] or not lives[n]
            lives[n] = lives[n] or [[0, i]]
            lives[n][-1][1] = i
        for n in made:
            lives[n].append([i, i])
    change = [0] * (len(steps) + 1)
    for n, edge in enumerate(edges[:-1]):
        size = edges[n + 1] - edge
        for first, last in [[0, len(steps) - 1]] if always[n] else lives[n]:
            change[first] += size
            change[last + 1] -= size
    live = peak = 0
    for c in change:
        live += c
        peak = max(peak, live)
    return peak


def _down(at: int) -> int:
    return at // GRANULE * GRANULE


def _up(at: int) -> int:
    return -(-at // GRANULE) * GRANULE


def _round(a: Access) -> Access:
    return Access(_down(a.start), _up(a.stop), a.reads, a.writes)
