"""The verifier's books over the bytes of a slab: what they hold, and who touched them last."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from vdnn.memory.plan import STREAMS

UNDEFINED = 0  # the content of bytes that hold nothing one could name


class Intervals:
    """Disjoint intervals of bytes, each with a content and the name of a buffer."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.items: list[tuple[int, int, str]] = []  # (stop, content, name)

    def overlapping(self, start: int, stop: int) -> slice:
        """Where the intervals stand that share a byte with [start, stop)."""
        i = bisect_left(self.starts, start)
        if i and self.items[i - 1][0] > start:
            i -= 1
        return slice(i, bisect_left(self.starts, stop, i) if stop > start else i)

    def put(self, start: int, stop: int, *items: tuple[int, int, str]) -> None:
        """Put an interval, or none, in the place of all that overlap [start, stop)."""
        where = self.overlapping(start, stop)
        self.starts[where] = [start] * len(items)
        self.items[where] = items

    def content(self, start: int) -> int:
        """The content that begins at `start`, for as many bytes as its buffer has; UNDEFINED if none does."""
        i = bisect_left(self.starts, start)
        return self.items[i][1] if i < len(self.starts) and self.starts[i] == start else UNDEFINED


class Accesses:
    """The last writer and, for each stream, the last reader of every byte of a slab.

    Segments cover the slab without gaps: one ends where the next begins.
    """

    def __init__(self, stream_of: Sequence[int]) -> None:
        self.stream_of = stream_of
        self.starts = [0]
        self.last = [[-1] * (1 + len(STREAMS))]  # the writer, then the reader on each stream

    def add(self, start: int, stop: int, at: int, clock: Sequence[int], writes: bool) -> int:
        """Enter what step `at` does to [start, stop); return a step that it meets there without following it, or -1.

        `clock` is, for each stream, the last of its steps that has finished when step `at` runs (on its own: `at`).
        """
        i, j = self._cut(start), self._cut(stop)
        for record in self.last[i:j]:
            writer = record[0]
            if writer > clock[self.stream_of[writer]]:
                return writer
            if writes:
                for reader, finished in zip(record[1:], clock, strict=True):
                    if reader > finished:
                        return reader
            else:
                record[1 + self.stream_of[at]] = at
        if writes and start < stop:
            self.starts[i:j] = [start]
            self.last[i:j] = [[at] + [-1] * len(STREAMS)]
        return -1

    def _cut(self, start: int) -> int:
        """The place of the segment that begins at `start`, which is made if there is none."""
        i = bisect_left(self.starts, start)
        if i == len(self.starts) or self.starts[i] != start:
            self.starts.insert(i, start)
            self.last.insert(i, list(self.last[i - 1]))
        return i
