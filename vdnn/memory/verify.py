"""verify: prove a plan safe from what its steps do to bytes; it shares no code with the passes that make plans.

One walk in plan order keeps three books, and refuses the first step that does not agree with all of them:

ownership  alloc takes bytes that are free, and a step touches only what is allocated under its name
contents   an op reads exactly what the tape, run in order, would give it; results and undo copies last to the end
           (results in host memory)
order      of two steps on different streams that touch the same bytes, one of them writing, one waits for the other

The third makes the second true of every run and not only of the plan's own order: what is not ordered does not meet.
"""

from __future__ import annotations

from itertools import count
from typing import NoReturn
from weakref import WeakSet

from vdnn.collector import collector_paused
from vdnn.memory.books import UNDEFINED, Accesses, Intervals
from vdnn.memory.plan import DISK, KINDS, SECTOR, STREAMS, Plan, PlanError, Step, workspace_of
from vdnn.network import Role
from vdnn.tape import Tape

SAFE: WeakSet[Plan] = WeakSet()  # plans that were verified; a plan never changes
STREAM = {name: i for i, name in enumerate(STREAMS)}


@collector_paused()
def verify(plan: Plan) -> None:
    """Return if no run of `plan` can go wrong.  Raises PlanError with the reason and the steps around the fault."""
    walk = _Walk(plan)
    walk.before()
    for i, step in enumerate(plan.steps):
        walk.at = i
        if step.kind not in KINDS:
            walk.refuse(f"{step.kind!r} is no kind of step")
        if step.tier and step.kind not in ("offload", "prefetch"):
            walk.refuse(f"{step.kind} {step.name} has the tier {step.tier!r}, as only copies may")
        getattr(walk, step.kind)(step)
    walk.after()
    SAFE.add(plan)


class _Contents:
    """Contents by number, as the tape's ops make them one after the other.

    first    {buffer: content before the step}, of residents and inputs
    reads    of each op, what the buffers that it reads must hold, in the order of tape.reads
    writes   of each op, what it makes of the buffers that it writes, in the order of tape.writes
    last     {buffer: content after the step}
    results  {buffer: content that must reach the host}
    names    {content: what to call it}
    """

    def __init__(self, tape: Tape) -> None:
        fresh = count(1)
        self.inputs = {name for name, buffer in tape.buffers.items() if buffer.role is Role.INPUT}
        self.first = {name: next(fresh) for name in (*tape.resident, *self.inputs)}
        self.last = dict(self.first)
        results = [n for n in tape.results if tape.buffers[tape.buffer_of[n]].is_counted]
        self.results = {tape.buffer_of[n]: self.first.get(tape.buffer_of[n], UNDEFINED) for n in results}
        self.names = {UNDEFINED: "nothing defined"}
        self.names |= {content: f"{name} as it is before the step" for name, content in self.first.items()}
        self.reads: list[tuple[int, ...]] = []
        self.writes: list[tuple[int, ...]] = []
        for i, op in enumerate(tape.ops):
            self.reads.append(tuple(self.last.get(b, UNDEFINED) for b in tape.reads[i]))
            made = {b: next(fresh) for b in tape.writes[i]}
            self.writes.append(tuple(made.values()))
            self.last |= made
            self.results |= {tape.buffer_of[n]: made[tape.buffer_of[n]] for n in op.writes if n in results}
            self.names |= {content: f"{b} as {op.name} writes it" for b, content in made.items()}


