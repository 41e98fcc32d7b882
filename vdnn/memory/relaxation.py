"""What every plan of a tape has in common: how long each buffer must be there, and what may happen in between.

A buffer's bytes live from its making (or its arrival, for an input) to their last use.  Lives of feature maps and
inputs have gaps: from the last forward use to the first backward use, and between backward uses.  A plan crosses a gap
in one of three ways: it holds the bytes, it brings them back from the host, or it makes them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from vdnn.memory.place import RESIDENT
from vdnn.network import Role
from vdnn.tape import FORWARD_PHASES, Tape, granules

SHORT = 1 / 500  # of the step: the longest op that may join the block before it


@dataclass(frozen=True)
class Gap:
    """A stretch of a life in which no op of the tape touches the buffer.

    after   place of the op that uses it before
    before  place of the op that uses it next; for what no backward op reads, of the first that may want it for a rerun
    due     place of the op by which it must be there again
    """

    after: int
    before: int
    due: int


@dataclass(frozen=True)
class Life:
    """A feature map or an input that may leave between forward and backward.

    made    place of the last forward op that writes it; for an input, of the first that reads it
    left    place of its last forward use
    gaps    those with ops in them; the first is the one between forward and backward, or there is none of that kind
    makers  places of the ops that a rerun runs; none for an input
    """

    buffer: str
    nbytes: int
    payload: int
    is_input: bool
    is_saved: bool
    made: int
    left: int
    gaps: tuple[Gap, ...]
    makers: tuple[int, ...]


@dataclass(frozen=True)
class Lives:
    """The lives of a tape's buffers.

    base      per op, bytes that are there while it runs in any plan, without workspace
    movable   {buffer: its life} of what may leave
    earliest  {forward op: place of the first backward op that a rerun of it may precede}
    latest    {forward op: place of the last such op}
    wanted    {buffer: places of the first and the last backward op that may want it, itself or for a rerun}
    arrivals  places of the first uses of inputs, with the buffer, in the order in which they arrive
    """

    base: tuple[int, ...]
    movable: Mapping[str, Life]
    earliest: Mapping[int, int]
    latest: Mapping[int, int]
    arrivals: tuple[tuple[int, str], ...]
    wanted: Mapping[str, tuple[int, int]]


@dataclass
class _Span:
    """Consecutive uses of one content of a buffer: (place, whether the op writes it)."""

    uses: list[tuple[int, bool]] = field(default_factory=list)


def lives(tape: Tape) -> Lives:
    """The lives of the buffers of `tape`, as the passes make them whatever is decided."""
    spans = _spans(tape)
    earliest, latest, wanted = _windows(tape)
    base = [tape.resident_bytes] * len(tape.ops)
    movable: dict[str, Life] = {}
    arrivals = []
    for name, found in spans.items():
        buffer = tape.buffers[name]
        if buffer.role is Role.INPUT:
            arrivals.append((found[0].uses[0][0], name))
        for n, span in enumerate(found):
            places = [i for i, _ in span.uses]
            forward = [i for i in places if tape.ops[i].phase in FORWARD_PHASES]
            if buffer.role not in (Role.FEATURE, Role.INPUT) or not forward:
                _occupy(base, buffer.nbytes, places[0], places[-1])
                continue
            _occupy(base, buffer.nbytes, forward[0], forward[-1])
            backward = [i for i in places if i > forward[-1]]
            for i in backward:
                base[i] += buffer.nbytes
            if n == len(found) - 1:
                life = _life(tape, name, span, backward, wanted)
                if life is not None:
                    movable[name] = life
    return Lives(tuple(base), movable, earliest, latest, tuple(sorted(arrivals)), wanted)


def _occupy(base: list[int], nbytes: int, first: int, last: int) -> None:
    for i in range(first, last + 1):
        base[i] += nbytes


def _spans(tape: Tape) -> dict[str, list[_Span]]:
    """{buffer: its contents}; an op that writes it without reading it begins a new one."""
    spans: dict[str, list[_Span]] = {}
    for i in range(len(tape.ops)):
        for name in dict.fromkeys((*tape.reads[i], *tape.writes[i])):
            if tape.buffers[name].role in RESIDENT:
                continue
            found = spans.setdefault(name, [])
            if not found or name not in tape.reads[i]:
                found.append(_Span())
            found[-1].uses.append((i, name in tape.writes[i]))
    return spans


def _life(
    tape: Tape, name: str, span: _Span, backward: list[int], wanted: Mapping[str, tuple[int, int]]
) -> Life | None:
    """The life of a content, None if it never needs to be anywhere but where it is used."""
    buffer = tape.buffers[name]
    forward = [(i, writes) for i, writes in span.uses if tape.ops[i].phase in FORWARD_PHASES]
    left = forward[-1][0]
    made = max((i for i, writes in forward if writes), default=forward[0][0])
    if backward:
        pairs = list(zip([left, *backward], backward, strict=False))
        gaps = tuple(Gap(a, b, b) for a, b in pairs if b > a + 1)
        is_first = bool(gaps) and gaps[0].after == left
    elif name in wanted:
        gaps = (Gap(left, *wanted[name]),)
        is_first = True
    else:
        return None
    makers = () if buffer.role is Role.INPUT else tape.makers.get(name, ())
    if not is_first or not buffer.nbytes:
        return None  # what never leaves before backward is taken to be there
    is_input = buffer.role is Role.INPUT
    return Life(name, buffer.nbytes, buffer.payload, is_input, bool(backward), made, left, gaps, makers)


def _windows(tape: Tape) -> tuple[dict[int, int], dict[int, int], dict[str, tuple[int, int]]]:
    """({forward op: first place at which a rerun of it may be wanted}, {forward op: last}, {buffer: (first, last)}).

    A rerun comes right before a backward op that reads what it makes, or right before another rerun that does.
    """
    uses: dict[str, list[int]] = {}
    for i, op in enumerate(tape.ops):
        if op.phase not in FORWARD_PHASES:
            for name in (*tape.reads[i], *tape.writes[i]):
                uses.setdefault(name, []).append(i)
    wanted = {name: (places[0], places[-1]) for name, places in uses.items()}
    earliest: dict[int, int] = {}
    latest: dict[int, int] = {}
    for j in reversed(range(len(tape.ops))):
        if not tape.ops[j].is_forward:
            continue
        found = [wanted[name] for name in tape.writes[j] if name in wanted]
        if not found:
            continue
        earliest[j], latest[j] = min(first for first, _ in found), max(last for _, last in found)
        for name in tape.reads[j]:
            first, last = wanted.get(name, (earliest[j], latest[j]))
            wanted[name] = (min(first, earliest[j]), max(last, latest[j]))
    for j in reversed(range(len(tape.ops))):  # what changes a buffer later is run again with what made it
        for name in tape.writes[j]:
            if j in earliest and name in wanted:
                earliest[j] = min(earliest[j], wanted[name][0])
                latest[j] = max(latest[j], wanted[name][1])
    return earliest, latest, wanted


@dataclass(frozen=True)
class Choice:
    """One algorithm that an op may use: seconds, and bytes of workspace."""

    name: str
    seconds: float
    workspace: int


def choices(tape: Tape, cost_seconds: Mapping[tuple[int, str], float], room: list[int]) -> list[list[Choice]]:
    """Per op, its algorithms that fit the room (bytes), the fastest first, without those that another beats."""
    found = []
    for i, op in enumerate(tape.ops):
        options = [Choice(a.name, cost_seconds[i, a.name], granules(a.workspace)) for a in op.algorithms]
        best: list[Choice] = []
        for option in sorted(options, key=lambda c: (c.seconds, c.workspace)):
            if option.workspace <= room[i] and (not best or option.workspace < best[-1].workspace):
                best.append(option)
        found.append(best)
    return found


@dataclass(frozen=True)
class Block:
    """Consecutive ops that the program treats as one: while the first runs, at least as much is there as while any
    other does, and only the first waits for anything.
    """

    first: int
    stop: int


def blocks(tape: Tape, found: Lives, movable: Mapping[str, Life], options: list[list[Choice]]) -> list[Block]:
    """The ops of `tape` in blocks.  Short ops that need no more memory than the one before join its block."""
    waits = {i for i, _ in found.arrivals} | {gap.due for life in movable.values() for gap in life.gaps}
    begins: dict[int, int] = {}  # bytes that may be held from an op on
    for life in movable.values():
        for gap in life.gaps:
            begins[gap.after + 1] = begins.get(gap.after + 1, 0) + life.nbytes
    fastest = [choices[0].seconds for choices in options]
    short = sum(fastest) * SHORT
    starts: list[int] = []
    room, begun = 0, 0
    for i, op in enumerate(tape.ops):
        begun += begins.get(i, 0)
        needs = found.base[i] + options[i][0].workspace + begun
        turns = i > 0 and (op.phase in FORWARD_PHASES) != (tape.ops[i - 1].phase in FORWARD_PHASES)
        if not starts or turns or i in waits or fastest[i] > short or needs > room:
            starts.append(i)
            room, begun = found.base[i] + options[i][-1].workspace, 0
    return [Block(a, b) for a, b in pairwise([*starts, len(tape.ops)])]
