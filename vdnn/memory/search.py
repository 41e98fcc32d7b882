"""search: the fastest safe step that can be found for a tape within a budget, and how much faster any could be.

    seeds      every other policy's decisions as they are, and the ways they go; everything kept, everything moved;
               the relaxation of the bound, rounded
    descend    from the best of these (vdnn.memory.descend), by estimates
    realise    what looks best is laid out and simulated as a whole; if its arena is above the budget, the limit of the
               estimate is lowered by as much and the ways are repaired
    anneal      changes at random, as long as there is time, around the best
    polish     single copies earlier or later, by simulation

What is found is a plan that was laid out and simulated, never an estimate.  The sequence of what is tried depends on
nothing but the tape, the costs, the budget and the seed; time only says where it ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from vdnn.collector import collector_paused
from vdnn.layers.base import LayerError
from vdnn.memory.bound import Bound, bound
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import OFFLOAD, Decisions, resolve
from vdnn.memory.descend import Descent, Ways
from vdnn.memory.layout import EFFORT
from vdnn.memory.order import order
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.memory.schedule import Schedule, Scheduler, Way, ways_of
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trial import least_workspace, sketch
from vdnn.micro_batches import MicroBatchError
from vdnn.tape import Tape

SECONDS = 10.0
PARTS = (2, 4, 8, 16)  # numbers of sub-batches that are tried
PROVED = 1e-4  # a gap that is not worth more time
WORK = 4_000_000  # ops scheduled, after which a search ends by itself
ROUNDINGS = (0.5, 0.25, 0.75)  # a tensor that the relaxation keeps by more than this is kept
UNSURE = 1.08  # times an estimate
MOST_LAYOUTS = 50  # of hopeful estimates at a time
CHANGES: tuple[Callable[[int], int], ...] = (
    lambda n: n // 2,
    lambda n: max(0, n - 1),
    lambda n: n + 1,
    lambda n: 2 * n,
)
TRIES = 5  # limits tried for one layout
STALE = 20  # walks without a better plan
TURNS = 100  # of one random walk
HEAT = 0.1  # of the seconds that could be won at most
NEARLY = 1.02  # of the budget: what more effort may still lay out within it,
MUCH = 1.2  # and for so many ops, whose layout takes no time
FEW_OPS = 300
TRIALS = 100  # changes tried between two layouts
STARTS = 4  # of the seeds, so many are improved

Known = Sequence[tuple[str, Decisions] | tuple[str, Decisions, Tape]]
Variant = Callable[[int], Tape]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """The best plan of a search.

    plan           laid out; the smallest found if none fits the budget
    budget         bytes
    step_seconds   of the plan, simulated
    bound_seconds  no plan of this tape in this budget is faster (0 if unknown)
    origin         the seed it came from
    history        (seconds since the start, step_seconds) whenever a better one was found
    """

    plan: Plan
    budget: int
    step_seconds: float
    bound_seconds: float
    origin: str
    history: tuple[tuple[float, float], ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the plan's arena is within the budget."""
        return self.plan.arena_bytes <= self.budget

    @property
    def gap(self) -> float:
        """By which share of the bound the step is above it; inf without a bound."""
        return self.step_seconds / self.bound_seconds - 1 if self.bound_seconds else inf


def find(
    tape: Tape,
    budget: int,
    cost: Cost,
    *,
    seconds: float = SECONDS,
    seed: int = 0,
    known: Known = (),
    variant: Variant | None = None,
    progress: Progress | None = None,
    evaluate: Callable[[Plan], float] | None = None,
) -> Found:
    """The fastest plan found of `tape` in `budget` bytes, with a lower bound where SciPy is installed.

    seconds    after which it ends; what is known is simulated in any case
    known      (name, decisions) of other policies, or (name, decisions, tape) for another tape of the same step: the
               result is never slower than one of them that fits
    variant    the same step in so many sub-batches: if given, they are tried too, and the bound is for all of them
    progress   is told of every better plan
    evaluate   seconds by which plans are compared; default: of their simulated step
    """
    search = _Search(tape, budget, cost, seconds, seed, progress, evaluate)
    with collector_paused():
        mine = [(name, decisions) for name, decisions, *other in known if not other or other[0] is tape]
        if variant is None or _variant(variant, PARTS[0]) is None:
            return search.run(mine)
        search.seconds = seconds / 2
        first = search.run(mine)
        search.seconds = seconds
        return _in_parts(search, first, variant, [k for k in known if len(k) == 3 and k[2] is not tape])


