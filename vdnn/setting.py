"""Setting: what a plan is made for, so that others can be made for the same and compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vdnn.building import build
from vdnn.collector import collector_paused
from vdnn.memory import policy as policies
from vdnn.memory import trial
from vdnn.memory.cost import Cost, roofline
from vdnn.memory.decisions import Decisions, Fate, resolve
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan
from vdnn.memory.policy import Decided
from vdnn.memory.rules import RULES, under
from vdnn.naming import hint
from vdnn.network import Network
from vdnn.rewrites import PAPER, STANDARD, checked
from vdnn.tape import Tape
from vdnn.units import parse_bytes

Fates = Mapping[Any, Fate] | Decisions
AnyPolicy = str | Callable[..., Any] | Fates
Choice = str | Mapping[str, str] | Plan
CHOICES = ("performance", "memory", "mixed")


class SettingError(ValueError):
    """Arguments of a plan that contradict each other, or name nothing."""


KERNELS = ("numpy", "cudnn4")


@dataclass(frozen=True)
class Setting:
    """What a plan is made for, so that others can be made for the same: other policies, batches, algorithms."""

    tape: Tape
    network: Network | None
    kernels: Any
    optimizer: Any
    cost: Cost
    budget: int
    undo: bool
    rules: str = "ours"
    allow_coupled: bool = False
    may_split: bool = True
    host_budget: int | None = None

    def make(self, policy: AnyPolicy, algorithms: Mapping[str, str]) -> Plan:
        """The plan under `policy`, whether it fits the budget or not."""
        decided = self.decide(policy, algorithms)
        plan = make_plan(decided.tape, decided.decisions, undo=self.undo, policy=decided.name)
        return replace(plan, bound_seconds=decided.bound_seconds, cost=self.cost)

    @collector_paused()
    def decide(self, policy: AnyPolicy, algorithms: Mapping[str, str]) -> Decided:
        """What the policy says: its name, its tape and its resolved decisions."""
        if isinstance(policy, (Mapping, Decisions)):
            given = resolve(policy, self.tape, algorithms)
            return Decided("", self.tape, under(self.rules, given, self.host_budget))
        is_free = self.may_split and self.network is not None and self.tape.purpose == "step"
        variant = self.in_parts if is_free else None
        about = self.rules, variant, self.host_budget
        decided = policies.decide(policy, self.tape, self.budget, self.cost, algorithms, *about)
        return replace(decided, decisions=under(self.rules, decided.decisions, self.host_budget))

    def in_parts(self, micro_batches: int) -> Tape:
        """The tape of the same step in that many sub-batches.  Raises MicroBatchError or LayerError."""
        assert self.network is not None
        parts = {"micro_batches": micro_batches, "allow_coupled": self.allow_coupled}
        purpose, names, count = self.tape.purpose, self.tape.rewrites, self.tape.count
        return _build(self.network, self.kernels, self.optimizer, purpose, names, count, **parts)

    def with_batch(self, batch: int) -> Setting:
        """The same for another batch size; only for a network."""
        assert self.network is not None
        network = self.network.with_batch(batch)
        other = replace(self, network=network)
        return replace(other, tape=other.in_parts(self.tape.micro_batches))

    def with_budget(self, budget: int) -> Setting:
        """The same for another budget in bytes."""
        return replace(self, budget=budget)


def make_setting(
    network: Network | Tape,
    batch: int | None = None,
    budget: int | str | None = None,
    hardware: str = "titan-x",
    optimizer: Any = "momentum",
    kernels: Any = None,
    threads: int | None = None,
    undo: bool = False,
    purpose: str = "step",
    cost: Cost | None = None,
    rules: str = "ours",
    count: str = "all",
    rewrites: str | Iterable[str] | None = None,
    micro_batches: int | None = None,
    allow_coupled: bool = False,
    host_budget: int | str | None = None,
) -> Setting:
    """The tape, the cost model and the budget that these arguments of `plan` stand for.

    micro_batches   of the tape; None: one part, and a policy may choose more
    rewrites   of the tape (vdnn.rewrites); None: the standard ones, and under the paper's rules those of the paper
    host_budget   bytes of host memory, or text, for what is offloaded; 0: as few as there can be; None: any number
    Raises SettingError, RewriteError, or ValueError for arguments that contradict a tape, or kernels, that were given;
    what vdnn.micro_batches.check_parts raises for sub-batches that there cannot be.
    """
    if rules not in RULES:
        raise SettingError(f"rules {rules!r} are none of {', '.join(RULES)}{hint(rules, RULES)}")
    if (
        kernels is not None
        and not isinstance(kernels, str)
        and threads not in (None, getattr(kernels, "threads", threads))
    ):
        raise ValueError(f"threads={threads} contradicts kernels={kernels.name} with {kernels.threads} threads")
    wanted = None if rewrites is None else checked(rewrites)
    cost = roofline(hardware) if cost is None else cost
    allowed = cost.memory_bytes if budget is None else parse_bytes(budget, cost.memory_bytes)
    host_bytes = None if host_budget is None else parse_bytes(host_budget, least=0)
    if isinstance(network, Tape):
        if batch not in (None, network.batch):
            raise ValueError(f"a tape is for one batch size, here {network.batch}; pass the network for batch={batch}")
        named = getattr(kernels, "name", kernels)
        _check_tape(network, optimizer, threads, purpose, count, rules, named, wanted, micro_batches)
        return Setting(network, None, kernels, optimizer, cost, allowed, undo, rules, host_budget=host_bytes)
    if not isinstance(network, Network):
        raise TypeError(f"plan takes a Network or a Tape, not {network!r:.80}; vdnn.models.get(name) makes a network")
    if kernels is None or isinstance(kernels, str):
        kernels = kernels_named(kernels or ("cudnn4" if rules == "paper" else "numpy"), threads)
    if isinstance(optimizer, str) or not hasattr(optimizer, "state"):
        from vdnn import optimizers

        optimizer = optimizers.get(optimizer)
    network = network.with_batch(batch) if batch is not None else network
    if rules == "paper":
        from vdnn.models import paper

        network = paper(network)
    if wanted is None:
        wanted = PAPER if rules == "paper" else STANDARD
    parts = {"micro_batches": 1 if micro_batches is None else micro_batches, "allow_coupled": allow_coupled}
    tape = _build(network, kernels, optimizer, purpose, wanted, count, **parts)
    may_split = micro_batches is None
    made = Setting(tape, network, kernels, optimizer, cost, allowed, undo, rules, allow_coupled, may_split)
    return replace(made, host_budget=host_bytes)


def _build(
    network: Network, kernels: Any, optimizer: Any, purpose: str, rewrites: tuple[str, ...], count: str, **parts: Any
) -> Tape:
    return build(network, kernels, optimizer, purpose, rewrites=rewrites, count=count, **parts)


def kernels_named(name: str, threads: int | None = None) -> Any:
    """The kernel set of that name, for planning.  Raises SettingError."""
    if name == "numpy":
        from vdnn.kernels.numpy import NumpyKernels

        return NumpyKernels(threads)
    if name == "cudnn4":
        from vdnn.kernels.cudnn4 import Cudnn4Kernels

        if threads not in (None, 1):
            raise SettingError(f"threads={threads}: the kernel set cudnn4 is a GPU's and has no threads")
        return Cudnn4Kernels()
    raise SettingError(
        f"no kernel set is named {name!r}{hint(name, KERNELS)}; for planning there are {', '.join(KERNELS)}"
    )


def _check_tape(
    tape: Tape,
    optimizer: Any,
    threads: int | None,
    purpose: str,
    count: str,
    rules: str,
    kernels: str | None,
    rewrites: tuple[str, ...] | None,
    micro_batches: int | None,
) -> None:
    """Raise ValueError if what was asked for is not what the tape was built for.  A default asks for nothing."""
    if rules != "ours":
        raise SettingError(f"rules={rules!r} are for a network: they build another tape; pass the network")
    name = getattr(optimizer, "name", optimizer)
    asked = {
        "purpose": (purpose, tape.purpose, purpose == "step"),
        "count": (count, tape.count, count == "all"),
        "kernels": (kernels, tape.kernels, kernels is None),
        "threads": (threads, tape.threads, threads is None),
        "rewrites": (rewrites, tape.rewrites, rewrites is None),
        "micro_batches": (micro_batches, tape.micro_batches, micro_batches is None),
        "optimizer": (name, tape.optimizer, optimizer is None or optimizer == "momentum"),
    }
    for what, (wanted, built, is_default) in asked.items():
        if not is_default and wanted != built:
            raise ValueError(
                f"{what}={wanted!r} contradicts the tape, which was built with {what}={built!r}; pass the network"
            )


def choose_algorithms(tape: Tape, cost: Cost, choice: Choice) -> dict[str, str]:
    """{op: algorithm} for the argument `algorithms` of `plan`."""
    if isinstance(choice, Plan):
        return trial.fastest(tape, cost) | {k: v for k, v in choice.decisions.algorithms.items() if k in tape.index}
    if isinstance(choice, Mapping):
        return dict(resolve(Decisions(algorithms=choice), tape, trial.fastest(tape, cost)).algorithms)
    if choice not in CHOICES:
        known = f"{', '.join(CHOICES)}, nor {{op: name}}, nor a plan"
        raise ValueError(f"algorithms {choice!r} is none of {known}{hint(choice, CHOICES)}")
    return trial.least_workspace(tape, cost) if choice == "memory" else trial.fastest(tape, cost)


def name_algorithms(plan: Plan, cost: Cost) -> str:
    """What the plan's algorithms are together: "performance", "memory", or "mixed" if they are neither."""
    chosen = dict(plan.decisions.algorithms)
    if chosen == trial.fastest(plan.tape, cost):
        return "performance"
    return "memory" if chosen == trial.least_workspace(plan.tape, cost) else "mixed"
