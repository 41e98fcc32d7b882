"""POFO: keep, offload or recompute each stage of a chain, by dynamic programming.

Beaumont, Eyraud-Dubois, Shilova, "Efficient Combination of Rematerialization and Offloading for Training DNNs",
NeurIPS 2021.

What follows the paper: the network is a chain of stages; memory is divided into slots; an exact program over the stages
picks for each what to keep, to move and to run again, under the memory and the link's bandwidth, so that the step is
fastest; copies leave in the order of forward and return in the opposite order; compute waits only where memory lacks.

What is ours: the recursion itself (see `offloading_chain`).  The paper's runs something again more than once, nested;
the passes here run each dropped tensor again once, so one level is all there is.  A network with forks is a chain of
its blocks, whose inside has one fate.  Both ways of the link are priced, and the bytes that wait for it.  What the
model says of memory is then held against the real plan, and its limit moved until the plan fits closely.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vdnn.memory.chain import Chain, Stage, chains_of
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import KEEP, OFFLOAD, Decisions, Fate, resolve
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.memory.published.fitting import fits, laid_out, step_seconds
from vdnn.memory.published.offloading_chain import Solution, solve
from vdnn.memory.published.running import Running
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.timing import Moved, aheads_of, slacks_of
from vdnn.memory.trial import downgraded, least_workspace, sketch, trial
from vdnn.tape import Tape

Fates = tuple[tuple[Fate, Fate], ...]  # of the stages of a chain: inside, output

ATTEMPTS = 3  # limits of memory that the model is given in turn
MORE = 1.06  # by how much the limit grows where the plan has fitted, or the model finds none
NEARLY = 1.0005  # of the oracle's time: no faster plan is looked for
LEANER = (1.0, 0.9, 0.8)  # of the budget: what an op with all it reads and writes, and its workspace, may take
SHARES = (1.0, 0.97, 0.9, 0.7)  # of the budget that early and late copies may fill at most, tried in turn


def pofo(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """The fastest decisions of POFO's that fit `budget` bytes; if none do, those whose plan is the smallest.

    Where nothing fits with the given algorithms, those with the least workspace are tried, and then tensors that leave
    again between their uses in backward: neither is the paper's.
    """
    if not tape.saved or fits(tape, Decisions(), algorithms, budget):
        return Decisions()
    enough = oracle_seconds(tape, cost) * NEARLY
    found: list[_Tried] = []
    for group in _settings(tape, budget, cost, algorithms):
        for chosen, returns in group:
            found += _attempts(tape, budget, cost, chosen, returns, enough)
        if any(tried.arena_bytes <= budget for tried in found):
            break
    else:
        all_away = _all_away(tape, least_workspace(tape, cost))
        found.append(_Tried(all_away, trial(tape, resolve(all_away, tape, {}), budget).arena_bytes))
    return min(found, key=lambda tried: (max(tried.arena_bytes, budget), tried.seconds)).decisions


def _settings(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]
) -> Iterator[list[tuple[Mapping[str, str], str]]]:
    """(algorithms, returns) to try, in groups; a later group is for where an earlier one fits nowhere."""
    yield [(algorithms, "once")]
    least = _all_away(tape, algorithms)
    fewer = [least_workspace(tape, cost)]
    for share in LEANER:
        less = downgraded(tape, int(share * budget), cost, least)
        if less is not None and dict(less.algorithms) not in fewer:
            fewer.append(dict(less.algorithms))
    yield [(chosen, "once") for chosen in fewer]
    yield [(chosen, "each") for chosen in fewer]


def _all_away(tape: Tape, algorithms: Mapping[str, str]) -> Decisions:
    """Decisions under which each op has little else on the device than what it reads and writes."""
    return Decisions({t.name: OFFLOAD for t in tape.saved}, algorithms, ahead=0, returns="each")


@dataclass(frozen=True)
class _Tried:
    """Decisions with their plan's size in bytes and, if it fits, its simulated seconds, else 0."""

    decisions: Decisions
    arena_bytes: int
    seconds: float = 0.0


