"""The fourth pass: offsets in the arena and in the host slab."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappush, heapreplace

from vdnn.memory.layout import Lifetime, extent, peak
from vdnn.memory.layout import place as lay_out
from vdnn.memory.plan import SHARED, Plan, Step
from vdnn.network import Role

RESIDENT = frozenset({Role.WEIGHT, Role.STATE, Role.STATISTICS})


def place(plan: Plan, effort: int) -> Plan:
    """Give every alloc its offset in the arena and every copy its offset in the host slab.

    Resident buffers lie at the bottom, in the tape's order, so that they lie alike in all plans of a network.  After
    this, no two allocations that live at the same time overlap.
    """
    steps = list(plan.steps)
    base = plan.tape.resident_bytes
    bottom = 0
    spans = []
    for born, died in _allocations(steps):
        name = steps[born].name
        if plan.role(name) in RESIDENT:
            steps[born] = replace(steps[born], offset=bottom)
            bottom += plan.size(name)
        else:
            spans.append((born, Lifetime(born, died, plan.size(name))))
    if plan.decisions.lifetimes == "network":
        offsets, top = _shared_slots(spans, plan)
    else:
        lives = [life for _, life in spans]
        target = (plan.decisions.within - base) / (peak(lives) or 1)
        offsets = lay_out(lives, target=target, effort=effort)
        top = extent(lives, offsets)
    for (born, _), offset in zip(spans, offsets, strict=True):
        steps[born] = replace(steps[born], offset=base + offset)
    host = _host_lives(steps, plan)
    lives = [life for _, life in host]
    offsets = lay_out(lives, effort=0)  # host memory is plentiful: the first layout will do
    for (copies, _), offset in zip(host, offsets, strict=True):
        for i in copies:
            steps[i] = replace(steps[i], offset=offset)
    return replace(plan, steps=tuple(steps), arena_bytes=base + top, host_bytes=extent(lives, offsets))


def _allocations(steps: list[Step]) -> list[tuple[int, int]]:
    """(place of the alloc, place of its free or the end) of every allocation, in order of the allocs."""
    died: dict[int, int] = {}
    open_at: dict[str, int] = {}
    for i, step in enumerate(steps):
        if step.kind == "alloc":
            open_at[step.name] = i
            died[i] = len(steps)
        elif step.kind == "free":
            died[open_at[step.name]] = i
    return list(died.items())


def _host_lives(steps: list[Step], plan: Plan) -> list[tuple[list[int], Lifetime]]:
    """The copies that use one place in the host slab, and how long it is taken.

    Inputs are there from the start; they, results and undo copies stay to the end, so that a step may be repeated and
    its results be read; the rest stays from offload to prefetch.
    """
    results = {plan.tape.buffer_of[name] for name in plan.tape.results}
    taken: list[tuple[list[int], int]] = []  # the copies that use a place, and from when on it is taken
    current: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        is_input = step.kind == "offload" and plan.role(step.name) is Role.INPUT  # it goes back where it came from
        if (step.kind == "offload" and not is_input) or (step.kind == "prefetch" and step.name not in current):
            current[step.name] = []
            taken.append((current[step.name], i if step.kind == "offload" else 0))
        if step.kind in ("offload", "prefetch"):
            current[step.name].append(i)
    lives = []
    for copies, start in taken:
        last = steps[copies[-1]]
        leaves = last.kind == "prefetch" and plan.role(last.name) is not Role.INPUT and last.name not in results
        stop = copies[-1] + 1 if leaves else len(steps)
        lives.append((copies, Lifetime(start, stop, plan.size(last.name))))
    return lives


def _shared_slots(spans: list[tuple[int, Lifetime]], plan: Plan) -> tuple[list[int], int]:
    """Offsets under the paper's network-wide allocation, and the bytes above the base that it takes.

    Gradient maps share the fewest buffers, each as large as the largest of them; workspaces share one (section IV-A).
    What one round of a step in several has lies where one before had the same.
    """
    offsets = [0] * len(spans)
    top = 0
    shared: dict[Role, list[int]] = {role: [] for role in SHARED}
    taken: dict[tuple[Role, int], list[tuple[int, int]]] = {}  # {(role, size): a heap of (until when, offset)}
    for n, (born, life) in enumerate(spans):
        role = plan.role(plan.steps[born].name)
        if role in shared:
            shared[role].append(n)
            continue
        slots = taken.setdefault((role, life.size), [])
        if slots and slots[0][0] <= life.start:
            offsets[n] = heapreplace(slots, (life.stop, slots[0][1]))[1]
            continue
        offsets[n] = top
        heappush(slots, (life.stop, top))
        top += life.size
    for members in shared.values():
        size = max((spans[n][1].size for n in members), default=0)
        free_from: list[int] = []  # per slot, when it is free again
        for n in members:
            life = spans[n][1]
            slot = next((s for s, stop in enumerate(free_from) if stop <= life.start), len(free_from))
            free_from[slot : slot + 1] = [life.stop]
            offsets[n] = top + slot * size
        top += len(free_from) * size
    return offsets, top
