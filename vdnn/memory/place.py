"""The fourth pass: offsets in the arena, in the host slab and in the spill file."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappush, heapreplace

from vdnn.memory.layout import Lifetime, extent, peak
from vdnn.memory.layout import place as lay_out
from vdnn.memory.plan import SHARED, Plan, Step
from vdnn.memory.tiers import place_copies
from vdnn.network import Role

RESIDENT = frozenset({Role.WEIGHT, Role.STATE, Role.STATISTICS})


def place(plan: Plan, effort: int) -> Plan:
    """Give every alloc its offset in the arena, and every copy its offset in the host slab or the spill file, and say
    in which (vdnn.memory.tiers).

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
    return place_copies(replace(plan, steps=tuple(steps), arena_bytes=base + top))


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
