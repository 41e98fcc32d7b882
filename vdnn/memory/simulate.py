"""simulate: the times of a plan's steps on a device that a cost model describes."""

from __future__ import annotations

from vdnn.collector import collector_paused
from vdnn.memory.contention import Contention, contended
from vdnn.memory.cost import Cost, copy_of
from vdnn.memory.plan import STREAMS, Plan
from vdnn.memory.trace import Event, Trace
from vdnn.network import Role
from vdnn.tape import Tape


@collector_paused()
def simulate(plan: Plan, cost: Cost | None = None, contention: Contention | None = None) -> Trace:
    """The trace of `plan` on a device where each step takes the time that `cost` says.

    A step starts when the step before it on its stream and all steps that it waits for have finished.  Alloc and free
    take no time: their events say when the compute stream is there.

    cost        by default the times that the plan was decided by; PlanError if it knows none
    contention  how compute and copies slow each other down, see `contended`; by default what the cost model says in its
                `contention`, and if it has none, not at all
    """
    cost = plan.times(cost)
    if contention is None:
        contention = getattr(cost, "contention", None)
    if contention is not None:
        return Trace(plan, contended(plan, cost, contention), "simulated")
    tape = plan.tape
    free = dict.fromkeys(STREAMS, 0.0)  # when each stream has done what it was given
    finish = [0.0] * len(plan.steps)
    events = []
    for i, step in enumerate(plan.steps):
        start = free[step.stream]
        for wait in step.waits:
            start = max(start, finish[wait])
        if step.kind == "compute":
            took = cost.op_seconds(tape, tape.ops[tape.index[step.name]], step.algorithm)
        elif step.kind in ("offload", "prefetch"):
            took = copy_of(cost, plan.payload(step.name), step.kind, step.tier)
        else:
            took = 0.0
        finish[i] = free[step.stream] = start + took
        events.append(Event(i, step, step.stream, start, finish[i]))
    return Trace(plan, events, "simulated")


def oracle_seconds(tape: Tape, cost: Cost) -> float:
    """Seconds of the step with unlimited memory and the fastest algorithms: ops one after the other, each input copied
    to the device before it is read, each result copied to the host when it is there, and no other copy.
    """
    clock = arrived = left = 0.0
    there: dict[str, float] = {}  # {input: when it is on the device}
    made = {name: i for i, op in enumerate(tape.ops) for name in op.writes}
    results: dict[int, list[str]] = {}
    for name in tape.results:
        results.setdefault(made[name], []).append(name)
    for i, op in enumerate(tape.ops):
        for b in tape.reads[i]:
            if tape.buffers[b].role is Role.INPUT:
                if b not in there:
                    arrived += cost.copy_seconds(tape.buffers[b].tensors[0].nbytes, "prefetch")
                    there[b] = arrived
                clock = max(clock, there[b])
        clock += min(cost.op_seconds(tape, op, a.name) for a in op.algorithms)
        for name in results.get(i, ()):
            left = max(left, clock) + cost.copy_seconds(tape.tensors[name].nbytes, "offload")
    return max(clock, left)
