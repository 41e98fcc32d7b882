"""The five passes that turn decisions into a plan.  Each takes a list of steps and returns one, one concern each.

    rerun_dropped   the ops, with forward ops run again where backward needs what was dropped
    copy_offloaded  + copies to and from the host
    allocate        + alloc and free of every buffer and workspace
    place           + offsets in the arena, and of copies: in host memory or on disk (vdnn.memory.place, tiers)
    order           + waits between streams (vdnn.memory.order)

Between passes a step is on its stream and in plan order; nothing else is decided before its pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from vdnn.collector import collector_paused
from vdnn.memory.decisions import Decisions, Fate
from vdnn.memory.network_wide import network_wide
from vdnn.memory.order import order
from vdnn.memory.place import RESIDENT, place
from vdnn.memory.plan import Plan, Step, workspace_of
from vdnn.memory.rerun import Reruns
from vdnn.network import Role
from vdnn.tape import Tape


def make_plan(
    tape: Tape, decisions: Decisions, *, undo: bool = False, policy: str = "", effort: int | None = None
) -> Plan:
    """The plan of `tape` under `decisions` (resolved: every fate and algorithm named).

    undo    copy every weight, state and statistic to the host before it is updated, so that a failure can be undone
    effort  in place of that of the decisions
    """
    with collector_paused():
        steps = rerun_dropped(tape, decisions)
        steps = copy_offloaded(steps, tape, decisions, undo)
        steps = allocate(steps, tape, decisions)
        plan = place(Plan(tape, decisions, tuple(steps), 0, 0, policy), decisions.effort if effort is None else effort)
        return replace(plan, steps=tuple(order(plan)))


# ---- rerun_dropped


def rerun_dropped(tape: Tape, decisions: Decisions) -> list[Step]:
    """Compute steps: every op in tape order, and before a backward op the forward ops that bring back what it reads.

    After this, every buffer that an op reads was written by an earlier step and not forgotten since.
    """
    dropped = (b for b, fate in decisions.fates.items() if fate is Fate.DROP)
    names = [tape.ops[i].name for i in Reruns(tape).runs(dropped)]
    return [Step("compute", name, algorithm=decisions.algorithms[name]) for name in names]


# ---- copy_offloaded


def copy_offloaded(steps: list[Step], tape: Tape, decisions: Decisions, undo: bool) -> list[Step]:
    """Insert copies: inputs to the device; offloads at the last forward use; prefetches `ahead` ops before the first
    backward use; results, and what an update will overwrite (undo), to the host.

    After this, whatever an op reads is on the device, as far as plan order is concerned.
    """
    before: dict[int, list[Step]] = {}
    after: dict[int, list[Step]] = {}
    in_backward = _in_backward(steps, tape)
    back_stream = decisions.prefetch_stream
    uses: dict[int, dict[str, int]] = {}  # {place: {buffer that is prefetched there: place of the use}}

    def fetch(buffer: str, place: int, use: int) -> None:
        before.setdefault(place, []).append(Step("prefetch", buffer, back_stream))
        uses.setdefault(place, {})[buffer] = use

    for buffer, places in _uses(steps, tape).items():
        fate = decisions.fates.get(buffer)
        ahead = decisions.ahead_of(buffer)
        is_input = tape.buffers[buffer].role is Role.INPUT
        if is_input:
            fetch(buffer, max(0, places[0][0] - ahead), places[0][0])
        back = next((k for k, (i, _) in enumerate(places) if in_backward[i]), len(places))
        if fate is not Fate.OFFLOAD or back in (0, len(places)) or places[back][1] == "make":
            continue  # backward reads it never, or has it made again
        leave, how = places[back - 1]
        if not is_input or decisions.inputs == "copied":  # else the host has its copy
            # a copy only reads, so it may run beside the op that reads last, but not beside one that writes
            where = before if how == "read" else after
            where.setdefault(leave, []).append(Step("offload", buffer, "offload"))
        for after_use, use in _returns(places[back - 1 :], decisions.comes_back_for_each(buffer)):
            fetch(buffer, max(after_use + 1, use - ahead), use)
    for start, fetched in uses.items():
        _by_use(before[start], fetched)
    _copy_results(steps, tape, after)
    if undo:
        _copy_undo(steps, tape, before)
    out: list[Step] = []
    for i, step in enumerate(steps):
        out += [*before.get(i, ()), step, *after.get(i, ())]
    return out


def _in_backward(steps: list[Step], tape: Tape) -> list[bool]:
    """Whether each step is in the backward half of its round, as what is run again is."""
    done: set[str] = set()
    halves = []
    for step in steps:
        halves.append(step.name in done or tape.ops[tape.index[step.name]].is_backward)
        done.add(step.name)
    return halves


def _by_use(copies: list[Step], uses: Mapping[str, int]) -> None:
    """Put the prefetches among the copies at one place into the order of their uses."""
    slots = [k for k, step in enumerate(copies) if step.kind == "prefetch"]
    for k, step in zip(slots, sorted((copies[k] for k in slots), key=lambda step: uses[step.name]), strict=True):
        copies[k] = step


def _returns(places: list[tuple[int, str]], each: bool) -> list[tuple[int, int]]:
    """(use before, use) for every use that the buffer comes back for: the first backward use, which is the second of
    `places`; and if it is to leave in between, every later one that is not next to the one before.
    """
    returns = [(places[0][0], places[1][0])]
    for (previous, _), (use, how) in pairwise(places[1:]):
        if not each or how == "make":
            break
        if use > previous + 1:
            returns.append((previous, use))
    return returns


def _uses(steps: list[Step], tape: Tape) -> dict[str, list[tuple[int, str]]]:
    """{buffer: [(place in steps, "make", "read" or "write")]}; a write reads too, a make does not."""
    uses: dict[str, list[tuple[int, str]]] = {}
    for i, step in enumerate(steps):
        k = tape.index[step.name]
        reads, writes = tape.reads[k], tape.writes[k]
        for b in reads:
            uses.setdefault(b, []).append((i, "write" if b in writes else "read"))
        for b in writes:
            if b not in reads:
                uses.setdefault(b, []).append((i, "make"))
    return uses


def _copy_results(steps: list[Step], tape: Tape, after: dict[int, list[Step]]) -> None:
    made: dict[str, int] = {}
    for i, step in enumerate(steps):
        for name in tape.ops[tape.index[step.name]].writes:
            made.setdefault(name, i)  # the first run; a rerun writes the same
    for name in tape.results:
        if tape.buffers[tape.buffer_of[name]].is_counted:
            after.setdefault(made[name], []).append(Step("offload", tape.buffer_of[name], "offload"))


def _copy_undo(steps: list[Step], tape: Tape, before: dict[int, list[Step]]) -> None:
    """What is overwritten for good is copied first, at the first update that overwrites it."""
    whole = {b for b in tape.resident if tape.buffers[b].is_counted}
    for i, step in enumerate(steps):
        overwritten = [b for b in tape.writes[tape.index[step.name]] if b in whole]
        whole.difference_update(overwritten)
        before.setdefault(i, []).extend(Step("offload", b, "offload") for b in overwritten)


# ---- allocate


def allocate(steps: list[Step], tape: Tape, decisions: Decisions) -> list[Step]:
    """Insert an alloc before each creation of a buffer and a free after its last use before the next creation.

    Resident buffers are allocated first and never freed.  `slack` delays the free of an offloaded source, so that
    compute need not wait for the copy.  After this, every access lies between an alloc and a free of its buffer.
    """
    births, deaths = _lives(steps, tape, decisions)
    out = [Step("alloc", b) for b in tape.resident]
    for i, step in enumerate(steps):
        out += [Step("alloc", b) for b in births.get(i, ())]
        scratch = step.kind == "compute" and _scratch(step, tape)
        if scratch:
            out += [Step("alloc", workspace_of(step.name)), step, Step("free", workspace_of(step.name))]
        else:
            out.append(step)
        out += [Step("free", b) for b in deaths.get(i, ())]
    return out


def _scratch(step: Step, tape: Tape) -> int:
    return tape.ops[tape.index[step.name]].algorithm(step.algorithm).workspace


def _lives(steps: list[Step], tape: Tape, decisions: Decisions) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """{place: buffers born there} and {place: buffers that die after it}."""
    lives: dict[str, list[list[int]]] = {}  # per buffer [born, last used], life after life
    moved: dict[str, int] = {}  # which life of an offloaded buffer, or of a result, ends with its copy
    results = {tape.buffer_of[name] for name in tape.results}
    for i, step in enumerate(steps):
        reads, writes = _accesses(step, tape)
        for b in reads:
            lives[b][-1][1] = i
        for b in writes:
            if b not in reads:
                lives.setdefault(b, []).append([i, i])
        if step.kind == "offload" and (step.name in results or decisions.fates.get(step.name) is Fate.OFFLOAD):
            moved[step.name] = len(lives[step.name]) - 1
    computes = [i for i, s in enumerate(steps) if s.kind == "compute"]
    births: dict[int, list[str]] = {}
    deaths: dict[int, list[str]] = {}
    if decisions.lifetimes == "network":
        lives = network_wide(lives, steps, tape)
    for b, spans in lives.items():
        for n, (born, last) in enumerate(spans):
            if moved.get(b) == n and decisions.slack_of(b):
                later = computes[bisect_right(computes, last) :][: decisions.slack_of(b)]
                limit = spans[n + 1][0] - 1 if n + 1 < len(spans) else len(steps) - 1
                last = max(last, min(later[-1] if later else last, limit))
            births.setdefault(born, []).append(b)
            deaths.setdefault(last, []).append(b)
    return births, deaths


def _accesses(step: Step, tape: Tape) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The buffers that a step reads and writes on the device, resident ones left out."""
    if step.kind == "compute":
        k = tape.index[step.name]
        return _moving(tape.reads[k], tape), _moving(tape.writes[k], tape)
    if step.kind == "offload":
        return _moving((step.name,), tape), ()
    return (), (step.name,)


def _moving(buffers: tuple[str, ...], tape: Tape) -> tuple[str, ...]:
    return tuple(b for b in buffers if tape.buffers[b].role not in RESIDENT)
