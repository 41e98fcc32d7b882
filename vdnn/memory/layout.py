"""Offsets for lifetimes in an arena: dynamic storage allocation when every lifetime is known beforehand.

    place -> _lay -> stack    the long lifetimes, one on the other (vdnn.memory.stack)
                  -> rank     the short ones on top, from the lowest floor up, by simple preferences
                  -> search   still above the target: changes to them

each first on a stack in order of start, then, where there are few enough, with long and short together, then on a stack
in order of stop.

In a training step the long lifetimes (made in forward, read in backward) nest, and the many short ones meet few others:
with the long ones stacked the rest is near-linear, while a search for gaps over all pairs is quadratic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.board import Board, Reals
from vdnn.memory.stack import ABOVE, Ints, edges_of, stack, stack_back
from vdnn.tape import GRANULE

Stacking = Callable[[Ints, Ints, Ints], Ints]

EFFORT = 2_000_000  # at most about a second for a few hundred layers
_PAIRS = 400_000  # overlapping pairs listed at most; beyond, long lifetimes stay where they were stacked
_FEW = 8  # pairs a lifetime: laying all freely is then as quick as stacking the long ones first
_TURNS = 8  # fewer turns of a search lead nowhere and are left out
_HOPELESS = 1.1  # times the goal
_MANY = 1000  # lifetimes; for fewer, all rankings take no time
_SPAN = 64  # positions; longer lifetimes are stacked first


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
    long, pairs = _long(start, stop), _pairs(start, stop)
    kinds: list[tuple[NDArray[np.bool_], Stacking]] = [(~long, stack)]  # what moves, and how the rest is stacked
    if long.any():
        kinds.append((~long, stack_back))
    if long.any() and pairs <= _PAIRS:
        # A stack may be in the way, so also without: first where lifetimes meet few others, or else after the first.
        kinds.insert(0 if pairs <= _FEW * len(start) else 1, (np.ones_like(long), stack))
    ways: list[_Way] = []
    for moves, stacking in kinds:
        ways.append(_Way.make(start, stop, size, moves, stacking))
        if ways[-1].rank(goal, is_thorough=effort > 0 or len(start) < _MANY) <= goal:
            return ways[-1].offsets
    _search(ways, goal, effort)
    return min(ways, key=lambda way: way.reached).offsets


def _search(ways: list[_Way], goal: int, effort: int) -> None:
    """Search on in the two most promising ways, with more effort in the last."""
    chosen = sorted(ways, key=lambda way: way.reached)[:2]
    *first, last = (way for way in ways if way in chosen)
    if all(way.search(goal, effort // 4) > goal for way in first):
        last.search(goal, effort - effort // 4 * len(first))


def _extent(offsets: Ints, size: Ints) -> int:
    """The highest end, granules."""
    return int((offsets + size).max(initial=0))


@dataclass(slots=True, eq=False)
class _Way:
    """A way to lay lifetimes: some are stacked and stay, the others are laid around them, ever better.

    board        what is laid around the stack
    preferences  its rankings
    moves        which those are of all
    offsets      of all
    stacked      extent of the stack
    laid         extent of what is laid around it
    favourite    the preference and patience that led to it
    """

    board: Board
    preferences: list[Reals]
    moves: NDArray[np.bool_]
    offsets: Ints
    stacked: int
    laid: int
    favourite: tuple[Reals, Ints]

    @classmethod
    def make(cls, start: Ints, stop: Ints, size: Ints, moves: NDArray[np.bool_], stacking: Stacking) -> _Way:
        """What does not move is laid by `stacking`; the rest is not laid yet."""
        stays = ~moves
        offsets = np.zeros_like(size)
        offsets[stays] = stacking(start[stays], stop[stays], size[stays])
        tops, moments = offsets[stays] + size[stays], int(start[-1]) + 1
        edges = edges_of(start[stays], stop[stays], offsets[stays], tops, moments) if stays.any() else []
        board = Board.make(start[moves], stop[moves], size[moves], edges)
        preferences = _preferences(start[moves], stop[moves], size[moves])
        favourite = preferences[0], np.zeros_like(size[moves])
        return cls(board, preferences, moves, offsets, int(tops.max(initial=0)), ABOVE, favourite)

    @property
    def reached(self) -> int:
        """The extent of the best layout so far."""
        return max(self.stacked, self.laid)

    def rank(self, goal: int, is_thorough: bool) -> int:
        """Lay by the rankings, one after the other down to `goal`; the extent reached.

        is_thorough   go on where the first ends so far above the goal that no other ever reached it
        """
        patience = self.favourite[1]
        for preference in self.preferences:
            self._lay(preference, patience)
            if self.laid <= goal or (not is_thorough and self.laid > _HOPELESS * goal):
                break
        return self.reached

    def search(self, goal: int, effort: int) -> int:
        """Make random changes to the best, kept unless worse, down to `goal`; the extent reached."""
        turn = zip(self.board.neighbours, self.board.walls, strict=True)
        work = sum(1 + len(near) * (1 + len(walls) // 8) for near, walls in turn)
        size, lot = np.array(self.board.size, dtype=np.int64), random.Random(0)
        turns = effort // max(1, work)
        for _ in range(turns if turns >= _TURNS else 0):
            if self.laid <= goal:
                break
            self._lay(*_changed(*self.favourite, size, lot))
        return self.reached

    def _lay(self, preference: Reals, patience: Ints) -> None:
        offsets = np.array(self.board.rise(preference, patience), dtype=np.int64)
        extent = _extent(offsets, np.array(self.board.size, dtype=np.int64))
        if extent <= self.laid:
            self.offsets[self.moves], self.laid, self.favourite = offsets, extent, (preference, patience)


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


def _preferences(start: Ints, stop: Ints, size: Ints) -> list[Reals]:
    """Four rankings, the largest number first, each by a measure of what is hard to lay later.

    Size; the most bytes live at once during it, then span; span; size x span.  None is best on all networks.
    """
    span = (stop - start).astype(np.float64)
    moments = int(stop.max(initial=0)) + 1
    live = np.cumsum(np.bincount(start, size, moments) - np.bincount(stop, size, moments))
    crowd = np.array([live[a:b].max() for a, b in zip(start, stop, strict=True)])
    return [size.astype(np.float64), crowd * (1 + 1e-9 * span), span, size * span]
