"""Scheduler: from fates to complete decisions, fast: algorithms, starts of prefetches and ends of sources.

Everything here is an estimate on whole ops: no step is made and nothing is laid out.  A search asks it thousands of
times, and asks the passes and the simulator only about the few best answers.

    fates -> the ops that run, reruns included -> who is live when -> the fastest algorithms that have room
          -> one walk through time, which moves every copy within the memory that is left
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import accumulate

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import OFFLOAD, Decisions, Fate
from vdnn.memory.passes import makers_of
from vdnn.memory.place import RESIDENT
from vdnn.network import Role
from vdnn.tape import Tape, granules


class Way(StrEnum):
    """What a search chooses of for a buffer: a fate, or an offload that returns for each use by itself."""

    KEEP = "keep"
    OFFLOAD = "offload"
    EACH = "each"
    DROP = "drop"

    @property
    def fate(self) -> Fate:
        """The fate that it stands for."""
        return OFFLOAD if self is Way.EACH else Fate(self.value)

    @property
    def is_moved(self) -> bool:
        """Whether it copies."""
        return self in MOVED


def ways_of(decisions: Decisions) -> dict[str, Way]:
    """The ways that resolved decisions go."""
    ways = {b: Way(fate.value) for b, fate in decisions.fates.items()}
    return {b: Way.EACH if w is Way.OFFLOAD and decisions.comes_back_for_each(b) else w for b, w in ways.items()}


Use = tuple[int, bool, bool]  # place, whether it makes the buffer, whether it writes it
MOVED = (Way.OFFLOAD, Way.EACH)
SMALL = 2048  # bytes: what is no larger stays, is fetched at the start, and waits for nothing at the end
LEAST = 1e-4  # of all saved bytes: what is smaller is not worth a decision


@dataclass(frozen=True)
class Schedule:
    """What becomes of ways within a limit, as the scheduler estimates it.

    ways        of every saved buffer
    seconds     of the step
    overflow    bytes by which an op at the least overruns the limit; 0 if everything has room
    worst       place of that op in `runs`
    runs        places on the tape of the ops, reruns included
    waited      {buffer: seconds for which compute waits for its copies}
    """

    ways: Mapping[str, Way]
    seconds: float
    overflow: int
    worst: int
    runs: tuple[int, ...]
    waited: Mapping[str, float]
    ahead: Mapping[str, int]
    slack: Mapping[str, int]
    algorithms: Mapping[str, str]

    @property
    def rank(self) -> tuple[int, float]:
        """What is better is smaller: first that all has room, then the time."""
        return self.overflow, self.seconds

    @property
    def decisions(self) -> Decisions:
        """The complete decisions, with the first layouts only."""
        fates = {b: way.fate for b, way in self.ways.items()}
        returns = {b: "each" for b, way in self.ways.items() if way is Way.EACH}
        return Decisions(fates, self.algorithms, ahead=self.ahead, slack=self.slack, returns=returns, effort=0)


@dataclass(frozen=True)
class _Move:
    """One return of a buffer: it may be fetched from place `after` on, and is read at `use`."""

    buffer: str
    after: int
    use: int


class Scheduler:
    """Makes schedules of one tape by one cost model; buffers are those whose fate is worth deciding."""

    def __init__(self, tape: Tape, cost: Cost) -> None:
        self.tape, self.cost = tape, cost
        self.saved = tuple(dict.fromkeys(tape.buffer_of[t.name] for t in tape.saved))
        features = {tape.buffer_of[t.name]: t.role for t in tape.features}
        self.unsaved = frozenset(b for b, role in features.items() if b not in self.saved and role is not Role.INPUT)
        self.inputs = frozenset(b for b, buffer in tape.buffers.items() if buffer.role is Role.INPUT)
        self.size = {b: buffer.nbytes for b, buffer in tape.buffers.items()}
        moving = {b: buffer.role not in RESIDENT for b, buffer in tape.buffers.items()}
        self.reads = [tuple(b for b in names if moving[b]) for names in tape.reads]
        self.writes = [tuple(b for b in names if moving[b]) for names in tape.writes]
        self.is_backward = [op.is_backward for op in tape.ops]
        self.choices = [_choices(tape, cost, i) for i in range(len(tape.ops))]
        self.several = frozenset(i for i, choices in enumerate(self.choices) if len(choices) > 1)
        self.fixed = {op.name: choices[0][2] for op, choices in zip(tape.ops, self.choices, strict=True)}
        self.fastest = [choices[0][0] for choices in self.choices]
        self.scratch = [choices[0][1] for choices in self.choices]
        copied = sorted({*self.saved, *self.inputs})
        self.out = {b: self._copy(b, "offload") for b in copied}
        self.back = {b: self._copy(b, "prefetch") for b in copied}
        results = {tape.buffer_of[name] for name in tape.results}
        self.results = frozenset(b for b in results if self.size[b] <= SMALL)
        least = LEAST * sum(self.size[b] for b in self.saved)
        self.movable = tuple(b for b in self.saved if self.size[b] > max(SMALL, least))
        self.features = (*self.saved, *sorted(self.unsaved))
        number = {b: n for n, b in enumerate(self.features)}
        self.touched = [self._touched(i, number) for i in range(len(tape.ops))]
        self.spans = self._spans()

    def _touched(self, i: int, number: Mapping[str, int]) -> list[tuple[int, bool, bool]]:
        """(number of a feature, whether the op makes it, whether it writes it) for all that an op touches."""
        reads, writes = self.reads[i], self.writes[i]
        read = [(number[b], False, b in writes) for b in reads if b in number]
        return read + [(number[b], True, True) for b in writes if b in number and b not in reads]

    def _spans(self) -> list[tuple[int, int, int]]:
        """(first op, last op, bytes) of every other buffer that moves: nothing runs again for its sake."""
        span: dict[str, list[int]] = {}
        for i in range(len(self.reads)):
            for b in (*self.reads[i], *self.writes[i]):
                span.setdefault(b, [i, i])[1] = i
        self.first = {b: first for b, (first, _) in span.items()}
        return [(first, last, self.size[b]) for b, (first, last) in span.items() if b not in self.features]

    def _copy(self, buffer: str, kind: str) -> float:
        return self.cost.copy_seconds(self.tape.buffers[buffer].payload, kind)

    @cached_property
    def arrival(self) -> float:
        """Seconds until what the first op reads is there."""
        first = [b for b in self.reads[0] if b in self.inputs]
        return sum(self._copy(b, "prefetch") for b in first)

    @cached_property
    def early(self) -> tuple[str, ...]:
        """The small inputs."""
        return tuple(sorted(b for b in self.inputs if self.size[b] <= SMALL))

    @cached_property
    def oracle(self) -> float:
        """Seconds of all ops by their fastest algorithms."""
        return sum(choices[0][0] for choices in self.choices)

    @cached_property
    def makers(self) -> dict[str, tuple[int, ...]]:
        """{buffer: places of the ops that bring it back}."""
        return {
            b: tuple(makers_of(b, self.tape)) for b in (*self.saved, *sorted(self.unsaved)) if b in self.tape.makers
        }

    # ---- what runs

    def runs(self, ways: Mapping[str, Way]) -> list[int]:
        """Places of the ops that run, in order, with those that bring back what was dropped."""
        absent = {b for b, way in ways.items() if way is Way.DROP}
        absent.update(b for b in self.unsaved if b not in ways)
        runs: list[int] = []
        for i, reads in enumerate(self.reads):
            if self.is_backward[i]:
                for b in reads:
                    if b in absent:
                        self._bring_back(b, absent, runs)
            runs.append(i)
        return runs

    def _bring_back(self, buffer: str, absent: set[str], runs: list[int]) -> None:
        """Append the ops that make `buffer` and all that they need (see vdnn.memory.rerun)."""
        pending = [(buffer, False)]
        writers, makers = self.tape.makers, self.makers
        while pending:
            wanted, inputs_done = pending.pop()
            if wanted not in absent:
                continue
            ops = makers[wanted]
            made = {b for j in ops for b in self.writes[j]}
            if inputs_done:
                runs += ops
                partly = {b for b in made if len(writers[b]) > 1 and not set(writers[b]) <= set(ops)}
                absent -= made - partly
                absent |= partly
                continue
            pending.append((wanted, True))
            needed = (b for j in ops for b in self.reads[j] if b in absent and b not in made)
            pending += [(b, False) for b in dict.fromkeys(needed)]

    def rerun_seconds(self, buffer: str, ways: Mapping[str, Way]) -> float:
        """Seconds to make `buffer` again when its turn comes, and whatever is absent of what that needs."""
        seconds, pending, seen = 0.0, [buffer], {buffer}
        while pending:
            for j in self.makers[pending.pop()]:
                seconds += self.choices[j][0][0]
                for b in self.reads[j]:
                    if b not in seen and b in self.makers and ways.get(b, self.default(b)) is Way.DROP:
                        seen.add(b)
                        pending.append(b)
        return seconds

    def default(self, buffer: str) -> Way:
        """The fate of a buffer that is not named."""
        return Way.DROP if buffer in self.unsaved else Way.KEEP

    # ---- who is live

    def crossing(self, found: Schedule) -> list[tuple[str, bool]]:
        """(buffer that is live at the worst place of a schedule without being used there, whether it was used in
        backward before): of those whose way is to be decided, in order of the tape.
        """
        runs, place = found.runs, found.worst
        used = {*self.reads[runs[place]], *self.writes[runs[place]]}
        newest = list(accumulate(runs, max))
        crossing = []
        for b, uses in zip(self.saved, self.uses(runs), strict=False):
            if b in used or not uses[0][0] < place < uses[-1][0]:
                continue
            before = max(p for p, _, _ in uses if p < place)
            after, is_made = next((p, made) for p, made, _ in uses if p > place)
            was_late, is_late = (self.is_backward[runs[p]] or runs[p] < newest[p] for p in (before, after))
            way = found.ways[b]
            is_away = (way.is_moved and is_late and not was_late) or (way is Way.EACH and was_late)
            if not (is_made or is_away) and b in self.decided:
                crossing.append((b, was_late))
        return crossing

    @cached_property
    def decided(self) -> frozenset[str]:
        """The buffers whose way is to be decided."""
        return frozenset(self.movable)

    def uses(self, runs: Sequence[int]) -> list[list[Use]]:
        """For every feature, in that order, where it is used."""
        uses: list[list[Use]] = [[] for _ in self.features]
        for p, i in enumerate(runs):
            for n, is_made, is_written in self.touched[i]:
                uses[n].append((p, is_made, is_written))
        return uses

    def schedule(self, ways: Mapping[str, Way], limit: int, lead: float = 0.0) -> Schedule:
        """The schedule of these ways in `limit` bytes.

        ways   of buffers whose way is to be decided; KEEP unless named, as are all others
        lead   seconds by which prefetches start earlier than they must
        """
        whole = {b: ways.get(b, Way.KEEP) if b in self.decided else Way.KEEP for b in self.saved}
        runs = self.runs(whole)
        walk = _Walk(self, whole, runs, limit)
        walk.go(lead)
        names = self.tape.ops
        algorithms = {**self.fixed, **{names[i].name: name for i, name in walk.chosen.items()}}
        found = whole, walk.now, walk.overflow, walk.worst, tuple(runs), walk.waited
        return Schedule(*found, walk.ahead, walk.slack, algorithms)


def _choices(tape: Tape, cost: Cost, i: int) -> list[tuple[float, int, str]]:
    """(seconds, bytes of workspace, name) of an op's algorithms, the fastest first, each with less workspace."""
    op = tape.ops[i]
    found = sorted((cost.op_seconds(tape, op, a.name), granules(a.workspace), a.name) for a in op.algorithms)
    best: list[tuple[float, int, str]] = []
    for choice in found:
        if not best or choice[1] < best[-1][1]:
            best.append(choice)
    return best


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


