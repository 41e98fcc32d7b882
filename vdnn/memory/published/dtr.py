"""Dynamic tensor rematerialization (Kirisame et al., ICLR 2021, arXiv 2006.09616)."""

from __future__ import annotations

from collections.abc import Mapping

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import DROP, Decisions, resolve
from vdnn.memory.published.evicting import Evicting
from vdnn.memory.published.fitting import fits, laid_out, with_workspaces
from vdnn.memory.published.meter import Meter
from vdnn.memory.trial import sketch
from vdnn.tape import Tape

TRIALS = 6  # thresholds tried


def dtr(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """Drop what DTR's heuristic evicts when it runs the step's ops one after the other under a threshold.

    Follows: whenever an op lacks memory, evict the tensor with the least cost / (bytes x staleness), where cost is that
    of its own op and of the evicted neighbourhood (h_DTR with the paper's equivalence classes, h_DTR^eq); what is read
    and not there is made again first; what has no use left is freed.  DTR learns this while it runs; here the step is
    walked through once, as all steps are alike.
    Leaves out: that a tensor made again may be evicted again: our passes keep it until its last use.  Since that takes
    memory which DTR's own count has not, the threshold is lowered by bisection until the plan fits the budget.
    """
    everything = sketch(tape, resolve({}, tape, algorithms))
    if laid_out(everything, budget).arena_bytes <= budget:
        return Decisions()
    meter = Meter(tape, algorithms)
    evicting = Evicting(tape, cost, algorithms)
    low, high = tape.floor_bytes, min(budget, everything.peak_bytes)
    smallest: tuple[int, Decisions] | None = None
    best: Decisions | None = None
    threshold = high
    for _ in range(TRIALS):
        decisions = Decisions(dict.fromkeys(evicting.under(threshold), DROP))
        peak = meter.read(decisions).peak
        if smallest is None or peak < smallest[0]:
            smallest = peak, decisions
        if peak <= budget and fits(tape, decisions, algorithms, budget):
            best, low = decisions, threshold
        else:
            high = threshold
        threshold = (low + high) // 2
    assert smallest is not None
    return best or with_workspaces(tape, budget, cost, algorithms, smallest[1]) or smallest[1]