class _Walk:
    """Where each buffer is, what it holds, and who touched which byte last; one method for each kind of step."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.tape, self.at = plan, plan.tape, 0
        self.contents = _Contents(plan.tape)
        self.algorithms = plan.decisions.algorithms
        self.resident = frozenset(plan.tape.resident)
        self.payloads: dict[str, int] = {}
        self.places: dict[str, int] = {}  # {buffer: offset}, of what is allocated now
        self.holds: dict[str, int] = {}  # {buffer: content}
        self.owners = Intervals()
        self.hosts = {"": Intervals(), DISK: Intervals()}  # what host slab and spill file hold
        self.offloads: dict[str, int] = {}  # {buffer: its last offload}
        self.undos: list[int] = []
        self.clocks: dict[int, list[int]] = {}  # of each step that runs: per stream, what has finished when it has
        self.newest = [[-1] * len(STREAMS) for _ in STREAMS]
        stream_of = [STREAM.get(step.stream, 0) for step in plan.steps]
        self.on_device = Accesses(stream_of)
        self.on_hosts = {tier: Accesses(stream_of) for tier in self.hosts}

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        """Raise PlanError, with an arrow at step `at`; by default the one that is looked at."""
        at = self.at if at is None else at
        raise PlanError(f"step {at}: {reason}\n{self.plan.excerpt(at)}")

    def payload(self, name: str) -> int:
        """Bytes that a buffer or workspace holds."""
        if name not in self.payloads:
            try:
                self.payloads[name] = self.plan.payload(name)
            except KeyError:
                self.refuse(f"{name!r} is no buffer or workspace of {self.tape.network}")
        return self.payloads[name]

    def size(self, name: str) -> int:
        """Bytes that it takes in the arena."""
        return self.plan.size(name) if self.payload(name) else 0

    # ---- ownership

    def before(self) -> None:
        """Residents own their bytes from the start, and inputs lie on the host where they are prefetched from."""
        for op in self.tape.ops:
            if self.algorithms.get(op.name) not in [a.name for a in op.algorithms]:
                self.refuse(f"no algorithm of {op.name} is decided, but {self.algorithms.get(op.name)!r}")
        homes: dict[str, int] = {}
        for i, step in enumerate(self.plan.steps):
            self.at, name, start = i, step.name, step.offset
            if step.kind == "alloc" and name in self.resident and name not in homes:
                homes[name] = start
                self.own(step)
            elif step.kind == "prefetch" and name in self.contents.inputs:
                if step.tier:
                    self.refuse(f"{name} lies in host memory before the step, and not on {step.tier}")
                stop, host = start + self.payload(name), self.hosts[""]
                if homes.setdefault(name, start) != start:
                    self.refuse(f"{name} is prefetched from host byte {start}, but before from {homes[name]}")
                for _, _, other in host.items[host.overlapping(start, stop)]:
                    if other != name:
                        self.refuse(f"{name} lies on host bytes {start} to {stop} before the step, and so does {other}")
                host.put(start, stop, (stop, self.contents.first[name], name))
        for name in self.tape.resident:
            if name not in homes:
                self.refuse(f"{name} stays on the device from step to step, but is not allocated")

    def own(self, step: Step) -> None:
        """Give the bytes of an alloc to its buffer."""
        start, stop = step.offset, step.offset + self.size(step.name)
        if start < 0 or stop > self.plan.arena_bytes:
            self.refuse(f"{step.name} at {start} to {stop} leaves the arena of {self.plan.arena_bytes} bytes")
        where = self.owners.overlapping(start, stop)
        for begin, (end, _, other) in zip(self.owners.starts[where], self.owners.items[where], strict=True):
            self.refuse(f"{step.name} at {start} to {stop} overlaps {other} at {begin} to {end}")
        if start < stop:
            self.owners.put(start, stop, (stop, UNDEFINED, step.name))

    def alloc(self, step: Step) -> None:
        if step.name in self.places:
            self.refuse(f"{step.name} is allocated already, at {self.places[step.name]}")
        if step.name not in self.resident:
            self.own(step)
        self.places[step.name] = step.offset
        self.holds[step.name] = self.contents.first[step.name] if step.name in self.resident else UNDEFINED

    def free(self, step: Step) -> None:
        if step.name in self.resident:
            self.refuse(f"{step.name} stays on the device from step to step and may not be freed")
        if step.name not in self.places:
            self.refuse(f"{step.name} is freed, but is not allocated")
        start = self.places.pop(step.name)
        self.owners.put(start, start + self.size(step.name))

    # ---- contents

    def compute(self, step: Step) -> None:
        clock = self.clock(step)
        if step.name not in self.tape.index:
            self.refuse(f"{step.name!r} is no op of {self.tape.network}")
        i = self.tape.index[step.name]
        if step.algorithm != self.algorithms[step.name]:
            self.refuse(f"{step.name} runs by {step.algorithm!r}; decided is {self.algorithms[step.name]!r}")
        for name, content in zip(self.tape.reads[i], self.contents.reads[i], strict=True):
            self.touch(name, clock, writes=False)
            held = self.holds[name]
            if held != content or not content:
                wanted, found = self.contents.names[content], self.contents.names[held]
                self.refuse(f"{step.name} reads {name}, which holds {found}; it needs {wanted}")
        for name, content in zip(self.tape.writes[i], self.contents.writes[i], strict=True):
            self.touch(name, clock, writes=True)
            self.holds[name] = content
        scratch = workspace_of(step.name)
        if self.payload(scratch):
            self.touch(scratch, clock, writes=True)

    def offload(self, step: Step) -> None:
        clock = self.clock(step)
        start, stop = self.host_range(step)
        self.touch(step.name, clock, writes=False, whole=bool(step.tier))
        self.ordered(self.on_hosts[step.tier], step.tier or "host", start, stop, clock, writes=True)
        self.hosts[step.tier].put(start, stop, (stop, self.holds[step.name], step.name))
        self.offloads[step.name] = self.at
        if step.name in self.resident:
            self.undos.append(self.at)

    def prefetch(self, step: Step) -> None:
        clock = self.clock(step)
        start, stop = self.host_range(step)
        self.ordered(self.on_hosts[step.tier], step.tier or "host", start, stop, clock, writes=False)
        self.touch(step.name, clock, writes=True, whole=bool(step.tier))
        self.holds[step.name] = self.hosts[step.tier].content(start)

    def host_range(self, step: Step) -> tuple[int, int]:
        """The bytes of the host slab that a copy reads or writes; or of the spill file, in whole sectors."""
        start, stop = step.offset, step.offset + self.payload(step.name)
        if step.tier not in self.hosts:
            self.refuse(f"{step.kind} {step.name} is on {step.tier!r}, and that is no tier")
        if step.tier:
            stop += -self.payload(step.name) % SECTOR
            if start < 0 or start % SECTOR or stop > self.plan.disk_bytes:
                what = f"{step.name} at bytes {start} to {stop} of the spill file"
                self.refuse(f"{what} leaves its {self.plan.disk_bytes} bytes, or is not at a multiple of {SECTOR}")
            return start, stop
        if start < 0 or stop > self.plan.host_bytes:
            self.refuse(f"{step.name} at host bytes {start} to {stop} leaves the slab of {self.plan.host_bytes} bytes")
        return start, stop

    def after(self) -> None:
        """At the end residents are as the tape leaves them; results and undo copies are on the host."""
        for name in self.tape.resident:
            held, content = self.holds[name], self.contents.last[name]
            if held != content:
                wanted, found = self.contents.names[content], self.contents.names[held]
                self.refuse(f"at the end {name} holds {found}; it must hold {wanted}")
        for name, content in self.contents.results.items():
            if name not in self.offloads:
                self.refuse(f"{name} is a result, and no step offloads it")
            if self.plan.steps[self.offloads[name]].tier:
                self.refuse(f"{name} is a result, which must reach host memory", self.offloads[name])
            self.intact(self.offloads[name], content)
        for at in self.undos:
            self.intact(at, self.contents.first[self.plan.steps[at].name])

    def intact(self, at: int, content: int) -> None:
        """Refuse unless the bytes on the host that step `at` wrote hold `content` at the end."""
        start, stop = self.host_range(self.plan.steps[at])
        tier = self.plan.steps[at].tier
        held = self.hosts[tier].content(start)
        if held != content or not content:
            wanted, found = self.contents.names[content], self.contents.names[held]
            self.refuse(
                f"at the end {tier or 'host'} bytes {start} to {stop} hold {found}; they must hold {wanted}", at
            )

    # ---- order

    def clock(self, step: Step) -> list[int]:
        """For each stream, the last step that has finished when this one runs; on its own stream, this one."""
        if step.stream not in STREAM or (step.stream == "compute") != (step.kind == "compute"):
            self.refuse(f"{step.kind} {step.name} cannot run on stream {step.stream!r}")
        stream = STREAM[step.stream]
        clock = list(self.newest[stream])
        for wait in step.waits:
            if not 0 <= wait < len(self.plan.steps):
                self.refuse(f"{step.name} waits for step {wait}, and there is none")
            if wait in self.clocks:  # a wait for a later step, for an alloc or for a free is worth nothing
                clock = list(map(max, clock, self.clocks[wait]))
        clock[stream] = self.at
        self.newest[stream] = self.clocks[self.at] = clock
        return clock

    def touch(self, name: str, clock: list[int], writes: bool, whole: bool = False) -> None:
        """Enter an access to a buffer or workspace on the device; `whole`: with what its place has beyond it."""
        if name not in self.places:
            verb = "writes" if writes else "reads"
            self.refuse(f"{self.plan.steps[self.at].name} {verb} {name}, which is not allocated")
        start = self.places[name]
        stop = start + (self.size(name) if whole else self.payload(name))
        self.ordered(self.on_device, "device", start, stop, clock, writes)

    def ordered(self, slab: Accesses, where: str, start: int, stop: int, clock: list[int], writes: bool) -> None:
        """Enter an access; refuse if it does not follow one that it conflicts with."""
        other = slab.add(start, stop, self.at, clock, writes)
        if other >= 0:
            step, earlier = self.plan.steps[self.at], self.plan.steps[other]
            verb = "writes" if writes else "reads"
            self.refuse(
                f"{step.kind} {step.name} {verb} {where} bytes {start} to {stop} and does not wait for "
                f"step {other}, {earlier.kind} {earlier.name}, which touches them on stream {earlier.stream}"
            )
