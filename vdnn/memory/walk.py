"""Walk: one walk through the ops that run, which knows what is live at each and moves copies within what is left."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from vdnn.memory.ways import MOVED, Way

if TYPE_CHECKING:
    from vdnn.memory.schedule import Scheduler

Use = tuple[int, bool, bool]  # place, whether it makes the buffer, whether it writes it
SMALL = 2048  # bytes: what is no larger stays, is fetched at the start, and waits for nothing at the end


@dataclass(frozen=True)
class _Move:
    """One return of a buffer: it may be fetched from place `after` on, and is read at `use`."""

    buffer: str
    after: int
    use: int


def _lives(uses: list[Use]) -> list[tuple[int, int]]:
    """(first, last place) of every life: from one making to the last use before the next."""
    if not any(is_made for _, is_made, _ in uses[1:]):
        return [(uses[0][0], uses[-1][0])] if uses else []
    lives: list[tuple[int, int]] = []
    begin = last = uses[0][0]
    for p, is_made, _ in uses[1:]:
        if is_made:
            lives.append((begin, last))
            begin = p
        last = p
    return [*lives, (begin, last)]


class Walk:
    """One walk through the ops that run: it knows what is live at each, and moves copies within what is left."""

    def __init__(
        self,
        scheduler: Scheduler,
        ways: Mapping[str, Way],
        runs: Sequence[int],
        limit: int,
        leaner: Mapping[int, int],
    ) -> None:
        self.s, self.ways, self.order, self.limit, self.leaner = scheduler, ways, runs, limit, leaner
        newest = accumulate(runs, max)
        self.is_late = [
            scheduler.is_backward[i] or i < n for i, n in zip(runs, newest, strict=True)
        ]  # backward, or again
        self.moves: list[_Move] = []
        self.spare: list[tuple[str, int, int]] = []  # (buffer, from, to): where it is better there, if there is room
        self.leaves: dict[int, list[tuple[str, bool]]] = {}  # at a place: (buffer, whether it is only read there)
        live = self._live()
        self.room, self.seconds = self._algorithms(live)
        self.overflow = -min(self.room, default=0)
        self.worst = self.room.index(-self.overflow) if self.room else 0
        self.overflow = max(0, self.overflow)
        self.ahead: dict[str, int] = {}
        self.slack: dict[str, int] = {}
        self.waited: dict[str, float] = {}
        self.now = 0.0
        self._take_spare()

    def _live(self) -> list[int]:
        """Bytes live while each op runs, where every copy is at the last moment; workspaces are not among them."""
        s, change = self.s, [0] * (len(self.order) + 1)
        change[0] = s.tape.resident_bytes
        at = [0] * len(s.choices)
        for p, i in enumerate(self.order):
            at[i] = p
        for first, last, size in s.spans:
            change[at[first]] += size
            change[at[last] + 1] -= size
        for b, uses in zip(s.features, s.uses(self.order), strict=True):
            way, size = self.ways.get(b), s.size[b]
            lives = self._moved(b, uses, way is Way.EACH) if way in MOVED else _lives(uses)
            if b in s.results and len(lives) == 1:
                self.spare.append((b, lives[0][1] + 1, len(self.order)))
            elif b in s.inputs and lives[0][0] and s.size[b] > SMALL:
                self.moves.append(_Move(b, 0, lives[0][0]))
            for first, last in lives:
                change[first] += size
                change[last + 1] -= size
        change.pop()
        self.spare += [(b, 0, at[s.first[b]]) for b in s.early]
        return list(accumulate(change))

    def _moved(self, b: str, uses: list[Use], each: bool) -> list[tuple[int, int]]:
        """The lives of an offloaded buffer; notes where it leaves and comes back."""
        back = next((k for k, (p, _, _) in enumerate(uses) if self.is_late[p]), len(uses))
        if back in (0, len(uses)) or uses[back][1]:
            return _lives(uses)
        last, _, is_written = uses[back - 1]
        lives = [(uses[0][0], last)]
        if b not in self.s.inputs:
            self.leaves.setdefault(last, []).append((b, not is_written))
        begin = previous = uses[back][0]
        self.moves.append(_Move(b, last + 1, begin))
        for p, is_made, _ in uses[back + 1 :]:
            if is_made or (each and p > previous + 1):
                lives.append((begin, previous))
                if not is_made:
                    self.moves.append(_Move(b, previous + 1, p))
                begin = p
            previous = p
        return [*lives, (begin, previous)]

    def _algorithms(self, live: list[int]) -> tuple[list[int], list[float]]:
        """(room left at each place, seconds there) with the fastest algorithms for which there is room, or leaner ones
        where that is asked for.
        """
        s, limit = self.s, self.limit
        most: dict[int, int] = {}  # bytes live beside an op that has a choice
        for p, i in enumerate(self.order):
            if i in s.several and live[p] > most.get(i, -1):
                most[i] = live[p]
        seconds, scratch = s.fastest.copy(), s.scratch.copy()
        self.chosen: dict[int, str] = {}
        for i, beside in most.items():
            last = len(s.choices[i]) - 1
            first = next((k for k, c in enumerate(s.choices[i]) if beside + c[1] <= limit), last)
            seconds[i], scratch[i], self.chosen[i] = s.choices[i][min(first + self.leaner.get(i, 0), last)]
        room = [limit - beside - scratch[i] for i, beside in zip(self.order, live, strict=True)]
        return room, [seconds[i] for i in self.order]

    def _take_spare(self) -> None:
        """Fetch small inputs at the start and leave small results to the end: then nothing waits for their copies."""
        for b, start, stop in self.spare:
            size = self.s.size[b]
            has_room = start < stop and min(self.room[start:stop]) >= size
            if has_room:
                self.room[start:stop] = [n - size for n in self.room[start:stop]]
            if b in self.s.inputs:
                self.ahead[b] = stop if has_room else 0
            elif has_room:
                self.slack[b] = stop

    def go(self) -> None:
        """Walk: sources go when they have left or their bytes are needed, prefetches start when it is time."""
        self.moves.sort(key=lambda m: (m.use, m.buffer))
        self.latest = self._latest_starts()
        self.leaving: deque[tuple[str, int, float]] = deque()  # (buffer, its last use, when its copy ends)
        self.held = 0  # bytes of what is leaving
        self.left: dict[str, float] = {}  # when it has
        self.arrives: dict[str, float] = {}
        self.now = self.back_link = self.s.arrival
        self.out_link = 0.0
        self.fetched = 0  # moves that have begun
        base = 0.0  # the time without waits
        for p, i in enumerate(self.order):
            took = self.seconds[p]
            if self.leaving:
                self._let_go(p)
            if self.fetched < len(self.moves):
                self._fetch(p, base + took, self.now + took)
            if self.arrives:
                self._await(self.s.reads[i])
            if p in self.leaves:
                self._send(p, took)
            self.now += took
            base += took
        for buffer, last, _ in self.leaving:
            self.slack[buffer] = len(self.order) - 1 - last

    def _let_go(self, p: int) -> None:
        """Free the sources that have left; if the op would have no room, wait for the oldest of the others."""
        while self.leaving and (self.leaving[0][2] <= self.now or self.held > max(0, self.room[p])):
            buffer, last, end = self.leaving.popleft()
            self._wait(buffer, end)
            self.held -= self.s.size[buffer]
            self.slack[buffer] = p - 1 - last

    def _fetch(self, p: int, base_end: float, end: float) -> None:
        """Start the prefetches, in the order of their use, whose time has come, that can start while the op runs, and
        have room until they are used; what is used now has no choice.
        """
        room, size = self.room, self.s.size
        for k in range(self.fetched, len(self.moves)):
            move = self.moves[k]
            b, use = move.buffer, move.use
            if use > p:
                if self.latest[k] >= base_end or move.after > p or self.back_link > end:
                    break
                if room[p] - self.held < size[b] or min(room[p:use]) < size[b]:
                    break
                room[p:use] = [n - size[b] for n in room[p:use]]
            self.fetched += 1
            self.ahead[b] = min(self.ahead.get(b, use - p), use - p)
            self.back_link = max(self.back_link, self.now, self.left.get(b, 0.0)) + self.s.back[b]
            self.arrives[b] = self.back_link

    def _await(self, buffers: Sequence[str]) -> None:
        """Wait until these are there."""
        for b in buffers:
            if b in self.arrives:
                self._wait(b, self.arrives[b])

    def _wait(self, buffer: str, end: float) -> None:
        if end > self.now:
            self.waited[buffer] = self.waited.get(buffer, 0.0) + end - self.now
            self.now = end

    def _send(self, p: int, took: float) -> None:
        """Start the offloads of what is used here for the last time in forward: beside an op that only reads it."""
        for b, only_reads in self.leaves[p]:
            start = self.now if only_reads else self.now + took
            self.out_link = self.left[b] = max(self.out_link, start) + self.s.out[b]
            self.leaving.append((b, p, self.out_link))
            self.held += self.s.size[b]

    def _latest_starts(self) -> list[float]:
        """For each move the latest start at which no op waits, from the last to come back to the first."""
        starts = list(accumulate(self.seconds, initial=0.0))
        latest = [0.0] * len(self.moves)
        link = starts[-1]
        for k in range(len(self.moves) - 1, -1, -1):
            move = self.moves[k]
            link = min(link, starts[move.use]) - self.s.back[move.buffer]
            latest[k] = link
        return latest
