"""An independent judge of plans: it runs them on symbols, granule by granule, in every order that the waits allow.

`judge` finds a fault in one of three ways.

sequential   steps one after the other, with an owner for every granule of the arena and poison at alloc and free
exhaustive   for small plans: every interleaving of the streams, step by step from start to end
adversarial  for larger ones: orders that favour each stream in turn, random ones, and for each two steps that share a
             granule and that nothing orders one in which both run at the same time

A step reads when it starts and must find its bytes unchanged when it ends; what it writes is garbage in between.
A fault is a compute step that reads anything but what the tape in order would give it, a step whose bytes change under
it, or a wrong result, undo copy or resident buffer at the end.  Offsets must be whole granules.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from vdnn.memory.plan import Plan, Step
from vdnn.network import Role
from vdnn.tape import GRANULE, Tape

STREAMS = ("compute", "offload", "prefetch")
SHIFT = 20  # a symbol is a content's number, then the place of the granule in its buffer
POISON = -1  # what alloc and free leave behind; garbage of step i is -2 - i


@dataclass(frozen=True)
class Verdict:
    safe: bool
    reason: str = ""
    how: str = ""

    def __bool__(self) -> bool:
        return self.safe


class Fault(Exception):  # noqa: N818
    pass


def judge(plan: Plan, *, states: int = 3000, orders: int = 12, seed: int = 0) -> Verdict:
    """Whether `plan` is safe.  Above `states` states the search is not exhaustive."""
    how = "sequential"
    try:
        machine = Machine(plan)
        machine.check_ownership()
        machine.run_in_order()
        how = "exhaustive"
        if not machine.run_every_order(states):
            how = "adversarial"
            machine.run_adversarial_orders(orders, random.Random(seed))
    except Fault as fault:
        return Verdict(False, str(fault), how)
    return Verdict(True, how=how)


# ---- what the tape in order gives


class Sequential:
    """Contents as hash-consed terms (op, buffer, contents read), numbered from 1."""

    def __init__(self, tape: Tape) -> None:
        self.numbers: dict[object, int] = {}
        held = {b: self.number("before", b) for b in tape.buffers if is_given(tape, b)}
        self.before = dict(held)
        self.reads: dict[str, dict[str, int]] = {}  # of each op, the content of each buffer that it reads
        self.writes: dict[str, dict[str, int]] = {}
        self.results: dict[str, int] = {}
        for i, op in enumerate(tape.ops):
            self.reads[op.name] = {b: held.get(b, POISON) for b in tape.reads[i]}
            made = {b: self.number(op.name, b, tuple(self.reads[op.name].items())) for b in tape.writes[i]}
            self.writes[op.name] = made
            held |= made
            for name in op.writes:
                if name in tape.results:
                    self.results[tape.buffer_of[name]] = held[tape.buffer_of[name]]
        self.after = {b: held[b] for b in tape.resident}

    def number(self, *term: object) -> int:
        return self.numbers.setdefault(term, len(self.numbers) + 1)


@lru_cache(maxsize=64)
def sequential(tape: Tape) -> Sequential:
    return Sequential(tape)


def is_given(tape: Tape, buffer: str) -> bool:
    return buffer in tape.resident or tape.buffers[buffer].role is Role.INPUT


# ---- one step, resolved to granules


@dataclass
class Action:
    """A step that runs: what it is, and which granules it touches (numbered through the arena, then the host slab)."""

    index: int  # in the plan
    number: int  # among the actions
    stream: int
    waits: list[int]  # numbers of earlier actions
    source: list[int]  # every granule read
    target: list[int]  # every granule written
    wanted: tuple[int, ...] | None = None  # what a compute step must find in `source`; a copy takes what it finds
    made: tuple[int, ...] = ()  # what a compute step leaves in `target`
    kept: tuple[int, ...] = ()  # places in `source` of granules that the step does not write itself


class Machine:
    """A plan over granules; `memory` is the arena's, then the host's, then that of the spill file."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.tape, self.sequential = plan, plan.tape, sequential(plan.tape)
        self.arena = whole(plan.arena_bytes)
        self.host = self.arena + whole(plan.host_bytes)
        self.size = self.host + whole(plan.disk_bytes)
        self.actions: list[Action] = []
        self.resident: dict[str, range] = {}
        self.inputs: dict[str, range] = {}
        self.checks: list[tuple[str, list[int], int]] = []  # at the end: (what, granules, content)

    # ---- sequential, with owners

    def check_ownership(self) -> None:
        """Replay alloc and free over an array of owners; resolve every step that runs into an Action."""
        owner: list[str | None] = [None] * self.arena
        self.memory = [POISON] * self.size
        self._settle(owner)
        at: dict[str, range] = {}
        place: dict[int, int] = {}  # step -> action
        results: dict[str, int] = {}
        self.script: list[range | Action] = []  # in plan order: granules to poison, actions to run
        for i, step in enumerate(self.plan.steps):
            need(not step.tier or step.kind in ("offload", "prefetch"), f"{i}: {step.kind} has a tier")
            if step.kind == "alloc":
                need(step.name not in at, f"{i}: {step.name} allocated twice")
                at[step.name] = self._alloc(i, owner)
            elif step.kind == "free":
                need(step.name in at and step.name not in self.tape.resident, f"{i}: bad free of {step.name}")
                for g in at[step.name]:
                    owner[g] = None
                self.script.append(at.pop(step.name))
            else:
                place[i] = len(self.actions)
                action = self._action(i, at, place)
                self.actions.append(action)
                self.script.append(action)
                if step.kind == "offload" and step.name in self.tape.resident:
                    self.checks.append((f"undo of {step.name}", action.target, self.sequential.before[step.name]))
                if step.kind == "offload" and step.name in self.sequential.results:
                    results[step.name] = place[i]
        for b, content in self.sequential.results.items():
            need(b in results, f"result {b} is not offloaded")
            need(not self.plan.steps[self.actions[results[b]].index].tier, f"result {b} is not in host memory")
            self.checks.append((f"result {b}", self.actions[results[b]].target, content))
        for b, content in self.sequential.after.items():
            self.checks.append((f"resident {b}", list(self.resident[b]), content))
        self._streams()

    def _settle(self, owner: list[str | None]) -> None:
        """Residents own their granules from the start; inputs lie on the host."""
        for i, step in enumerate(self.plan.steps):
            if step.kind == "alloc" and step.name in self.tape.resident and step.name not in self.resident:
                self.resident[step.name] = self._range(step.offset, self.plan.size(step.name), 0, self.arena)
                for g in self.resident[step.name]:
                    need(owner[g] is None, f"{i}: resident {step.name} overlaps {owner[g]}")
                    owner[g] = step.name
            if step.kind == "prefetch" and step.name in self.tape.buffers:
                if self.tape.buffers[step.name].role is not Role.INPUT:
                    continue
                need(not step.tier, f"{i}: input {step.name} is not in host memory")
                where = self._host(step)
                need(self.inputs.setdefault(step.name, where) == where, f"{i}: input {step.name} lies in two places")
        need(set(self.resident) == set(self.tape.resident), "a resident buffer has no place")
        for places in (self.resident, self.inputs):
            for b, where in places.items():
                for k, g in enumerate(where):
                    need(self.memory[g] == POISON, f"{b} and another lie on the same granule before the step")
                    self.memory[g] = symbol(self.sequential.before[b], k)

    def _alloc(self, i: int, owner: list[str | None]) -> range:
        step = self.plan.steps[i]
        where = self._range(step.offset, self.plan.size(step.name), 0, self.arena)
        if step.name in self.tape.resident:
            return where
        for g in where:
            need(owner[g] is None, f"{i}: {step.name} on a granule of {owner[g]}")
            owner[g] = step.name
        self.script.append(where)
        return where

    def _action(self, i: int, at: dict[str, range], place: dict[int, int]) -> Action:
        step = self.plan.steps[i]
        stream = STREAMS.index(step.stream)
        waits = [place[w] for w in step.waits if w < i and w in place]
        number = len(self.actions)
        if step.kind != "compute":
            need(stream > 0, f"{i}: copy on {step.stream}")
            need(step.name in at, f"{i}: {step.kind} of {step.name}, which is absent")
            device, host = at[step.name], self._host(step)
            source, target = (device, host) if step.kind == "offload" else (host, device)
            return Action(i, number, stream, waits, list(source), list(target), kept=tuple(range(len(source))))
        need(stream == 0, f"{i}: compute on {step.stream}")
        k = self.tape.index[step.name]
        room = f"{step.name}.workspace" if self.tape.ops[k].algorithm(step.algorithm).workspace else ""
        for name in [*self.tape.reads[k], *self.tape.writes[k], *([room] if room else [])]:
            need(name in at, f"{i}: {step.name} needs {name}, which is absent")
        reads, writes = self.sequential.reads[step.name], self.sequential.writes[step.name]
        scratch = list(at[room]) if room else []
        source = [g for b in reads for g in at[b]]
        target = [g for b in writes for g in at[b]]
        wanted = tuple(symbol(content, n) for b, content in reads.items() for n in range(len(at[b])))
        made = tuple(symbol(content, n) for b, content in writes.items() for n in range(len(at[b])))
        made += (-2 - number,) * len(scratch)
        kept = tuple(n for n, g in enumerate(source) if g not in target)
        return Action(i, number, stream, waits, source, target + scratch, wanted, made, kept)

    def _host(self, step: Step) -> range:
        """The granules of host memory, or of the spill file, where whole sectors are taken, that a copy touches."""
        nbytes = self.plan.payload(step.name)
        if not step.tier:
            return self._range(step.offset, nbytes, self.arena, self.host)
        need(step.tier == "disk", f"no tier {step.tier}")
        need(step.offset % 4096 == 0, f"{step.name} is not at a whole sector")
        taken = self._range(step.offset, -(-nbytes // 4096) * 4096, self.host, self.size)
        return taken[: whole(nbytes)]

    def _range(self, offset: int, nbytes: int, first: int, stop: int) -> range:
        if offset % GRANULE:
            raise ValueError(f"offset {offset} is not a whole number of granules")
        where = range(first + offset // GRANULE, first + offset // GRANULE + whole(nbytes))
        need(offset >= 0 and where.stop <= stop, f"bytes {offset} to {offset + nbytes} are outside")
        return where

    def _streams(self) -> None:
        self.streams: list[list[int]] = [[], [], []]
        self.place: list[int] = []  # of each action in its stream
        for action in self.actions:
            self.place.append(len(self.streams[action.stream]))
            self.streams[action.stream].append(action.number)
        self.gates = [
            [[(self.actions[w].stream, 2 * self.place[w] + 2) for w in self.actions[k].waits] for k in stream]
            for stream in self.streams
        ]
        self.initial = list(self.memory)

    # ---- starting and ending a step

    def start(self, k: int, memory: list[int]) -> tuple[int, ...]:
        """The values that the step samples; what it writes becomes garbage."""
        action = self.actions[k]
        sample = tuple([memory[g] for g in action.source])
        if action.wanted is not None and sample != action.wanted:
            raise Fault(f"{self.plan.steps[action.index]} ({action.index}) reads what it should not")
        for g in action.target:
            memory[g] = -2 - k
        return sample

    def end(self, k: int, memory: list[int], sample: tuple[int, ...]) -> None:
        """Check that nothing changed meanwhile; what was garbage becomes what the step makes."""
        action, garbage = self.actions[k], -2 - k
        for n in action.kept:
            if memory[action.source[n]] != sample[n]:
                raise Fault(f"a granule changed while {self.plan.steps[action.index]} ({action.index}) read it")
        for g, value in zip(action.target, sample if action.wanted is None else action.made, strict=True):
            if memory[g] != garbage:
                raise Fault(f"a granule changed while {self.plan.steps[action.index]} ({action.index}) wrote it")
            memory[g] = value

    def check_end(self, memory: list[int]) -> None:
        for what, where, content in self.checks:
            for place, g in enumerate(where):
                need(memory[g] == symbol(content, place), f"end: {what} is wrong")

    def run_in_order(self) -> None:
        memory = list(self.initial)
        for item in self.script:
            if isinstance(item, Action):
                self.end(item.number, memory, self.start(item.number, memory))
            else:
                for g in item:
                    memory[g] = POISON
        self.check_end(memory)

    # ---- every order

    def moves(self, progress: tuple[int, ...]) -> list[int]:
        """The streams that can move on.  Progress counts starts and ends: odd while a step runs."""
        able = []
        for s, done in enumerate(progress):
            if done % 2:
                able.append(s)
            elif done // 2 < len(self.streams[s]):
                for stream, enough in self.gates[s][done // 2]:
                    if progress[stream] < enough:
                        break
                else:
                    able.append(s)
        return able

    def move(self, s: int, progress: tuple[int, ...], memory: list[int], samples: list[tuple[int, ...]]) -> None:
        """Start or end the next step of stream s, in place."""
        k = self.streams[s][progress[s] // 2]
        if progress[s] % 2:
            self.end(k, memory, samples[s])
            samples[s] = ()
        else:
            samples[s] = self.start(k, memory)

    def run_every_order(self, limit: int) -> bool:
        """Visit every state that some order reaches; False if there are more than `limit`.

        A state is known by its progress, what running steps sampled, and a hash of the memory.
        """
        memory = list(self.initial)
        seen: set[object] = set()

        def visit(progress: tuple[int, ...], samples: list[tuple[int, ...]], key: int) -> bool:
            able = self.moves(progress)
            if not able:
                self.check_end(memory)
            for s in able:
                target = self.actions[self.streams[s][progress[s] // 2]].target
                before = [memory[g] for g in target]
                now, then = list(samples), key
                self.move(s, progress, memory, now)
                for g, value in zip(target, before, strict=True):
                    then ^= hash((g, value)) ^ hash((g, memory[g]))
                state = (advanced(progress, s), tuple(now), then)
                if state not in seen:
                    seen.add(state)
                    if len(seen) > limit or not visit(state[0], now, then):
                        return False
                for g, value in zip(target, before, strict=True):
                    memory[g] = value
            return True

        return visit((0, 0, 0), [(), (), ()], 0)

    # ---- orders chosen to do harm

    def run_adversarial_orders(self, orders: int, rng: random.Random) -> None:
        for rank in permutations(range(3)):
            self.run(lambda able, _, rank=rank: min(able, key=rank.index))  # one stream as far as it can go
            self.run(lambda able, progress, rank=rank: min(able, key=lambda s: (progress[s] % 2, rank.index(s))))
        for _ in range(orders):
            self.run(lambda able, _: rng.choice(able))
        for a, b in self.meetings():
            self.run_together(a, b)

    def run(self, choose: Callable[[list[int], tuple[int, ...]], int]) -> None:
        """One order: `choose` picks among the streams that can move on."""
        progress, memory, samples = (0, 0, 0), list(self.initial), [(), (), ()]
        while able := self.moves(progress):
            s = choose(able, progress)
            self.move(s, progress, memory, samples)
            progress = advanced(progress, s)
        self.check_end(memory)

    def meetings(self) -> Iterator[tuple[int, int]]:
        """Pairs of actions on different streams, neither after the other, that share a granule which one writes."""
        writers, users = [0] * self.size, [0] * self.size
        for k, action in enumerate(self.actions):
            for g in action.target:
                writers[g] |= 1 << k
                users[g] |= 1 << k
            for g in action.source:
                users[g] |= 1 << k
        before = self.ancestors()
        for k, action in enumerate(self.actions):
            foes = 0
            for g in action.target:
                foes |= users[g]
            for g in action.source:
                foes |= writers[g]
            foes &= ~before[k] & ((1 << k) - 1)
            yield from ((j, k) for j in range(k) if foes >> j & 1)

    def ancestors(self) -> list[int]:
        """For each action the set of those that have ended when it starts, as bits."""
        before: list[int] = []
        for k, action in enumerate(self.actions):
            place = self.place[k]
            direct = [*action.waits, *([self.streams[action.stream][place - 1]] if place else [])]
            mine = 0
            for j in direct:
                mine |= before[j] | 1 << j
            before.append(mine)
        return before

    def run_together(self, a: int, b: int) -> None:
        """Run what must come before a or b, then both at the same time, then the rest: this must do harm."""
        before = self.ancestors()
        memory = list(self.initial)
        for k in range(len(self.actions)):
            if (before[a] | before[b]) >> k & 1:
                self.end(k, memory, self.start(k, memory))
        samples = [self.start(k, memory) for k in (a, b)]
        self.end(a, memory, samples[0])
        self.end(b, memory, samples[1])
        raise AssertionError(f"steps {self.actions[a].index} and {self.actions[b].index} met without harm")


def whole(nbytes: int) -> int:
    return -(-nbytes // GRANULE)


def advanced(progress: tuple[int, ...], stream: int) -> tuple[int, ...]:
    return (*progress[:stream], progress[stream] + 1, *progress[stream + 1 :])


def symbol(content: int, place: int) -> int:
    return (content << SHIFT) + place


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Fault(reason)
