"""bound: seconds that no plan of a tape within a budget undercuts, by linear programming.

The program lets every tensor be partly held, partly copied to the host and back, and partly made again, and copies flow
like a fluid; every plan is one of its solutions, so its optimum is no more than the seconds of any plan.

The budget is that of the arena, since bytes are what steps wait for: where an arena is larger than the plan's peak, a
copy may still be under way although the plan's own order has freed its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from operator import add
from typing import Any

from vdnn.memory.cost import Cost
from vdnn.memory.fates import Fates
from vdnn.memory.fluid import Scales, Timeline
from vdnn.memory.linear import Program
from vdnn.memory.relaxation import Choice, Life, Lives, blocks, choices, lives
from vdnn.tape import Tape, granules

TOLERANCE = 1e-7  # of the budget and of the seconds: what a solver's rounding may be worth
NEGLECTED = 1e-4  # of the budget: the smallest tensors, together no larger than this, are taken to be always there
SCALE = 1000.0  # the budget in scaled bytes, and the fastest step in scaled seconds
SOLVED, INFEASIBLE = 0, 2


@dataclass(frozen=True)
class Bound:
    """What linear programming says of all plans of a tape within a budget.

    seconds     no plan is faster; inf if none fits
    fractions   {saved buffer: (kept, offloaded, dropped)} of the optimal relaxation; they add up to 1
    algorithms  {op with several that fit: {algorithm: fraction}}
    reruns      {forward op: how much of it runs again}
    floor       bytes of the smallest arena of any plan, at least: below it nothing fits
    size        (columns, rows) of the program; (0, 0) where none was needed
    """

    seconds: float
    fractions: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    algorithms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reruns: Mapping[str, float] = field(default_factory=dict)
    floor: int = 0
    size: tuple[int, int] = (0, 0)


def bound(tape: Tape, budget: int, cost: Cost) -> Bound:
    """A lower bound of the step's seconds over all plans of `tape` whose arena is within `budget` bytes.

    It holds for every plan that the passes make from Decisions, simulated with `cost`, with contention (which only
    slows) or without.  Raises ImportError without SciPy, ValueError for a budget that is no number of bytes, and
    RuntimeError if the solver gives up.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise ValueError(f"a budget is a number of bytes, not {budget!r}")
    found = lives(tape)
    scratch = [min(granules(a.workspace) for a in op.algorithms) for op in tape.ops]
    floor = max(map(add, found.base, scratch), default=0)
    if floor > budget or not tape.ops:
        return Bound(inf if floor > budget else 0.0, floor=floor)
    seconds = {(i, a.name): cost.op_seconds(tape, op, a.name) for i, op in enumerate(tape.ops) for a in op.algorithms}
    options = choices(tape, seconds, [budget - base for base in found.base])
    least = _least_seconds(tape, found, options, cost)
    program, fates, timeline = _program(tape, budget, cost, found, options, least)
    result = program.solve()
    if result.status == INFEASIBLE:
        return Bound(inf, floor=floor, size=program.size)
    if result.status != SOLVED:
        raise RuntimeError(f"no bound: the solver gave up on {program.size} columns and rows: {result.message}")
    optimum = (timeline.fixed + result.fun - fates.preferred) / timeline.scales.second * (1 - TOLERANCE)
    return Bound(
        max(least, optimum),
        fates.fractions(result.x),
        _algorithms(tape, timeline, options, result.x),
        {tape.ops[j].name: float(result.x[column]) for j, column in fates.rerun.items()},
        floor,
        program.size,
    )


def _program(
    tape: Tape, budget: int, cost: Cost, found: Lives, options: list[list[Choice]], least: float
) -> tuple[Program, Fates, Timeline]:
    """The program of a tape, and the parts of it that know what its columns mean."""
    program = Program()
    scales = Scales(SCALE / (least or 1.0), SCALE / budget if budget else 1.0)
    movable = _movable(found, budget)
    fates = Fates(program, tape, found, movable, scales)
    timeline = Timeline(program, tape, blocks(tape, found, movable, options), options, scales)
    quickest = {j: min(choice.seconds for choice in options[j]) for j in fates.rerun}
    room = [budget * (1 + TOLERANCE) - base for base in found.base]
    moves = fates.moves(quickest)
    inputs = [(place, tape.buffers[name].payload) for place, name in found.arrivals]
    moves.first += [(place, nbytes * scales.byte) for place, nbytes in inputs]
    sizes = [life.payload for life in movable.values()] + [nbytes for _, nbytes in inputs]
    timeline.rows(moves, room, sizes, cost)
    arrived = 0.0
    for place, nbytes in inputs:
        arrived += cost.copy_seconds(nbytes, "prefetch") * scales.second
        timeline.arrive(place, arrived)
    timeline.leave([(made, seconds * scales.second) for made, seconds in _results(tape, cost)])
    return program, fates, timeline


def _least_seconds(tape: Tape, found: Lives, options: list[list[Choice]], cost: Cost) -> float:
    """Seconds of the step if all of it fits: as `oracle_seconds`, with the algorithms that fit the budget."""
    clock = arrived = left = 0.0
    arrivals: dict[int, list[str]] = {}
    for place, name in found.arrivals:
        arrivals.setdefault(place, []).append(name)
    results = _results(tape, cost)
    for i, choice in enumerate(options):
        for name in arrivals.get(i, ()):
            arrived += cost.copy_seconds(tape.buffers[name].payload, "prefetch")
            clock = max(clock, arrived)
        clock += choice[0].seconds
        for made, seconds in results:
            if made == i:
                left = max(left, clock) + seconds
    return max(clock, left)


def _results(tape: Tape, cost: Cost) -> list[tuple[int, float]]:
    """(op that makes it, seconds of its copy to the host) of every result, in the order in which they are made."""
    made = {name: i for i, op in enumerate(tape.ops) for name in op.writes}
    counted = [name for name in tape.results if tape.buffers[tape.buffer_of[name]].is_counted]
    sizes = [(made[name], tape.buffers[tape.buffer_of[name]].payload) for name in counted]
    return [(place, cost.copy_seconds(nbytes, "offload")) for place, nbytes in sorted(sizes)]


def _movable(found: Lives, budget: int) -> dict[str, Life]:
    """The lives that the program follows: all but the smallest, in order of their names in the tape."""
    total = 0
    neglected = set()
    for name, life in sorted(found.movable.items(), key=lambda item: item[1].nbytes):
        total += life.nbytes * len(life.gaps)
        if total > NEGLECTED * budget:
            break
        neglected.add(name)
    return {name: life for name, life in found.movable.items() if name not in neglected}


def _algorithms(tape: Tape, timeline: Timeline, options: list[list[Choice]], x: Any) -> dict[str, dict[str, float]]:
    shares = {}
    for i, others in timeline.used.items():
        slower = {option.name: float(x[column]) for option, column in others}
        shares[tape.ops[i].name] = {options[i][0].name: 1 - sum(slower.values()), **slower}
    return shares
