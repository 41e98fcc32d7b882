"""The rows of the bound's program that follow time: compute, the link's two directions, and memory, block by block.

Copies are a fluid here: what matters is how many bytes have left and have come when a block of ops starts.  A tensor
that is being copied takes its bytes in full on a device, here only those that are still, or already, there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vdnn.memory.cost import Cost
from vdnn.memory.linear import Program, Terms
from vdnn.memory.relaxation import Block, Choice
from vdnn.tape import FORWARD_PHASES, Tape

Events = dict[int, Terms]  # {block: terms that begin, end or fall due when it starts}


@dataclass
class Moves:
    """What the fates ask of link and memory; places are those of ops.

    out     (made, left, term): bytes that can leave when op `made` is over, and must count from the end of op `left` on
    due     (op, term): bytes that have come when the op starts, and take memory from when they came until then
    loose   (op, term): the same, but without taking memory
    first   (op, bytes): inputs that come before the op starts, for the first time
    host    terms of the bytes that may come without having left, beside those of `first`
    held    (after, before, term): bytes that are there while ops run that are after the one and before the other
    reruns  (last, column, scaled seconds): compute that may wait until right before op `last`
    """

    out: list[tuple[int, int, tuple[int, float]]] = field(default_factory=list)
    due: list[tuple[int, tuple[int, float]]] = field(default_factory=list)
    loose: list[tuple[int, tuple[int, float]]] = field(default_factory=list)
    first: list[tuple[int, float]] = field(default_factory=list)
    host: Terms = field(default_factory=list)
    held: list[tuple[int, int, tuple[int, float]]] = field(default_factory=list)
    reruns: list[tuple[int, int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Scales:
    """Scaled seconds in a second, scaled bytes in a byte, so that no number of a program is tiny or huge."""

    second: float
    byte: float


class Timeline:
    """Blocks of ops one after the other.  `gaps[n]` is the time for which no op of the tape runs between the first op
    of block n-1 and that of block n; the last follows all blocks.  `fixed` are the seconds of the fastest algorithms.
    """

    def __init__(
        self,
        program: Program,
        tape: Tape,
        blocks: Sequence[Block],
        options: Sequence[Sequence[Choice]],
        scales: Scales,
    ) -> None:
        self.program, self.tape, self.blocks, self.scales = program, tape, blocks, scales
        self.firsts = [block.first for block in blocks]
        self.seconds: list[tuple[float, Terms]] = []  # per op: at least, and what slower algorithms add
        self.scratch: list[tuple[float, Terms]] = []  # per op: workspace of the fastest, and what others save
        self.used: dict[int, list[tuple[Choice, int]]] = {}
        for i, choices in enumerate(options):
            self._op(i, choices)
        self.gaps = [program.column(cost=1.0) for _ in range(len(blocks) + 1)]
        self.fixed = sum(seconds for seconds, _ in self.seconds)

    def _op(self, i: int, options: Sequence[Choice]) -> None:
        fastest = options[0]
        second, byte = self.scales.second, self.scales.byte
        slower: Terms = []
        smaller: Terms = []
        for option in options[1:]:
            extra = (option.seconds - fastest.seconds) * second
            column = self.program.column(cost=extra, most=1)
            slower.append((column, extra))
            smaller.append((column, (option.workspace - fastest.workspace) * byte))
            self.used.setdefault(i, []).append((option, column))
        if slower:
            self.program.at_most([(column, 1.0) for column, _ in slower], 1.0)
        self.seconds.append((fastest.seconds * second, slower))
        self.scratch.append((fastest.workspace * byte, smaller))

    def _at(self, place: int) -> int:
        """The first block that starts with op `place` or a later one."""
        return bisect_left(self.firsts, place)

    def _events(self, items: Iterable[tuple[int, tuple[int, float]]]) -> Events:
        events: Events = {}
        for place, term in items:
            events.setdefault(self._at(place), []).append(term)
        return events

    def time(self, ops: range, factor: float) -> tuple[float, Terms]:
        """`factor` times the seconds of these ops: what is sure, and terms."""
        fixed = sum(self.seconds[i][0] for i in ops)
        return fixed * factor, [(c, extra * factor) for i in ops for c, extra in self.seconds[i][1]]

    def _moved(self, n: int, columns: Sequence[int], rate: float) -> None:
        """Row: the bytes moved from the start of block n-1 to that of block n are at most those of the time between."""
        block = self.blocks[n - 1] if n else Block(0, 0)
        fixed, slower = self.time(range(block.first, block.stop), -rate)
        self.program.at_most([*((c, 1.0) for c in columns), (self.gaps[n], -rate), *slower], -fixed)

    # ---- link and memory

    def rows(self, moves: Moves, room: Sequence[float], sizes: Sequence[int], cost: Cost) -> None:
        """All rows of link, memory and reruns.

        room   per op, bytes of the budget that its own buffers leave
        sizes  bytes of all that may be copied
        """
        rates = []
        for kind in ("offload", "prefetch"):
            best = max((n / cost.copy_seconds(n, kind) for n in sizes if n), default=1.0)
            rates.append(best * self.scales.byte / self.scales.second)
        out, staying = self._offloads(moves, rates[0])
        early = self._prefetches(moves, rates[1], out)
        self._memory(moves, room, staying, early, rates[1])
        self._reruns(moves)

    def _offloads(self, moves: Moves, rate: float) -> tuple[list[int], list[int]]:
        """Per block (bytes that left since the block before, bytes still here of what forward no longer needs)."""
        made = self._events((made + 1, term) for made, _, term in moves.out)
        earliest: dict[int, int] = {}  # {block: the first op before it that makes something that may leave}
        for place, _, _ in moves.out:
            earliest[self._at(place + 1)] = min(place, earliest.get(self._at(place + 1), place))
        left = self._events((left + 1, term) for _, left, term in moves.out)
        program = self.program
        out: list[int] = []
        staying: list[int] = []
        before: list[Terms] = [[], []]
        for n in range(len(self.blocks)):
            moved, here, ready, ahead = (program.column() for _ in range(4))
            self._moved(n, [moved], rate)
            made_now, left_now = ([(c, -v) for c, v in events.get(n, ())] for events in (made, left))
            program.equal([(ready, 1.0), (moved, 1.0), *made_now, *before[0]])  # what left had been made
            program.equal([(here, 1.0), (ahead, -1.0), (moved, 1.0), *left_now, *before[1]])
            if n in earliest:  # and what was made since the block before leaves after that
                fixed, slower = self.time(range(earliest[n] + 1, self.blocks[n - 1].stop), -rate)
                program.at_most([(moved, 1.0), *before[0], (self.gaps[n], -rate), *slower], -fixed)
            before = [[(ready, -1.0)], [(here, -1.0), (ahead, 1.0)]]
            out.append(moved)
            staying.append(here)
        return out, staying

    def _prefetches(self, moves: Moves, rate: float, out: Sequence[int]) -> list[int]:
        """Per block: bytes here that are due only later."""
        due, loose = self._events(moves.due), self._events(moves.loose)
        program = self.program
        earlies: list[int] = []
        before: list[Terms] = [[], [(c, -v) for c, v in moves.host], []]
        inputs: dict[int, float] = {}
        for place, nbytes in moves.first:
            inputs[self._at(place)] = inputs.get(self._at(place), 0.0) + nbytes
        stock = sum(inputs.values())
        for n in range(len(self.blocks)):
            came, other, early, host, spare = (program.column() for _ in range(5))
            self._moved(n, [came, other], rate)
            program.equal([(early, 1.0), (came, -1.0), *due.get(n, ()), *before[0]])
            program.equal([(host, 1.0), (came, 1.0), (other, 1.0), (out[n], -1.0), *before[1]], 0.0 if n else stock)
            program.equal([(spare, 1.0), (other, -1.0), *loose.get(n, ()), *before[2]], -inputs.get(n, 0.0))
            before = [[(early, -1.0)], [(host, -1.0)], [(spare, -1.0)]]
            earlies.append(early)
        return earlies

    def _memory(
        self, moves: Moves, room: Sequence[float], staying: Sequence[int], early: Sequence[int], rate: float
    ) -> None:
        """What is there while the first op of a block runs is within the budget, when it starts and when it ends."""
        begins = self._events((after + 1, term) for after, _, term in moves.held)
        ends = self._events((before, term) for _, before, term in moves.held)
        due = self._events(moves.due)
        previous: Terms = []
        for n, block in enumerate(self.blocks):
            held = self.program.column()
            begun = [(c, -v) for c, v in begins.get(n, ())]
            self.program.equal([(held, 1.0), *begun, *ends.get(n, ()), *previous])
            previous = [(held, -1.0)]
            scratch, smaller = self.scratch[block.first]
            free = room[block.first] * self.scales.byte - scratch
            self.program.at_most([(held, 1.0), (early[n], 1.0), (staying[n], 1.0), *smaller], free)
            if n + 1 < len(self.blocks) and self.tape.ops[block.first].phase not in FORWARD_PHASES:
                # what is here when the next block starts, but for what may have come since this op's end
                fixed, slower = self.time(range(block.first + 1, block.stop), -rate)
                arrived = [(early[n + 1], 1.0), *due.get(n + 1, ()), (self.gaps[n + 1], -rate), *slower]
                self.program.at_most([(held, 1.0), *arrived, *smaller], free - fixed)

    def _reruns(self, moves: Moves) -> None:
        """Reruns take time when no op of the tape runs, after forward and before their last moment."""
        ready = self._events((last, (column, seconds)) for last, column, seconds in moves.reruns)
        spare: Terms = []
        for n in range(len(self.blocks) + 1):
            if n == len(self.blocks) or self.tape.ops[self.blocks[n].first].phase not in FORWARD_PHASES:
                spare = [*spare, (self.gaps[n], -1.0)]
            if n in ready:
                left = self.program.column()
                self.program.equal([(left, 1.0), *spare, *ready[n]])
                spare = [(left, -1.0)]

    # ---- inputs and results

    def arrive(self, place: int, seconds: float) -> None:
        """Row: op `place` does not start before so many scaled seconds."""
        fixed, slower = self.time(range(place), -1.0)
        if -fixed < seconds:
            gaps = [(gap, -1.0) for gap in self.gaps[: self._at(place) + 1]]
            self.program.at_most([*gaps, *slower], -seconds - fixed)

    def leave(self, copies: Sequence[tuple[int, float]]) -> None:
        """Rows: copies (op that makes it, scaled seconds), one after the other, are over when the step is."""
        pending: Terms = []
        since = 0
        for made, seconds in [*copies, (len(self.tape.ops) - 1, 0.0)] if copies else ():
            column = self.program.column()
            self.program.at_most([(column, -1.0)], -seconds)
            fixed, slower = self.time(range(since, made + 1), -1.0)
            last = self._at(made)
            gaps = [(gap, -1.0) for gap in self.gaps[self._at(since) : last + 1]]
            if pending:
                # `column` seconds of copying are left when op `made` is over
                self.program.at_most([*pending, (column, -1.0), *gaps, *slower], -seconds - fixed)
            pending, since = [(column, 1.0)], made + 1
        if pending:
            self.program.at_most([*pending, (self.gaps[-1], -1.0)])
