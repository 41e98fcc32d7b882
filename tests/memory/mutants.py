"""Plans with one thing wrong: a wait dropped, an offset shifted, a step removed, moved early or swapped with another, a
copy on another tier, a spill file that is too small.

Waits are step numbers, so steps that move take theirs along; a wait for a step that is removed goes, and one for a step
that now comes later stays and is worth nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from vdnn.memory.plan import Plan, Step
from vdnn.tape import GRANULE

Mutant = tuple[str, Callable[[], Plan]]  # what is done, and a call that does it
COPIES = ("offload", "prefetch")


def mutants(plan: Plan, rng: random.Random, per_kind: int) -> Iterator[tuple[str, Plan]]:
    """(what was done, the plan with it done): all mutants of each kind, or `per_kind` of them drawn at random."""
    for kind in KINDS:
        found = list(kind(plan))
        for what, make in found if len(found) <= per_kind else rng.sample(found, per_kind):
            yield what, make()


def without_a_wait(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        for k, wait in enumerate(step.waits):
            waits = step.waits[:k] + step.waits[k + 1 :]
            yield f"step {i} waits no longer for {wait}", partial(with_step, plan, i, waits=waits)


def with_a_wait_for_another(plan: Plan) -> Iterator[Mutant]:
    """The wait is for the step before or after the right one on its stream."""
    for i, step in enumerate(plan.steps):
        for k, wait in enumerate(step.waits):
            same = [j for j, s in enumerate(plan.steps) if s.stream == plan.steps[wait].stream and runs(s)]
            at = same.index(wait) if wait in same else 0
            for j in same[max(0, at - 1) : at] + same[at + 1 : at + 2]:
                waits = (*step.waits[:k], j, *step.waits[k + 1 :])
                yield f"step {i} waits for {j}, not {wait}", partial(with_step, plan, i, waits=waits)


def with_an_offset_shifted(plan: Plan) -> Iterator[Mutant]:
    """By a granule, by the buffer's size, or to the place of another buffer."""
    for i, step in enumerate(plan.steps):
        if step.offset < 0:
            continue
        size = plan.size(step.name)
        others = {s.offset for s in plan.steps if s.offset >= 0 and (s.kind == "alloc") == (step.kind == "alloc")}
        moved = {step.offset + d for d in (-GRANULE, GRANULE, -size, size)} | others
        for offset in sorted(moved - {step.offset}):
            if offset >= 0:
                yield f"step {i} at {offset}, not {step.offset}", partial(with_step, plan, i, offset=offset)


def without_a_copy(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        if step.kind in COPIES:
            yield f"step {i} removed", partial(without, plan, i)


def without_another_step(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        if step.kind not in COPIES:
            yield f"step {i} removed", partial(without, plan, i)


def with_an_early_free(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        if step.kind == "free":
            for by in (1, 2, 3, 5, 8, 13):
                if by <= i:
                    yield f"step {i} moved {by} earlier", partial(moved, plan, i, i - by)


def with_a_late_alloc(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            for by in (1, 2, 5):
                if i + by < len(plan.steps):
                    yield f"step {i} moved {by} later", partial(moved, plan, i, i + by)


def with_neighbours_swapped(plan: Plan) -> Iterator[Mutant]:
    for i in range(len(plan.steps) - 1):
        yield f"steps {i} and {i + 1} swapped", partial(swapped, plan, i, i + 1)


def with_steps_swapped(plan: Plan) -> Iterator[Mutant]:
    for i in range(len(plan.steps)):
        for j in range(i + 2, min(i + 24, len(plan.steps))):
            if runs(plan.steps[i]) or runs(plan.steps[j]):
                yield f"steps {i} and {j} swapped", partial(swapped, plan, i, j)


def with_a_copy_on_the_other_stream(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        if step.kind in COPIES:
            other = COPIES[step.stream == "offload"]
            yield f"step {i} on stream {other}", partial(with_step, plan, i, stream=other)


def with_copies_on_one_stream(plan: Plan) -> Iterator[Mutant]:
    """The paper's single stream_memory, with the waits of two streams."""
    for stream in COPIES:
        steps = tuple(replace(s, stream=stream) if s.kind in COPIES else s for s in plan.steps)
        yield f"all copies on stream {stream}", partial(replace, plan, steps=steps)


def with_another_tier(plan: Plan) -> Iterator[Mutant]:
    for i, step in enumerate(plan.steps):
        for tier in ("", "disk", "tape"):
            if tier != step.tier and (step.kind in COPIES or i % 7 == 0):
                yield f"step {i} on {tier or 'host'}", partial(with_step, plan, i, tier=tier)


def with_another_tier_for_a_buffer(plan: Plan) -> Iterator[Mutant]:
    """All copies of a buffer, at the place that one of them had."""
    for name in dict.fromkeys(s.name for s in plan.steps if s.kind in COPIES):
        copies = [i for i, s in enumerate(plan.steps) if s.kind in COPIES and s.name == name]
        tier = "" if plan.steps[copies[0]].tier else "disk"
        for offset in {plan.steps[copies[0]].offset, 0}:
            yield f"{name} on {tier or 'host'} at {offset}", partial(with_steps, plan, copies, tier=tier, offset=offset)


def with_a_smaller_file(plan: Plan) -> Iterator[Mutant]:
    if plan.disk_bytes:
        yield "the spill file a sector smaller", partial(replace, plan, disk_bytes=plan.disk_bytes - 4096)


KINDS: tuple[Callable[[Plan], Iterator[Mutant]], ...] = (
    without_a_wait,
    with_a_wait_for_another,
    with_an_offset_shifted,
    without_a_copy,
    without_another_step,
    with_an_early_free,
    with_a_late_alloc,
    with_neighbours_swapped,
    with_steps_swapped,
    with_a_copy_on_the_other_stream,
    with_copies_on_one_stream,
    with_another_tier,
    with_another_tier_for_a_buffer,
    with_a_smaller_file,
)


def runs(step: Step) -> bool:
    return step.kind not in ("alloc", "free")


def with_step(plan: Plan, i: int, **changes: Any) -> Plan:
    return replace(plan, steps=(*plan.steps[:i], replace(plan.steps[i], **changes), *plan.steps[i + 1 :]))


def with_steps(plan: Plan, places: list[int], **changes: Any) -> Plan:
    for i in places:
        plan = with_step(plan, i, **changes)
    return plan


def without(plan: Plan, i: int) -> Plan:
    return reordered(plan, [j for j in range(len(plan.steps)) if j != i])


def reordered(plan: Plan, order: list[int]) -> Plan:
    """The steps numbered `order`, in that order, with their waits renumbered."""
    now = {old: new for new, old in enumerate(order)}
    steps = [plan.steps[old] for old in order]
    waits = [tuple(now[w] for w in s.waits if w in now) for s in steps]
    return replace(
        plan, steps=tuple(replace(s, waits=w) if w != s.waits else s for s, w in zip(steps, waits, strict=True))
    )


def moved(plan: Plan, i: int, to: int) -> Plan:
    order = [j for j in range(len(plan.steps)) if j != i]
    order.insert(to, i)
    return reordered(plan, order)


def swapped(plan: Plan, i: int, j: int) -> Plan:
    order = list(range(len(plan.steps)))
    order[i], order[j] = j, i
    return reordered(plan, order)
