"""Tiers: which copies lie in host memory and which in the spill file, and at what offsets.

    compute   f1   f2   f3 ........ b3   b2   b1
    y1         |-------------------------------|      longest away: the first to go to disk
    y2              |---------------------|
    y3                   |-----------|                the last

Where the host slab would be larger than its budget, the copy that stays longest is taken out of what is there when
most is there, until the rest fits: what is away for long has the most time to be written and read, and frees the slab
for the longest.  Undo copies come before all others, since nothing reads them back unless a step fails.  Inputs and
results stay in host memory, where whoever runs a step writes and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.decisions import ON_DISK
from vdnn.memory.layout import Lifetime, extent
from vdnn.memory.layout import place as lay_out
from vdnn.memory.plan import DISK, SECTOR, Plan, Step
from vdnn.network import Role
from vdnn.tape import GRANULE


def sectors(nbytes: int) -> int:
    """Bytes that so many take on disk."""
    return -(-nbytes // SECTOR) * SECTOR


PATIENCE = 8  # layouts from which each takes one more copy out; then twice as many, as a large plan's take long


@dataclass(frozen=True)
class Stay:
    """One place on the host for a while.

    copies  the steps of the plan that use it
    life    for how long it is taken, and its bytes
    away    ops between the copy that leaves and the first that comes back; inf if none does
    """

    name: str
    copies: tuple[int, ...]
    life: Lifetime
    away: float


def stays_of(steps: Sequence[Step], plan: Plan) -> list[Stay]:
    """All that the copies of a plan hold on the host, in the order in which they begin.

    Inputs are there from the start; they, results and undo copies stay to the end, so that a step may be repeated and
    its results be read; the rest stays from offload to prefetch.
    """
    results = {plan.tape.buffer_of[name] for name in plan.tape.results}
    taken: list[tuple[list[int], int]] = []  # the copies that use a place, and from when on it is taken
    current: dict[str, list[int]] = {}
    ops = [0]  # before each step
    for i, step in enumerate(steps):
        ops.append(ops[-1] + (step.kind == "compute"))
        is_input = step.kind == "offload" and plan.role(step.name) is Role.INPUT  # it goes back where it came from
        if (step.kind == "offload" and not is_input) or (step.kind == "prefetch" and step.name not in current):
            current[step.name] = []
            taken.append((current[step.name], i if step.kind == "offload" else 0))
        if step.kind in ("offload", "prefetch"):
            current[step.name].append(i)
    found = []
    for copies, start in taken:
        last = steps[copies[-1]]
        leaves = last.kind == "prefetch" and plan.role(last.name) is not Role.INPUT and last.name not in results
        stop = copies[-1] + 1 if leaves else len(steps)
        back = next((i for i in copies if steps[i].kind == "prefetch"), None)
        away = inf if back is None else ops[back] - ops[copies[0]]
        found.append(Stay(last.name, tuple(copies), Lifetime(start, stop, plan.size(last.name)), away))
    return found


def place_copies(plan: Plan) -> Plan:
    """The plan with a tier and an offset for each of its copies, and the sizes of host slab and spill file.

    As few go to disk as bring the laid-out host slab within its budget; if nothing does, all that may.
    """
    steps = list(plan.steps)
    split = _Split(stays_of(steps, plan), plan)
    on_host, at = split.fit()
    on_disk = [stay for stay in split.stays if stay.name in split.spilled]
    scale = SECTOR // GRANULE  # so that offsets are multiples of a sector
    lives = [replace(stay.life, size=sectors(stay.life.size) // scale) for stay in on_disk]
    disk_at = lay_out(lives, effort=0)
    for stays, offsets, unit, tier in ((on_host, at, 1, ""), (on_disk, disk_at, scale, DISK)):
        for stay, offset in zip(stays, offsets, strict=True):
            for i in stay.copies:
                steps[i] = replace(steps[i], offset=unit * offset, tier=tier)
    sizes = extent([stay.life for stay in on_host], at), scale * extent(lives, disk_at)
    return replace(plan, steps=tuple(steps), host_bytes=sizes[0], disk_bytes=sizes[1])


def tiers_of(plan: Plan) -> dict[str, str]:
    """{buffer: "disk"} of what goes there, of a plan that need not be laid out yet."""
    if plan.decisions.host_budget is None and not plan.decisions.tiers:
        return {}
    split = _Split(stays_of(plan.steps, plan), plan)
    split.fit()
    return dict.fromkeys((stay.name for stay in split.stays if stay.name in split.spilled), DISK)


class _Split:
    """What of the stays goes to disk: `spilled`, which grows until the rest fits."""

    def __init__(self, stays: Sequence[Stay], plan: Plan) -> None:
        self.stays, self.budget = stays, plan.decisions.host_budget
        tiers = plan.decisions.tiers
        results = {plan.tape.buffer_of[name] for name in plan.tape.results}
        self.spilled = {stay.name for stay in stays if tiers.get(stay.name) == DISK}
        free = [s for s in stays if s.name not in tiers and s.name not in results and plan.role(s.name) in ON_DISK]
        self.queue = sorted(free, key=lambda stay: (-stay.away, stay.copies[0]))  # who goes first
        self.left = np.ones(len(self.queue), dtype=np.bool_)
        self.places: dict[str, list[int]] = {}
        for k, stay in enumerate(self.queue):
            self.places.setdefault(stay.name, []).append(k)
        self.start, self.stop = (np.array([getattr(s.life, end) for s in self.queue]) for end in ("start", "stop"))
        self.live = np.zeros(len(plan.steps) + 1, dtype=np.int64)
        for stay in stays:
            if stay.name not in self.spilled:
                self.live[stay.life.start : stay.life.stop] += stay.life.size

    def fit(self) -> tuple[list[Stay], list[int]]:
        """(what stays in host memory, its offsets), in as many bytes as the budget allows, if that can be."""
        while self.budget is not None and self.live.max() > self.budget:
            most = int(self.live.argmax())
            if not self.take(self.left & (self.start <= most) & (most < self.stop)):
                while self.take(self.left):  # it cannot be: then in as few as there can be
                    pass
                break
        turn = 0
        while True:
            staying = [stay for stay in self.stays if stay.name not in self.spilled]
            lives = [stay.life for stay in staying]
            offsets = lay_out(lives, effort=0)  # there is a tier below: the first layout will do
            if self.budget is None or extent(lives, offsets) <= self.budget or not self.left.any():
                return staying, offsets
            top = {s.name for s, at in zip(staying, offsets, strict=True) if at + s.life.size > self.budget}
            is_high = np.array([stay.name in top for stay in self.queue], dtype=np.bool_)
            for _ in range(1 << max(0, turn - PATIENCE)):
                if not self.take(self.left & is_high):
                    self.take(self.left)
            turn += 1

    def take(self, which: NDArray[np.bool_]) -> bool:
        """Send the first of these in the queue to disk; False if there is none."""
        if not which.any():
            return False
        name = self.queue[int(which.argmax())].name
        self.spilled.add(name)
        for k in self.places[name]:
            life = self.queue[k].life
            self.left[k] = False
            self.live[life.start : life.stop] -= life.size
        return True
