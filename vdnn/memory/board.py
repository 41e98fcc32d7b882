"""Board: movable lifetimes laid one after the other, each on the lowest floor that is left to it.

Offsets and sizes are in granules, times are ranks of moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.stack import Ints

Reals = NDArray[np.float64]


@dataclass(slots=True)
class Board:
    """Movable lifetimes: sizes, whom each overlaps in time, and the ranges (low, high) that fixed ones take from it."""

    size: list[int]
    neighbours: list[list[int]]
    walls: list[list[tuple[int, int]]]

    @classmethod
    def make(cls, start: Ints, stop: Ints, size: Ints, edges: list[tuple[int, ...]]) -> Board:
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
