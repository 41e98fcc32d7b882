"""Chen, Xu, Zhang, Guestrin: Training deep nets with sublinear memory cost (2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vdnn.memory.checkpointing import cuts_of
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import DROP, KEEP, Decisions, Fate, resolve
from vdnn.memory.passes import rerun_dropped
from vdnn.memory.published.fitting import fits, with_workspaces
from vdnn.memory.published.meter import Meter
from vdnn.network import Role
from vdnn.tape import Tape

COSTLY = ("conv", "linear")  # what else a pipeline of conv, batch norm and activation holds is cheap to run again
RATIO = 1.4  # of one b that is tried to the next
SEGMENTS = 64  # the smallest b that is tried is all bytes over so many


def chen_budget(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """Segments by Algorithm 3, with the bytes per segment b that reruns least within the budget.

    Follows: walk the forward ops, add up what they leave for backward, and end a segment at the first cut by which it
    is more than b (Alg. 3); search over b along a line; or, as section 4 has it too, drop only what is cheap to run
    again, and keep what convolutions and linear layers make.  Of the plans that fit, the one whose reruns take the
    fewest seconds is taken; the last segment is kept, as backward needs it at once.
    Leaves out: recursion (section 4.4): what is run again stays until its last use.
    """
    candidates: list[dict[str, Fate]] = [{}, _cheap(tape)]
    candidates += (f for f in _segmentations(tape) if f)
    unlike = {tuple(f.items()): f for f in candidates}.values()
    by_seconds = sorted(unlike, key=lambda f: _seconds(tape, Decisions(f), cost, algorithms))
    meter = Meter(tape, algorithms)
    peaks: list[int] = []
    for fates in by_seconds:
        peaks.append(meter.read(Decisions(fates)).peak)
        if peaks[-1] <= budget and fits(tape, Decisions(fates), algorithms, budget):
            return Decisions(fates)
    smallest = Decisions(by_seconds[peaks.index(min(peaks))])
    return with_workspaces(tape, budget, cost, algorithms, smallest) or smallest


def _seconds(tape: Tape, decisions: Decisions, cost: Cost, algorithms: Mapping[str, str]) -> float:
    """Seconds that all ops take, reruns included."""
    steps = rerun_dropped(tape, resolve(decisions, tape, algorithms))
    return sum(cost.op_seconds(tape, tape.ops[tape.index[s.name]], s.algorithm) for s in steps)


def _cheap(tape: Tape) -> dict[str, Fate]:
    """Fates that drop every feature map that no costly layer makes."""
    fates = {}
    for t in tape.saved:
        b = tape.buffer_of[t.name]
        if t.role is Role.FEATURE and not any(tape.ops[i].kind in COSTLY for i in tape.makers[b]):
            fates[b] = DROP
    return fates


def _segmentations(tape: Tape) -> Iterator[dict[str, Fate]]:
    """Fates by Algorithm 3, for ever smaller b, the same in all rounds."""
    left = [0] * len(tape.ops)  # bytes that each op leaves for backward
    for t in tape.saved:
        if t.role is Role.FEATURE:
            b = tape.buffer_of[t.name]
            left[tape.makers[b][0]] += tape.buffers[b].nbytes
    cuts = cuts_of(tape)
    total = max(sum(left[i] for i in forward) for forward, _ in tape.rounds)
    most = total / 2
    while most * SEGMENTS >= total > 0:
        fates: dict[str, Fate] = {}
        for (forward, _), own in zip(tape.rounds, cuts, strict=True):
            fates |= _segments(tape, forward, own, left, most)
        yield fates
        most /= RATIO


def _segments(tape: Tape, forward: range, cuts: list[tuple[int, str]], left: list[int], most: float) -> dict[str, Fate]:
    """Fates that keep a cut whenever more than `most` bytes have been left since the one before, and drop the rest."""
    kept: dict[str, int] = {}
    so_far, at = 0, forward.start
    for i, b in cuts:
        so_far += sum(left[at : i + 1])
        at = i + 1
        if so_far > most:
            kept[b], so_far = i, 0
    dropped = range(forward.start, max(kept.values(), default=-1) + 1)
    fates: dict[str, Fate] = dict.fromkeys(kept, KEEP)
    for t in tape.saved:
        b = tape.buffer_of[t.name]
        if t.role is Role.FEATURE and b not in kept and tape.makers[b][0] in dropped:
            fates[b] = DROP
    return fates
