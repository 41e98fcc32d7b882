"""The budget of host memory: the error where even inputs and results are larger."""

from __future__ import annotations

from vdnn.memory.plan import DISK, Plan, PlanError
from vdnn.network import Role
from vdnn.units import format_bytes


class HostBudgetError(PlanError):
    """The host slab of a plan is larger than its budget, although all that may go to disk is there.

    needed_bytes  what the host slab takes
    budget_bytes  what was allowed
    plan          the plan, whose host slab is as small as there can be
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan, self.needed_bytes = plan, plan.host_bytes
        self.budget_bytes = plan.decisions.host_budget or 0

    def __str__(self) -> str:
        plan, tape = self.plan, self.plan.tape
        copied = {s.name: s.tier for s in plan.steps if s.kind in ("offload", "prefetch")}
        sizes = {"inputs": 0, "results": 0, "other": 0}
        results = {tape.buffer_of[name] for name in tape.results}
        for name in (name for name, tier in copied.items() if tier != DISK):
            kind = "inputs" if plan.role(name) is Role.INPUT else "results" if name in results else "other"
            sizes[kind] += plan.size(name)
        other = f"; {_exact(sizes['other'])} that were given the tier host" if sizes["other"] else ""
        return "\n".join(
            [
                f"{tape.network}, {tape.batch_label}, does not fit its host memory, with all on disk that may be:",
                f"  needed     {_exact(self.needed_bytes)}: inputs of {_exact(sizes['inputs'])} and results of "
                f"{_exact(sizes['results'])} stay in host memory{other}",
                f"  available  {_exact(self.budget_bytes)}",
                "what would fit:",
                f"  host_budget={self.needed_bytes}, or 0 for as little as there can be, or a smaller batch",
            ]
        )


def check_host_budget(plan: Plan) -> None:
    """Nothing.  Raises HostBudgetError if the plan's host slab is larger than its budget."""
    if not plan.is_within_host:
        raise HostBudgetError(plan)


def _exact(size: int) -> str:
    return f"{format_bytes(size)} ({size} bytes)"
