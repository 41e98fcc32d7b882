"""Fitting: what published policies share when they must decide how much to do for a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, pairwise, zip_longest

import numpy as np

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.memory.published.meter import Meter
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import least_workspace, sketch
from vdnn.tape import Tape, granules

SMALL = 1000  # what is smaller than this part of the largest tensor is not worth a decision
EFFORT = 20_000  # of a layout in a trial: a plan's own takes more
LARGE = 1000  # ops; so little effort is not even one change to a larger layout
SHARES = (1.0, 0.97, 0.93)  # of the budget that live bytes may take, tried in turn: the layout may need the rest


def sizeable(tape: Tape) -> list[str]:
    """The buffers whose fate is worth deciding, in order of their last forward use: what backward reads, but not what
    is far smaller than the largest of them (statistics, labels), which stays.  Of several rounds, one of each in turn.
    """
    names = [tape.buffer_of[t.name] for t in tape.saved]
    largest = max((tape.buffers[b].nbytes for b in names), default=0)
    return in_turn(tape, [b for b in names if tape.buffers[b].nbytes * SMALL >= largest])


def in_turn(tape: Tape, buffers: Iterable[str]) -> list[str]:
    """These buffers, one of each round in turn, so that all rounds have given about as many at any time."""
    number = round_of(tape)
    rounds: list[list[str]] = [[] for _ in tape.rounds]
    for b in buffers:
        rounds[number[b]].append(b)
    return [b for b in chain.from_iterable(zip_longest(*rounds)) if b is not None]


def round_of(tape: Tape) -> dict[str, int]:
    """{buffer: number, from 0, of the round whose ops use it; of one that stays for several, the last}."""
    number: dict[str, int] = {}
    for n, (forward, backward) in enumerate(tape.rounds):
        for i in (*forward, *backward):
            number |= dict.fromkeys((*tape.reads[i], *tape.writes[i]), n)
    return number


def fits(tape: Tape, decisions: Decisions, algorithms: Mapping[str, str], budget: int) -> bool:
    """Whether the plan of `decisions` has an arena of at most `budget` bytes, as far as a trial can say."""
    return laid_out(sketch(tape, resolve(decisions, tape, algorithms)), budget).arena_bytes <= budget


def laid_out(plan: Plan, budget: int) -> Plan:
    """This sketch laid out, as well as it takes to say whether it fits the budget; not at all if its peak does not."""
    if plan.peak_bytes > budget:
        return replace(plan, arena_bytes=plan.peak_bytes)
    effort = EFFORT if len(plan.tape.ops) < LARGE else 0
    return place(replace(plan, decisions=replace(plan.decisions, within=budget)), effort)


def fewest(
    tape: Tape, algorithms: Mapping[str, str], budget: int, most: int, decide: Callable[[int], Decisions]
) -> tuple[int, bool]:
    """(the least n up to `most` for which `decide(n)` fits the budget, True), or (that of the least peak, False).

    By bisection, as more decisions mostly take less memory; where they do not, the n that is found fits but need not be
    the least.
    """
    meter = Meter(tape, algorithms)
    peaks: dict[int, int] = {}

    def peak(n: int) -> int:
        if n not in peaks:
            peaks[n] = meter.read(decide(n)).peak
        return peaks[n]

    if peak(0) <= budget and fits(tape, decide(0), algorithms, budget):
        return 0, True
    low, high = 0, next((n for n in (most, most * 3 // 4, most // 2, most // 4) if peak(n) <= budget), 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if peak(middle) <= budget else (middle, high)
    step = 1
    while high and peak(high) <= budget:
        if fits(tape, decide(high), algorithms, budget):
            return high, True
        if high == most:
            break
        high, step = min(most, high + step), step * 2  # the layout may need a little more than the peak
    return min(peaks, key=lambda n: (peaks[n], n)), False


def on_demand(tape: Tape, algorithms: Mapping[str, str], budget: int, decisions: Decisions) -> Decisions:
    """`decisions` where what waits on the device while an op lacks memory leaves for the host, and comes back for each
    use: what a system does that evicts at any time, and not once a step.

    Offloaded tensors leave again between their backward uses, and dropped ones, which would stay from their rerun to
    their last use, are offloaded.
    """
    reading = Meter(tape, algorithms).read(decisions)
    over = np.concatenate(([0], np.cumsum(reading.live > budget)))  # ops that lack memory before each
    fates = resolve(decisions, tape, algorithms).fates
    movable = {b for t in tape.saved if fates[b := tape.buffer_of[t.name]] is not KEEP}
    each = {
        b: "each"
        for b, uses in reading.lives
        if b in movable and any(reading.backward[q] and over[q] > over[p + 1] for p, q in pairwise(uses))
    }
    if not each:
        return decisions
    return replace(decisions, fates={**decisions.fates, **dict.fromkeys(each, OFFLOAD)}, returns=each)


def with_workspaces(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], decisions: Decisions
) -> Decisions | None:
    """`decisions` where each op takes the fastest algorithm whose workspace has room at that moment; None if the plan
    does not even fit with the least workspaces.
    """
    lean = replace(decisions, algorithms=least_workspace(tape, cost))
    plan = sketch(tape, resolve(lean, tape, algorithms))
    if plan.peak_bytes > budget:
        return None
    others: dict[str, int] = {}  # {op: the most that is live beside its workspace, whenever it runs}
    for i, step, op in plan.computes():
        scratch = granules(op.algorithm(step.algorithm).workspace)
        others[op.name] = max(others.get(op.name, 0), plan.live_bytes[i] - scratch)
    for share in SHARES:
        chosen = {}
        for op in tape.ops:
            room = share * budget - others[op.name]
            small = [a for a in op.algorithms if granules(a.workspace) <= room]
            small = small or [op.algorithm(lean.algorithms[op.name])]
            chosen[op.name] = min(small, key=lambda a: (cost.op_seconds(tape, op, a.name), a.workspace)).name
        found = replace(decisions, algorithms=chosen)
        if fits(tape, found, algorithms, budget):
            return found
    return lean if laid_out(plan, budget).arena_bytes <= budget else None


@dataclass(frozen=True)
class Candidate:
    """Decisions with what `laid_out` makes of them: a plan without waits."""

    decisions: Decisions
    plan: Plan


def quickest(cost: Cost, budget: int, candidates: Iterable[Candidate]) -> Candidate:
    """The one of `candidates` whose plan fits the budget and has the shortest simulated step; else the smallest."""
    best: tuple[bool, float] | None = None
    chosen: Candidate | None = None
    for candidate in candidates:
        plan = candidate.plan
        over = plan.arena_bytes > budget
        rank = (over, plan.arena_bytes if over else step_seconds(plan, cost))
        if best is None or rank < best:
            best, chosen = rank, candidate
    assert chosen is not None
    return chosen


def step_seconds(plan: Plan, cost: Cost) -> float:
    """The simulated step of a plan that is laid out, and has no waits yet."""
    return simulate(replace(plan, steps=tuple(order(plan))), cost).step_seconds


def done_for(
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    most: int,
    decide: Callable[[int], Decisions],
) -> tuple[int, bool, Decisions]:
    """(the fewest n for which `decide(n)` fits, whether it does, the decisions), with evictions at any time, and then
    with smaller workspaces, where memory lacks otherwise.  If nothing fits, it is the smallest plan found.
    """
    n, fitting = fewest(tape, algorithms, budget, most, decide)
    if fitting:
        return n, True, decide(n)

    def anytime(k: int) -> Decisions:
        return on_demand(tape, algorithms, budget, decide(k))

    again, fitting = fewest(tape, algorithms, budget, most, anytime)
    if fitting:
        return again, True, anytime(again)
    lean = least_workspace(tape, cost)

    def leanest(k: int) -> Decisions:
        return replace(on_demand(tape, lean, budget, decide(k)), algorithms=lean)

    last, _ = fewest(tape, lean, budget, most, leanest)
    found = with_workspaces(tape, budget, cost, algorithms, leanest(last))
    return last, found is not None, found or leanest(last)
