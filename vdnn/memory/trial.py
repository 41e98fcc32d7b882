"""Trials: does a plan fit a budget, found without making the whole plan; and choices of algorithms to try."""

from __future__ import annotations

from dataclasses import replace

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.layout import EFFORT
from vdnn.memory.passes import allocate, copy_offloaded, rerun_dropped
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.tape import Op, Tape


def trial(tape: Tape, decisions: Decisions, budget: int) -> Plan:
    """A plan of resolved decisions without waits; it fits if its arena_bytes are at most `budget`.

    It is laid out only as well as that question needs, and not at all if its peak is above the budget.
    """
    plan = sketch(tape, decisions)
    if plan.peak_bytes > budget:
        return replace(plan, arena_bytes=plan.peak_bytes)
    quick = place(plan, 0)
    return quick if quick.arena_bytes <= budget else place(plan, EFFORT)


def sketch(tape: Tape, decisions: Decisions) -> Plan:
    """The plan of resolved decisions before it is laid out: enough for its peak, and fast."""
    steps = allocate(copy_offloaded(rerun_dropped(tape, decisions), tape, decisions, False), tape, decisions)
    return Plan(tape, decisions, tuple(steps), 0, 0)


def fastest(tape: Tape, cost: Cost) -> dict[str, str]:
    """{op: its fastest algorithm}; of equals the one with the least workspace."""
    return {
        op.name: min(op.algorithms, key=lambda a: (cost.op_seconds(tape, op, a.name), a.workspace)).name
        for op in tape.ops
    }


def least_workspace(tape: Tape, cost: Cost) -> dict[str, str]:
    """{op: its algorithm with the least workspace}; of equals the fastest."""
    return {
        op.name: min(op.algorithms, key=lambda a: (a.workspace, cost.op_seconds(tape, op, a.name))).name
        for op in tape.ops
    }


def downgraded(tape: Tape, budget: int, cost: Cost, decisions: Decisions) -> Decisions | None:
    """`decisions` with algorithms of less workspace for the ops that are over the budget; None if that fails."""
    chosen = dict(decisions.algorithms)
    while True:
        decisions = replace(decisions, algorithms=dict(chosen))
        plan = trial(tape, resolve(decisions, tape, chosen), budget)
        if plan.arena_bytes <= budget:
            return decisions
        changed = False
        for op in _overflowing(plan, budget):
            now = op.algorithm(chosen[op.name]).workspace
            smaller = [a for a in op.algorithms if a.workspace < now]
            if smaller:
                best = min(smaller, key=lambda a: (cost.op_seconds(tape, op, a.name), a.workspace))
                chosen[op.name] = best.name
                changed = True
        if not changed:
            return None


def _overflowing(plan: Plan, budget: int) -> list[Op]:
    """The ops while which more is live than the budget, or, where the layout is to blame, that reach above it."""
    over = [op for i, _, op in plan.computes() if plan.live_bytes[i] > budget]
    if over:
        return over
    tops: dict[str, int] = {}  # of what is allocated now
    high = []
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            tops[step.name] = step.offset + plan.size(step.name)
        elif step.kind == "free":
            del tops[step.name]
        elif step.kind == "compute" and max(tops.values()) > budget:
            high.append(i)
    return [op for i, _, op in plan.computes() if i in set(high)]
