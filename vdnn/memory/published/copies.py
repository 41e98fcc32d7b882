"""Copies: when the sources of offloads go and prefetches start, where a system waits for events and not for layers.

A source goes when its copy has left; if memory runs out before, compute waits for the oldest copy.  A prefetch starts
where its system's rule says (its trigger), or later, as soon as there is room for it until its use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import OFFLOAD, Decisions, resolve
from vdnn.memory.published.fitting import Candidate, done_for, laid_out, quickest
from vdnn.memory.published.running import Running
from vdnn.memory.timing import Moved, latest_starts, slacks_of
from vdnn.memory.trial import sketch
from vdnn.tape import Op, Tape

SHARES = (1.0, 0.95, 0.8, 0.65)  # of the memory that copies may use at most, in turn: full memory leaves gaps
MORE = (0, 4, 16)  # parts of 64 by which more than the fewest tensors are offloaded


@dataclass(frozen=True)
class Returns:
    """What a rule may ask when it says from where on prefetches of one round may start.  Places are those of compute
    steps.

    ops     of each compute step
    turn    place of the round's first backward op
    uses    {buffer: place of its first backward use}, in order
    starts  seconds at which each compute step starts if nothing waits, and the end of the last
    latest  {buffer: seconds at which its prefetch must start at the latest, so that no use waits for the link}
    back    {buffer: seconds that its prefetch takes}
    again   {buffer: (use before, use) for every later one that it comes back for}
    """

    ops: list[Op]
    turn: int
    uses: Mapping[str, int]
    starts: list[float]
    latest: Mapping[str, float]
    back: Mapping[str, float]
    again: Mapping[str, list[tuple[int, int]]]


Rule = Callable[[Returns], Mapping[str, int]]


def early(returns: Returns) -> dict[str, int]:
    """From the end of forward on: as soon as there is room."""
    return dict.fromkeys(returns.uses, returns.turn)


def just_in_time(margin: float) -> Rule:
    """At the last step by which the link can still be in time, earlier by `margin` times what the copy takes."""

    def places(returns: Returns) -> dict[str, int]:
        found = {}
        for b, latest in returns.latest.items():
            at = bisect_right(returns.starts, latest - margin * returns.back[b]) - 1
            found[b] = max(returns.turn, at)
        return found

    return places


def ahead_by(ahead: Mapping[str, int], default: int = 1) -> Rule:
    """So many ops before the use; `default` for a buffer that is not named."""
    return lambda returns: {b: use - ahead.get(b, default) for b, use in returns.uses.items()}


def by_events(
    tape: Tape, decisions: Decisions, cost: Cost, algorithms: Mapping[str, str], budget: int, rule: Rule
) -> Candidate:
    """`decisions` with `slack` and `ahead` for each offloaded buffer, by `rule`, as far as the budget has room.

    The plan fits the budget if that of `decisions` without slack and ahead does; else it is that one.
    """
    bare = replace(decisions, ahead=0, slack=0)
    given = resolve(bare, tape, algorithms)
    plan = sketch(tape, given)
    if OFFLOAD not in given.fates.values() or plan.peak_bytes > budget:
        return Candidate(bare, laid_out(plan, budget))
    running = Running.of(tape, given)
    moved = Moved.of(running.tape, given, cost)
    live = [plan.live_bytes[i] for i, _, _ in plan.computes()]
    returns = [_returns(running.tape, backward, given, moved) for _, backward in running.rounds]
    triggers = [rule(r) for r in returns]
    whole = budget - tape.resident_bytes
    share = 1.0
    for most in SHARES:
        share = min(share, most)
        limit = int(share * whole) + tape.resident_bytes
        room = [max(0, limit - n) for n in live]
        slack: dict[str, int] = {}
        ahead: dict[str, int] = {}
        for (forward, _), coming, places in zip(running.rounds, returns, triggers, strict=True):
            slack |= slacks_of(running.tape, forward, moved, room)
            ahead |= aheads_of(moved, coming, places, room)
        tried = laid_out(sketch(tape, replace(given, slack=slack, ahead=ahead)), budget)
        if tried.arena_bytes <= budget:
            return Candidate(replace(decisions, slack=slack, ahead=ahead), tried)
        share -= (tried.arena_bytes - budget) / whole
    return Candidate(bare, laid_out(plan, budget))


def _returns(run: Tape, backward: range, given: Decisions, moved: Moved) -> Returns:
    """When the offloaded buffers are used next in one round, reruns included; `run` is the tape as it is run."""
    uses: dict[str, int] = {}
    before: dict[str, int] = {}  # {buffer: its use before}
    again: dict[str, list[tuple[int, int]]] = {}
    for place in backward:
        for b in run.reads[place]:
            if b in moved.sizes and b not in uses:
                uses[b] = before[b] = place
            elif b in moved.sizes and given.comes_back_for_each(b):
                if place > before[b] + 1:
                    again.setdefault(b, []).append((before[b], place))
                before[b] = place
    starts = list(accumulate(moved.ops, initial=0.0))
    latest = latest_starts(uses, moved, starts, starts[backward.stop])
    return Returns(list(run.ops), backward.start, uses, starts, latest, moved.back, again)


def aheads_of(moved: Moved, returns: Returns, triggers: Mapping[str, int], room: list[int]) -> dict[str, int]:
    """{buffer: how many ops before its use it comes back}; `room` at each op loses what they take.

    In order of use, which is the order on the link: none starts before the one that is used before it.
    """
    ahead = {}
    earliest = returns.turn
    for b, use in returns.uses.items():
        earliest = max(earliest, triggers[b])
        start, size = use, moved.sizes[b]
        while start > earliest and room[start - 1] >= size:
            start -= 1
        again = returns.again.get(b, [])  # the same number of ops before each use
        while start < use and not all(_has_room(room, max(after + 1, k - use + start), k, size) for after, k in again):
            start += 1
        for begin, end in [(start, use), *((max(after + 1, k - use + start), k) for after, k in again)]:
            room[begin:end] = [n - size for n in room[begin:end]]
        ahead[b] = use - start
        earliest = start
    return ahead


def _has_room(room: list[int], begin: int, end: int, size: int) -> bool:
    return all(n >= size for n in room[begin:end])


def offloading(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], order: Sequence[str]) -> Candidate:
    """The fewest of the buffers in `order` offloaded that fit the budget, or some more if the simulated step is then
    shorter, and back as early as there is room.
    """

    def offload(n: int) -> Decisions:
        return Decisions(dict.fromkeys(order[:n], OFFLOAD), ahead=0)

    least, fitting, smallest = done_for(tape, budget, cost, algorithms, len(order), offload)
    chosen = {**algorithms, **smallest.algorithms}
    if least == 0 or not fitting:
        return by_events(tape, smallest, cost, chosen, budget, early)
    counts = dict.fromkeys(min(len(order), least + -(-least * more // 64)) for more in MORE)
    trials = [replace(smallest, fates=offload(n).fates) for n in counts]
    return quickest(cost, budget, [by_events(tape, trial, cost, chosen, budget, early) for trial in trials])
