"""Policies: functions that decide the fate of every tensor, by name or of one's own.

A policy names what it wants of

    tape        the ops and tensors of the step
    budget      bytes that the arena may take
    cost        seconds of ops and copies (vdnn.memory.cost)
    algorithms  {op: algorithm} that the plan uses unless the policy says otherwise
    rules       "ours", or "paper" for the paper's own scheduling (see vdnn.memory.rules)

    variant     a function: the same step in that many sub-batches, as another tape; MicroBatchError or LayerError if
                there can be none.  None where only a tape was given
    host_budget  bytes of host memory for what is offloaded, beyond which it goes to disk (vdnn.memory.tiers); None for
                any number.  Whatever a policy returns, its plan heeds it

and returns Decisions, or only {tensor: Fate}; for another tape (tape, Decisions), or what a search found.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vdnn import plugins
from vdnn.importing import imported
from vdnn.memory.candidates import Found
from vdnn.memory.checkpointing import checkpoint
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import OFFLOAD, DecisionError, Decisions, resolve
from vdnn.memory.published import PUBLISHED
from vdnn.memory.rules import EXTRACTION, offload_inputs
from vdnn.memory.searching import Searching, searching
from vdnn.memory.timing import timed
from vdnn.memory.trial import downgraded, least_workspace, trial
from vdnn.memory.variants import Variant
from vdnn.naming import among
from vdnn.rewrites import ALL, STANDARD
from vdnn.tape import Tape

Policy = Callable[..., Any]
OFFERED = ("tape", "budget", "cost", "algorithms", "rules", "variant", "host_budget")


def keep_all() -> Decisions:
    """Everything that backward reads stays on the device until its last use; nothing is copied or run again."""
    return Decisions()


def baseline() -> Decisions:
    """The paper's baseline (section IV-A): all is there all the time; gradient maps and workspaces share slots."""
    return Decisions(lifetimes="network")


def vdnn_all(
    tape: Tape, cost: Cost, algorithms: Mapping[str, str], rules: str = "ours", host_budget: int | None = None
) -> Decisions:
    """Offload the input X of every layer of feature extraction that is not in place (section III-C).

    In the paper's networks these are CONV and POOL; batch norm and LRN, which read X in backward as CONV does, are
    treated alike, but not under the paper's rules.

    Where several layers read X, it leaves at the last one that does (section III-A, Fig. 3).  A pooling layer that
    saves the places of its maxima keeps those; its X then leaves only if something else reads it in backward.
    """
    if rules == "paper":
        return offload_inputs(tape, ("conv", "pool"), rules)
    return timed(tape, replace(offload_inputs(tape, EXTRACTION), host_budget=host_budget), cost, algorithms)


def vdnn_conv(
    tape: Tape, cost: Cost, algorithms: Mapping[str, str], rules: str = "ours", host_budget: int | None = None
) -> Decisions:
    """Offload the input X of every CONV layer only: its time hides the copy best (section III-C)."""
    decisions = replace(offload_inputs(tape, ("conv",), rules), host_budget=host_budget)
    return decisions if rules == "paper" else timed(tape, decisions, cost, algorithms)


def vdnn_dyn(
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    rules: str = "ours",
    host_budget: int | None = None,
) -> Decisions:
    """The first of the paper's trials (section III-C) that fits the budget; here a trial is a plan, not a pass.

    1. vdnn_all with the least workspaces (m).  If this does not fit, nothing does, and it is the result.
    2. With the given, normally the fastest, algorithms (p): no offload, then vdnn_conv, then vdnn_all.
    3. vdnn_conv and then vdnn_all with (p), where ops that overflow the budget are downgraded one by one.
    Else the first.  The paper leaves open in which order layers are downgraded and whether a layer's forward and
    backward go together.  Here every op that is over the budget, by itself, takes the fastest of the algorithms with
    less workspace, and this is repeated until the plan fits or nothing is left to take.
    """
    lean = least_workspace(tape, cost)
    least = replace(vdnn_all(tape, cost, lean, rules, host_budget), algorithms=lean)

    def fits(decisions: Decisions) -> bool:
        return trial(tape, resolve(decisions, tape, algorithms), budget).arena_bytes <= budget

    if not fits(least):
        return least
    if fits(keep_all()):
        return keep_all()
    offloading = []
    for policy in (vdnn_conv, vdnn_all):
        offloading.append(policy(tape, cost, algorithms, rules, host_budget))
        if fits(offloading[-1]):
            return offloading[-1]
    for decisions in offloading:
        found = downgraded(tape, budget, cost, replace(decisions, algorithms=algorithms))
        if found is not None:
            return found
    return least


