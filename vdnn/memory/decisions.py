"""Fate and Decisions: what a policy says about a step, by name, and nothing about how it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from vdnn.memory.layout import EFFORT
from vdnn.naming import hint
from vdnn.network import Role, Tensor
from vdnn.tape import Tape

Value = TypeVar("Value", int, str)


class Fate(StrEnum):
    """What happens to a forward tensor after its last forward use."""

    KEEP = "keep"  # stays on the device until its last backward use
    OFFLOAD = "offload"  # is copied to the host and comes back before its first backward use
    DROP = "drop"  # is forgotten; if backward reads it, its forward op runs again


RETURNS = ("once", "each")
TIERS = ("host", "disk")
ON_DISK = (Role.FEATURE, Role.WEIGHT, Role.STATE, Role.STATISTICS)  # what may go there: of the last three, undo copies
CHOICES: Mapping[str, tuple[Any, Any]] = {
    "lifetimes": ("sliding", "network"),
    "sync": ("bytes", "layer"),
    "streams": (2, 1),
    "inputs": ("fetched", "copied"),
}
KEEP, OFFLOAD, DROP = Fate.KEEP, Fate.OFFLOAD, Fate.DROP


class PlanError(ValueError):
    """A plan that is not safe, or cannot be made; the message shows the plan around the fault, if there is one."""


class DecisionError(PlanError):
    """Decisions that do not fit the tape: an unknown tensor, op or algorithm, or a fate that a tensor cannot have."""


@dataclass(frozen=True)
class Decisions:
    """What a policy returns.

    fates       {tensor: Fate}; keys are names or tensors.  A tensor that backward reads is kept unless said
                otherwise; any other is dropped.  Tensors that share bytes share one fate.
    algorithms  {op: algorithm's name} for those that are not to be the default of the plan
    ahead       how many ops before its first backward use a prefetch may start; one number, or {tensor: number}
    slack       how many ops after its last forward use the source of an offload is freed, and after its making a
                result (the free waits for the copy in any case); one number, or {tensor: number}
    returns     "once": an offloaded tensor comes back once and stays until its last use; "each": it leaves again
                between backward uses that have other ops between them, since the host still has its copy; one for all,
                or {tensor: "each"} for some
    sync        "bytes": a step waits for those that touch the same bytes, no more; "layer": the paper's rule as well
                (section III-B): what copied beside an op is waited for before the next op and the next copy
    streams     2: offloads and prefetches each have a stream of their own; 1: they share one, the paper's
                stream_memory, here named "offload"
    inputs      "fetched": an input that is offloaded is not copied out, as the host has it already; "copied": it is,
                like any other tensor (the paper offloads the images, too)
    lifetimes   "sliding": only what is needed is on the device (paper, section III-A); "network": everything is
                allocated for the whole step, gradient maps and workspaces in shared slots (the paper's baseline, IV-A)
    effort      how hard a tight layout is searched for (vdnn.memory.layout); 0: the first ones
    within      bytes: the first layout with an arena of at most these is taken, even if a tighter one could be found
    tiers       {tensor: "host" or "disk"}: where what is offloaded goes, and undo copies of weights, states and
                statistics: to host memory, or to the spill file.  For what is not named vdnn.memory.tiers has a rule
    host_budget  bytes that the host slab may take, for that rule; None: any number.  0: as few as there can be, those
                of inputs and results, which never go to disk
    """

    fates: Mapping[Any, Fate] = field(default_factory=dict)
    algorithms: Mapping[str, str] = field(default_factory=dict)
    ahead: int | Mapping[str, int] = 1
    slack: int | Mapping[str, int] = 0
    returns: str | Mapping[str, str] = "once"
    sync: str = "bytes"
    streams: int = 2
    inputs: str = "fetched"
    lifetimes: str = "sliding"
    effort: int = EFFORT
    within: int = 0
    tiers: Mapping[Any, str] = field(default_factory=dict)
    host_budget: int | None = None

    @property
    def prefetch_stream(self) -> str:
        """The stream on which prefetches run."""
        return "prefetch" if self.streams == 2 else "offload"

    def ahead_of(self, buffer: str) -> int:
        """How many ops early the prefetch of this buffer may start."""
        return self.ahead if isinstance(self.ahead, int) else self.ahead.get(buffer, 1)

    def comes_back_for_each(self, buffer: str) -> bool:
        """Whether this buffer, offloaded, leaves again between its backward uses."""
        returns = self.returns if isinstance(self.returns, str) else self.returns.get(buffer, "once")
        return returns == "each"

    def slack_of(self, buffer: str) -> int:
        """How many ops late the source of this buffer's offload is freed."""
        return self.slack if isinstance(self.slack, int) else self.slack.get(buffer, 0)


def resolve(decisions: Any, tape: Tape, algorithms: Mapping[str, str]) -> Decisions:
    """`decisions` (or a bare mapping of fates) with every buffer's fate and every op's algorithm filled in.

    Fates become {buffer's name: Fate}, algorithms {op's name: name} with `algorithms` as the default.
    Raises DecisionError naming what does not fit.
    """
    if isinstance(decisions, Mapping):
        decisions = Decisions(decisions)
    if not isinstance(decisions, Decisions):
        raise DecisionError(
            f"a policy returns Decisions or a mapping {{tensor: Fate}}, not {type(decisions).__name__}: "
            f"{repr(decisions)[:80]}"
        )
    for field_name, values in CHOICES.items():
        if getattr(decisions, field_name) not in values or isinstance(getattr(decisions, field_name), bool):
            one, other = map(repr, values)
            raise DecisionError(f"{field_name} {getattr(decisions, field_name)!r} is neither {one} nor {other}")
    given = decisions.returns.values() if isinstance(decisions.returns, Mapping) else [decisions.returns]
    for value in given:
        if value not in RETURNS:
            raise DecisionError(f"returns {value!r} is neither 'once' nor 'each'")
    for what in ("fates", "algorithms", "tiers"):
        if not isinstance(getattr(decisions, what), Mapping):
            raise DecisionError(f"{what} is a mapping, not {getattr(decisions, what)!r:.80}")
    chosen = dict(algorithms)
    for key, name in decisions.algorithms.items():
        if key not in tape.index:
            raise DecisionError(f"{key!r} is no op of {tape.network}{hint(key, tape.index)}")
        chosen[key] = name
    for op in tape.ops:
        if chosen.setdefault(op.name, op.algorithms[0].name) not in {a.name for a in op.algorithms}:
            names = ", ".join(a.name for a in op.algorithms)
            raise DecisionError(f"{op.name} has no algorithm {chosen[op.name]!r}; it has {names}")
    chosen = {op.name: chosen[op.name] for op in tape.ops}
    return replace(
        decisions,
        fates=_fates(decisions.fates, tape),
        algorithms=chosen,
        ahead=_counts("ahead", decisions.ahead, tape),
        effort=_count("effort", decisions.effort, "lifetimes"),
        within=_count("within", decisions.within, "bytes"),
        slack=_counts("slack", decisions.slack, tape),
        returns=_by_buffer(decisions.returns, tape),
        tiers=_tiers(decisions.tiers, tape),
        host_budget=None if decisions.host_budget is None else _count("host_budget", decisions.host_budget, "bytes"),
    )


def _fates(given: Mapping[Any, Any], tape: Tape) -> dict[str, Fate]:
    saved = {tape.buffer_of[t.name] for t in tape.saved}
    fates: dict[str, Fate] = {}
    for key, value in given.items():
        buffer = tape.buffer_of[_known(key, tape).name]
        try:
            fate = Fate(value)
        except ValueError:
            raise DecisionError(f"{value!r} is no fate for {key}; fates are keep, offload, drop") from None
        _check_fate(buffer, fate, tape)
        if fates.setdefault(buffer, fate) is not fate:
            names = ", ".join(t.name for t in tape.buffers[buffer].tensors)
            raise DecisionError(f"{names} share bytes and cannot be both {fates[buffer]} and {fate}")
    for tensor in tape.features:
        buffer = tape.buffer_of[tensor.name]
        kept = buffer in saved or tensor.role is Role.INPUT
        fates.setdefault(buffer, Fate.KEEP if kept else Fate.DROP)
    return fates


def _known(key: Any, tape: Tape, what: str = "fates") -> Tensor:
    if not isinstance(key, (str, Tensor)):
        raise DecisionError(f"{what} are keyed by tensors or their names, not {key!r}")
    try:
        return tape.tensor(key)
    except KeyError as error:
        raise DecisionError(error.args[0]) from None


def _check_fate(buffer: str, fate: Fate, tape: Tape) -> None:
    role = tape.buffers[buffer].role
    if role is Role.INPUT and fate is Fate.DROP:
        raise DecisionError(f"{buffer} cannot be dropped, since no op makes it; offload it (the host has its copy)")
    if role not in (Role.INPUT, Role.FEATURE) and fate is not Fate.KEEP:
        raise DecisionError(
            f"the fate of {buffer} cannot be {fate}: its role is {role}, and only feature maps and inputs may leave "
            "the device"
        )


def _tiers(given: Mapping[Any, Any], tape: Tape) -> dict[str, str]:
    results = {tape.buffer_of[name] for name in tape.results}
    tiers: dict[str, str] = {}
    for key, tier in given.items():
        buffer = tape.buffer_of[_known(key, tape, "tiers").name]
        if tier not in TIERS:
            raise DecisionError(f"{tier!r} is no tier for {key}; tiers are {', '.join(TIERS)}")
        role = tape.buffers[buffer].role
        if role not in ON_DISK or buffer in results:
            what = "it is a result" if buffer in results else f"its role is {role}"
            raise DecisionError(
                f"{buffer} has no tier: {what}, and only feature maps and undo copies have one; inputs and results are "
                "in host memory"
            )
        if tiers.setdefault(buffer, tier) != tier:
            names = ", ".join(t.name for t in tape.buffers[buffer].tensors)
            raise DecisionError(f"{names} share bytes and cannot be both on {tiers[buffer]} and on {tier}")
    return tiers


def _counts(what: str, given: int | Mapping[str, int], tape: Tape) -> int | dict[str, int]:
    items = given if isinstance(given, Mapping) else {"": given}
    for value in items.values():
        _count(what, value)
    return _by_buffer(given, tape)


def _count(what: str, value: Any, unit: str = "ops") -> int:
    """The value.  Raises DecisionError if it counts nothing."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DecisionError(f"{what} counts {unit}, so it is an integer of at least 0, not {value!r}")
    return value


def _by_buffer(given: Value | Mapping[str, Value], tape: Tape) -> Value | dict[str, Value]:
    """One value for all as it is, or {buffer: value} from {tensor: value}."""
    if not isinstance(given, Mapping):
        return given
    return {tape.buffer_of[_known(k, tape).name]: v for k, v in given.items()}
