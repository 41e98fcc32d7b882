"""largest: the largest batch, depth or resolution of a network that fits a budget, under each policy.

A trial is a plan without waits that nothing simulates (vdnn.memory.trial).  From the first value that is tried, steps
at least double, and reach at most eight times as far, to where a straight line through what was seen meets the budget;
then the gap between what fits and what does not is narrowed down to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from inspect import signature
from itertools import count
from typing import Any

from vdnn.ladder import Ladder, make_ladder
from vdnn.memory.order import order
from vdnn.memory.plan import Plan
from vdnn.memory.policy import POLICIES, get
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import trial
from vdnn.memory.verify import verify
from vdnn.naming import check_options
from vdnn.network import Network
from vdnn.setting import AnyPolicy, Choice, Setting, choose_algorithms, make_setting

OPTIONS = tuple(name for name in signature(make_setting).parameters if name not in ("network", "batch", "budget"))
Named = str | Callable[..., Any]  # a policy
FARTHEST = 8  # times the rung before: memory need not be a line, and far above it tapes of no use are built


@dataclass(frozen=True, repr=False)
class Largest:
    """The largest value that fits under one policy.

    value           None if not even the smallest fits
    plan            of that value, verified; None if nothing fits
    step_seconds    of that plan, simulated; 0 if nothing fits
    budget_bytes    what was allowed
    smallest        the smallest value that there is
    refused_value   the next larger value, which does not fit; None if the largest of all does
    refused_bytes   what the plan of `refused_value` takes, or at least takes
    is_refused_by_floor   whether they are the floor of `refused_value` only, which was too much: at least these
    """

    policy: str
    what: str
    value: int | None
    plan: Plan | None
    step_seconds: float
    budget_bytes: int
    smallest: int
    refused_value: int | None
    refused_bytes: int
    is_refused_by_floor: bool = False

    @property
    def samples_per_second(self) -> float:
        """Simulated samples per second; 0 if nothing fits."""
        return self.plan.tape.batch / self.step_seconds if self.plan and self.step_seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """All but the plan, of which only the figures."""
        plan = self.plan
        data: dict[str, Any] = {"policy": self.policy, "vary": self.what, "largest": self.value}
        data |= {"fits": plan is not None, "budget_bytes": self.budget_bytes}
        data |= {"refused": self.refused_value, "refused_bytes": self.refused_bytes}
        data |= {"is_refused_by_floor": self.is_refused_by_floor}
        data |= {"network": plan.tape.network if plan else None, "batch": plan.tape.batch if plan else None}
        data |= {"micro_batches": plan.tape.micro_batches if plan else None}
        data |= {f"{name}_bytes": getattr(plan, f"{name}_bytes") if plan else None for name in ("peak", "arena")}
        seconds, rate = (self.step_seconds, self.samples_per_second) if plan else (None, None)
        return data | {"time": "simulated", "step_seconds": seconds, "samples_per_second": rate}

    def _repr_html_(self) -> str:
        """A line of the table, for notebooks."""
        return Fitted([self])._repr_html_()

    def __repr__(self) -> str:
        if self.plan is None:
            return f"Largest({self.policy}: no {self.what} fits {self.budget_bytes} bytes)"
        return (
            f"Largest({self.policy}: {self.what} {self.value}, arena {self.plan.arena_bytes} of {self.budget_bytes} "
            f"bytes, {self.step_seconds:.6g} s a step simulated)"
        )


class Fitted(list[Largest]):
    """The largest value under each policy, in the order asked for."""

    def table(self, width: int | None = None) -> str:
        """The values as text, a line per policy."""
        from vdnn.result_tables import fit_table

        return fit_table(self, width)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        from vdnn.result_tables import fit_html

        return fit_html(self)


def fit(
    network: Network | str,
    *,
    budget: int | str | None = None,
    vary: str = "batch",
    policies: Named | Iterable[Named] = (),
    algorithms: Choice = "performance",
    batch: int | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Fitted:
    """The largest batch, depth or resolution of a network within a budget, under each of the policies.

    network    a network, or its name as models.get takes it; depth and resolution need a name
    vary       "batch"; "depth", of the families vgg and resnet; "resolution", in multiples of 32 pixels
    policies   one or several names or functions; all that have a name if there are none
    algorithms "performance", "memory" or "mixed", for every value by itself
    batch      where the search begins, or of how many samples all are if something else is varied
    progress   called with a note after each policy
    options    of make_setting: hardware, optimizer, kernels, threads, rules, count, cost
    Raises FitError for what cannot be varied, and what make_setting and the policies raise.
    """
    check_options("fit", options, OPTIONS)
    ladder = make_ladder(network, vary, batch, budget=budget, **options)
    found = Fitted()
    if isinstance(policies, str) or callable(policies):
        policies = [policies]
    for policy in policies or POLICIES:
        found.append(largest(ladder, policy, algorithms))
        if progress:
            progress(f"{found[-1].policy}: {found[-1].value}")
    return found


def largest(ladder: Ladder, policy: AnyPolicy, algorithms: Choice = "performance") -> Largest:
    """The largest value of the ladder that fits the budget of its settings under one policy.

    It is taken for granted that where a value fits all smaller ones do.  Policies need not be like that: one that
    chooses by the budget (vdnn_dyn) may choose worse for the smaller of two values, layouts have gaps, and one that
    chooses sub-batches (modnn, search) finds none for a prime number of samples.  Then the value is one that fits while
    the next larger does not, and there may be another such beyond.
    """
    trials: dict[int, Plan] = {}
    floors: set[int] = set()  # rungs that no plan was made for, as already the floor is above the budget
    budget = ladder.make(ladder.values[ladder.start - 1]).budget

    def needs(rung: int) -> int:
        setting = ladder.make(ladder.values[rung - 1])
        floor = _floor_bytes(setting, policy)
        if floor > budget:
            floors.add(rung)
            return floor
        said = setting.decide(policy, choose_algorithms(setting.tape, setting.cost, algorithms))
        trials[rung] = trial(said.tape, said.decisions, budget)
        return trials[rung].arena_bytes

    rung, refused, refused_bytes = climb(needs, budget, ladder.start, len(ladder.values))
    name = get(policy)[0] if isinstance(policy, str) or callable(policy) else ""
    made, seconds = None, 0.0
    if rung:
        cost = ladder.make(ladder.values[rung - 1]).cost
        made = replace(trials[rung], policy=name, steps=tuple(order(trials[rung])), cost=cost)
        verify(made)
        seconds = simulate(made).step_seconds
    return Largest(
        name, ladder.what, ladder.values[rung - 1] if rung else None, made, seconds, budget, ladder.values[0],
        ladder.values[refused - 1] if refused else None, refused_bytes, refused in floors,
    )  # fmt: skip


def _floor_bytes(setting: Setting, policy: AnyPolicy) -> int:
    """What no plan under this policy undercuts: where it may choose sub-batches, only what stays on the device."""
    if setting.tape.micro_batches != 1 or not (callable(policy) or isinstance(policy, str)):
        return setting.tape.floor_bytes
    may_choose = "variant" in signature(get(policy)[1]).parameters
    return setting.tape.resident_bytes if may_choose else setting.tape.floor_bytes


# ---- bisection


def climb(needs: Callable[[int], int], budget: int, start: int, last: int) -> tuple[int, int, int]:
    """(the largest rung from 1 to `last` that needs at most `budget` bytes, or 0; the next one and what it needs, or 0
    and 0 if there is none).

    needs  bytes of a rung; each is asked for once
    """
    fits, fits_bytes, rung = 0, 0, start
    while True:
        found = needs(rung)
        if found > budget:
            return between(needs, budget, (fits, fits_bytes), (rung, found))
        if rung == last:
            return last, 0, 0
        slope = (found - fits_bytes) / (rung - fits)
        line = rung + int((budget - found) / slope) + 1 if slope > 0 else 0
        fits, fits_bytes = rung, found
        rung = min(last, max(2 * rung, min(line, FARTHEST * rung)))


def between(
    needs: Callable[[int], int], budget: int, fits: tuple[int, int], too_large: tuple[int, int]
) -> tuple[int, int, int]:
    """(the last rung that fits, the next one, what that needs), between one that does and one that does not.

    fits, too_large   (rung, bytes) of both; the rung that fits may be one, such as 0, that is none

    Memory is nearly a straight line over the batch, so most guesses lie on it; every third is in the middle instead.
    """
    (low, low_bytes), (high, high_bytes) = fits, too_large
    for turn in count(1):
        span = high - low
        if span <= 1:
            break
        share = (budget - low_bytes) / (high_bytes - low_bytes) if turn % 3 else 0.5
        rung = low + min(max(1, int(share * span)), span - 1)
        found = needs(rung)
        if found <= budget:
            low, low_bytes = rung, found
        else:
            high, high_bytes = rung, found
    return low, high, high_bytes