def _attempts(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], returns: str, enough: float
) -> Iterator[_Tried]:
    """Decisions for several limits of memory: lower where the plan was too large, else higher.

    enough  seconds at which a plan is as fast as can be
    """
    chains = chains_of(tape, cost, algorithms, returns)
    limit = float(budget)
    least = 0.0  # the model finds nothing below
    must = max(c.always_bytes + max(s.passing_bytes, s.late_bytes) for c in chains for s in c.stages)
    seen: dict[tuple[Fates, ...], _Tried] = {}
    for _ in range(ATTEMPTS):
        fates = _solved(chains, limit)
        if fates is None:
            least, limit = limit, max(limit * MORE, must)
            continue
        if fates not in seen:
            seen[fates] = _try(tape, _decisions(chains, fates, algorithms, returns), cost, budget)
            yield seen[fates]
        tried = seen[fates]
        excess = tried.arena_bytes - budget
        if excess <= 0 and tried.seconds <= enough:
            return
        limit = limit - excess if excess > 0 else limit * MORE
        if limit <= least:
            return


def _solved(chains: list[Chain], limit: float) -> tuple[Fates, ...] | None:
    """The fates of each chain's stages in `limit` bytes, each chain by itself; None if one of them does not fit."""
    solved: dict[tuple[Stage, ...], Solution | None] = {}  # most rounds of a step are alike but for names
    found = []
    for chain in chains:
        stages = tuple(replace(s, output="y" if s.output else "", inside=()) for s in chain.stages)
        key = (*stages, Stage(output_bytes=chain.always_bytes))
        if key not in solved:
            solved[key] = solve(stages, limit - chain.always_bytes)
        solution = solved[key]
        if solution is None:
            return None
        found.append(solution.fates)
    return tuple(found)


def _decisions(
    chains: list[Chain], chosen: tuple[Fates, ...], algorithms: Mapping[str, str], returns: str
) -> Decisions:
    fates: dict[str, Fate] = {}
    for chain, of_stages in zip(chains, chosen, strict=True):
        for stage, (inside, output) in zip(chain.stages, of_stages, strict=True):
            fates |= dict.fromkeys(stage.inside, inside)
            if stage.output:
                fates[stage.output] = output
    return Decisions({b: f for b, f in fates.items() if f is not KEEP}, algorithms, returns=returns)


def _try(tape: Tape, decisions: Decisions, cost: Cost, budget: int) -> _Tried:
    """The decisions with copies in time, as far as the budget allows, and how long their plan takes."""
    given = resolve(decisions, tape, {})
    plan = _in_time(tape, given, cost, budget)
    if plan is None:
        late = replace(given, ahead=0, slack=0)
        plan = laid_out(sketch(tape, late), budget)
    decisions = replace(decisions, ahead=plan.decisions.ahead, slack=plan.decisions.slack)
    if plan.arena_bytes > budget:
        return _Tried(decisions, plan.arena_bytes)
    return _Tried(decisions, plan.arena_bytes, step_seconds(plan, cost))


def _in_time(tape: Tape, given: Decisions, cost: Cost, budget: int) -> Plan | None:
    """The plan whose copies start as early and end as late as pays, in the memory that the budget leaves; None if even
    the least of these is above the budget.

    As in `timed`, but where ops run again they count as ops: the walk is along the ops as they are really run.
    """
    late = replace(given, ahead=0, slack=0)
    plan = sketch(tape, late)
    if plan.peak_bytes > budget:
        return None
    live = [plan.live_bytes[i] for i, _, _ in plan.computes()]
    running = Running.of(tape, given)
    moved = Moved.of(running.tape, given, cost)
    whole = budget - tape.resident_bytes
    share = 1.0
    for most in SHARES:
        share = min(share, most)
        room = [max(int(share * whole) + tape.resident_bytes - n, 0) for n in live]
        slack: dict[str, int] = {}
        ahead: dict[str, int] = {}
        for forward, backward in running.rounds:
            slack |= slacks_of(running.tape, forward, moved, room)
            ahead |= aheads_of(running.tape, backward, late, moved, room)
        plan = place(sketch(tape, replace(given, ahead=ahead, slack=slack, within=budget)), 0)
        if plan.arena_bytes <= budget:
            return plan
        share -= (plan.arena_bytes - budget) / whole
    return None
