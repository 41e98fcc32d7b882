"""Plans: one plan for every batch size and purpose of a trainer, all over one slab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vdnn import planning
from vdnn.building import build
from vdnn.fitting import BudgetError
from vdnn.host_budgets import HostBudgetError
from vdnn.inputs import InputError
from vdnn.memory.decisions import Decisions, Value
from vdnn.memory.device import Device
from vdnn.memory.plan import Plan
from vdnn.memory.policy import least
from vdnn.micro_batches import check_count, parts_of
from vdnn.network import Network
from vdnn.optimizers import Optimizer
from vdnn.tape import Tape


class Plans:
    """The plans of one trainer.  The step on a full batch is planned by the policy; all others follow its decisions.

    The budget covers the largest of them.  A plan is made when it is first asked for.

    With sub-batches no plan has more samples on the device at a time than the full batch's plan: fewer samples come in
    parts as large as its own, and one with the rest, and evaluation takes no more samples than a part has.
    """

    def __init__(
        self,
        net: Network,
        policy: Any,
        budget: int,
        algorithms: Any,
        device: Device,
        optimizer: Optimizer,
        undo: bool,
        rewrites: str | Iterable[str] | None = None,
        micro_batches: int | None = None,
        allow_coupled: bool = False,
        host_budget: int | None = None,
    ) -> None:
        check_count(micro_batches or 1, net.batch, net.name)
        self.net, self.device, self.optimizer, self.undo = net, device, optimizer, undo
        self.micro_batches = micro_batches
        self.allow_coupled, self.host_budget = allow_coupled, host_budget
        self.made: dict[tuple[int, str], Plan] = {}
        self.refused: dict[str, BudgetError | HostBudgetError] = {}
        self.budget = budget
        self.main = self._plan(net, policy, algorithms, "step", rewrites)
        self.made[net.batch, "step"] = self.main
        self.micro_batches = self.main.tape.micro_batches  # the policy's choice, if none was given
        self.part = net.batch // self.micro_batches
        for purpose in ("evaluate", "gradients"):
            try:
                batch = self.largest(purpose)
                self.made[batch, purpose] = self._following(net.with_batch(batch), purpose, self.main)
            except (BudgetError, HostBudgetError) as error:  # raised when it is asked for
                self.refused[purpose] = error

    @property
    def arena_bytes(self) -> int:
        """The largest arena of the plans made so far."""
        return max(plan.arena_bytes for plan in self.made.values())

    @property
    def host_bytes(self) -> int:
        """The largest host slab of the plans made so far; in a host budget, only of those that training uses."""
        if self.host_budget is not None:
            return self.training_host_bytes
        return max(map(self.device.host_bytes_of, self.made.values()))

    @property
    def training_host_bytes(self) -> int:
        """That without the plans for gradients, whose results are as large as the weights, and which few ask for."""
        training = [plan for (_, purpose), plan in self.made.items() if purpose != "gradients"]
        return max(map(self.device.host_bytes_of, training))

    @property
    def disk_bytes(self) -> int:
        """The largest spill file of the plans made so far."""
        return max(plan.disk_bytes for plan in self.made.values())

    def largest(self, purpose: str) -> int:
        """Most samples that a plan for this purpose takes: N, or in evaluation those of a sub-batch."""
        return self.part if purpose == "evaluate" else self.net.batch

    def get(self, batch: int, purpose: str) -> Plan:
        """The plan for a batch of 1 to N samples.  Raises InputError for another size, or what `vdnn.plan` raises
        if none fits.
        """
        most = self.largest(purpose)
        if not 1 <= batch <= most:
            raise InputError(f"the batch has {batch} samples; this trainer is planned for 1 to {most}")
        if (batch, purpose) not in self.made:
            if batch == most:
                raise self.refused[purpose]
            # gradients have the bits of a step, so they follow the step of their own batch
            model = self.get(batch, "step") if purpose == "gradients" else self.main
            self.made[batch, purpose] = self._following(self.net.with_batch(batch), purpose, model)
        return self.made[batch, purpose]

    def _plan(self, net: Network | Tape, policy: Any, algorithms: Any, purpose: str, rewrites: Any = None) -> Plan:
        return planning.plan(
            net,
            policy,
            budget=self.budget,
            cost=self.device.cost,
            algorithms=algorithms,
            optimizer=self.optimizer,
            kernels=self.device.kernels,
            undo=self.undo and purpose == "step",
            purpose=purpose,
            rewrites=rewrites,
            micro_batches=None if isinstance(net, Tape) else self.micro_batches,
            allow_coupled=self.allow_coupled,
            host_budget=self.host_budget,
        )

    def _following(self, net: Network, purpose: str, model: Plan) -> Plan:
        """The first that fits of what is tried; the decisions of `model` first."""
        parts: dict[str, Any] = {"micro_batches": parts_of(net.batch, self.part), "allow_coupled": self.allow_coupled}
        tape = build(net, self.device.kernels, self.optimizer, purpose, rewrites=model.tape.rewrites, **parts)
        refused: BudgetError | None = None
        for decisions in _tries(tape, model):
            try:
                return self._plan(tape, decisions, decisions.algorithms, purpose)
            except BudgetError as error:
                refused = refused or error
        assert refused is not None
        raise refused


def _tries(tape: Tape, model: Plan) -> Iterator[Decisions]:
    """Decisions for `tape` like those of `model`; then such as need less memory.

    Fates change no bits, so gradients of a full batch may be planned by other fates, but not by other algorithms.
    """
    algorithms = _algorithms(tape, model)
    features = {t.name for t in tape.features}
    given = model.decisions
    fates = {t: fate for t, fate in given.fates.items() if t in features and tape.purpose != "evaluate"}

    def known(value: Value | Mapping[str, Value]) -> Value | Mapping[str, Value]:
        return {t: v for t, v in value.items() if t in fates} if isinstance(value, Mapping) else value

    tiers = {t: tier for t, tier in given.tiers.items() if t in fates or t in tape.resident}
    alike = replace(given, fates=fates, tiers=tiers, ahead=known(given.ahead))
    alike = replace(alike, slack=known(given.slack), returns=known(given.returns))
    yield replace(alike, algorithms=algorithms)
    yield replace(least(tape), algorithms=algorithms)
    if tape.purpose != "gradients":
        lean = {op.name: op.algorithms[0].name for op in tape.ops}
        yield replace(alike, algorithms=lean)
        yield replace(least(tape), algorithms=lean)


def _algorithms(tape: Tape, model: Plan) -> Mapping[str, str]:
    """For each op the model's algorithm if it has that one; else the fastest with no more workspace than the model's,
    or, if there is none, the one with the least.
    """
    chosen = {}
    for op in tape.ops:
        wanted = model.decisions.algorithms.get(op.name, "")
        if not any(a.name == wanted for a in op.algorithms):
            own = model.tape.index.get(op.name)
            limit = model.tape.ops[own].algorithm(wanted).workspace if own is not None else 0
            fitting = [a for a in op.algorithms if a.workspace <= limit] or op.algorithms[:1]
            wanted = max(fitting, key=lambda a: a.rate).name
        chosen[op.name] = wanted
    return chosen
