"""moDNN: memory optimal DNN training on GPUs (Chen et al., DATE 2018, TPDS 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions
from vdnn.memory.published.copies import offloading
from vdnn.memory.published.fitting import Candidate, sizeable, step_seconds
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.trial import fastest
from vdnn.memory.variants import Variant, variants
from vdnn.micro_batches import without_round
from vdnn.tape import Tape


def modnn(
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    variant: Variant | None = None,
) -> Decisions | tuple[Tape, Decisions]:
    """Offloads and prefetches scheduled as tasks, convolution algorithms by the room there is, and sub-batches.

    Follows: offload and prefetch are tasks of their own beside compute, bound by memory and the link alone; what was
    made first leaves first, no more of it than the budget asks for, and returns as early as there is room; each
    convolution takes the fastest algorithm that has room; where the budget wants it, the batch comes in sub-batches,
    the largest first, whose gradients are summed, and the fastest of what fits is taken.  Nothing is run again.
    For a tape in several sub-batches it is (tape, Decisions), with an algorithm for every op.
    Leaves out: the task that moves what fragments memory (offsets are laid out beforehand here), sub-batches of other
    sizes for other layers, and layers with batch norm in sub-batches, which would compute something else.
    """
    best: Candidate | None = None
    seconds, where, least = inf, tape, tape
    for other in (tape, *variants(tape, variant, cost)):
        if other.floor_bytes > budget:
            least = min(least, other, key=lambda t: t.floor_bytes)
        elif oracle_seconds(other, cost) < seconds:
            found = _of(other, budget, cost, _alike(other, cost, algorithms))
            took = _seconds(found, budget, cost)
            smaller = best is None or (seconds == inf and found.plan.arena_bytes < best.plan.arena_bytes)
            if took < seconds or smaller:
                best, seconds, where = found, took, other
    if best is None:
        best, where = _of(least, budget, cost, _alike(least, cost, algorithms)), least
    if where is tape:
        return best.decisions
    return where, replace(best.decisions, algorithms=dict(best.plan.decisions.algorithms))


def _of(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Candidate:
    """What moDNN does with this tape."""
    return offloading(tape, budget, cost, algorithms, sizeable(tape))


def _alike(tape: Tape, cost: Cost, algorithms: Mapping[str, str]) -> dict[str, str]:
    """For each op the algorithm that it has for the whole batch, if it has it here too, else its fastest."""
    chosen = fastest(tape, cost)
    for op in tape.ops:
        whole = algorithms.get(without_round(op.name))
        if whole in {a.name for a in op.algorithms}:
            chosen[op.name] = str(whole)
    return chosen


def _seconds(candidate: Candidate, budget: int, cost: Cost) -> float:
    """Simulated seconds of the step; infinite if it does not fit."""
    return step_seconds(candidate.plan, cost) if candidate.plan.arena_bytes <= budget else inf
