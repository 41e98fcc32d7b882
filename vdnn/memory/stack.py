"""Stacks: long lifetimes one on the other, and the ranges that they leave to others at each moment.

Offsets and sizes are in granules, times are ranks of moments.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ABOVE = 1 << 60  # granules: above everything


def stack(start: Ints, stop: Ints, size: Ints) -> Ints:
    """Offsets of lifetimes, in order of start, each into its lowest gap.

    In forward few of them end, so they pile up as they nest and leave the room above in one piece.  The time is that
    of sorting, and of looking at gaps, which are few where lifetimes nest.
    """
    offsets = [0] * len(size)
    lows, highs = [0], [ABOVE]  # the gaps, which never touch
    ending: list[tuple[int, int, int]] = []  # (stop, low, high) of what is live
    starts, stops, sizes = start.tolist(), stop.tolist(), size.tolist()
    for i in np.lexsort((size, -stop, start)).tolist():
        while ending and ending[0][0] <= starts[i]:
            _, low, high = heappop(ending)
            _widen(lows, highs, low, high)
        k = next(k for k, low in enumerate(lows) if highs[k] - low >= sizes[i])
        offsets[i], lows[k] = lows[k], lows[k] + sizes[i]
        heappush(ending, (stops[i], offsets[i], lows[k]))
        if lows[k] == highs[k]:
            del lows[k], highs[k]
    return np.array(offsets, dtype=np.int64)


def stack_back(start: Ints, stop: Ints, size: Ints) -> Ints:
    """The same from the end of the step to its beginning: what ends last lies at the bottom.

    So what begins after the others and outlives them is not in the way of those that come when they have gone.
    """
    return stack(-stop, -start, size)


def _widen(lows: list[int], highs: list[int], low: int, high: int) -> None:
    """Give [low, high) back to the gaps, joined with those that it touches."""
    k = bisect_left(lows, low)
    if k < len(lows) and lows[k] == high:
        high = highs[k]
        del lows[k], highs[k]
    if k and highs[k - 1] == low:
        highs[k - 1] = high
    else:
        lows.insert(k, low)
        highs.insert(k, high)


def edges_of(start: Ints, stop: Ints, low: Ints, high: Ints, moments: int) -> list[tuple[int, ...]]:
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
