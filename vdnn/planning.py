"""plan: from a network and a policy to a verified plan within a budget, or to an error that says what would fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vdnn import budgets
from vdnn.fitting import Advice, BudgetError, least_budget, least_plan
from vdnn.host_budgets import HostBudgetError, check_host_budget
from vdnn.memory import policy as policies
from vdnn.memory.cost import Cost, roofline
from vdnn.memory.decisions import Decisions
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import oracle_seconds, simulate
from vdnn.memory.trace import Trace
from vdnn.memory.verify import verify as verify_plan
from vdnn.network import Network
from vdnn.notes import is_idle
from vdnn.setting import AnyPolicy, Choice, choose_algorithms, make_setting, name_algorithms
from vdnn.tape import Tape
from vdnn.units import parse_bytes

__all__ = ["Advice", "BudgetError", "HostBudgetError", "budget_bytes", "least_budget", "least_plan", "plan", "summary"]


def plan(
    network: Network | Tape,
    policy: AnyPolicy = "vdnn_dyn",
    *,
    batch: int | None = None,
    budget: int | str | None = None,
    hardware: str = "titan-x",
    algorithms: Choice = "performance",
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
    verify: bool = True,
) -> Plan:
    """The plan of one training step, with every byte and every wait decided.

    policy      a name, "module:function", a function (see vdnn.memory.policy), or {tensor: Fate} or Decisions
    batch       another batch size than the network's
    budget      bytes that the arena may take: a number, "12GiB", "80%" of the hardware's memory, or relative to the
                step, as "floor+25%" is (vdnn.budgets).  Default: all of that memory; but fates, not given by a policy,
                are planned as they are
    algorithms  "performance": the fastest of each op; "memory": the one with the least workspace; "mixed": the fastest,
                or a slower one where vdnn_dyn finds that it must; {op: name}, the rest as fast as possible; or those
                of another plan
    cost        times to decide by; default: the hardware's roofline
    purpose     "step", "gradients" or "evaluate"
    kernels     a kernel set, or the name of one: "numpy", or "cudnn4", which the paper measured and nothing runs
    rules       "ours", or "paper": its waits, streams, prefetch search, pooling and fused backward, with cudnn4 unless
                other kernels are given (vdnn.memory.rules); only for a network
    count       what takes bytes: "all"; "weights": each weight once, no weight gradients, no optimizer state;
                "features": of these only the weights of convolutions, as the paper's peaks count
    rewrites    changes of the tape that change no bit: names, "all", "standard", "none", "all-relu_mask" and the like
                (vdnn.rewrites).  Default: the policy's choice, for nearly all of them the standard ones
    micro_batches  parts of the batch that forward and backward run on one after the other, with one update after all:
                less memory, equal results but for rounding (vdnn.micro_batches).  Default: the policy's choice; of all
                by name only search and modnn choose more than 1
    allow_coupled  parts even where results then differ, since batch norm takes the statistics of each by itself
    host_budget  bytes that the host slab may take: a number or "2GiB".  What is offloaded beyond that goes to disk
                (vdnn.memory.tiers); inputs and results stay in host memory.  0: as few as there can be.  None: any
                number, and nothing goes to disk
    Raises BudgetError if the budget is too small; it says what would fit.  HostBudgetError if inputs and results alone
    are larger than the host budget.  MicroBatchError or LayerError if the batch
    cannot come in so many parts.
    """
    if rewrites is None and rules == "ours" and isinstance(network, Network):
        rewrites = policies.rewrites_of(policy)
    is_relative = budgets.is_relative(budget)
    setting = make_setting(
        network,
        batch,
        None if is_relative else budget,
        hardware,
        optimizer,
        kernels,
        threads,
        undo,
        purpose,
        cost,
        rules,
        count,
        rewrites,
        micro_batches,
        allow_coupled,
        host_budget,
    )
    chosen = choose_algorithms(setting.tape, setting.cost, algorithms)
    if is_relative:
        setting = setting.with_budget(budgets.budget_bytes(budget, setting, chosen))
    made = setting.make(policy, chosen)
    limited = budget is not None or not isinstance(policy, (Mapping, Decisions))
    if limited and made.arena_bytes > setting.budget:
        raise BudgetError(setting, policy, chosen, made)
    check_host_budget(made)
    if verify:
        verify_plan(made)
    return made


def budget_bytes(budget: int | str | None, hardware: str | Cost = "titan-x") -> int:
    """Bytes of a budget; a percentage is of the hardware's memory, and None is all of it."""
    cost = roofline(hardware) if isinstance(hardware, str) else hardware
    return cost.memory_bytes if budget is None else parse_bytes(budget, cost.memory_bytes)


def summary(
    plan: Plan, cost: Cost, budget: int | None = None, trace: Trace | None = None, whole: Tape | None = None
) -> dict[str, Any]:
    """The figures of a plan: bytes, and seconds as `cost` has them, or those of a trace of it.

    budget  bytes; None: all memory of the hardware
    whole   the tape that was asked for, whose floor and oracle these are, where a policy may choose other sub-batches;
            None: the plan's own.  `asked_micro_batches` says how many parts it has
    `algorithms` says which the plan really has.
    """
    whole = plan.tape if whole is None else whole
    trace = simulate(plan, cost) if trace is None else trace
    budget = cost.memory_bytes if budget is None else budget
    return {
        "network": plan.tape.network,
        "batch": plan.tape.batch,
        "micro_batches": plan.tape.micro_batches,
        "asked_micro_batches": whole.micro_batches,
        "policy": plan.policy,
        "algorithms": name_algorithms(plan, cost),
        "hardware": cost.name,
        "optimizer": plan.tape.optimizer,
        "kernels": plan.tape.kernels,
        "threads": plan.tape.threads,
        "rules": "paper" if plan.decisions.sync == "layer" else "ours",
        "count": plan.tape.count,
        "rewrites": list(plan.tape.rewrites),
        "budget_bytes": budget,
        "host_budget_bytes": plan.decisions.host_budget,
        "fits": plan.arena_bytes <= budget and plan.is_within_host,
        "peak_bytes": plan.peak_bytes,
        "average_bytes": trace.average_bytes,
        "arena_bytes": plan.arena_bytes,
        "host_bytes": plan.host_bytes,
        "disk_bytes": plan.disk_bytes,
        "spilled": [plan.tape.buffers[name].tensors[-1].name for name in plan.spilled],
        "offloaded_bytes": plan.offloaded_bytes,
        "floor_bytes": whole.floor_bytes,
        "time": trace.kind,
        "step_seconds": trace.step_seconds,
        "oracle_seconds": oracle_seconds(whole, cost),
        "bound_seconds": plan.bound_seconds or None,
        "stall_seconds": sum(stall.seconds for stall in trace.stalls),
        "hidden_copy_fraction": trace.hidden_copy_fraction,
        "breakdown": plan.breakdown,
        "is_idle": is_idle(plan),
        "notes": list(plan.notes),
    }
