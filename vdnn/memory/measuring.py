"""measuring: a device's own times, recorded on it run by run: of ops, of copies, and of both at once.

All that is measured are plans that the device runs and traces, so it is done alike on every device:

    kept    the network's step with everything kept, once for each choice of algorithms: what its ops take
    alone   copies of several sizes and nothing else, one after the other: what they take by their bytes
    disk    the same to the spill file and back, where the device has one
    both    a copy each way at one time: whether they share the link
    beside  the first of `kept`, with copies beside its backward ops: how much ops and copies slow each other

None of them is a plan by a policy that copies, so nothing here is fitted to what will be predicted from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from typing import Any

from vdnn.memory.cost import Contention, Copies, Measured, measured
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.order import order
from vdnn.memory.passes import make_plan
from vdnn.memory.place import place
from vdnn.memory.plan import Plan, Step
from vdnn.memory.trace import COPIES, Trace
from vdnn.network import Role, Tensor
from vdnn.tape import Op, Tape

COPIED = "copied."  # what the names of buffers that are only copied begin with
SIZES = tuple(4**k << 14 for k in range(6))  # bytes of copies that run alone: 16 KiB to 16 MiB
BOTH = SIZES[-2]  # bytes of those that run both ways at one time
LONGER = 1.5  # how much longer than those ops alone the copies beside them are to last
MOST = 1000  # copies beside one step; a plan of many more takes long to make
HALF_SHARED = 0.75  # a rate of both ways at once, by that of one, between sharing the link (0.5) and not (1)
REFINEMENTS = 30  # each brings rates and latency a few times nearer to each other
SLOWEST = 0.95  # share of a rate that may be lost: all of it would never end
Run = Callable[[Plan], Trace]


def choices(tape: Tape) -> list[dict[str, str]]:
    """{op: algorithm} so often that every algorithm of every op is among them."""
    most = max((len(op.algorithms) for op in tape.ops), default=0)
    return [{op.name: op.algorithms[k % len(op.algorithms)].name for op in tape.ops} for k in range(most)]


# ---- plans to measure by


def alone_plan(tape: Tape, sizes: Sequence[int] = SIZES, tier: str = "host") -> Plan:
    """For each size, one copy to that tier and one back, each waiting for the one before; no op runs."""
    added = [_copied(size) for size in sizes]
    kinds = ("alloc", *COPIES, "free")
    return _without_ops(tape, [_step(kind, tensor) for tensor in added for kind in kinds], added, tier)


def both_plan(tape: Tape, size: int) -> Plan:
    """Copies to the host and back by turns of two buffers, so that all but the first and the last run two at a time."""
    added = [_copied(size, "a"), _copied(size, "b")]
    return _without_ops(tape, [_step(kind, t) for kind in ("alloc", *COPIES, *COPIES) for t in added], added)


def beside_plan(kept: Plan, size: int, copies: int) -> Plan:
    """`kept`, and behind its own last copy, so beside backward, others to the host and back that depend on nothing."""
    at = 1 + max((i for i, step in enumerate(kept.steps) if step.kind in COPIES), default=-1)
    tensor = _copied(size)
    there_and_back = [_step(kind, tensor) for kind in COPIES]
    steps = [*kept.steps[:at], _step("alloc", tensor), *there_and_back * ceil(copies / 2), *kept.steps[at:]]
    return _placed(kept.tape, steps, [tensor], kept.decisions)


def _copied(size: int, label: str = "") -> Tensor:
    return Tensor(f"{COPIED}{size}{label}", (size,), "uint8", Role.FEATURE)


def _step(kind: str, tensor: Tensor) -> Step:
    return Step(kind, tensor.name, kind if kind in COPIES else "compute")


def _without_ops(tape: Tape, steps: list[Step], added: list[Tensor], tier: str = "host") -> Plan:
    """The plan of these steps for a device that has the residents of `tape`; what is added is copied to that tier."""
    kept = {n: t for n, t in tape.tensors.items() if tape.buffer_of[n] in tape.resident}
    alias = {n: root for n, root in tape.alias.items() if n in kept}
    alone = replace(tape, tensors=kept, alias=alias, ops=(), results=())
    decisions = Decisions(tiers=dict.fromkeys((tensor.name for tensor in added), tier))
    return _placed(alone, [*(Step("alloc", name) for name in tape.resident), *steps], added, decisions)


def _placed(tape: Tape, steps: list[Step], added: list[Tensor], decisions: Decisions) -> Plan:
    """The plan of these steps; `added`: tensors in them that the tape has not."""
    tape = replace(tape, tensors={**tape.tensors, **{t.name: t for t in added}})
    plan = place(Plan(tape, decisions, tuple(replace(s, waits=()) for s in steps), 0, 0), 0)
    return replace(plan, steps=tuple(order(plan)))


# ---- what a trace says


def key_of(op: Op, algorithm: str) -> str:
    """The name under which a table has the op's time: with its algorithm, where there are several."""
    return f"{op.name} by {algorithm}" if len(op.algorithms) > 1 else op.name


