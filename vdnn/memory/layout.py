"""Offsets for lifetimes in an arena: dynamic storage allocation when every lifetime is known beforehand.

    place -> _lay -> _stack   the long lifetimes, one on the other
                  -> _climb   the short ones on top, from the lowest floor up: simple preferences, then changes to them
                  -> _climb   still above the target: long and short together, where there are few enough

In a training step the long lifetimes (made in forward, read in backward) nest, and the many short ones meet few others:
with the long ones stacked the rest is near-linear, while a search for gaps over all pairs is quadratic.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from vdnn.tape import GRANULE

Ints = NDArray[np.int64]
Reals = NDArray[np.float64]

EFFORT = 2_000_000  # at most about a second for a few hundred layers
_PAIRS = 400_000  # overlapping pairs listed at most; beyond, long lifetimes stay where they were stacked
_FEW = 8  # pairs a lifetime: laying all freely is then as quick as stacking the long ones first
_SPAN = 64  # positions; longer lifetimes are stacked first
_ABOVE = 1 << 60  # granules: above everything


@dataclass(frozen=True, slots=True)
class Lifetime:
    """`size` bytes (a multiple of 512) that need one range of the arena at plan positions [start, stop)."""

    start: int
    stop: int
    size: int


def peak(lifetimes: Iterable[Lifetime]) -> int:
    """The most bytes live at one position; no layout has a smaller extent."""
    changes: dict[int, int] = {}
    for life in lifetimes:
        if life.start < life.stop:
            changes[life.start] = changes.get(life.start, 0) + life.size
            changes[life.stop] = changes.get(life.stop, 0) - life.size
    most = live = 0
    for position in sorted(changes):
        live += changes[position]
        most = max(most, live)
    return most


def extent(lifetimes: Iterable[Lifetime], offsets: Iterable[int]) -> int:
    """Bytes of the arena: the highest end of a lifetime."""
    return max((offset + life.size for life, offset in zip(lifetimes, offsets, strict=True)), default=0)


def place(lifetimes: Sequence[Lifetime], *, target: float = 1.0, effort: int = EFFORT) -> list[int]:
    """Offsets in bytes, multiples of 512, at which no two lifetimes share a byte at a position.

    Stops at the first layout with an extent of at most `target` times the peak; budget / peak stops once it fits.
    `effort` bounds the search in lifetimes looked at, a fraction of a microsecond each, and never in seconds:
    the same lifetimes always get the same offsets, in whatever order they come.
    """
    if any(life.size < 0 or life.size % GRANULE for life in lifetimes):
        raise ValueError(f"sizes must be multiples of {GRANULE} bytes")
    used = [(v.start, v.stop, v.size // GRANULE, i) for i, v in enumerate(lifetimes) if v.start < v.stop and v.size]
    offsets = [0] * len(lifetimes)
    if not used:
        return offsets
    start, stop, size, number = np.array(sorted(used), dtype=np.int64).T
    moments = np.unique(start)  # the live set is largest where something starts: no other position matters
    start, stop = np.searchsorted(moments, start), np.searchsorted(moments, stop)
    goal = int(max(target, 1.0) * (peak(lifetimes) // GRANULE))
    # What is live at every moment (weights) goes to the bottom: every layout can be permuted into one with it there.
    always = stop - start == len(moments)
    bottom = int(size[always].sum())
    found = np.where(always, np.cumsum(size * always) - size, 0)
    if not always.all():
        found[~always] = bottom + _lay(start[~always], stop[~always], size[~always], goal - bottom, effort)
    for i, offset in zip(number.tolist(), found.tolist(), strict=True):
        offsets[i] = offset * GRANULE
    return offsets


def _lay(start: Ints, stop: Ints, size: Ints, goal: int, effort: int) -> Ints:
    """Offsets with extent at most `goal`, or the best found; in granules. `start` ascends; times are ranks from 0."""
    long = _long(start, stop)
    pairs = _pairs(start, stop)
    free = [~long]  # what moves; the rest is stacked and stays
    if long.any() and pairs <= _PAIRS:
        # The stack may be in the way, so also with nothing fixed: first where lifetimes meet few others, or else last.
        free.insert(0 if pairs <= _FEW * len(start) else 1, np.ones_like(long))
    shares = [effort] if len(free) == 1 else [effort // 4, effort - effort // 4]  # more for the last
    ways: list[tuple[NDArray[np.bool_], Ints, _Board, list[Reals]]] = []
    best = np.full_like(size, _ABOVE)
    for search in (False, True):  # a search only where rankings alone do not reach the goal
        for n, moves in enumerate(free):
            if not search:
                ways.append((moves, *_prepared(start, stop, size, moves)))
            _, offsets, board, preferences = ways[n]
            offsets[moves] = _climb(board, preferences, goal, shares[n] if search else 0)
            if _extent(offsets, size) < _extent(best, size):
                best = offsets.copy()
            if _extent(best, size) <= goal:
                return best
        if not effort:
            break
    return best


def _prepared(start: Ints, stop: Ints, size: Ints, moves: NDArray[np.bool_]) -> tuple[Ints, _Board, list[Reals]]:
    """(offsets with what does not move stacked, the board of what moves, its rankings)."""
    stays = ~moves
    offsets = np.zeros_like(size)
    offsets[stays] = _stack(start[stays], stop[stays], size[stays])
    tops, moments = offsets[stays] + size[stays], int(start[-1]) + 1
    edges = _edges(start[stays], stop[stays], offsets[stays], tops, moments) if stays.any() else []
    board = _Board.make(start[moves], stop[moves], size[moves], edges)
    return offsets, board, _preferences(start[moves], stop[moves], size[moves])


def _extent(offsets: Ints, size: Ints) -> int:
    """The highest end, granules."""
    return int((offsets + size).max(initial=0))


def _climb(board: _Board, preferences: list[Reals], goal: int, effort: int) -> Ints:
    """The best layout by `preferences`, then, while above `goal`, by random changes to the best, kept unless worse."""
    size = np.array(board.size, dtype=np.int64)
    work = sum(1 + len(n) * (1 + len(w) // 8) for n, w in zip(board.neighbours, board.walls, strict=True))  # of a turn
    lot = random.Random(0)
    best, reached = size, _ABOVE
    favourite = preferences[0], np.zeros_like(size)
    for turn in range(len(preferences) + effort // max(1, work)):
        trial = (preferences[turn], np.zeros_like(size)) if turn < len(preferences) else _changed(*favourite, size, lot)
        offsets = np.array(board.rise(*trial), dtype=np.int64)
        if _extent(offsets, size) <= reached:
            best, reached, favourite = offsets, _extent(offsets, size), trial
        if reached <= goal:
            break
    return best


def _changed(preference: Reals, patience: Ints, size: Ints, lot: random.Random) -> tuple[Reals, Ints]:
    """One preference in twenty multiplied or divided by up to eight; one patience now none or some lifetime's size."""
    preference, patience = preference.copy(), patience.copy()
    for _ in range(1 + len(preference) // 20):
        preference[int(lot.random() * len(preference))] *= 8 ** (2 * lot.random() - 1)
    i, j = int(lot.random() * len(size)), int(lot.random() * len(size))
    patience[i] = size[j] if lot.random() < 0.5 else 0
    return preference, patience


def _pairs(start: Ints, stop: Ints) -> int:
    """How many pairs of lifetimes overlap in time; `start` ascends."""
    ended = np.searchsorted(np.sort(stop), start, side="right")  # before each starts
    return int((np.arange(len(start)) - ended).sum())


def _long(start: Ints, stop: Ints) -> NDArray[np.bool_]:
    """Which lifetimes to stack first, so that the rest meet few others each."""
    span, limit = stop - start, _SPAN
    while limit and _pairs(start[span <= limit], stop[span <= limit]) > max(_PAIRS, 40 * len(start)):
        limit //= 2
    return span > limit


def _stack(start: Ints, stop: Ints, size: Ints) -> Ints:
    """Offsets of long lifetimes, in order of start, each into its lowest gap.

    In forward few of them end, so they pile up as they nest and leave the room above in one piece.
    """
    offsets = np.zeros_like(size)
    placed = np.zeros(0, dtype=np.int64)  # by offset
    for i in np.lexsort((size, -stop, start)):
        live = placed[(start[placed] < stop[i]) & (stop[placed] > start[i])]
        ceilings = np.append(offsets[live], _ABOVE)
        floors = np.append(0, np.maximum.accumulate(offsets[live] + size[live]))
        offsets[i] = floors[np.argmax(ceilings - floors >= size[i])]
        placed = np.insert(placed, np.searchsorted(offsets[placed], offsets[i]), i)
    return offsets


def _edges(start: Ints, stop: Ints, low: Ints, high: Ints, moments: int) -> list[tuple[int, ...]]:
    """Ranges taken by fixed lifetimes at each moment, as ascending edges (low, high, low, high, ...).

    Ranges that touch share an edge and sharing cancels it, so starting and stopping are the same exclusive or;
    a nested stack is one range.
    """
    toggles: list[list[int]] = [[] for _ in range(moments + 1)]
    for a, b, *ends in zip(start.tolist(), stop.tolist(), low.tolist(), high.tolist(), strict=True):
        toggles[a] += ends
        toggles[b] += ends
    now: list[int] = []
    edges = []
    for toggle in toggles:
        for edge in toggle:
            k = bisect_left(now, edge)
            if k < len(now) and now[k] == edge:
                del now[k]
            else:
                now.insert(k, edge)
        edges.append(tuple(now))
    return edges


def _preferences(start: Ints, stop: Ints, size: Ints) -> list[Reals]:
    """Four rankings, the largest number first, each by a measure of what is hard to lay later.

    Size; the most bytes live at once during it, then span; span; size x span.  None is best on all networks.
    """
    span = (stop - start).astype(np.float64)
    moments = int(stop.max(initial=0)) + 1
    live = np.cumsum(np.bincount(start, size, moments) - np.bincount(stop, size, moments))
    crowd = np.array([live[a:b].max() for a, b in zip(start, stop, strict=True)])
    return [size.astype(np.float64), crowd * (1 + 1e-9 * span), span, size * span]


@dataclass(slots=True)
class _Board:
    """Movable lifetimes: sizes, whom each overlaps in time, and the ranges (low, high) that fixed ones take from it."""

    size: list[int]
    neighbours: list[list[int]]
    walls: list[list[tuple[int, int]]]

    @classmethod
    def make(cls, start: Ints, stop: Ints, size: Ints, edges: list[tuple[int, ...]]) -> _Board:
        """`start` ascends; `edges` of the fixed lifetimes at each moment, or nothing."""
        neighbours: list[list[int]] = [[] for _ in start]
        walls = []
        ends = stop.tolist()
        live: list[int] = []
        for i, (a, b) in enumerate(zip(start.tolist(), ends, strict=True)):
            live = [j for j in live if ends[j] > a]
            neighbours[i] += live
            for j in live:
                neighbours[j].append(i)
            live.append(i)
            walls.append(
                sorted({p for e in set(edges[a:b]) for p in zip(e[::2], e[1::2], strict=True)}) if edges else []
            )
        return cls(size.tolist(), neighbours, walls)

    def rise(self, preference: Reals, patience: Ints) -> list[int]:
        """Offsets when always the lifetime with the lowest floor, among equals the preferred, is laid on its floor.

        `patience` (granules) lets a lifetime wait as if its floor were higher: some best layouts need that.
        A floor is the lowest offset left to a lifetime: over the tops of laid neighbours, and clear of walls.
        """
        size, walls, neighbours, count = self.size, self.walls, self.neighbours, len(self.size)
        by_rank = np.argsort(-preference, kind="stable")
        ranks = np.argsort(by_rank)
        floors = [self._clear(i, 0) for i in range(count)]
        # One integer (floor, rank) for each: twice as fast to compare as a tuple. `base` has all but the floor.
        base = (patience * count + ranks).tolist()
        keys = [floor * count + base[i] for i, floor in enumerate(floors)]
        heap, owner = sorted(keys), by_rank.tolist()
        while heap:
            key = heappop(heap)
            i = owner[key % count]
            if key != keys[i]:  # its floor has risen, or it is laid
                continue
            keys[i] = -1
            top = floors[i] + size[i]
            for j in neighbours[i]:
                if floors[j] < top and keys[j] >= 0:
                    floors[j] = self._clear(j, top) if walls[j] else top
                    keys[j] = floors[j] * count + base[j]
                    heappush(heap, keys[j])
        return floors

    def _clear(self, i: int, floor: int) -> int:
        """The lowest offset from `floor` up at which i meets no wall."""
        for low, high in self.walls[i]:
            if low - floor >= self.size[i]:
                break
            floor = max(floor, high)
        return floor
