"""Scheduler: from fates to complete decisions, fast: algorithms, starts of prefetches and ends of sources.

Everything here is an estimate on whole ops: no step is made and nothing is laid out.  A search asks it thousands of
times, and asks the passes and the simulator only about the few best answers.

    fates -> the ops that run, reruns included -> who is live when -> the fastest algorithms that have room
          -> one walk through time, which moves every copy within the memory that is left
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from vdnn.memory.cost import Cost, copy_of
from vdnn.memory.decisions import Decisions
from vdnn.memory.place import RESIDENT
from vdnn.memory.rerun import Reruns
from vdnn.memory.walk import SMALL, Use, Walk
from vdnn.memory.ways import Way as Way
from vdnn.memory.ways import ways_of as ways_of
from vdnn.network import Role
from vdnn.tape import Tape, granules

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


class Scheduler:
    """Makes schedules of one tape by one cost model; buffers are those whose fate is worth deciding.

    tiers   {buffer: "disk"} of those that go there if they are offloaded
    """

    def __init__(self, tape: Tape, cost: Cost, tiers: Mapping[str, str] | None = None) -> None:
        self.tape, self.cost, self.tiers = tape, cost, tiers or {}
        self.saved = tuple(dict.fromkeys(tape.buffer_of[t.name] for t in tape.saved))
        features = {tape.buffer_of[t.name]: t.role for t in tape.features}
        self.unsaved = frozenset(b for b, role in features.items() if b not in self.saved and role is not Role.INPUT)
        self.inputs = frozenset(b for b, buffer in tape.buffers.items() if buffer.role is Role.INPUT)
        self.size = {b: buffer.nbytes for b, buffer in tape.buffers.items()}
        moving = {b: buffer.role not in RESIDENT for b, buffer in tape.buffers.items()}
        self.reads = [tuple(b for b in names if moving[b]) for names in tape.reads]
        self.writes = [tuple(b for b in names if moving[b]) for names in tape.writes]
        self.reruns = Reruns(tape)
        self.is_backward = self.reruns.is_backward
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
        return copy_of(self.cost, self.tape.buffers[buffer].payload, kind, self.tiers.get(buffer, ""))

    @cached_property
    def arrival(self) -> float:
        """Seconds until what the first op reads is there."""
        first = [b for b in self.reads[0] if b in self.inputs]
        return sum(self._copy(b, "prefetch") for b in first)

    @cached_property
    def early(self) -> tuple[str, ...]:
        """The small inputs."""
        return tuple(sorted(b for b in self.inputs if self.size[b] <= SMALL and b in self.first))

    @cached_property
    def oracle(self) -> float:
        """Seconds of all ops by their fastest algorithms."""
        return sum(choices[0][0] for choices in self.choices)

    @cached_property
    def makers(self) -> dict[str, tuple[int, ...]]:
        """{buffer: places of the ops that bring it back}."""
        return {b: tuple(self.reruns.makers(b)) for b in (*self.saved, *sorted(self.unsaved)) if b in self.tape.makers}

    # ---- what runs

    def runs(self, ways: Mapping[str, Way]) -> list[int]:
        """Places of the ops that run, in order, with those that bring back what was dropped."""
        dropped = {b for b, way in ways.items() if way is Way.DROP}
        return self.reruns.runs(dropped | {b for b in self.unsaved if b not in ways})

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

    def schedule(self, ways: Mapping[str, Way], limit: int, leaner: Mapping[int, int] | None = None) -> Schedule:
        """The schedule of these ways in `limit` bytes.

        ways     of buffers whose way is to be decided; KEEP unless named, as are all others
        leaner   {op's place on the tape: how many algorithms further than the fastest that has room}
        """
        whole = {b: ways.get(b, Way.KEEP) if b in self.decided else Way.KEEP for b in self.saved}
        runs = self.runs(whole)
        walk = Walk(self, whole, runs, limit, leaner or {})
        walk.go()
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
