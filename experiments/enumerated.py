"""The fastest plan of a small tape in a budget, by enumeration: every fate of every saved buffer, with many timings.

The family that is enumerated
    ways        of every saved buffer but the smallest: keep, offload, offload and return for each use, drop
    ahead       of every offloaded one, from AHEAD
    slack       of every one that is copied out, from SLACK; both lists are shorter where more is moved, see `ranges`
    algorithms  of each op the fastest for which there is room at all places where it runs; or the least workspace

A member is left out only if it cannot win: by a bound of its seconds, for which its compute steps wait for nothing but
what every layout makes them wait for, and by its peak.  All others are laid out and simulated as `make_plan` has them,
the most promising first, until the bound of what remains is above what was found.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions, Fate, resolve
from vdnn.memory.order import order
from vdnn.memory.passes import make_plan
from vdnn.memory.place import place
from vdnn.memory.plan import Plan, workspace_of
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import least_workspace, sketch
from vdnn.network import Role
from vdnn.tape import Tape, granules

AHEAD, SLACK = (0, 1, 2, 3, 5, 8), (0, 1, 2, 4, 8)
MEMBERS = 1024  # of one assignment at most: beyond, the lists of timings are thinned
NEGLECTED = 0.02  # of the largest saved buffer: what is smaller is kept
WAYS = ("keep", "offload", "each", "drop")

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Optimum:
    """What enumeration found.

    seconds    of the fastest member that was laid out, simulated; inf if none below `threshold` fits
    plan       of it
    members    timings that were bounded
    laid_out   of these
    is_whole   whether every member that could be faster was laid out
    """

    seconds: float
    plan: Plan | None
    members: int
    laid_out: int
    is_whole: bool


@dataclass(frozen=True, order=True)
class _Member:
    """One plan of the family, and a bound of its seconds."""

    bound: float
    untidy: int  # of equal bounds, more slack and less ahead first: then layouts make less wait
    serial: int
    family: _Family = field(compare=False)
    pairs: tuple[int, ...] = field(compare=False)
    algorithms: tuple[int, ...] = field(compare=False)


def optimum(tape: Tape, budget: int, cost: Cost, threshold: float = inf, most: int = 400) -> Optimum:
    """The fastest of the family whose arena is within `budget`, if there is one below `threshold` seconds.

    most   plans that are laid out at most
    """
    members: list[_Member] = []
    bounded = 0
    for ways in assignments(tape, cost, threshold):
        family = _Family(tape, budget, cost, ways)
        if family.is_other:
            found, count = family.members(threshold, most)
            members += found
            bounded += count
    best, plan, laid = threshold, None, 0
    for member in sorted(members):
        if member.bound >= best or laid >= most:
            return Optimum(best if plan else inf, plan, bounded, laid, member.bound >= best)
        laid += 1
        made = _laid_out(tape, budget, member.family.decisions(member))
        if made is None:
            continue
        seconds = simulate(made, cost).step_seconds
        if seconds < member.bound * (1 - 1e-9):
            raise AssertionError(f"a bound of {member.bound} s is above the {seconds} s of {made.decisions}")
        if seconds < best:
            best, plan = seconds, made
    return Optimum(best if plan else inf, plan, bounded, laid, True)


def _laid_out(tape: Tape, budget: int, decisions: Decisions) -> Plan | None:
    """The plan, if its arena is within the budget: of the quick layout, or else of the one with most effort."""
    given = sketch(tape, decisions)
    if given.peak_bytes > budget:
        raise AssertionError(f"a peak of {given.peak_bytes} bytes in a budget of {budget}: it was estimated lower")
    quick = place(given, 0)
    if quick.arena_bytes <= budget:
        return replace(quick, steps=tuple(order(quick)))
    slow = make_plan(tape, decisions)
    return slow if slow.arena_bytes <= budget else None


# ---- what is assigned


def movable(tape: Tape) -> tuple[str, ...]:
    """The saved buffers that are enumerated: all but labels and the smallest."""
    saved = dict.fromkeys(tape.buffer_of[t.name] for t in tape.saved)
    largest = max((tape.buffers[b].nbytes for b in saved), default=0)
    return tuple(b for b in saved if tape.buffers[b].nbytes > NEGLECTED * largest and b != "labels")


def assignments(tape: Tape, cost: Cost, threshold: float) -> Iterator[Mapping[str, str]]:
    """{buffer: way} of all assignments whose ops alone, or whose copies alone, take less than `threshold`."""
    names = movable(tape)
    seconds = {op.name: min(cost.op_seconds(tape, op, a.name) for a in op.algorithms) for op in tape.ops}
    uses = {b: [i for i in range(tape.turn, len(tape.ops)) if b in tape.reads[i]] for b in names}
    options = []
    for b in names:
        can_drop = tape.buffers[b].role is not Role.INPUT
        options.append([w for w in WAYS if can_drop or w != "drop"])
    computes: dict[tuple[str, ...], float] = {}
    for chosen in itertools.product(*options):
        ways = dict(zip(names, chosen, strict=True))
        dropped = tuple(b for b, way in ways.items() if way == "drop")
        if not dropped and any(way == "each" and len(uses[b]) < 2 for b, way in ways.items()):
            continue  # it returns once
        if dropped not in computes:
            fates = resolve(dict.fromkeys(dropped, Fate.DROP), tape, {})
            computes[dropped] = sum(seconds[step.name] for _, step, _ in sketch(tape, fates).computes())
        moved = [tape.buffers[b].payload for b, way in ways.items() if way in ("offload", "each")]
        link = sum(cost.copy_seconds(n, "prefetch") for n in moved)
        if max(computes[dropped], link) < threshold:
            yield ways


def ranges(tape: Tape, ways: Mapping[str, str]) -> list[list[tuple[int, int]]]:
    """For each offloaded buffer its pairs (ahead, slack); the lists are thinned until MEMBERS are not exceeded."""
    moved = [b for b, way in ways.items() if way in ("offload", "each")]
    ahead, slack = list(AHEAD), list(SLACK)
    while True:
        found = []
        for b in moved:
            only_back = tape.buffers[b].role is Role.INPUT  # not copied out, so there is nothing to wait for
            found.append([(a, s) for a in ahead for s in (slack[:1] if only_back else slack)])
        if np.prod([len(pairs) for pairs in found], dtype=float) <= MEMBERS or len(ahead) + len(slack) <= 2:
            return found
        longest = ahead if len(ahead) >= len(slack) else slack
        del longest[-2 if len(longest) > 2 else -1]


# ---- the family of one assignment


@dataclass(frozen=True)
class _Return:
    """A prefetch: `start` where every copy is at the last moment, not before `after` + 1, for the op at `use`.

    moved   the buffer's place among those that are moved; -1: it starts where it does
    """

    buffer: str
    start: int
    after: int
    use: int
    moved: int


class _Family:
    """All timings of one assignment, as arrays over its members."""

    def __init__(self, tape: Tape, budget: int, cost: Cost, ways: Mapping[str, str]) -> None:
        self.tape, self.budget, self.cost, self.ways = tape, budget, cost, ways
        self.moved = [b for b, way in ways.items() if way in ("offload", "each")]
        self.pairs = ranges(tape, ways)
        plan = sketch(tape, resolve(replace(self._decisions(), ahead=dict.fromkeys(self.moved, 0)), tape, {}))
        self.size = {b: buffer.nbytes for b, buffer in tape.buffers.items()}
        self.steps = [i for i, _, _ in plan.computes()]
        self.runs = [tape.index[plan.steps[i].name] for i in self.steps]
        self.live = np.array([plan.live_bytes[i] - plan.size(workspace_of(plan.steps[i].name)) for i in self.steps])
        self.uses: dict[str, list[int]] = {}
        for p, k in enumerate(self.runs):
            for b in dict.fromkeys((*tape.reads[k], *tape.writes[k])):
                self.uses.setdefault(b, []).append(p)
        self.returns = self._returns(plan)
        self.leaves = self._leaves(plan)
        self.choices = [sorted(self._choice(k, a) for a in range(len(tape.ops[k].algorithms))) for k in self.runs]
        returned = [r.buffer for r in self.returns]
        self.is_other = all(returned.count(b) > 1 + self._is_input(b) for b, way in ways.items() if way == "each")

    def _is_input(self, buffer: str) -> bool:
        return self.tape.buffers[buffer].role is Role.INPUT

    def _choice(self, k: int, a: int) -> tuple[float, int, int]:
        """(seconds, bytes of workspace, place) of an algorithm."""
        op = self.tape.ops[k]
        algorithm = op.algorithms[a]
        return self.cost.op_seconds(self.tape, op, algorithm.name), granules(algorithm.workspace), a

    def _decisions(self) -> Decisions:
        fates = {b: Fate("offload" if way == "each" else way) for b, way in self.ways.items()}
        each = {b: "each" for b, way in self.ways.items() if way == "each"}
        return Decisions(fates, least_workspace(self.tape, self.cost), returns=each)

    def decisions(self, member: _Member) -> Decisions:
        """Resolved decisions of a member."""
        timing = {b: self.pairs[n][pair] for n, (b, pair) in enumerate(zip(self.moved, member.pairs, strict=True))}
        names = {}
        for k, a in zip(self.runs, member.algorithms, strict=True):
            names[self.tape.ops[k].name] = self.tape.ops[k].algorithms[a].name
        ahead, slack = ({b: pair[n] for b, pair in timing.items()} for n in (0, 1))
        return resolve(replace(self._decisions(), algorithms=names, ahead=ahead, slack=slack), self.tape, {})

    def _returns(self, plan: Plan) -> list[_Return]:
        """In the order in which they are issued if they start at one place."""
        found = []
        for i, step in enumerate(plan.steps):
            if step.kind == "prefetch":
                start = bisect_left(self.steps, i)
                uses = self.uses[step.name]
                after = max((p for p in uses if p < start), default=-1)
                moved = self.moved.index(step.name) if step.name in self.moved else -1
                found.append(_Return(step.name, start, after, min(p for p in uses if p >= start), moved))
        first = {b: n for n, b in enumerate(self.uses)}
        return sorted(found, key=lambda r: (r.use, first[r.buffer]))

    def _leaves(self, plan: Plan) -> list[tuple[int, str, int]]:
        """(place of the last forward use, buffer, place of its last writer), in the order of the copies."""
        found = []
        for step in plan.steps:
            if step.kind == "offload" and step.name in self.moved:
                uses = [p for p in self.uses[step.name] if p < self.tape.turn]
                writer = max(p for p in uses if step.name in self.tape.writes[self.runs[p]])
                found.append((uses[-1], step.name, writer))
        return found

    # ---- its members

    def members(self, threshold: float, most: int) -> tuple[list[_Member], int]:
        """(those with the smallest bounds, at most `most`, all below `threshold`; how many have room)."""
        shape = [len(pairs) for pairs in self.pairs]
        picks = np.indices(shape).reshape(len(shape), -1) if shape else np.zeros((0, 1), int)
        found: list[_Member] = []
        count = 0
        for is_lean in (False, True):
            if is_lean and not any(len(choices) > 1 for choices in self.choices):
                break
            bounds, untidy, algorithms, kept = self._bounds(picks, is_lean)
            count += len(bounds)
            order = np.lexsort((untidy, bounds))[:most]
            for n in order[: np.searchsorted(bounds[order], threshold)]:
                pairs = tuple(map(int, picks[:, kept[n]]))
                chosen = tuple(map(int, algorithms[n]))
                found.append(_Member(float(bounds[n]), int(untidy[n]), len(found), self, pairs, chosen))
        return found, count

    def _bounds(self, picks: Counts, is_lean: bool) -> tuple[Reals, Counts, Counts, Counts]:
        """(bounds, untidiness, algorithms by place, index) of those members that have room."""
        pairs = [np.array(self.pairs[n])[picks[n]] for n in range(len(self.pairs))]  # (member, 2)
        starts = [
            np.maximum(r.after + 1, r.use - pairs[r.moved][:, 0]) if r.moved >= 0 else np.full(picks.shape[1], r.start)
            for r in self.returns
        ]
        back, source = self._extended(pairs, starts, picks.shape[1])
        live = back + source
        seconds, scratch, chosen = self._algorithms(self.budget - live, is_lean)
        kept = np.flatnonzero((live + scratch <= self.budget).all(axis=1))
        took = np.zeros(len(kept), int)
        for pair in pairs:
            took += pair[kept, 0] - pair[kept, 1]
        room = self.budget - (back + scratch)[kept]
        bounds = self._walk(seconds[kept], room, scratch[kept], [start[kept] for start in starts])
        return bounds, took, chosen[kept], kept

    def _extended(self, pairs: list[Counts], starts: list[Counts], count: int) -> tuple[Counts, Counts]:
        """(bytes live at each place, sources that leave later left out; the bytes of these), (member, place)."""
        places = np.arange(len(self.runs))
        back = np.tile(self.live, (count, 1))
        source = np.zeros_like(back)
        for r, start in zip(self.returns, starts, strict=True):
            if r.moved >= 0:
                back += self.size[r.buffer] * ((start[:, None] <= places) & (places < r.use))
        for leave, b, _ in self.leaves:
            n = self.moved.index(b)
            again = min((r for r in zip(self.returns, starts, strict=True) if r[0].buffer == b), key=lambda r: r[0].use)
            stop = np.minimum(leave + 1 + pairs[n][:, 1], again[1])
            source += self.size[b] * ((places > leave) & (places < stop[:, None]))
        return back, source

    def _algorithms(self, free: Counts, is_lean: bool) -> tuple[Reals, Counts, Counts]:
        """(seconds, bytes of workspace, algorithm) at each place, (member, place)."""
        places: dict[int, list[int]] = {}
        for p, k in enumerate(self.runs):
            places.setdefault(k, []).append(p)
        seconds, scratch, chosen = np.zeros(free.shape), np.zeros_like(free), np.zeros_like(free)
        for at in places.values():
            least = min(self.choices[at[0]], key=lambda c: (c[1], c[0]))
            room = free[:, at].min(axis=1)
            for p in at:
                seconds[:, p], scratch[:, p], chosen[:, p] = least
                for took, size, a in reversed(() if is_lean else self.choices[p]):
                    fits = size <= room
                    seconds[fits, p], scratch[fits, p], chosen[fits, p] = took, size, a
        return seconds, scratch, chosen

    def _walk(self, seconds: Reals, room: Counts, scratch: Counts, starts: list[Counts]) -> Reals:
        """A bound of each member's step: what every layout within the budget makes it wait for.

        A prefetch waits for the last op before it beside which its bytes have no room, and an op for copies of sources
        beside which what it needs has no room.
        """
        count, places = seconds.shape
        finish = np.zeros((count, places + 1))  # the last column stands for the begin of the step
        rows = np.arange(count)
        gates = []
        for r, start in zip(self.returns, starts, strict=True):
            full = (room < self.size[r.buffer]) & (np.arange(places) < start[:, None])
            gates.append(np.where(full.any(axis=1), places - 1 - full[:, ::-1].argmax(axis=1), -1))
        needed = self._needed()
        now, link, out = np.zeros(count), np.zeros(count), np.zeros(count)
        left: dict[str, Reals] = {}
        arrives = [np.zeros(count)] * len(self.returns)
        for p in range(places):
            for n, r in enumerate(self.returns):
                if r.use < p or not (issued := starts[n] == p).any():
                    continue
                begin = np.maximum(np.maximum(link, left.get(r.buffer, 0.0)), finish[rows, gates[n]])
                link = np.where(issued, begin + self._copy(r.buffer, "prefetch"), link)
                arrives[n] = np.where(issued, link, arrives[n])
            for n, r in enumerate(self.returns):
                if r.use == p:
                    now = np.maximum(now, arrives[n])
            leaving = [(left[b], self.size[b]) for leave, b, _ in self.leaves if leave < p]
            for n, (end, _) in enumerate(leaving):
                flying = sum(size * (later > now) for later, size in leaving[n:])
                now = np.where(needed[p] + scratch[:, p] + flying > self.budget, np.maximum(now, end), now)
            now = now + seconds[:, p]
            finish[:, p] = now
            for leave, b, writer in self.leaves:
                if leave == p:
                    left[b] = out = np.maximum(out, finish[:, writer]) + self._copy(b, "offload")
        return now

    def _copy(self, buffer: str, kind: str) -> float:
        return self.cost.copy_seconds(self.tape.buffers[buffer].payload, kind)

    def _needed(self) -> Counts:
        """Bytes that are surely written, or being written, and still wanted while the op at each place runs."""
        needed = self.live.copy()
        for r in self.returns:
            if r.moved < 0:
                needed[r.start : r.use] -= self.size[r.buffer]
        return needed
