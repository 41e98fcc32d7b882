"""Event and Trace: what a step did when, on a device or in the simulator, and the figures that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vdnn.memory.plan import Plan, Step, workspace_of

if TYPE_CHECKING:
    from vdnn.records import Table

COPIES = ("offload", "prefetch")


@dataclass(slots=True)
class Event:
    """One step of a plan as it ran.  `start` and `finish` are seconds from the beginning of the training step.

    Both may be None until the step is over, and stay None for alloc and free, which take no time.
    """

    index: int
    step: Step
    stream: str
    start: float | None
    finish: float | None


@dataclass(frozen=True, slots=True)
class Stall:
    """Idle time of the compute stream right before the op of plan step `index`.

    `cause` is the buffer whose copy, plan step `copy`, the op waited for; "" and -1 if it waited for none.
    """

    index: int
    op: str
    seconds: float
    cause: str
    copy: int


class Timeline(NamedTuple):
    """Live bytes over time: from `times[i]` to `times[i + 1]` there are `bytes[role][i]`; the last ones are 0."""

    times: list[float]
    bytes: dict[str, list[int]]

    @property
    def total(self) -> list[int]:
        """Live bytes of all roles together."""
        return [sum(values) for values in zip(*self.bytes.values(), strict=True)]


class Trace:
    """The events of one training step.  `kind` says whether the times are "simulated" or "measured"."""

    def __init__(self, plan: Plan, events: Sequence[Event], kind: str = "simulated") -> None:
        self.plan = plan
        self.events = list(events)
        self.kind = kind

    @cached_property
    def _times(self) -> dict[int, tuple[float, float]]:
        """{plan step: (start, finish)} of the steps that took part."""
        return {e.index: (e.start, e.finish) for e in self.events if e.start is not None and e.finish is not None}

    @property
    def starts(self) -> dict[int, float]:
        """{plan step: when it started}, in seconds."""
        return {i: start for i, (start, _) in self._times.items()}

    @cached_property
    def step_seconds(self) -> float:
        """From the beginning of the step to the last finish."""
        return max((finish for _, finish in self._times.values()), default=0.0)

    @cached_property
    def compute_seconds(self) -> float:
        """Time in which the compute stream was busy."""
        return self._busy(("compute",))

    @cached_property
    def copy_seconds(self) -> float:
        """Time that copies took, added up over both directions."""
        return self._busy(COPIES)

    def _busy(self, kinds: tuple[str, ...]) -> float:
        steps = self.plan.steps
        return sum(finish - start for i, (start, finish) in self._times.items() if steps[i].kind in kinds)

    @cached_property
    def moved_bytes(self) -> dict[str, int]:
        """Bytes copied in the step: {"offload": device to host, "prefetch": host to device}."""
        payload = self.plan.payload
        return {kind: sum(payload(e.step.name) for e in self.events if e.step.kind == kind) for kind in COPIES}

    @cached_property
    def stalls(self) -> tuple[Stall, ...]:
        """Where compute was idle, and which copy it waited for: of those the op waits for, the one that ended last.

        No copy is the cause if that one had ended when the op before did: then the time went elsewhere.
        """
        free, found = 0.0, []
        for i, step, op in self.plan.computes():
            if i not in self._times:
                continue
            start, finish = self._times[i]
            if start > free:
                last = max((w for w in step.waits if w in self._times), key=lambda w: self._times[w][1], default=-1)
                if last < 0 or self._times[last][1] <= free:
                    found.append(Stall(i, op.name, start - free, "", -1))
                else:
                    found.append(Stall(i, op.name, start - free, self.plan.steps[last].name, last))
            free = finish
        return tuple(found)

    @cached_property
    def tail_seconds(self) -> float:
        """From the end of the last op to the end of the step: the last copies alone."""
        ends = [self._times[i][1] for i, _, _ in self.plan.computes() if i in self._times]
        return self.step_seconds - max(ends, default=0.0)

    @cached_property
    def hidden_copy_fraction(self) -> float:
        """The share of copy time that cost the step nothing: 1 - (stalls that copies caused + tail) / copy_seconds.

        Between 0 and 1; 1 if nothing was copied.  A copy that is waited for counts from when compute became idle.
        """
        if not self.copy_seconds:
            return 1.0
        exposed = sum(s.seconds for s in self.stalls if s.copy >= 0) + self.tail_seconds
        return min(1.0, max(0.0, 1 - exposed / self.copy_seconds))

    # ---- memory

    def lives(self) -> Iterator[tuple[str, int, int, float, float]]:
        """(buffer or workspace, place of its alloc, offset, birth, death) of every allocation, times in seconds.

        It lives from the start of the first step that touches it to the finish of the last that does.  What is never
        freed, and everything under network-wide lifetimes, lives for the whole step.
        """
        whole = (0.0, self.step_seconds)
        static = self.plan.decisions.lifetimes == "network"
        spans: dict[str, tuple[float, float] | None] = {}  # of what is allocated now: birth and death so far
        alloc: dict[str, int] = {}
        for i, step in enumerate(self.plan.steps):
            if step.kind == "alloc":
                alloc[step.name], spans[step.name] = i, None
            elif step.kind == "free":
                at, span = alloc.pop(step.name), spans.pop(step.name)
                yield step.name, at, self.plan.steps[at].offset, *(whole if static or not span else span)
            elif i in self._times:
                start, finish = self._times[i]
                for name in self.touched(step):
                    if name in spans:
                        born, died = spans[name] or (start, finish)
                        spans[name] = min(born, start), max(died, finish)
        for name, at in alloc.items():
            yield name, at, self.plan.steps[at].offset, *whole

    def touched(self, step: Step) -> tuple[str, ...]:
        """The buffers, and the workspace, that a step reads or writes."""
        if step.kind != "compute":
            return (step.name,)
        k = self.plan.tape.index[step.name]
        both = dict.fromkeys((*self.plan.tape.reads[k], *self.plan.tape.writes[k]))
        return (*both, workspace_of(step.name))

    @cached_property
    def layers(self) -> dict[str, str]:
        """{op, buffer or workspace: its layer}; see vdnn.trace_files."""
        from vdnn.trace_files import layers_of

        return layers_of(self.plan.tape)

    @cached_property
    def average_bytes(self) -> int:
        """Live bytes averaged over the time of the step; see `lives` for how long each buffer counts.

        Under network-wide lifetimes buffers that share a slot are counted once, so it is the arena's size.
        """
        if self.plan.decisions.lifetimes == "network" or not self.step_seconds:
            return self.plan.arena_bytes
        area = sum(self.plan.size(name) * (death - birth) for name, _, _, birth, death in self.lives())
        return round(area / self.step_seconds)

    @cached_property
    def timeline(self) -> Timeline:
        """Live bytes by role over time."""
        changes: dict[float, dict[str, int]] = {}
        for role, size, birth, death in self._amounts():
            for at, amount in ((birth, size), (death, -size)):
                by_role = changes.setdefault(at, {})
                by_role[role] = by_role.get(role, 0) + amount
        roles = sorted({role for by_role in changes.values() for role in by_role})
        live = dict.fromkeys(roles, 0)
        timeline = Timeline(sorted(changes), {role: [] for role in roles})
        for at in timeline.times:
            for role in roles:
                live[role] += changes[at].get(role, 0)
                timeline.bytes[role].append(live[role])
        return timeline

    def _amounts(self) -> Iterator[tuple[str, int, float, float]]:
        if self.plan.decisions.lifetimes == "network":
            for role, size in self.plan.breakdown.items():
                yield role, size, 0.0, self.step_seconds
            return
        for name, _, _, birth, death in self.lives():
            yield str(self.plan.role(name)), self.plan.size(name), birth, death

    # ---- data and files

    def table(self, what: str = "events") -> Table:
        """A Table of the "events", the "memory" by role over time, or the "stalls"; for pandas: `.to_pandas()`."""
        from vdnn.trace_files import trace_table

        return trace_table(self, what)

    def to_csv(self, path: str | os.PathLike[str] | None = None, what: str = "events") -> str:
        """A table of the trace as CSV, in the file `path` as well if there is one.

        One line per event: index, stream, kind, name, start and finish in seconds, bytes moved, layer, algorithm, tier.
        """
        return self.table(what).to_csv(path)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Figures, events, stalls, the memory timeline and the plan as one JSON object; in a file as well, if named."""
        from vdnn.records import written
        from vdnn.trace_files import trace_json

        return written(trace_json(self), path)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The trace that `to_json` wrote.  Raises TraceError if it is none."""
        from vdnn.trace_files import trace_from_json

        return trace_from_json(text)

    def to_chrome(self, path: str | os.PathLike[str] | None = None) -> str:
        """The trace as Chrome and https://ui.perfetto.dev read it: a thread per stream, a counter for memory, arrows
        from each offload to its prefetch and from each copy to what waits for it.  In a file as well, if named; that
        is compressed if its name ends in .gz.
        """
        from vdnn.memory.chrome import chrome_trace, write_trace

        text = chrome_trace(self)
        if path is not None:
            write_trace(text, path)
        return text

    def save_html(
        self,
        path: str | os.PathLike[str],
        other: Trace | None = None,
        budget: int | str | None = None,
        title: str | None = None,
    ) -> Path:
        """Write a page to look at in a browser, which needs nothing else; its path.  See vdnn.timeline.

        other    a second trace, drawn below on the same axes
        budget   drawn as a line if given: a number of bytes or text such as "12GiB"
        Raises PlotError, with what to install, if Bokeh is not there.
        """
        from vdnn.timeline import save_page

        return save_page(path, [self] if other is None else [self, other], budget, title)

    def _repr_html_(self) -> str:
        """The figures and the longest waits, for notebooks."""
        from vdnn.summaries import trace_html

        return trace_html(self)

    def __repr__(self) -> str:
        return f"Trace({self.kind}, {len(self.events)} events, {self.step_seconds:.6g} s)"