def _times(trace: Trace) -> dict[int, tuple[float, float]]:
    return {e.index: (e.start, e.finish) for e in trace.events if e.start is not None and e.finish is not None}


def op_seconds(trace: Trace) -> Iterator[tuple[int, str, float]]:
    """(plan step, name in a table, seconds) of every op that ran.

    They count from the end of the op before, so that the way from one to the next is in them; or, where the op had to
    wait for a copy, from its own start.
    """
    times, before = _times(trace), 0.0
    for i, step, op in trace.plan.computes():
        start, finish = times[i]
        waited = max((times[w][1] for w in step.waits), default=0.0)
        yield i, key_of(op, step.algorithm), finish - (start if waited > before or not before else before)
        before = finish


def copy_seconds(trace: Trace) -> Iterator[tuple[int, str, int, float]]:
    """(plan step, kind, bytes, seconds) of every copy, from the end of what it had to wait for, so that the way from
    one stream to another is in them.
    """
    times, before = _times(trace), dict.fromkeys(COPIES, 0.0)
    for i, step in enumerate(trace.plan.steps):
        if step.kind in COPIES:
            ready = max([before[step.kind], *(times[w][1] for w in step.waits)])
            before[step.kind] = times[i][1]
            yield i, step.kind, trace.plan.payload(step.name), times[i][1] - ready


def wake_seconds(trace: Trace) -> Iterator[float]:
    """Seconds from the end of a copy to the start of each op that waited for nothing else."""
    times, before = _times(trace), 0.0
    for i, step, _ in trace.plan.computes():
        waited = max((times[w][1] for w in step.waits), default=0.0)
        if waited > before:
            yield times[i][0] - waited
        before = times[i][1]


def link_of(copies: Mapping[tuple[str, int], float], wake: float = 0.0) -> Copies:
    """A link by {(kind, bytes): seconds}: the largest copies give the rates, all others what they take besides.

    wake    seconds that an op takes to begin once the copy that it waits for is over; added to the latency
    """
    largest = {kind: max(n for k, n in copies if k == kind) for kind in COPIES}
    latency, most = 0.0, min(copies[key] for key in largest.items()) / 2
    for _ in range(REFINEMENTS):  # rates need the latency, and the latency needs rates
        rates = {kind: n / (copies[kind, n] - latency) for kind, n in largest.items()}
        rest = [seconds - n / rates[kind] for (kind, n), seconds in copies.items() if n < largest[kind]]
        latency = min(most, max(0.0, median(rest)))
    return Copies(rates["offload"], rates["prefetch"], latency + wake)


# ---- measuring


@dataclass(frozen=True)
class Round:
    """The traces of one run of each plan: `kept` of one run for each choice of algorithms, `disk` if there is one."""

    kept: tuple[Trace, ...]
    alone: Trace
    both: Trace
    beside: Trace
    disk: Trace | None = None


class Recorder:
    """Runs the plans that the times of `tape` are taken from, round after round; `cost_of` says what they come to.

    algorithms  {op: algorithm} for each choice of them that is to be timed
    run         runs a plan, with its inputs in place, and traces it
    spills      whether the device has a spill file

    The plans take turns, so that a machine that is slow for a while is so for all of them.
    """

    def __init__(self, tape: Tape, algorithms: Sequence[Mapping[str, str]], run: Run, spills: bool = False) -> None:
        self.run = run
        self.rounds: list[Round] = []
        self.kept = [make_plan(tape, resolve(Decisions(), tape, chosen)) for chosen in algorithms]
        self.alone, self.both = alone_plan(tape), both_plan(tape, BOTH)
        self.disk = [alone_plan(tape, tier="disk")] if spills else []
        for plan in (*self.kept, self.alone, self.both, *self.disk):
            run(plan)  # memory is slow when it is touched for the first time
        self.beside = self._beside(run(self.kept[0]), run(self.alone))
        run(self.beside)

    def _beside(self, kept: Trace, alone: Trace) -> Plan:
        """The plan whose copies run beside ops; they are as large as what backward reads is on average."""
        turn = next(i for i, _, op in kept.plan.computes() if not op.is_forward)
        backward = kept.step_seconds - kept.starts[turn]
        saved = [tensor.nbytes for tensor in kept.plan.tape.saved]
        size = max((n for n in SIZES if n * len(saved) <= sum(saved)), default=SIZES[0])
        took = next(seconds for _, _, nbytes, seconds in copy_seconds(alone) if nbytes == size)
        return beside_plan(kept.plan, size, min(MOST, ceil(LONGER * backward / took)))

    @property
    def runs(self) -> int:
        """Runs of one round."""
        return len(self.kept) + 3 + len(self.disk)

    def round(self, advance: Callable[[str], None] = lambda note: None) -> None:
        """Run each plan once more.  `advance` is told after each run what it was."""

        def run(plan: Plan, what: str) -> Trace:
            trace = self.run(plan)
            advance(what)
            return trace

        kept = [run(plan, f"algorithms {n} of {len(self.kept)}") for n, plan in enumerate(self.kept, 1)]
        alone, both = run(self.alone, "copies alone"), run(self.both, "copies both ways")
        disk = [run(plan, "copies to disk") for plan in self.disk]
        self.rounds.append(Round(tuple(kept), alone, both, run(self.beside, "copies beside ops"), *disk))


