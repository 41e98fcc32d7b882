"""Poison: freed bytes are overwritten with NaN, so that a use after free shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from vdnn.memory.plan import Plan, workspace_of

NAN = 0xFF  # four or eight such bytes are a NaN


def users_of(plan: Plan) -> Iterator[tuple[int, int, list[int]]]:
    """(offset, size, steps that use it) of every allocation that the plan frees."""
    current: dict[str, tuple[int, list[int]]] = {}  # {buffer: (offset, steps so far)}
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            current[step.name] = (step.offset, [])
        elif step.kind == "free":
            yield current[step.name][0], plan.size(step.name), current.pop(step.name)[1]
        elif step.kind == "compute":
            k = plan.tape.index[step.name]
            for name in {*plan.tape.reads[k], *plan.tape.writes[k], workspace_of(step.name)} & current.keys():
                current[name][1].append(i)
        elif step.name in current:
            current[step.name][1].append(i)


class Poison:
    """Overwrites each allocation's bytes after the last step that uses it.

    Which of an allocation's steps ends last differs from run to run, so they are counted.  The last one overwrites
    before it counts as finished: whoever waits for it, as any reuse of the bytes must, finds them overwritten already,
    and no order is imposed that the plan does not have.
    """

    def __init__(self, plan: Plan, arena: Any) -> None:
        self.arena = arena
        self.resident_bytes = plan.tape.resident_bytes
        self.users: list[int] = []  # per allocation that is freed, how many steps use it
        self.bytes: list[Any] = []
        self.used_by: dict[int, list[int]] = {}  # {step: allocations}
        self.left: list[int] = []
        self.lock = threading.Lock()
        for offset, size, steps in users_of(plan):
            for step in steps:
                self.used_by.setdefault(step, []).append(len(self.users))
            self.users.append(len(steps))
            self.bytes.append(arena[offset : offset + size])

    def reset(self) -> None:
        """Before a step: everything but the resident bytes is poison."""
        self.left = list(self.users)
        self.arena[self.resident_bytes :] = NAN

    def after(self, step: int, action: Callable[[], Any]) -> Callable[[], Any]:
        """`action`, followed by the overwriting of what nobody uses any more."""
        allocations = self.used_by.get(step, [])

        def act() -> None:
            action()
            for n in allocations:
                with self.lock:
                    self.left[n] -= 1
                    last = self.left[n] == 0
                if last:
                    self.bytes[n].fill(NAN)

        return act