class _Walk:
    """One walk through the ops that run: it knows what is live at each, and moves copies within what is left."""

    def __init__(self, scheduler: Scheduler, ways: Mapping[str, Way], runs: Sequence[int], limit: int) -> None:
        self.s, self.ways, self.order, self.limit = scheduler, ways, runs, limit
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
        """(room left at each place, seconds there) with the fastest algorithms for which there is room."""
        s, limit = self.s, self.limit
        most: dict[int, int] = {}  # bytes live beside an op that has a choice
        for p, i in enumerate(self.order):
            if i in s.several and live[p] > most.get(i, -1):
                most[i] = live[p]
        seconds, scratch = s.fastest.copy(), s.scratch.copy()
        self.chosen: dict[int, str] = {}
        for i, beside in most.items():
            fitting = next((c for c in s.choices[i] if beside + c[1] <= limit), s.choices[i][-1])
            seconds[i], scratch[i], self.chosen[i] = fitting
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

    def go(self, lead: float) -> None:
        """Walk: sources go when they have left or their bytes are needed, prefetches start when it is time."""
        s, room, runs = self.s, self.room, self.order
        self.moves.sort(key=lambda m: (m.use, m.buffer))
        latest = self._latest_starts(lead)
        leaving: deque[tuple[str, int, float]] = deque()  # (buffer, its last use, when its copy ends)
        left: dict[str, float] = {}
        arrives: dict[str, float] = {}
        now = back_link = s.arrival
        out_link = base = 0.0
        held = next_move = 0
        moves, count = self.moves, len(self.moves)
        for p, i in enumerate(runs):
            while leaving and (leaving[0][2] <= now or held > max(0, room[p])):
                b, last, end = leaving.popleft()
                if end > now:
                    self.waited[b] = self.waited.get(b, 0.0) + end - now
                    now = end
                held -= s.size[b]
                self.slack[b] = p - 1 - last
            took = self.seconds[p]
            # ---- prefetches, in the order of their use
            while next_move < count:
                move = moves[next_move]
                b, use = move.buffer, move.use
                if use > p:
                    if latest[next_move] >= base + took or move.after > p or back_link > now + took:
                        break
                    if room[p] - held < s.size[b] or min(room[p:use]) < s.size[b]:
                        break
                next_move += 1
                self.ahead[b] = min(self.ahead.get(b, use - p), use - p)
                back_link = max(back_link, now, left.get(b, 0.0)) + s.back[b]
                arrives[b] = back_link
                if use > p:
                    size = s.size[b]
                    room[p:use] = [n - size for n in room[p:use]]
            for b in s.reads[i]:
                if arrives and b in arrives and arrives[b] > now:
                    self.waited[b] = self.waited.get(b, 0.0) + arrives[b] - now
                    now = arrives[b]
            for b, only_reads in self.leaves.get(p, ()):
                start = now if only_reads else now + took
                out_link = left[b] = max(out_link, start) + s.out[b]
                leaving.append((b, p, out_link))
                held += s.size[b]
            now += took
            base += took
        for b, last, _ in leaving:
            self.slack[b] = len(runs) - 1 - last
        self.now = now

    def _latest_starts(self, lead: float) -> list[float]:
        """For each move the latest start at which no op waits, from the last to come back to the first."""
        starts = list(accumulate(self.seconds, initial=0.0))
        latest = [0.0] * len(self.moves)
        link = starts[-1]
        for k in range(len(self.moves) - 1, -1, -1):
            move = self.moves[k]
            link = min(link, starts[move.use]) - self.s.back[move.buffer]
            latest[k] = link - lead
        return latest