def cost_of(rounds: Sequence[Round], name: str, memory_bytes: int, about: Mapping[str, Any]) -> Measured:
    """The medians of these rounds, as a cost model.

    What now and then delays some op, each time another one, is in no op's median, but in every step.  So the medians
    are stretched, all alike, until those of the first choice add up to the median of what its ops take in a run.
    """
    kept = [trace for r in rounds for trace in r.kept]
    table = _medians((key, seconds) for trace in kept for _, key, seconds in op_seconds(trace))
    steps = [[*op_seconds(r.kept[0])] for r in rounds]
    stretch = median(sum(s for *_, s in ops) for ops in steps) / sum(table[key] for _, key, _ in steps[0])
    table = {key: stretch * seconds for key, seconds in table.items()}
    copies = _medians(((kind, n), seconds) for r in rounds for _, kind, n, seconds in copy_seconds(r.alone))
    wakes = [seconds for trace in kept for seconds in wake_seconds(trace)]
    wake = median(wakes) if wakes else 0.0
    link, slowing = link_of(copies, wake), _contention(rounds, copies)
    spilled = _medians(((kind, n), s) for r in rounds if r.disk for _, kind, n, s in copy_seconds(r.disk))
    disk = link_of(spilled, wake) if spilled else None
    return measured(table, name=name, copy=link, disk=disk, memory_bytes=memory_bytes, contention=slowing, about=about)


def _contention(rounds: Sequence[Round], copies: Mapping[tuple[str, int], float]) -> Contention:
    both = [seconds for r in rounds for *_, seconds in [*copy_seconds(r.both)][1:-1]]  # no other is beside these two
    slow = [_beside(r.beside) for r in rounds]
    slow_ops = _medians(sample for ops, _ in slow for sample in ops)
    fast_ops = _medians((key, seconds) for r in rounds for _, key, seconds in op_seconds(r.kept[0]))
    slow_copies = _medians(sample for _, each in slow for sample in each)
    return Contention(
        duplex=median(copies[kind, BOTH] for kind in COPIES) >= HALF_SHARED * median(both),
        compute_slowdown=_lost(fast_ops, slow_ops),
        copy_slowdown=_lost(copies, slow_copies),
    )


def _beside(trace: Trace) -> tuple[list[tuple[str, float]], list[tuple[tuple[str, int], float]]]:
    """(op, seconds) of those that ran wholly beside the added copies; ((kind, bytes), seconds) of these, but the first,
    that ran wholly beside ops.
    """
    times, steps = _times(trace), trace.plan.steps
    added = [i for i in times if steps[i].name.startswith(COPIED)]
    begin, end = times[added[0]][0], times[added[-1]][1]
    over = max(times[i][1] for i, _, _ in trace.plan.computes())
    ops = [(key, s) for i, key, s in op_seconds(trace) if begin <= times[i][0] and times[i][1] <= end]
    copies = [((kind, n), s) for i, kind, n, s in copy_seconds(trace) if i in added[1:] and times[i][1] <= over]
    return ops, copies


def _lost(alone: Mapping[Any, float], beside: Mapping[Any, float]) -> float:
    """The share of its rate that is lost by what takes so many seconds alone, and so many beside something else."""
    taken = sum(beside.values())
    return min(SLOWEST, max(0.0, 1 - sum(alone[key] for key in beside) / taken)) if taken else 0.0


def _medians(samples: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """{key: the median of its numbers}."""
    found: dict[Any, list[float]] = {}
    for key, seconds in samples:
        found.setdefault(key, []).append(seconds)
    return {key: median(values) for key, values in found.items()}
