"""The columns of the bound's program: how much of each tensor is held, brought back, or made again, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import inf
from typing import Any

from vdnn.memory.fluid import Moves, Scales
from vdnn.memory.linear import Program, Terms
from vdnn.memory.relaxation import Life, Lives
from vdnn.memory.rerun import makers_of
from vdnn.tape import Tape

PREFERENCE = 1e-3  # scaled seconds: what all copies together cost more, so that of equal solutions one holds more
# Of the places before which a tensor may have been made again, counted back from its own: the program follows these.
# Between them less is known, so the bound is lower, but never wrong.
STAGES = frozenset((0, 1, 2, 4, 8, 16, 32, 64, 128))


class Fates:
    """Columns by buffer, gap and place.

    hold, back, again  {(buffer, gap): how much of it crosses the gap in that way}
    rerun              {forward op: how much of it runs again}
    remade             {(buffer, op): how much of it has been made again before that backward op starts}
    """

    def __init__(self, program: Program, tape: Tape, lives: Lives, movable: Mapping[str, Life], scales: Scales) -> None:
        self.program, self.tape, self.lives, self.movable, self.scales = program, tape, lives, movable, scales
        self.hold: dict[tuple[str, int], int] = {}
        self.back: dict[tuple[str, int], int] = {}
        self.again: dict[tuple[str, int], int] = {}
        self.rerun: dict[int, int] = {}
        self.remade: dict[tuple[str, int], int] = {}
        self._fates()
        self._reruns()
        self.sources = {name: self._sources(name) for name, life in movable.items() if life.makers}
        self.stages = self._stages()
        for name in self.sources:
            self._early(name)
        for name in self.sources:
            self._chain(name)

    def _fates(self) -> None:
        """For each gap of each life: held, brought back, or made again; these add up to 1, where backward reads it."""
        column = self.program.column
        total = sum(life.nbytes * len(life.gaps) for life in self.movable.values())
        self.preferred = PREFERENCE if total else 0.0  # the most that this adds to the optimum
        for name, life in self.movable.items():
            for k in range(len(life.gaps)):
                hold = self.hold[name, k] = column(most=1)
                back = self.back[name, k] = column(cost=PREFERENCE * life.nbytes / total, most=1)
                terms = [(hold, 1.0), (back, 1.0)]
                if life.makers and life.is_saved:
                    self.again[name, k] = column(most=1)
                    terms.append((self.again[name, k], 1.0))
                if life.is_saved:
                    self.program.equal(terms, 1.0)
                if k:  # only what has left at first can come back once more
                    self.program.at_most([(back, 1.0), (self.back[name, 0], -1.0)])

    # ---- what has to run again

    def _reruns(self) -> None:
        """What is made again needs its makers, and those need what they read."""
        pending: list[int] = []

        def column(j: int) -> int:
            if j not in self.rerun:
                self.rerun[j] = self.program.column(most=1)
                pending.append(j)
            return self.rerun[j]

        for (name, _), again in self.again.items():
            for j in self.movable[name].makers:
                self.program.at_most([(again, 1.0), (column(j), -1.0)])
        while pending:
            j = pending.pop()
            for name in self.tape.reads[j]:
                makers = [m for m in self.tape.makers.get(name, ()) if m < j]
                for terms in self._present(name, j, [(column(m), -1.0) for m in makers if self._matters(name, j)]):
                    self.program.at_most([(self.rerun[j], 1.0), *terms])

    def _matters(self, name: str, j: int) -> bool:
        """Whether op `j`, run again, may find its input `name` gone."""
        return name in self.tape.writes[j] or name in self.movable

    def _present(self, name: str, j: int, makers: Terms) -> list[Terms]:
        """Each with how much of op `j` runs again is at most 0: what it reads is there, or every maker of it ran."""
        if name in self.tape.writes[j]:  # changed in place: only what made it can bring back what it was
            return [[maker] for maker in makers]
        if name not in self.movable:
            return []
        there = [(self.hold[name, 0], -1.0), (self.back[name, 0], -1.0)]
        return [[*there, maker] for maker in makers] if self.movable[name].makers else [there]

    # ---- what was made again early, because a rerun reads it

    def _sources(self, name: str) -> list[str]:
        """What must be there so that `name` can be made again, as far as the program can be sure when it is."""
        ops = makers_of(name, self.tape)
        made = {b for j in ops for b in self.tape.writes[j]}
        found = dict.fromkeys(b for j in ops for b in self.tape.reads[j] if b not in made and b in self.movable)
        return [b for b in found if not self.movable[b].is_saved or self._is_simple(b)]

    def _is_simple(self, name: str) -> bool:
        """Whether what is there for a rerun surely stays, or goes to the host, until backward reads it first: nothing
        else that its makers write may make them run once more.
        """
        life = self.movable[name]
        if not life.makers:
            return True
        ops = set(makers_of(name, self.tape))
        others = {b for j in ops for b in self.tape.writes[j]} - {name}
        wanted = (self.lives.wanted.get(b, (inf, inf))[0] for b in others)
        return all(set(self.tape.makers[b]) <= ops for b in others) and all(w > life.gaps[0].before for w in wanted)

    def _stages(self) -> dict[str, list[int]]:
        """{buffer: backward ops before which it may have been made again for a rerun}."""
        places: dict[str, set[int]] = {name: set() for name in self.sources}
        stages: dict[str, list[int]] = {}
        for name in sorted(self.sources, key=lambda name: -self.movable[name].makers[-1]):
            life = self.movable[name]
            last = life.gaps[0].before if life.is_saved else inf
            mine = sorted((x for x in places[name] if x < last), reverse=True)
            stages[name] = sorted(x for n, x in enumerate(mine) if n in STAGES)
            for source in self.sources[name]:  # made before `name`, so it comes later in this loop
                if source in places:
                    places[source].update(stages[name], [life.gaps[0].before] if life.is_saved else [])
        stages |= {name: [] for name in self.movable if name not in stages}
        return stages

    def _early(self, name: str) -> None:
        """Columns and rows of what has been made again early: it only grows, up to what is ever made again."""
        stages = self.stages[name]
        for x in stages:
            self.remade[name, x] = self.program.column(most=1)
        columns = [self.remade[name, x] for x in stages]
        columns += [self.again[name, 0]] if self.movable[name].is_saved else []
        for one, other in pairwise(columns):
            self.program.at_most([(one, 1.0), (other, -1.0)])

    def _chain(self, name: str) -> None:
        """Rows: what has been made again before an op was made of what was there before that op."""
        life = self.movable[name]
        wanted = [(x, self.remade[name, x]) for x in self.stages[name]]
        if life.is_saved:
            wanted.append((life.gaps[0].before, self.again[name, 0]))
        for source in self.sources[name]:
            for x, column in wanted:
                if not self.movable[source].is_saved or x < self.movable[source].gaps[0].before:
                    self.program.at_most([(column, 1.0), *self._there(source, x)])

    def _there(self, name: str, x: int) -> Terms:
        """Terms, negative, for how much of a buffer may have been there before op `x`."""
        terms = [(self.hold[name, 0], -1.0), (self.back[name, 0], -1.0)]
        stage = next((s for s in self.stages[name] if s >= x), None)
        early = self.again.get((name, 0)) if stage is None else self.remade[name, stage]
        return terms if early is None else [*terms, (early, -1.0)]

    # ---- what all this asks of link and memory

    def moves(self, seconds: Mapping[int, float]) -> Moves:
        """The bytes to copy and to hold, and the compute of the reruns; `seconds` of those ops, at least."""
        moves = Moves()
        for name, life in self.movable.items():
            self._copies(moves, name, life)
            for k, gap in enumerate(life.gaps):
                moves.held.append((gap.after, gap.before, (self.hold[name, k], life.nbytes * self.scales.byte)))
            if life.is_saved:
                for x, until in pairwise([*self.stages[name], life.gaps[0].before]):
                    moves.held.append((x - 1, until, (self.remade[name, x], life.nbytes * self.scales.byte)))
        for j, column in self.rerun.items():
            moves.reruns.append((self.lives.latest[j], column, seconds[j] * self.scales.second))
        return moves

    def _copies(self, moves: Moves, name: str, life: Life) -> None:
        payload = life.payload * self.scales.byte
        whole = (self.back[name, 0], payload)
        if not life.is_input:
            moves.out.append((life.made, life.left, whole))
        due = moves.due if life.is_saved else moves.loose
        due.append((life.gaps[0].due, whole))
        for k, gap in list(enumerate(life.gaps))[1:]:
            due.append((gap.due, (self.back[name, k], payload)))
            moves.host.append((self.back[name, k], payload))
        if life.is_input:
            moves.host.append(whole)

    def fractions(self, x: Any) -> dict[str, tuple[float, float, float]]:
        """{saved buffer: (kept, offloaded, dropped)} of a solution `x`."""
        found = {self.tape.buffer_of[t.name]: (1.0, 0.0, 0.0) for t in self.tape.saved}
        for name, life in self.movable.items():
            if life.is_saved:
                shares = [columns.get((name, 0), -1) for columns in (self.hold, self.back, self.again)]
                kept, offloaded, dropped = (float(x[column]) if column >= 0 else 0.0 for column in shares)
                found[name] = (kept, offloaded, dropped)
        return found