def _in_parts(whole: _Search, first: Found, variant: Variant, known: Sequence[Any]) -> Found:
    """The best of what was found for the whole batch and of what is found in sub-batches.

    The bound is the least of those of all numbers of sub-batches; of one that is not searched, it is what it would take
    with memory for everything.
    """
    best, bounds = first, [first.bound_seconds]
    for parts in PARTS:
        tape = _variant(variant, parts)
        if tape is None:
            break
        oracle = oracle_seconds(tape, whole.cost)
        if tape.floor_bytes > whole.budget:
            continue  # its plans cannot fit
        if best.fits and oracle >= best.step_seconds * (1 - PROVED):
            bounds.append(oracle)
            continue
        left = max(0.0, whole.seconds - whole.elapsed) / 2
        search = _Search(tape, whole.budget, whole.cost, left, whole.seed, whole.tell, whole.evaluate)
        mine = [(name, decisions) for name, decisions, other in known if other.micro_batches == parts]
        with_bound = whole.bound_took * (len(tape.ops) / len(whole.tape.ops)) ** 1.5 < left
        found = search.run(mine, with_bound)
        bounds.append(max(oracle, found.bound_seconds))
        if (not found.fits, found.step_seconds) < (not best.fits, best.step_seconds):
            history = [(whole.seconds - left + t, s) for t, s in found.history if s < best.step_seconds]
            best = replace(found, origin=f"{parts} sub-batches: {found.origin}", history=(*best.history, *history))
        elif not best.fits and found.plan.arena_bytes < best.plan.arena_bytes:
            best = found
    certain = 0.0 if not first.bound_seconds else min(bounds)
    return replace(best, bound_seconds=certain)


def _variant(variant: Variant, parts: int) -> Tape | None:
    """The tape in that many sub-batches; None if there can be none."""
    try:
        return variant(parts)
    except (LayerError, MicroBatchError):
        return None


@dataclass
class _Best:
    """The best plan so far, and the smallest."""

    plan: Plan | None = None
    seconds: float = inf
    origin: str = ""
    smallest: Plan | None = None
    history: list[tuple[float, float]] = field(default_factory=list)


