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
from dataclasses import replace
from itertools import accumulate

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions, Fate, resolve
from vdnn.memory.trial import sketch
from vdnn.network import Role
from vdnn.tape import Tape


def timed(tape: Tape, decisions: Decisions, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """`decisions`, that rerun nothing, with `ahead` and `slack` for each offloaded tensor by itself.

    The peak stays at most what it is with the timing of `decisions`.  The step is nearly always faster; it need not be,
    as nothing is known here of addresses, whose reuse makes copies wait, too.
    """
    given = resolve(decisions, tape, algorithms)
    limit = sketch(tape, given).peak_bytes
    late = sketch(tape, replace(given, ahead=0, slack=0))
    live = [late.live_bytes[i] for i, _, _ in late.computes()]
    seconds = [cost.op_seconds(tape, op, given.algorithms[op.name]) for op in tape.ops]
    if len(live) != len(seconds):
        raise ValueError("only decisions that run nothing again can be timed")
    moved = [b for b, fate in given.fates.items() if fate is Fate.OFFLOAD]
    slack = _slacks(tape, moved, cost, seconds, live, limit)
    ahead = _aheads(tape, given, moved, cost, seconds, live, limit)
    return replace(decisions, ahead=ahead, slack=slack)


def _slacks(
    tape: Tape, moved: list[str], cost: Cost, seconds: list[float], live: list[int], limit: int
) -> dict[str, int]:
    """{buffer: for how many ops after its last forward use it stays}; `live` takes what they add.

    One walk through forward: before each op go the sources that have left and, if the op would have no room, the
    oldest of the others, for which it waits.
    """
    leaves = _last_forward_uses(tape, moved)
    leaving: deque[tuple[str, float]] = deque()  # (buffer, when its copy ends)
    slack: dict[str, int] = {}
    now = link = 0.0
    held = 0
    for i in range(tape.turn):
        while leaving and (leaving[0][1] <= now or live[i] + held > limit):
            buffer, end = leaving.popleft()
            now = max(now, end)
            held -= tape.buffers[buffer].nbytes
            slack[buffer] = i - 1 - leaves[buffer][0]
        live[i] += held
        for buffer in (b for b, (at, _) in leaves.items() if at == i):
            if tape.buffers[buffer].role is Role.INPUT:
                continue  # nothing is copied out
            reads_only = leaves[buffer][1]
            link = max(link, now + (0.0 if reads_only else seconds[i])) + cost.copy_seconds(
                tape.buffers[buffer].payload, "offload"
            )
            leaving.append((buffer, link))
            held += tape.buffers[buffer].nbytes
        now += seconds[i]
    return slack | {buffer: tape.turn - 1 - leaves[buffer][0] for buffer, _ in leaving}


def _last_forward_uses(tape: Tape, moved: list[str]) -> dict[str, tuple[int, bool]]:
    """{buffer: (its last op in forward, whether that only reads it)}, in order."""
    wanted = set(moved)
    last: dict[str, tuple[int, bool]] = {}
    for i in range(tape.turn):
        for b in {*tape.reads[i], *tape.writes[i]} & wanted:
            last[b] = i, b not in tape.writes[i]
    return dict(sorted(last.items(), key=lambda item: item[1][0]))


def _aheads(
    tape: Tape,
    given: Decisions,
    moved: list[str],
    cost: Cost,
    seconds: list[float],
    live: list[int],
    limit: int,
) -> dict[str, int]:
    """{buffer: how many ops before its first backward use it comes back}; `live` takes what they add.

    One walk through backward: before each op go the prefetches, in the order of their use, that must start while it
    runs, can start by then, and have room until they are used; what is read now has no choice.
    """
    first = _first_backward_uses(tape, moved)
    copies = {b: cost.copy_seconds(tape.buffers[b].payload, "prefetch") for b in first}
    starts = list(accumulate(seconds, initial=0.0))
    latest = _latest_starts(first, copies, starts)
    waiting = deque(first)
    ahead: dict[str, int] = {}
    arrives: dict[str, float] = {}
    late = link = 0.0  # by how much compute has fallen behind; when the link is free
    for i in range(tape.turn, len(tape.ops)):
        end = starts[i + 1] + late
        while waiting:
            buffer = waiting[0]
            use, size = first[buffer], tape.buffers[buffer].nbytes
            is_time = latest[buffer] + late < end or i >= use - given.ahead_of(buffer)
            if i < use and not (is_time and link <= end and max(live[i:use]) + size <= limit):
                break
            waiting.popleft()
            ahead[buffer] = use - i
            arrives[buffer] = link = max(link, starts[i] + late) + copies[buffer]
            live[i:use] = (n + size for n in live[i:use])
        for buffer in tape.reads[i]:
            late = max(late, arrives.get(buffer, 0.0) - starts[i])
    return ahead


def _first_backward_uses(tape: Tape, moved: list[str]) -> dict[str, int]:
    """{buffer: the first backward op that reads it}, in order."""
    wanted = set(moved)
    first: dict[str, int] = {}
    for i in range(tape.turn, len(tape.ops)):
        for b in tape.reads[i]:
            if b in wanted:
                first.setdefault(b, i)
    return first


def _latest_starts(first: dict[str, int], copies: dict[str, float], starts: list[float]) -> dict[str, float]:
    """{buffer: the latest start of its prefetch at which no op waits}, from the last to come back to the first."""
    latest: dict[str, float] = {}
    link = starts[-1]
    for buffer in reversed(first):
        link = latest[buffer] = min(link, starts[first[buffer]]) - copies[buffer]
    return latest
