"""Timing: when the copies of an offloading policy start and end, tensor by tensor, in memory that is there anyway.

A prefetch that starts too late makes compute wait; one that starts too early takes memory for longer.  The same holds
for the source of an offload, whose bytes are free only when it has left.  `timed` looks for the latest start and the
earliest end at which, as the cost model has it, nothing waits; where that would raise the peak, something waits.

    compute   |    conv4    | relu4 |    conv3    | ...        conv3 reads y3, conv2 y2: these are the deadlines
    prefetch       |  y3   |    y2    |                        the latest starts follow, from the last deadline back
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from vdnn.memory.cost import Cost, copy_of
from vdnn.memory.decisions import Decisions, Fate, resolve
from vdnn.memory.place import place
from vdnn.memory.tiers import tiers_of
from vdnn.memory.trial import sketch
from vdnn.network import Role
from vdnn.tape import Buffer, Tape

SHARES = (1.0, 0.8, 0.6)  # of the memory between what stays and the peak, tried in turn
NEARLY = 1.01  # what a quick layout may take more than the peak: the plan's own is laid out with more effort


def timed(tape: Tape, decisions: Decisions, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """`decisions`, that rerun nothing, with `ahead` and `slack` for each offloaded tensor by itself.

    The peak is at most that of `decisions`, and the arena at most 1 % more.  Memory that is full all the time cannot be
    laid out without gaps, so less and less of it is used, though at each op at least as much as under `decisions`,
    until the layout fits; if it never does, `decisions` stay as they are.  The step is nearly always
    faster; it need not be, as nothing is known here of addresses, whose reuse makes copies wait, too.
    """
    given = resolve(decisions, tape, algorithms)
    before = sketch(tape, given)
    late = sketch(tape, replace(given, ahead=0, slack=0))
    used, least = ([plan.live_bytes[i] for i, _, _ in plan.computes()] for plan in (before, late))
    if len(least) != len(tape.ops):
        raise ValueError("only decisions that run nothing again can be timed")
    moved = Moved.of(tape, given, cost, tiers_of(before))
    for share in SHARES:
        limit = int(share * before.peak_bytes + (1 - share) * tape.resident_bytes)
        room = [max(limit, live) - always for live, always in zip(used, least, strict=True)]
        slack: dict[str, int] = {}
        ahead: dict[str, int] = {}
        for forward, backward in tape.rounds:  # whatever a round moves is back, and gone, before the next begins
            slack |= slacks_of(tape, forward, moved, room)
            ahead |= aheads_of(tape, backward, given, moved, room)
        plan = sketch(tape, replace(given, ahead=ahead, slack=slack))
        if place(plan, 0).arena_bytes <= NEARLY * before.peak_bytes:
            return replace(decisions, ahead=ahead, slack=slack)
    return decisions


@dataclass(frozen=True)
class Moved:
    """What is offloaded, and the seconds that everything takes.

    ops      of each op of the tape
    sizes    {buffer: bytes in the arena}
    out      {buffer: seconds to the host}; an input is not copied out
    back     {buffer: seconds to the device}
    """

    ops: list[float]
    sizes: dict[str, int]
    out: dict[str, float]
    back: dict[str, float]

    @classmethod
    def of(cls, tape: Tape, given: Decisions, cost: Cost, tiers: Mapping[str, str] | None = None) -> Moved:
        """That of these resolved decisions; `tiers` names what goes to disk, None if nothing does."""
        buffers = [tape.buffers[b] for b, fate in given.fates.items() if fate is Fate.OFFLOAD]

        def seconds(buffer: Buffer, kind: str) -> float:
            return copy_of(cost, buffer.payload, kind, (tiers or {}).get(buffer.name, ""))

        return cls(
            [cost.op_seconds(tape, op, given.algorithms[op.name]) for op in tape.ops],
            {b.name: b.nbytes for b in buffers},
            {b.name: seconds(b, "offload") for b in buffers if b.role is not Role.INPUT},
            {b.name: seconds(b, "prefetch") for b in buffers},
        )


def slacks_of(tape: Tape, forward: range, moved: Moved, room: list[int]) -> dict[str, int]:
    """{buffer: for how many ops after its last forward use it stays}; `room` at each op loses what they take.

    One walk through forward: before each op go the sources that have left and, if the op would have no room, the
    oldest of the others, for which it waits.
    """
    leaves = _last_forward_uses(tape, forward, moved)
    leaving: deque[tuple[str, int, float]] = deque()  # (buffer, its last use, when its copy ends)
    slack: dict[str, int] = {}
    now = link = 0.0
    held = 0
    for i in forward:
        while leaving and (leaving[0][2] <= now or held > room[i]):
            buffer, last, end = leaving.popleft()
            now = max(now, end)
            held -= moved.sizes[buffer]
            slack[buffer] = i - 1 - last
        room[i] -= held
        for buffer, reads_only in leaves.get(i, ()):
            start = now if reads_only else now + moved.ops[i]
            link = max(link, start) + moved.out[buffer]
            leaving.append((buffer, i, link))
            held += moved.sizes[buffer]
        now += moved.ops[i]
    return slack | {buffer: forward.stop - 1 - last for buffer, last, _ in leaving}


def _last_forward_uses(tape: Tape, forward: range, moved: Moved) -> dict[int, list[tuple[str, bool]]]:
    """{op: the buffers that leave at it, and whether it only reads them}."""
    last: dict[str, tuple[int, bool]] = {}
    for i in forward:
        for b in (*tape.reads[i], *tape.writes[i]):
            if b in moved.out:
                last[b] = i, b not in tape.writes[i]
    leaves: dict[int, list[tuple[str, bool]]] = {}
    for b, (i, reads_only) in last.items():
        leaves.setdefault(i, []).append((b, reads_only))
    return leaves


def aheads_of(tape: Tape, backward: range, given: Decisions, moved: Moved, room: list[int]) -> dict[str, int]:
    """{buffer: how many ops before its first backward use it comes back}; `room` at each op loses what they take.

    One walk through backward: before each op go the prefetches, in the order of their use, that must start while it
    runs, can start by then, and have room until they are used; what is read now has no choice.
    """
    first = _first_uses(tape, backward, moved)
    starts = list(accumulate(moved.ops, initial=0.0))
    latest = latest_starts(first, moved, starts, starts[backward.stop])
    waiting = deque(first)
    ahead: dict[str, int] = {}
    arrives: dict[str, float] = {}
    late = link = 0.0  # by how much compute has fallen behind; when the link is free
    for i in backward:
        end = starts[i + 1] + late
        while waiting:
            buffer = waiting[0]
            use, size = first[buffer], moved.sizes[buffer]
            is_time = latest[buffer] + late < end or i >= use - given.ahead_of(buffer)
            if i < use and not (is_time and link <= end and min(room[i:use]) >= size):
                break
            waiting.popleft()
            ahead[buffer] = use - i
            arrives[buffer] = link = max(link, starts[i] + late) + moved.back[buffer]
            room[i:use] = (n - size for n in room[i:use])
        for buffer in tape.reads[i]:
            late = max(late, arrives.get(buffer, 0.0) - starts[i])
    return ahead


def _first_uses(tape: Tape, backward: range, moved: Moved) -> dict[str, int]:
    """{buffer: the first of these ops that reads it}, in order."""
    first: dict[str, int] = {}
    for i in backward:
        for b in tape.reads[i]:
            if b in moved.sizes:
                first.setdefault(b, i)
    return first


def latest_starts(first: Mapping[str, int], moved: Moved, starts: list[float], link: float) -> dict[str, float]:
    """{buffer: the latest start of its prefetch at which no op waits}, from the last to come back to the first.

    link    when all must be back
    """
    latest: dict[str, float] = {}
    for buffer in reversed(list(first)):
        link = latest[buffer] = min(link, starts[first[buffer]]) - moved.back[buffer]
    return latest
