"""What would fit: the error for a budget that is too small, and the least budget of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vdnn.largest import between
from vdnn.layers.base import LayerError
from vdnn.memory import policy as policies
from vdnn.memory import trial as trials
from vdnn.memory.cost import CostError
from vdnn.memory.decisions import KEEP, OFFLOAD, Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan, PlanError
from vdnn.memory.searching import Searching
from vdnn.memory.simulate import simulate
from vdnn.memory.verify import verify
from vdnn.micro_batches import MicroBatchError, numbers_of_parts
from vdnn.network import Network
from vdnn.setting import AnyPolicy, Setting, make_setting, name_algorithms
from vdnn.tape import Tape
from vdnn.units import format_bytes

MIB = 1 << 20


@dataclass(frozen=True)
class Advice:
    """What would fit.

    least_bytes    the least budget for this policy; `least_algorithms` names the algorithms that it takes
    largest_batch  the largest batch for this budget under this policy, 0 if none; None if only a tape was given.  For
                   a search it is that of the policy `least`, which it never falls short of: a search for every batch
                   that is tried would take minutes
    policy         the policy, and the algorithms, of the fastest plan that fits this budget; "" if none does
    """

    least_bytes: int
    least_algorithms: str
    largest_batch: int | None
    policy: str
    algorithms: str


class BudgetError(PlanError):
    """No plan under this policy fits the budget.

    needed_bytes  what the plan that was asked for takes
    budget_bytes  what was allowed
    floor_bytes   what no plan of this tape can undercut
    cost          times that plans were decided by
    plan          the smallest found under this policy, pressed for memory
    advice        what would fit; this and `plan` are looked for when first asked for, which takes seconds at most
    """

    def __init__(self, setting: Setting, policy: AnyPolicy, algorithms: Mapping[str, str], made: Plan) -> None:
        super().__init__(setting, policy, algorithms, made)
        self._setting, self._policy, self._algorithms, self._made = setting, policy, algorithms, made
        self.needed_bytes = made.arena_bytes
        self.budget_bytes = setting.budget
        self.floor_bytes = setting.tape.floor_bytes
        self.cost = setting.cost

    @cached_property
    def plan(self) -> Plan:
        """The smallest plan found under this policy, by the algorithms asked for or those with the least workspace."""
        found = _smallest(self._setting, self._policy, self._algorithms, self._made)
        return found if found.cost is not None else replace(found, cost=self.cost)

    @cached_property
    def advice(self) -> Advice:
        """What would fit."""
        setting, algorithms = self._setting, self._algorithms
        with _unmeasured(setting.kernels):
            try:
                batch = _largest_batch(setting, self._policy, algorithms, self.needed_bytes)
            except CostError:  # times that were recorded for this batch alone
                batch = None
        policy, kind = _fastest_that_fits(setting, algorithms)
        return Advice(self.plan.arena_bytes, name_algorithms(self.plan, setting.cost), batch, policy, kind)

    def __str__(self) -> str:
        tape, what = self._setting.tape, self._made.policy or "these fates"
        whole = f"in {tape.micro_batches} parts" if tape.micro_batches > 1 else "of the whole batch"
        return "\n".join(
            [
                f"{tape.network}, {tape.batch_label}, does not fit under {what}:",
                f"  needed     {_exact(self.needed_bytes)}",
                f"  available  {_exact(self.budget_bytes)}",
                f"  floor      {_exact(self.floor_bytes)}, which no plan {whole} can undercut",
                f"  weights    {_exact(tape.resident_bytes)} of it, with all that stays with them",
                "what would fit:",
                *(f"  {line}" for line in self._remedies(what)),
            ]
        )

    def _remedies(self, what: str) -> Iterator[str]:
        advice, resident = self.advice, self._setting.tape.resident_bytes
        batch_policy, more = what, ""
        if _is_search(self._policy):
            batch_policy, more = "least with algorithms memory", f"; {what} may find room for more"
        by = f" with algorithms {advice.least_algorithms}" if self.plan is not self._made else ""
        yield f"budget     {_rounded_up(advice.least_bytes)}, the least for {what}{by}"
        if advice.largest_batch:
            yield f"batch      {advice.largest_batch}, the largest for this budget under {batch_policy}{more}"
        elif resident > self.budget_bytes:
            yield "batch      none: the weights and what stays with them are larger than the budget"
        elif advice.largest_batch == 0:
            yield f"batch      none: not even one sample fits under {batch_policy}"
        if advice.policy:
            yield f"policy     {advice.policy} with algorithms {advice.algorithms}, the fastest within this budget"
        else:
            smallest = _smallest(self._setting, "least", self._algorithms, self.plan)
            kind = name_algorithms(smallest, self._setting.cost)
            yield "policy     none of vdnn's own fits this budget; vdnn compare tries the published ones"
            yield (
                f"or         {_rounded_up(smallest.arena_bytes)}, the least for this batch, under "
                f"{smallest.policy or what} with algorithms {kind}"
            )


@contextmanager
def _unmeasured(kernels: Any) -> Iterator[None]:
    """Keep a kernel set that measures its algorithms from doing so for every batch that is only tried."""
    limit = getattr(kernels, "find_limit", None)
    if hasattr(kernels, "find_limit"):
        kernels.find_limit = 0
    try:
        yield
    finally:
        if hasattr(kernels, "find_limit"):
            kernels.find_limit = limit


def _rounded_up(size: int) -> str:
    """A budget to type: at least `size` bytes."""
    return f"{-(-size // MIB)}MiB" if size > 100 * MIB else f"{-(-size // 1024)}KiB"


def _exact(size: int) -> str:
    return f"{format_bytes(size)} ({size} bytes)"


def _is_search(policy: AnyPolicy) -> bool:
    """Whether the policy is `search`, with whatever settings."""
    return isinstance(policies.POLICIES.get(policy) if isinstance(policy, str) else policy, Searching)


def _smallest(setting: Setting, policy: AnyPolicy, algorithms: Mapping[str, str], made: Plan) -> Plan:
    """The smallest plan under the policy, pressed for memory, by the given algorithms or the least workspaces."""
    if _is_search(policy):
        return _smallest_of_search(setting, made)
    pressed = setting.with_budget(max(1, setting.tape.floor_bytes))
    best = made
    for choice in (algorithms, trials.least_workspace(setting.tape, setting.cost)):
        said = pressed.decide(policy, choice)
        if said.decisions != best.decisions and trials.sketch(said.tape, said.decisions).peak_bytes < best.arena_bytes:
            plan = make_plan(said.tape, said.decisions, undo=setting.undo, policy=said.name)
            best = min(best, plan, key=lambda p: p.arena_bytes)
    return best


def _smallest_of_search(setting: Setting, made: Plan) -> Plan:
    """What a search found, or what every search tries first where nothing else fits, whole and in sub-batches."""
    tapes, best = [setting.tape], made
    for parts in numbers_of_parts(setting.tape) if setting.network is not None else ():
        with suppress(LayerError, MicroBatchError):
            tapes.append(setting.in_parts(parts))
    for tape in tapes:
        said = replace(setting, tape=tape).decide("least", trials.least_workspace(tape, setting.cost))
        if trials.sketch(tape, said.decisions).peak_bytes < best.arena_bytes:
            plan = make_plan(tape, said.decisions, undo=setting.undo, policy=made.policy)
            best = min(best, plan, key=lambda p: p.arena_bytes)
    return best


def _largest_batch(setting: Setting, policy: AnyPolicy, algorithms: Mapping[str, str], needed: int) -> int | None:
    """The largest batch that fits, 0 if none does; `needed` bytes are what the network's own batch takes.

    With sub-batches there are as many in every batch that is tried, so that batches grow by one sample for each.
    """
    if setting.network is None or isinstance(policy, (Mapping, Decisions)):
        return None
    resident, unit = setting.tape.resident_bytes, setting.tape.micro_batches
    if resident > setting.budget:
        return 0

    def needs(batch: int) -> int:
        other = setting.with_batch(batch * unit)
        if _is_search(policy):
            said = other.decide("least", trials.least_workspace(other.tape, other.cost))
        else:
            said = other.decide(policy, _same(algorithms, other))
        return trials.trial(said.tape, said.decisions, setting.budget).arena_bytes

    return unit * between(needs, setting.budget, (0, resident), (setting.tape.batch // unit, needed))[0]


def _same(algorithms: Mapping[str, str], setting: Setting) -> dict[str, str]:
    """The same algorithms for another batch, as far as its ops have them."""
    fastest = trials.fastest(setting.tape, setting.cost)
    return {
        op.name: algorithms[op.name] if algorithms[op.name] in {a.name for a in op.algorithms} else fastest[op.name]
        for op in setting.tape.ops
    }


def _fastest_that_fits(setting: Setting, algorithms: Mapping[str, str]) -> tuple[str, str]:
    """(policy, what its algorithms are) of the fastest plan by any named policy within the budget; ("", "") if none."""
    best, seconds = ("", ""), float("inf")
    for name in policies.OWN:
        for choice in (algorithms, trials.least_workspace(setting.tape, setting.cost)):
            said = setting.decide(name, choice)
            plan = trials.trial(said.tape, said.decisions, setting.budget)
            if plan.arena_bytes <= setting.budget:
                plan = replace(plan, steps=tuple(order(plan)))
                took = simulate(plan, setting.cost).step_seconds
                if took < seconds:
                    best, seconds = (name, name_algorithms(plan, setting.cost)), took
                break
    return best


# ---- the least budget


def least_plan(
    network: Network | Tape,
    *,
    hardware: str = "titan-x",
    optimizer: Any = "momentum",
    kernels: Any = None,
    threads: int | None = None,
    undo: bool = False,
    purpose: str = "step",
    cost: Any = None,
    rewrites: str | Iterable[str] | None = None,
    micro_batches: int = 1,
    allow_coupled: bool = False,
) -> Plan:
    """The smallest plan that is found, with least-workspace algorithms; its arena is the least budget.

    Candidates are the named policies and everything offloaded as late and as briefly as can be; of the last, as many of
    the last tensors are kept as do not enlarge the arena.  No proof that nothing is smaller: that is `floor_bytes`.
    """
    setting = make_setting(
        network,
        None,
        None,
        hardware,
        optimizer,
        kernels,
        threads,
        undo,
        purpose,
        cost,
        rewrites=rewrites,
        micro_batches=micro_batches,
        allow_coupled=allow_coupled,
    )
    tape = setting.tape
    algorithms = trials.least_workspace(tape, setting.cost)

    def make(decisions: Decisions, name: str) -> Plan:
        return make_plan(tape, decisions, undo=undo, policy=name)

    best = make(_offload_first(tape, len(tape.saved), algorithms), "offload_everything")
    for name in policies.OWN:
        decisions = setting.with_budget(tape.floor_bytes).decide(name, algorithms).decisions
        if trials.sketch(tape, decisions).peak_bytes < best.arena_bytes:
            best = min(best, make(decisions, name), key=lambda p: p.arena_bytes)
    if best.policy == "offload_everything":
        best = _keep_last(tape, best, algorithms, undo)
    verify(best)
    return best


def least_budget(network: Network | Tape, **options: Any) -> int:
    """Bytes of the smallest arena that is found; see `least_plan`."""
    return least_plan(network, **options).arena_bytes


def _offload_first(tape: Tape, count: int, algorithms: Mapping[str, str]) -> Decisions:
    """Offload the first `count` saved tensors, back at the last moment for each use, and keep the others."""
    fates = {t.name: OFFLOAD if i < count else KEEP for i, t in enumerate(tape.saved)}
    return resolve(Decisions(fates, ahead=0, returns="each"), tape, algorithms)


def _keep_last(tape: Tape, best: Plan, algorithms: Mapping[str, str], undo: bool) -> Plan:
    """Keep as many of the last tensors, which are needed again soonest, as leave the arena as small: by bisection."""
    enough, too_few = len(tape.saved), -1
    while enough - too_few > 1:
        count = (enough + too_few) // 2
        decisions = _offload_first(tape, count, algorithms)
        if trials.trial(tape, decisions, best.arena_bytes).arena_bytes <= best.arena_bytes:
            enough = count
        else:
            too_few = count
    if enough == len(tape.saved):
        return best
    return make_plan(tape, _offload_first(tape, enough, algorithms), undo=undo, policy=best.policy)
