"""checkpoint: the policy that keeps some tensors and runs the ops between them again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from math import isqrt

from vdnn.memory.decisions import DROP, KEEP, Decisions, Fate, resolve
from vdnn.memory.trial import sketch
from vdnn.micro_batches import without_round
from vdnn.network import Role
from vdnn.tape import Tape


def checkpoint(tape: Tape, algorithms: Mapping[str, str]) -> Decisions:
    """Keep about every sqrt(n)-th tensor and run the ops between again (Chen et al. 2016, arXiv 1604.06174, section 4).

    The tensors kept are cuts: all that later ops need of what came before.  On a chain every tensor is one; in a
    network with forks, those between its blocks.  Cuts are chosen so that the segments save about equally many bytes,
    the last segment is kept whole, as backward needs it at once, and of the numbers of segments that are tried that
    one is taken whose plan has the lowest peak.  One segment is `keep_all`, so that no network needs more than that.
    """
    cuts = cuts_of(tape)
    most = 1 + max(map(len, cuts))
    counts = list(_counts(most))
    peaks: dict[int, int] = {}  # by place in counts

    def try_all(places: Iterable[int]) -> int:
        for k in places:
            if k not in peaks:
                fates = _segment_fates(tape, cuts, counts[k])
                peaks[k] = sketch(tape, resolve(fates, tape, algorithms)).peak_bytes
        return min(peaks, key=lambda k: (peaks[k], k))

    # few segments keep little and rerun much at a time, many the other way round: some about the root, then about the
    # best of these; their number does not grow with the depth
    root = isqrt(most)
    best = try_all({0, *(min(bisect_left(counts, root * n // 4), len(counts) - 1) for n in (1, 2, 4, 8, 16))})
    best = try_all(range(max(0, best - 2), min(len(counts), best + 3)))
    return Decisions(_segment_fates(tape, cuts, counts[best]))


def _counts(most: int) -> Iterator[int]:
    """Numbers of segments to choose from: 1, 2, 3, 4, then ever sparser, up to four times the root of `most`."""
    yield 1
    count = 2
    while count <= min(most, 4 * isqrt(most) + 1):
        yield count
        count = max(count + 1, count * 5 // 4)


def cuts_of(tape: Tape) -> list[list[tuple[int, str]]]:
    """The cuts of each round."""
    return [_round_cuts(tape, forward) for forward, _ in tape.rounds]


def _round_cuts(tape: Tape, forward: range) -> list[tuple[int, str]]:
    """(place of an op, the only feature map that later ops of `forward` read of what it and earlier ones wrote)."""
    last_read: dict[str, int] = {}
    last_written: dict[str, int] = {}
    for i in forward:
        last_read |= dict.fromkeys(tape.reads[i], i)
        last_written |= dict.fromkeys(tape.writes[i], i)
    inputs = (b for b in last_read if without_round(b) == "input")
    inputs_read = max((last_read[b] for b in inputs), default=-1)
    crossing: set[str] = set()
    cuts = []
    for i in forward:
        crossing |= {b for b in tape.writes[i] if tape.buffers[b].role is Role.FEATURE}
        crossing = {b for b in crossing if last_read.get(b, -1) > i}
        if len(crossing) == 1 and i >= inputs_read:
            (b,) = crossing
            if last_written[b] <= i:
                cuts.append((i, b))
    return list({b: (i, b) for i, b in reversed(cuts)}.values())[::-1]


def _segment_fates(tape: Tape, cuts: list[list[tuple[int, str]]], segments: int) -> dict[str, Fate]:
    """Fates that in each round keep `segments` - 1 of its cuts and what lies behind the last, and drop the rest."""
    fates: dict[str, Fate] = {}
    for (forward, _), own in zip(tape.rounds, cuts, strict=True):
        fates |= _round_fates(tape, forward, own, segments)
    return fates


def _round_fates(tape: Tape, forward: range, cuts: list[tuple[int, str]], segments: int) -> dict[str, Fate]:
    """Those of one round."""
    buffers = (tape.buffer_of[t.name] for t in tape.saved if t.role is Role.FEATURE)
    saved = [b for b in buffers if tape.makers[b][0] in forward]
    sizes = dict.fromkeys(forward, 0)
    for b in saved:
        sizes[tape.makers[b][0]] += tape.buffers[b].nbytes
    total, so_far, at = sum(sizes.values()), 0, forward.start
    chosen: list[tuple[int, str]] = []
    for i, b in cuts:
        so_far += sum(sizes[k] for k in range(at, i + 1))
        at = i + 1
        if len(chosen) < segments - 1 and so_far * segments >= total * (len(chosen) + 1):
            chosen.append((i, b))
    if not chosen:
        return {}
    kept = {b for _, b in chosen}
    end = chosen[-1][0]
    fates: dict[str, Fate] = dict.fromkeys(kept, KEEP)
    for b in saved:
        if b not in kept:
            fates[b] = DROP if tape.makers[b][0] <= end else KEEP
    return fates
