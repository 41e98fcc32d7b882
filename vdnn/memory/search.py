"""search: the fastest safe step that can be found for a tape within a budget, and how much faster any could be.

    seeds      every other policy's decisions as they are, and the ways they go; everything kept, everything moved;
               the relaxation of the bound, rounded
    descend    from the best of these (vdnn.memory.descend), by estimates
    realise    what looks best is laid out and simulated as a whole; if its arena is above the budget, the limit of the
               estimate is lowered by as much and the ways are repaired
    anneal     random walks around the best, as long as there is time
    settle     whatever else the estimates promise is laid out
    trade      leaner algorithms, where copies gain more from their room
    polish     single copies earlier or later, by simulation

Where a budget of host memory sends copies to disk, an estimate has to know which: at first those that would go there if
everything were moved, then, from what was found with that, those that do go there.

What is found is a plan that was laid out and simulated, never an estimate.  The sequence of what is tried depends on
nothing but the tape, the costs, the budget and the seed; time only says where it ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from vdnn.collector import collector_paused
from vdnn.memory.bound import Bound, bound
from vdnn.memory.candidates import Candidates, Finish
from vdnn.memory.candidates import Found as Found
from vdnn.memory.candidates import Progress as Progress
from vdnn.memory.cost import Cost, FastestTier
from vdnn.memory.decisions import OFFLOAD, Decisions, resolve
from vdnn.memory.descend import SMALLEST, Descent, Ways
from vdnn.memory.layout import EFFORT
from vdnn.memory.plan import DISK, Plan
from vdnn.memory.schedule import Schedule, Scheduler, Way, ways_of
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.trial import least_workspace
from vdnn.memory.variants import Variant, variants
from vdnn.tape import Tape

SECONDS = 10.0
PROVED = 1e-4  # a gap that is not worth more time
WORK = 4_000_000  # ops scheduled, after which a search ends by itself
MOST_OPS = 2500  # of a tape in sub-batches whose bound is worth its time
ROUNDINGS = (0.5, 0.25, 0.75)  # a tensor that the relaxation keeps by more than this is kept
UNSURE = 1.08  # times an estimate
MOST_LAYOUTS = 50  # of hopeful estimates at a time
Change = Callable[[int], int]
CHANGES: tuple[Change, ...] = (lambda n: n // 2, lambda n: max(0, n - 1), lambda n: n + 1, lambda n: 2 * n)
TRIES = 5  # limits tried for one layout
STALE = 20  # walks without a better plan
TURNS = 100  # of one random walk
HEAT = 0.1  # of the seconds that could be won at most
NEARLY = 1.02  # of the budget: what more effort may still lay out within it,
MUCH = 1.2  # and for so many ops, whose layout takes no time
FEW_OPS = 300
LATE = 1.05  # times an estimate: where the best is slower still, a few stalls are no matter
TRIALS = 100  # changes tried between two layouts
STARTS = 4  # of the seeds, so many are improved

Known = Sequence[tuple[str, Decisions] | tuple[str, Decisions, Tape]]


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
    finish: Finish | None = None,
) -> Found:
    """The fastest plan found of `tape` in `budget` bytes, with a lower bound, which is better where SciPy is installed.

    seconds    after which it ends; what is known is simulated, a first answer found and the bound computed in any case
    known      (name, decisions) of other policies, or (name, decisions, tape) for another tape of the same step: the
               result is never slower than one of them that fits
    variant    the same step in so many sub-batches: if given, they are tried too, and the bound is for all of them
    progress   is told of every better plan
    evaluate   seconds by which plans are compared; default: of their simulated step
    finish     what becomes of decisions before they are laid out (other rules, say)
    """
    candidates = Candidates(budget, cost, progress, evaluate, finish)
    with collector_paused():
        for name, decisions, *other in known:
            candidates.lay_out(other[0] if other else tape, decisions, name)
        mine = [(name, decisions) for name, decisions, *other in known if not other or other[0] is tape]
        others = list(variants(tape, variant, cost))
        bounds = [_on_tape(tape, cost, candidates, seconds / 2 if others else seconds, seed, mine)]
        bounds += [oracle_seconds(t, cost) for _, _, *other in known for t in other if t.micro_batches == 1]
        bounds += [_in_parts(other, cost, candidates, seconds, seed) for other in others]
        return candidates.result(min(bounds))


def _in_parts(tape: Tape, cost: Cost, candidates: Candidates, seconds: float, seed: int) -> float:
    """Seconds that no plan of a tape in sub-batches undercuts; it is searched if it might be faster.

    Of what is not searched, it is what the step would take with memory for everything.
    """
    if tape.floor_bytes > candidates.budget:
        return inf
    oracle = oracle_seconds(tape, cost)
    left = max(0.0, seconds - candidates.elapsed)
    is_slower = candidates.plan is not None and oracle >= candidates.seconds * (1 - PROVED)
    if is_slower or (candidates.plan is not None and not left):
        return oracle
    about = f"{tape.micro_batches} sub-batches: ", len(tape.ops) <= MOST_OPS
    return _on_tape(tape, cost, candidates, candidates.elapsed + left / 2, seed, [], *about)


def _on_tape(
    tape: Tape,
    cost: Cost,
    candidates: Candidates,
    until: float,
    seed: int,
    known: Sequence[tuple[str, Decisions]],
    prefix: str = "",
    with_bound: bool = True,
) -> float:
    """Search on one tape until the candidates are `until` seconds old; seconds that no plan of it undercuts."""
    tiers = candidates.tiers_if_moved(tape)
    begun = min(candidates.elapsed, until)
    search = _Search(tape, cost, candidates, (begun + until) / 2 if tiers else until, seed, prefix, tiers)
    search.run(known, with_bound)
    plan, found = candidates.plan, search.bound
    if tiers and plan is not None and plan.tape is tape:
        movable = search.scheduler.movable
        tiers = {b: DISK for b in movable if (plan.tier(b) or tiers.get(b)) == DISK}
        search = _Search(tape, cost, candidates, until, seed, prefix, tiers)
        search.bound = found
        search.run([("found", plan.decisions)], with_bound=False)
    return found.seconds


class _Search:
    """A search on one tape, until the candidates are `until` seconds old."""

    def __init__(
        self,
        tape: Tape,
        cost: Cost,
        candidates: Candidates,
        until: float,
        seed: int,
        prefix: str,
        tiers: Mapping[str, str],
    ) -> None:
        self.tape, self.cost, self.best, self.until, self.prefix = tape, cost, candidates, until, prefix
        self.budget = candidates.budget
        self.lot = random.Random(seed)
        self.scheduler = Scheduler(tape, cost, tiers)
        self.bound = Bound(oracle_seconds(tape, cost))
        self.descents: dict[int, Descent] = {}
        self.limit = self.budget  # of estimates: as much less than the budget as layouts have gaps
        self.tried: set[tuple[int | Way, ...]] = set()  # limits and ways that were laid out
        self.traded: Plan | None = None
        self.polished: Plan | None = None

    # ---- when it ends

    def is_over(self) -> bool:
        """Whether time or work are used up, or the best is proved to be about the best there is."""
        work = sum(d.tried for d in self.descents.values()) * len(self.tape.ops)
        return self.best.elapsed >= self.until or work >= WORK or self.is_proved()

    def is_proved(self) -> bool:
        """Whether no plan could be faster by more than is worth looking for."""
        return self.bound.seconds == inf or self.best.seconds <= self.bound.seconds * (1 + PROVED)

    # ---- the search

    def run(self, known: Sequence[tuple[str, Decisions]], with_bound: bool = True) -> None:
        """Lay out what is found on the way; `known` was laid out, and is improved."""
        if self.is_proved():
            return
        descent = self.descent(self.budget)
        self.begin(descent)
        is_due = not self.prefix or not self.is_over()  # the bound of the whole batch is computed in any case
        if with_bound and is_due and not self.is_proved():
            fastest = FastestTier(self.cost) if self.scheduler.tiers else self.cost
            self.bound = _bound(self.tape, self.budget, fastest) or self.bound
        if self.scheduler.movable and not self.is_over():
            self.improve(descent, known)

    def begin(self, descent: Descent) -> None:
        """Lay out a first answer; if there is none yet, however long that takes."""
        until = self.until
        if self.best.plan is None:
            self.until = inf
        kept = descent.repair({})
        self.realise(descent.sweep(kept), "kept", quick=True)
        if self.best.plan is None:
            self.realise(kept, "kept", quick=True)
            self.lay_out(self.least(), "least")
        self.until = until

    def least(self) -> Decisions:
        """Everything moved, back for each use at the last moment, least workspaces: mostly the smallest plan."""
        fates = dict.fromkeys((t.name for t in self.tape.saved), OFFLOAD)
        return Decisions(fates, least_workspace(self.tape, self.cost), ahead=0, returns="each")

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
            to_win = found.seconds - self.bound.seconds
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
        self.trade()
        self.polish()

    def trade(self) -> None:
        """Give the room of fast algorithms to copies, op by op, as long as an estimate says that it pays."""
        plan = self.best.plan
        if plan is None or plan is self.traded or plan.tape is not self.tape:
            return
        scheduler = self.scheduler
        ways = {b: way for b, way in ways_of(plan.decisions).items() if b in scheduler.decided}
        leaner: dict[int, int] = {}
        found = scheduler.schedule(ways, self.limit)
        for i in sorted(scheduler.several, key=lambda i: (-scheduler.choices[i][0][1], i)):
            if not found.waited or self.is_over():
                break
            tried = scheduler.schedule(ways, self.limit, {**leaner, i: 1})
            if tried.overflow <= found.overflow and tried.seconds < found.seconds - SMALLEST:
                leaner[i], found = 1, tried
        if leaner:
            self.arena(found, "traded")
        self.traded = self.best.plan

    def polish(self) -> None:
        """Copy single buffers a little earlier or later, as long as a simulated step says that it pays."""
        plan = self.best.plan
        if plan is None or plan is self.polished or plan.tape is not self.tape:
            return
        for name, buffer in self._copies(plan.decisions):
            for change in CHANGES:
                if self.is_over():
                    return
                now = self.best.plan or plan
                self.lay_out(_changed(now.decisions, name, buffer, change), "polished")
        self.polished = self.best.plan

    def _copies(self, decisions: Decisions) -> Iterator[tuple[str, str]]:
        """("ahead" or "slack", buffer) of all that may be copied earlier or later by itself."""
        for name in ("ahead", "slack"):
            counts = getattr(decisions, name)
            if isinstance(counts, Mapping):
                yield from ((name, b) for b in counts if b in self.scheduler.decided)

    def seeds(self, known: Sequence[tuple[str, Decisions]]) -> Iterable[tuple[str, Ways]]:
        """(name, ways) to start from."""
        saved = self.scheduler.movable
        yield "kept", {}
        for name, ways in _rounded(self.bound, saved):
            yield name, ways
        yield "moved", dict.fromkeys(saved, Way.OFFLOAD)
        yield "moved for each", dict.fromkeys(saved, Way.EACH)
        for name, decisions in known:
            ways = ways_of(resolve(decisions, self.tape, {}))
            yield name, {b: way for b, way in ways.items() if b in self.scheduler.decided}

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
        """Bytes of the arena of its plan.

        Where it is a little too large it is laid out with more effort, and with all copies at the last moment: memory
        that is full all the time cannot be laid out without gaps.
        """
        decisions = replace(found.decisions, within=self.budget)
        size = self.lay_out(decisions, origin)
        if self.best.plan is not None and self.is_over():
            return size
        if self.budget < size < (NEARLY if len(self.tape.ops) > FEW_OPS else MUCH) * self.budget:
            size = self.lay_out(replace(decisions, effort=EFFORT // 4), origin)
        if size > self.budget and self.best.seconds > found.seconds * LATE:
            ahead, slack = dict.fromkeys(found.ahead, 0), dict.fromkeys(found.slack, 0)
            self.lay_out(replace(decisions, ahead=ahead, slack=slack, effort=EFFORT // 4), f"{origin}, late")
        return size

    def lay_out(self, decisions: Decisions, origin: str) -> int:
        """Bytes of the arena of these decisions' plan, which is a candidate."""
        return self.best.lay_out(self.tape, decisions, self.prefix + origin)


def _changed(decisions: Decisions, name: str, buffer: str, change: Change) -> Decisions:
    """The decisions with one buffer's `ahead` or `slack` changed."""
    counts = {**getattr(decisions, name)}
    counts[buffer] = change(counts[buffer])
    return replace(decisions, ahead=counts) if name == "ahead" else replace(decisions, slack=counts)


def _bound(tape: Tape, budget: int, cost: Cost) -> Bound | None:
    """The bound; None without SciPy."""
    try:
        return bound(tape, budget, cost)
    except ImportError:
        return None


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