class _Search:
    def __init__(
        self,
        tape: Tape,
        budget: int,
        cost: Cost,
        seconds: float,
        seed: int,
        progress: Progress | None,
        evaluate: Callable[[Plan], float] | None,
    ) -> None:
        self.tape, self.budget, self.cost, self.seconds = tape, budget, cost, seconds
        self.begun = time.monotonic()
        self.seed, self.lot = seed, random.Random(seed)
        self.tell = progress or (lambda note: None)
        self.evaluate = evaluate or (lambda plan: simulate(plan, cost).step_seconds)
        self.scheduler = Scheduler(tape, cost)
        self.best = _Best()
        self.bound = Bound(0.0)
        self.bound_took = 0.0
        self.descents: dict[int, Descent] = {}
        self.limit = budget  # of estimates: as much less than the budget as layouts have gaps
        self.tried: set[tuple[int | Way, ...]] = set()  # limits and ways that were laid out
        self.polished: list[Plan] = []

    # ---- when it ends

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def is_over(self) -> bool:
        """Whether time or work are used up, or the best is proved to be about the best there is."""
        work = sum(d.tried for d in self.descents.values()) * len(self.tape.ops)
        return self.elapsed >= self.seconds or work >= WORK or self.is_proved()

    def is_proved(self) -> bool:
        """Whether no plan could be faster by more than is worth looking for."""
        return self.bound.seconds == inf or self.best.seconds <= self.bound.seconds * (1 + PROVED)

    # ---- the search

    def run(self, known: Sequence[tuple[str, Decisions]], with_bound: bool = True) -> Found:
        """The best of what is known and what is found."""
        resolved = [(name, resolve(decisions, self.tape, {})) for name, decisions in known]
        for name, decisions in resolved:
            self.lay_out(decisions, name)
        if self.best.plan is None:
            self.lay_out(self.least(), "least")
        descent = self.descent(self.budget)
        kept = descent.repair({})
        self.realise(kept, "kept", quick=True)  # soon there should be something that fits
        if not self.is_over():
            self.realise(descent.sweep(kept), "kept", quick=True)
        if with_bound:
            began = self.elapsed
            self.bound = _bound(self.tape, self.budget, self.cost)
            self.bound_took = self.elapsed - began
        self.improve(descent, resolved)
        return self.result()

    def least(self) -> Decisions:
        """Everything moved, back for each use at the last moment, least workspaces: mostly the smallest plan."""
        fates = dict.fromkeys((t.name for t in self.tape.saved), OFFLOAD)
        decisions = Decisions(fates, least_workspace(self.tape, self.cost), ahead=0, returns="each")
        return resolve(decisions, self.tape, {})

    def improve(self, descent: Descent, known: Sequence[tuple[str, Decisions]]) -> None:
        """Descend from the best seeds, then walk around the best as long as there is time."""
        starts: list[tuple[Schedule, str]] = []
        for name, ways in self.seeds(known):
            starts.append((descent.repair(ways), name))
            if starts[-1][0].seconds < self.best.seconds:
                self.realise(starts[-1][0], name, quick=True)
            if self.is_over():
                break
        for found, name in _distinct(starts)[:STARTS]:
            if self.is_over():
                break
            starts.append((descent.sweep(found), name))
        starts = _distinct(starts)[:STARTS]
        found = starts[0][0]
        for start, name in starts:
            better = self.descend(start, name)
            found = min(found, better, key=lambda s: s.rank)
        self.settle()
        self.anneal(found)

    def descend(self, start: Schedule, name: str) -> Schedule:
        """The end of the descent from there; what is found on the way is laid out now and then."""
        better = start
        while not self.is_over():
            before = self.descent(self.limit).repair(better.ways)
            better = self.descent(self.limit).descend(before, TRIALS)
            self.realise(better, name)
            if better.rank >= before.rank:
                break
        return better

    def anneal(self, found: Schedule) -> None:
        """Walk at random around the best, and take what is better, until many walks have led nowhere."""
        stale = 0
        while stale < STALE and not self.is_over():
            stale += 1
            before = self.best.seconds
            descent = self.descent(self.limit)
            found = descent.repair(found.ways)
            to_win = found.seconds - max(self.bound.seconds, self.scheduler.oracle)
            better = descent.anneal(found, self.lot, TURNS, HEAT * to_win)
            if better.rank < found.rank:
                found = descent.descend(better)
                self.realise(found, "annealed")
            self.settle()
            if self.best.seconds < before:
                stale = 0

    def settle(self) -> None:
        """Lay out whatever estimate promises more than the best plan, and adjust the copies of what is best then.

        Estimates leave out what addresses cost, so the best plan may be another one than the best estimate's; where
        layouts take no time, those are laid out as well that are a little slower by estimate.
        """
        for limit in list(self.descents):
            known = [s for s in self.descents[limit].known.values() if not s.overflow]
            worst = self.best.seconds
            if len(self.tape.ops) <= FEW_OPS and known:
                worst = max(worst, UNSURE * min(s.seconds for s in known))
            hopeful: list[tuple[Schedule, tuple[int | Way, ...]]] = [
                (s, (limit, *s.ways.values())) for s in known if s.seconds < worst
            ]
            fresh = [(s, key) for s, key in hopeful if key not in self.tried]
            for found, key in sorted(fresh, key=lambda pair: pair[0].seconds)[:MOST_LAYOUTS]:
                if self.is_over():
                    break
                self.tried.add(key)
                self.arena(found, "settled")
        self.polish()

    def polish(self) -> None:
        """Copy single buffers a little earlier or later, as long as a simulated step says that it pays."""
        plan = self.best.plan
        if plan is None or plan in self.polished or plan.decisions.lifetimes == "network":
            return
        for name, counts in (("ahead", plan.decisions.ahead), ("slack", plan.decisions.slack)):
            if not isinstance(counts, Mapping):
                continue
            for buffer in [b for b in counts if b in self.scheduler.decided]:
                for change in CHANGES:
                    if self.is_over():
                        return
                    now = self.best.plan.decisions if self.best.plan else plan.decisions
                    other = dict(getattr(now, name))
                    other[buffer] = change(other.get(buffer, 0))
                    changed = replace(now, ahead=other) if name == "ahead" else replace(now, slack=other)
                    self.lay_out(changed, "polished")
        if self.best.plan is not None:
            self.polished.append(self.best.plan)

    def seeds(self, known: Sequence[tuple[str, Decisions]]) -> Iterable[tuple[str, Ways]]:
        """(name, ways) to start from."""
        saved = self.scheduler.movable
        yield "kept", {}
        for name, ways in _rounded(self.bound, saved):
            yield name, ways
        yield "moved", dict.fromkeys(saved, Way.OFFLOAD)
        yield "moved for each", dict.fromkeys(saved, Way.EACH)
        for name, decisions in known:
            yield name, {b: way for b, way in ways_of(decisions).items() if b in self.scheduler.out}

    def descent(self, limit: int) -> Descent:
        """The descent within that limit."""
        if limit not in self.descents:
            self.descents[limit] = Descent(self.scheduler, limit, self.is_over)
        return self.descents[limit]

    # ---- plans

    def realise(self, found: Schedule, origin: str, quick: bool = False) -> None:
        """Lay out what looks as good as the best; where its arena is too large, under lower and lower limits."""
        limit = self.limit
        found = self.within(limit, found, quick)
        for turn in range(TRIES):
            key: tuple[int | Way, ...] = (limit, *found.ways.values())
            if found.overflow or found.seconds >= self.best.seconds * (1 + 1e-3) or key in self.tried:
                return
            self.tried.add(key)
            excess = self.arena(found, origin) - self.budget
            if excess <= 0:
                self.limit = min(limit, self.budget)
                return
            limit -= max(excess, turn * self.budget // 400)
            found = self.within(limit, found, quick)

    def within(self, limit: int, found: Schedule, quick: bool) -> Schedule:
        """The same ways, repaired where that is necessary, within another limit."""
        descent = self.descent(limit)
        other = descent.repair(found.ways)
        return other if quick or other.ways == found.ways else descent.descend(other, TRIALS)

    def arena(self, found: Schedule, origin: str) -> int:
        """Bytes of the arena of its plan, which is laid out with more effort if it is only a little too large."""
        decisions = resolve(replace(found.decisions, within=self.budget), self.tape, {})
        size = self.lay_out(decisions, origin)
        if self.budget < size < (NEARLY if len(self.tape.ops) > FEW_OPS else MUCH) * self.budget:
            size = self.lay_out(replace(decisions, effort=EFFORT // 4), origin)
        return size

    def lay_out(self, decisions: Decisions, origin: str) -> int:
        """Bytes of the arena of these decisions' plan, which is compared with the best if it fits."""
        plan = sketch(self.tape, decisions)
        if plan.peak_bytes > self.budget:
            return plan.peak_bytes
        made = place(plan, decisions.effort)
        if made.arena_bytes <= self.budget:
            self.take(made, origin)
        elif self.best.smallest is None or made.arena_bytes < self.best.smallest.arena_bytes:
            self.best.smallest = made
        return made.arena_bytes

    def take(self, laid: Plan, origin: str) -> bool:
        """Whether this plan, whose arena is within the budget, is the best so far."""
        plan = replace(laid, steps=tuple(order(laid)))
        seconds = self.evaluate(plan)
        better = (seconds, plan.arena_bytes)
        if self.best.plan is not None and better >= (self.best.seconds, self.best.plan.arena_bytes):
            return False
        if seconds < self.best.seconds:
            self.best.history.append((self.elapsed, seconds))
            self.tell(f"{seconds:.6g} s from {origin}")
        self.best.plan, self.best.seconds, self.best.origin = plan, seconds, origin
        return True

    def result(self) -> Found:
        """What was found; the smallest plan if nothing fits."""
        best = self.best
        plan = best.plan
        if plan is None:
            plan = best.smallest or self.smallest()
            plan = replace(plan, steps=tuple(order(plan)))
        seconds = best.seconds if best.plan is not None else self.evaluate(plan)
        history = tuple(best.history)
        return Found(plan, self.budget, seconds, self.bound.seconds, best.origin, history)

    def smallest(self) -> Plan:
        """The plan with the smallest peak of what repairing led to."""
        found = min(self.descent(self.budget).known.values(), key=lambda s: s.rank)
        return place(sketch(self.tape, resolve(found.decisions, self.tape, {})), found.decisions.effort)


def _bound(tape: Tape, budget: int, cost: Cost) -> Bound:
    """The bound, or one of 0 seconds without SciPy."""
    try:
        return bound(tape, budget, cost)
    except ModuleNotFoundError:
        return Bound(0.0)


def _rounded(relaxed: Bound, saved: Sequence[str]) -> Iterable[tuple[str, Ways]]:
    """The relaxation with every tensor wholly one way."""
    if not relaxed.fractions:
        return
    for share in ROUNDINGS:
        ways: dict[str, Way] = {}
        for b in saved:
            kept, moved, dropped = relaxed.fractions.get(b, (1.0, 0.0, 0.0))
            if kept < share:
                ways[b] = Way.OFFLOAD if moved >= dropped else Way.DROP
        yield f"relaxed, kept above {share:g}", ways


def _distinct(starts: Sequence[tuple[Schedule, str]]) -> list[tuple[Schedule, str]]:
    """The best first, without those that estimate alike: they are mostly the same."""
    out: list[tuple[Schedule, str]] = []
    for start, name in sorted(starts, key=lambda start: start[0].rank):
        if not any(other.rank == start.rank for other, _ in out):
            out.append((start, name))
    return out


def front(
    tape: Tape, budgets: Sequence[int], cost: Cost, known: Mapping[int, Known] | Known = (), **options: Any
) -> list[Found]:
    """One result for each budget, in the order given; a larger budget never has a slower step.

    known     as for `find`, for every budget or {budget: known}
    options   others of `find`
    The smallest budget is searched first, and what it led to is known to the next: a search by itself may find less in
    more memory.
    """
    found: dict[int, Found] = {}
    below: list[tuple[str, Decisions, Tape]] = []
    for budget in sorted(set(budgets)):
        others = known.get(budget, ()) if isinstance(known, Mapping) else known
        found[budget] = find(tape, budget, cost, known=[*others, *below], **options)
        if found[budget].fits:
            below = [(found[budget].origin, found[budget].plan.decisions, found[budget].plan.tape)]
    return [found[budget] for budget in budgets]