def least(tape: Tape) -> Decisions:
    """Offload all that backward reads, and bring it back for each op that reads it, at the last moment.

    Not a policy of the paper: with least-workspace algorithms it mostly needs no more than the floor, at the price of
    copies that nothing hides.
    """
    return Decisions(dict.fromkeys((t.name for t in tape.saved), OFFLOAD), ahead=0, returns="each")


# ---- by name

_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
OWN: dict[str, Policy] = {
    f.__name__: f for f in (keep_all, baseline, vdnn_all, vdnn_conv, vdnn_dyn, checkpoint, least)
}  # the quick ones: a budget that is too small is answered with what these say
POLICIES: dict[str, Policy] = {**OWN, **PUBLISHED, "search": searching()}


# {policy: the rewrites of the tape that it is for}; all others are compared on the standard one
REWRITES: dict[str, tuple[str, ...]] = {"search": ALL}


class PolicyError(ValueError):
    """There is no such policy."""


def get(policy: str | Policy) -> tuple[str, Policy]:
    """(name, function) of a policy given by its name, as "module:function", or as the function itself.

    A name is one of vdnn's own, or of a distribution that offers one (vdnn.plugins).  Raises PolicyError with the
    closest names, and for a policy of a distribution that cannot be used.
    """
    if callable(policy):
        return getattr(policy, "__name__", type(policy).__name__), policy
    if not isinstance(policy, str):
        raise PolicyError(f"a policy is a name, a function or a mapping {{tensor: Fate}}, not {policy!r:.80}")
    if ":" in policy:
        return policy, imported(policy, "fates", PolicyError)
    try:
        plugins.check_clash(policy, POLICIES)
        found = POLICIES.get(policy) or plugins.load(policy)
    except plugins.PluginError as error:
        raise PolicyError(str(error)) from error
    if found is None:
        raise PolicyError(f"no policy is named {policy!r}{among(policy, names(), 'or module:function')}")
    return policy, found


def names() -> tuple[str, ...]:
    """Every policy that has a name: vdnn's own, then those that distributions offer."""
    return tuple(dict.fromkeys((*POLICIES, *plugins.offered())))


def rewrites_of(policy: Any) -> tuple[str, ...]:
    """The rewrites of the tape that is built for a policy if nothing else is asked for; `policy` is any that `plan`
    takes, fates and Decisions as well.
    """
    if isinstance(policy, Searching):
        return REWRITES["search"]
    name = policy if isinstance(policy, str) else next((n for n, f in POLICIES.items() if f is policy), "")
    return REWRITES.get(name, STANDARD)


@dataclass(frozen=True)
class Decided:
    """What a policy says: its name, the tape that it is for, and its decisions, resolved.

    bound_seconds  no plan of the step within the budget is faster; 0 if the policy does not say
    """

    name: str
    tape: Tape
    decisions: Decisions
    bound_seconds: float = 0.0


def decide(
    policy: str | Policy,
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    rules: str = "ours",
    variant: Variant | None = None,
    host_budget: int | None = None,
) -> Decided:
    """What a policy says of a step.

    Raises PolicyError, DecisionError if what it returns does not fit the tape, and whatever the policy itself raises;
    the policy's name is with the error.
    """
    name, function = get(policy)
    offered = dict(zip(OFFERED, (tape, budget, cost, algorithms, rules, variant, host_budget), strict=True))
    wanted = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in offered:
            wanted[parameter.name] = offered[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind not in _OPTIONAL:
            raise DecisionError(f"policy {name} asks for {parameter.name!r}; a policy may ask for {', '.join(OFFERED)}")
    try:
        return _decided(name, function(**wanted), tape, algorithms)
    except DecisionError as error:
        raise DecisionError(f"policy {name}: {error}") from error
    except Exception as error:
        error.add_note(f"in policy {name}")
        raise


def _decided(name: str, said: Any, tape: Tape, algorithms: Mapping[str, str]) -> Decided:
    if isinstance(said, Found):
        return Decided(name, said.plan.tape, said.plan.decisions, said.bound_seconds)
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], Tape):
        return Decided(name, said[0], resolve(said[1], said[0], {}))
    return Decided(name, tape, resolve(said, tape, algorithms))
