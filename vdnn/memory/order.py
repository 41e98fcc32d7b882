"""The fifth pass: waits between streams, derived from the bytes that steps touch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace

from vdnn.memory.decisions import Fate
from vdnn.memory.plan import DISK, STREAMS, Plan, Step, workspace_of
from vdnn.memory.tiers import sectors


def order(plan: Plan) -> list[Step]:
    """The steps with their waits: each follows every earlier step on another stream that touches the same bytes, if
    one of the two writes them, and, with sync "layer", every one that the paper's rule joins it with.  A wait that
    others imply is left out, so none is redundant.
    """
    joins = _joins(plan) if plan.decisions.sync == "layer" else {}
    device = SegmentMap(plan.arena_bytes)
    hosts = {"": SegmentMap(plan.host_bytes), DISK: SegmentMap(plan.disk_bytes)}
    at: dict[str, int] = {}
    stream_of = [STREAMS.index(s.stream) for s in plan.steps]
    before: list[tuple[int, ...]] = []  # per step and stream, the last step that has surely finished when it has
    newest = [(-1,) * len(STREAMS)] * len(STREAMS)
    out: list[Step] = []
    for i, step in enumerate(plan.steps):
        if step.kind == "alloc":
            at[step.name] = step.offset
        if step.kind in ("alloc", "free"):
            out.append(step)
            before.append(())
            continue
        mine = stream_of[i]
        latest = [-1] * len(STREAMS)
        for segments, start, stop, is_write in _touched(step, plan, at, device, hosts):
            for j in segments.access(start, stop, is_write, i, mine):
                latest[stream_of[j]] = max(latest[stream_of[j]], j)
        for j in joins.get(i, ()):
            latest[stream_of[j]] = max(latest[stream_of[j]], j)
        known = newest[mine]
        waits = [j for s, j in enumerate(latest) if s != mine and j > known[s]]
        waits = [j for j in waits if not any(before[k][stream_of[j]] >= j for k in waits if k != j)]
        clock = [max(c) for c in zip(known, *(before[j] for j in waits), strict=True)] if waits else list(known)
        clock[mine] = i
        newest[mine] = tuple(clock)
        before.append(newest[mine])
        out.append(replace(step, waits=tuple(sorted(waits))) if waits else step)
    return out


def _joins(plan: Plan) -> dict[int, tuple[int, ...]]:
    """{step: steps that it follows by the paper's rule} (section III-B): if fates copied something beside an op, then
    both streams are joined at its end, so that neither the next op nor the next copy starts before all of that is done.
    """
    joins: dict[int, tuple[int, ...]] = {}
    beside: list[int] = []  # copies since the last op
    joined: tuple[int, ...] = ()  # the last op and what was copied beside it
    for i, step in enumerate(plan.steps):
        if step.kind == "compute":
            joins[i] = joined
            joined = (i, *beside) if beside else ()
            beside = []
        elif step.kind in ("offload", "prefetch"):
            joins[i] = joined
            if plan.fate(step.name) is Fate.OFFLOAD:
                beside.append(i)
    return joins


def _touched(
    step: Step, plan: Plan, at: dict[str, int], device: SegmentMap, hosts: Mapping[str, SegmentMap]
) -> Iterator[tuple[SegmentMap, int, int, bool]]:
    """(map, start, stop, is write) for every range of bytes that a step reads or writes."""
    if step.kind == "compute":
        k = plan.tape.index[step.name]
        reads, writes = plan.tape.reads[k], plan.tape.writes[k]
        for b in reads:
            if b not in writes:
                yield device, at[b], at[b] + plan.size(b), False
        scratch = workspace_of(step.name)
        for b in (*writes, scratch) if plan.size(scratch) else writes:
            yield device, at[b], at[b] + plan.size(b), True
    else:
        size = plan.size(step.name)
        yield device, at[step.name], at[step.name] + size, step.kind == "prefetch"
        taken = sectors(size) if step.tier == DISK else size
        yield hosts[step.tier], step.offset, step.offset + taken, step.kind == "offload"


class SegmentMap:
    """For every byte the last writer, and the last reader on each stream since.

    Bytes that were last touched by the same steps form one segment, so the cost follows the number of tensors.
    """

    def __init__(self, size: int) -> None:
        self.starts = [0, max(size, 1)]
        self.segments: list[tuple[int, dict[int, int]]] = [(-1, {})]  # (writer or -1, {stream: reader})

    def access(self, start: int, stop: int, is_write: bool, step: int, stream: int) -> set[int]:
        """Note that `step` on `stream` reads or writes bytes [start, stop); return the earlier steps it conflicts with.

        Conflicts that are implied by others (whatever came before the last writer) are not among them.
        """
        if start == stop:
            return set()
        first, last = self._split(start), self._split(stop)
        conflicts = set()
        for writer, readers in self.segments[first:last]:
            if writer >= 0:
                conflicts.add(writer)
            if is_write:
                conflicts.update(readers.values())
        if is_write:
            self.starts[first + 1 : last] = []
            self.segments[first:last] = [(step, {})]
        else:
            self.segments[first:last] = [(w, {**readers, stream: step}) for w, readers in self.segments[first:last]]
        return conflicts

    def _split(self, at: int) -> int:
        """The index of the segment that starts at byte `at`, made if there is none."""
        i = bisect_left(self.starts, at)
        if self.starts[i] != at:
            self.starts.insert(i, at)
            writer, readers = self.segments[i - 1]
            self.segments.insert(i, (writer, dict(readers)))
        return i
