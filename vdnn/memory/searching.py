"""searching: the policy "search" with settings of one's own: how long, from which seed, against which disturbances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isclose, isfinite

from vdnn.layers.base import LayerError
from vdnn.memory.candidates import Candidates, Found, Progress
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.hardware import is_number
from vdnn.memory.jitter import expected_seconds
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan
from vdnn.memory.rules import under
from vdnn.memory.search import SECONDS, find
from vdnn.memory.search_cache import SearchCache, Stored, opened
from vdnn.memory.simulate import simulate
from vdnn.memory.variants import Variant, variants
from vdnn.micro_batches import MicroBatchError
from vdnn.tape import Tape

SAMPLES = 20  # of a step with disturbances, for every plan that is compared
QUICK_SECONDS = 0.5
MOST_KNOWN = 3  # results in smaller budgets from which a search sets out,
MOST_OTHERS = 4  # and of other policies
SAME = 1e-9  # of a step's seconds: what differs by no more is the same
NOT_ASKED = ("search", "baseline")

Evaluate = Callable[[Plan], float]
Known = tuple[str, Decisions, Tape]


class SearchError(ValueError):
    """Settings of a search that cannot be."""


@dataclass(frozen=True)
class Searching:
    """A policy: the fastest plan found within the budget, with a certificate; see `searching` for the fields."""

    __name__ = "search"  # of each, as functions have one

    seconds: float = SECONDS
    seed: int = 0
    jitter: float = 0.0
    samples: int = SAMPLES
    cache: bool = True
    progress: Progress | None = None
    others: bool = True

    def __post_init__(self) -> None:
        if not is_number(self.seconds) or not 0 < self.seconds < float("inf"):
            raise SearchError(f"seconds={self.seconds!r}: a search has a number of seconds above 0")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise SearchError(f"seed={self.seed!r}: an integer of at least 0")
        if not is_number(self.jitter) or not 0 <= self.jitter < 1:
            raise SearchError(f"jitter={self.jitter!r}: a share of each duration, at least 0 and below 1, such as 0.1")
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise SearchError(f"samples={self.samples!r}: an integer of at least 1")

    @property
    def quick(self) -> Searching:
        """What answers whether something fits in half a second, by itself; its plans are slower."""
        return replace(self, seconds=min(self.seconds, QUICK_SECONDS), cache=False, progress=None, others=False)

    def __call__(
        self,
        tape: Tape,
        budget: int,
        cost: Cost,
        algorithms: Mapping[str, str],
        rules: str = "ours",
        variant: Variant | None = None,
        host_budget: int | None = None,
    ) -> Found:
        """The fastest plan found; the smallest if none fits."""
        variant = lru_cache(maxsize=None)(variant) if variant is not None else None  # asked for again and again
        about = rules, variant, host_budget
        kept = self._cache(tape, cost, algorithms, *about) if self.cache else None
        evaluate = self._evaluate(cost)
        below = kept.below(budget)[:MOST_KNOWN] if kept else []
        found = before = _again(kept.get(budget) if kept else None, tape, budget, variant, evaluate)
        if found is None:
            known = _offered(below, tape, variant)
            if self.others:
                others = _others(tape, budget, cost, algorithms, *about)
                known = [*_promising(others, budget, cost, evaluate), *known]
            found = find(
                tape,
                budget,
                cost,
                seconds=self.seconds,
                seed=self.seed,
                known=known,
                variant=variant,
                progress=self.progress,
                evaluate=evaluate if self.jitter else None,
                finish=lambda decisions: under(rules, decisions, host_budget),
            )
        found = _no_slower(found, below, tape, variant, evaluate)
        if kept and found is not before:
            kept.put(found)
        return found

    def _evaluate(self, cost: Cost) -> Evaluate:
        """Seconds by which plans are compared."""
        if not self.jitter:
            return lambda plan: simulate(plan, cost).step_seconds
        return lambda plan: expected_seconds(plan, cost, self.jitter, self.samples, self.seed)

    def _cache(
        self,
        tape: Tape,
        cost: Cost,
        algorithms: Mapping[str, str],
        rules: str,
        variant: Variant | None,
        host_budget: int | None,
    ) -> SearchCache | None:
        """Where results of this search are kept, if they are."""
        objective = {"jitter": float(self.jitter)}
        if self.jitter:
            objective |= {"samples": self.samples, "seed": self.seed}
        settings = {"seconds": float(self.seconds), "seed": self.seed, "others": self.others, **objective}
        tapes = None if variant is None else list(variants(tape, variant, cost))
        return opened(tape, tapes, cost, (rules, host_budget), {**settings, "algorithms": algorithms}, objective)


def searching(
    *,
    seconds: float = SECONDS,
    seed: int = 0,
    jitter: float = 0.0,
    samples: int = SAMPLES,
    cache: bool = True,
    progress: Progress | None = None,
    others: bool = True,
) -> Searching:
    """The policy "search" with these settings, for `plan` and whatever else takes a policy.

    seconds   of its own, after those that other policies take
    seed      of what it tries at random
    jitter    above 0: plans are compared by their expected step where every duration differs by up to this share
              (vdnn.memory.jitter), so that one is preferred that does not depend on copies that end just in time
    samples   of the disturbed step of each plan
    cache     whether results are kept on disk and found there again (vdnn.memory.search_cache); results in smaller
              budgets are then known, so that a larger budget never has a slower step
    progress  is told of every better plan
    others    whether all other policies are asked first, so that the result is never slower than theirs
    Raises SearchError for what cannot be.
    """
    return Searching(seconds, seed, jitter, samples, cache, progress, others)


def _others(
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    rules: str,
    variant: Variant | None,
    host_budget: int | None,
) -> list[Known]:
    """What all other policies say."""
    from vdnn.memory.policy import POLICIES, decide

    known = []
    for name in POLICIES:
        if name not in NOT_ASKED:
            decided = decide(name, tape, budget, cost, algorithms, rules, variant, host_budget)
            known.append((name, under(rules, decided.decisions, host_budget), decided.tape))
    return known


def _promising(known: Sequence[Known], budget: int, cost: Cost, evaluate: Evaluate) -> list[Known]:
    """Those of which the plan fits, the fastest first, or if none does the smallest: search has time for no more."""
    found = []
    for name, decisions, on in known:
        candidates = Candidates(budget, cost, evaluate=evaluate)
        size = candidates.lay_out(on, decisions, name)
        found.append((candidates.seconds, size, (name, decisions, on)))
    fitting = sorted((f for f in found if isfinite(f[0])), key=lambda f: f[:2])
    return [offer for *_, offer in fitting[:MOST_OTHERS] or sorted(found, key=lambda f: f[1])[:1]]


# ---- results that were kept


def _in_parts(variant: Variant | None, parts: int) -> Tape | None:
    """The step in so many sub-batches; None if there can be none."""
    try:
        return variant(parts) if variant is not None else None
    except (LayerError, MicroBatchError):
        return None


def _tape_of(stored: Stored, tape: Tape, variant: Variant | None) -> Tape | None:
    """The tape that the stored decisions are for."""
    return tape if stored.micro_batches == tape.micro_batches else _in_parts(variant, stored.micro_batches)


def _offered(below: Sequence[Stored], tape: Tape, variant: Variant | None) -> list[Known]:
    """Stored results as `find` takes them."""
    pairs = [(stored, _tape_of(stored, tape, variant)) for stored in below]
    known = []
    for stored, on in pairs:
        decisions = _resolved(stored, on)
        if on is not None and decisions is not None:
            known.append((stored.origin, decisions, on))
    return known


def _resolved(stored: Stored, on: Tape | None) -> Decisions | None:
    """The stored decisions; None if they are not for that tape."""
    try:
        return resolve(stored.decisions, on, {}) if on is not None else None
    except (ValueError, TypeError, AttributeError):
        return None


def _again(stored: Stored | None, tape: Tape, budget: int, variant: Variant | None, evaluate: Evaluate) -> Found | None:
    """The stored result with its plan made again; None unless it fits, and is what it was."""
    on = _tape_of(stored, tape, variant) if stored else None
    decisions = _resolved(stored, on) if stored else None
    if stored is None or on is None or decisions is None:
        return None
    plan = make_plan(on, decisions)
    if plan.arena_bytes > budget or plan.arena_bytes != stored.arena_bytes:
        return None
    seconds = evaluate(plan)
    if not isfinite(seconds) or not isclose(seconds, stored.step_seconds, rel_tol=SAME):
        return None
    return Found(plan, budget, seconds, stored.bound_seconds, stored.origin, stored.history)


def _no_slower(found: Found, below: Sequence[Stored], tape: Tape, variant: Variant | None, evaluate: Evaluate) -> Found:
    """What was found, or a result in a smaller budget that is faster.

    The search knew it, but it may have stopped short of it by what it takes for proved; or a result that was kept may
    be older.
    """
    for stored in below:
        if found.fits and stored.step_seconds >= found.step_seconds * (1 - SAME):
            continue
        smaller = _again(stored, tape, found.budget, variant, evaluate)
        if smaller is not None:
            return replace(smaller, bound_seconds=found.bound_seconds)
    return found
