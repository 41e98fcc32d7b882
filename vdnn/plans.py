"""Plans: one plan for every batch size and purpose of a trainer, all over one slab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vdnn import planning
from vdnn.building import build
from vdnn.fitting import BudgetError
from vdnn.inputs import InputError
from vdnn.memory.decisions import Decisions
from vdnn.memory.device import Device
from vdnn.memory.plan import Plan
from vdnn.memory.policy import least
from vdnn.network import Network
from vdnn.optimizers import Optimizer
from vdnn.tape import Tape


class Plans:
    """The plans of one trainer.  The step on a full batch is planned by the policy; all others follow its decisions.

    The budget covers the largest of them.  A plan is made when it is first asked for.
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
    ) -> None:
        self.net, self.device, self.optimizer, self.undo = net, device, optimizer, undo
        self.made: dict[tuple[int, str], Plan] = {}
        self.refused: dict[str, BudgetError] = {}
        self.budget = budget
        self.main = self._plan(net, policy, algorithms, "step", rewrites)
        self.made[net.batch, "step"] = self.main
        for purpose in ("evaluate", "gradients"):
            try:
                self.made[net.batch, purpose] = self._following(net, purpose, self.main)
            except BudgetError as error:  # raised when it is asked for
                self.refused[purpose] = error

    @property
    def arena_bytes(self) -> int:
        """The largest arena of the plans made so far."""
        return max(plan.arena_bytes for plan in self.made.values())

    @property
    def host_bytes(self) -> int:
        """The largest host slab of the plans made so far."""
        return max(self.device.host_bytes_of(plan) for plan in self.made.values())

    def get(self, batch: int, purpose: str) -> Plan:
        """The plan for a batch of 1 to N samples.  Raises InputError for another size, BudgetError if none fits."""
        if not 1 <= batch <= self.net.batch:
            raise InputError(f"the batch has {batch} samples; this trainer is planned for 1 to {self.net.batch}")
        if (batch, purpose) not in self.made:
            if batch == self.net.batch:
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
        )

    def _following(self, net: Network, purpose: str, model: Plan) -> Plan:
        """The first that fits of what is tried; the decisions of `model` first."""
        tape = build(net, self.device.kernels, self.optimizer, purpose, rewrites=model.tape.rewrites)
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
    ahead, slack = (
        count if isinstance(count, int) else {t: n for t, n in count.items() if t in fates}
        for count in (given.ahead, given.slack)
    )
    alike = replace(given, fates=fates, ahead=ahead, slack=slack)
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
