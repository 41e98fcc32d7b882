"""notes: what was asked for and had no effect, said in plain sentences, so that nothing is ignored without a word."""

from __future__ import annotations

from collections import Counter

from vdnn.memory.decisions import OFFLOAD
from vdnn.memory.plan import Plan
from vdnn.network import Role

STILL = ("keep_all", "baseline")  # policies that are not asked to move anything
NAMED = 3  # tensors that a note names before it counts


def notes_on(plan: Plan) -> tuple[str, ...]:
    """The sentences about a plan of a training step; none where everything that was asked for happens."""
    found = []
    if is_idle(plan):
        found.append(f"{plan.policy} moves nothing and runs nothing again: all that backward reads is kept")
    unmoved = _unmoved(plan)
    if unmoved:
        names = ", ".join(unmoved[:NAMED]) + (f" and {len(unmoved) - NAMED} more" if len(unmoved) > NAMED else "")
        found.append(f"to be offloaded, but never copied, as no backward op needs a copy of it: {names}")
    return tuple(found)


def is_idle(plan: Plan) -> bool:
    """Whether a policy that is there to save memory moves no tensor of a training step and runs no op again."""
    if not plan.policy or plan.policy in STILL or plan.tape.purpose == "evaluate":
        return False
    runs = Counter(step.name for step in plan.steps if step.kind == "compute")
    return max(runs.values(), default=0) < 2 and not (_offloaded(plan) - set(_unmoved(plan)))


def _offloaded(plan: Plan) -> set[str]:
    return {name for name, fate in plan.decisions.fates.items() if fate is OFFLOAD}


def _unmoved(plan: Plan) -> list[str]:
    """Buffers that are to be offloaded and are not: without a copy back; an input comes to the device in any case."""
    back = Counter(step.name for step in plan.steps if step.kind == "prefetch")
    asked = (name for name, fate in plan.decisions.fates.items() if fate is OFFLOAD)
    return [name for name in asked if back[name] < (2 if plan.role(name) is Role.INPUT else 1)]
