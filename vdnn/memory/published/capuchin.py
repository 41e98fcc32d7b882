"""Capuchin: tensor-based GPU memory management for deep learning (Peng et al., ASPLOS 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import DROP, OFFLOAD, Decisions, Fate, resolve
from vdnn.memory.published.copies import by_events, just_in_time
from vdnn.memory.published.fitting import Candidate, done_for, quickest, sizeable
from vdnn.memory.published.recompute import Recompute
from vdnn.memory.published.swapping import Access, Link, accesses
from vdnn.memory.trial import sketch
from vdnn.tape import Tape

MARGINS = (1.0, 0.0, 4.0)  # in-triggers are moved earlier by these multiples of the swap-in's time


def capuchin(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """Swap what has the time for it; then, tensor by tensor, swap or run again, whichever costs less.

    Follows: the times of accesses as measured when nothing is evicted (here, as the cost model has them); candidates
    that are live at the peak, by free time (from the end of the swap-out to the latest start of the swap-in), the
    longest first, while swaps hide; then the swap with the longest free time against the rerun that saves the most
    bytes per second (MSPS), with sources and counts kept up to date as in its Algorithm 2; only as many as the saving
    at the peak asks for; swap-ins triggered so that they end just in time, with the link's queue, and earlier where
    feedback, here simulated steps, says so; compute waits for a swap-out only where memory lacks.
    Reruns are weighed both as in Algorithm 2 and as collective ones, which run each tensor again but once.
    Leaves out: eviction on demand when memory is found to be short while running; reruns that are not collective (what
    was run again stays until its last use).
    """
    weighed = []
    for collective in (False, True):
        actions = list(_actions(tape, budget, cost, algorithms, collective))
        n, fitting, decisions = done_for(tape, budget, cost, algorithms, len(actions), _first_of(actions))
        if n == 0 and fitting:
            return decisions
        weighed.append(_fed_back(tape, budget, cost, algorithms, decisions, MARGINS[0]))
    better = quickest(cost, budget, weighed)
    earlier = (_fed_back(tape, budget, cost, algorithms, better.decisions, margin) for margin in MARGINS[1:])
    return quickest(cost, budget, [better, *earlier]).decisions


def _fed_back(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], decisions: Decisions, margin: float
) -> Candidate:
    """`decisions` with in-triggers earlier by that margin."""
    return by_events(tape, decisions, cost, {**algorithms, **decisions.algorithms}, budget, just_in_time(margin))


def _first_of(actions: list[tuple[str, Fate]]) -> Callable[[int], Decisions]:
    """The decisions that take the first n of these actions."""
    return lambda n: Decisions(dict(actions[:n]), ahead=0)


def _actions(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], collective: bool
) -> Iterator[tuple[str, Fate]]:
    """(tensor, what is done with it) in the order in which they are chosen, until nothing is left."""
    seconds = [cost.op_seconds(tape, op, algorithms[op.name]) for op in tape.ops]
    starts = list(accumulate(seconds, initial=0.0))
    plan = sketch(tape, resolve({}, tape, algorithms))
    over = [plan.live_bytes[i] - budget for i, _, _ in plan.computes()]
    gap: dict[str, Access] = {}
    link: dict[str, Link] = {}  # {buffer: the link during its round}
    every = accesses(tape, sizeable(tape), starts, cost)
    for forward, backward in tape.rounds:
        peak = [i for i in (*forward, *backward) if over[i] > 0]
        here = [a for a in every if a.last in forward and peak and a.last < peak[-1] and a.first > peak[0]]
        gap |= {a.buffer: a for a in here}
        link |= dict.fromkeys((a.buffer for a in here), Link(starts, over, (forward, backward)))
    left = sorted(gap, key=lambda b: (-gap[b].free_seconds, b))
    for b in left.copy():
        if gap[b].free_seconds >= 0 and link[b].overhead_with(gap[b]) <= link[b].overhead:
            link[b].add(gap[b])
            left.remove(b)
            yield b, OFFLOAD
    recompute = Recompute.of(tape, left, seconds, collective)
    while left:
        swap, rerun = left[0], recompute.best()
        swapping = (link[swap].overhead_with(gap[swap]) - link[swap].overhead) / gap[swap].nbytes
        if rerun is None or swapping <= recompute.seconds(rerun) / gap[rerun].nbytes:
            link[swap].add(gap[swap])
            recompute.remove(swap)
            left.remove(swap)
            yield swap, OFFLOAD
        else:
            recompute.choose(rerun)
            left.remove(rerun)
            yield rerun, DROP
