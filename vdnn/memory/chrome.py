"""A trace in the Trace Event Format, which https://ui.perfetto.dev and chrome://tracing open.

Streams are threads, with a slice for each op and copy; live bytes are a counter with a value for each role; flow arrows
go from each offload to the prefetch that brings the same bytes back, and from each copy to what waits for it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdnn.memory.plan import STREAMS

if TYPE_CHECKING:
    from vdnn.memory.trace import Event, Trace

Record = dict[str, Any]
PROCESS = 1


def chrome_trace(trace: Trace) -> str:
    """One step as JSON."""
    return as_text(trace.kind, [*metadata(trace), *step_records(trace)])


def as_text(kind: str, records: list[Record]) -> str:
    """The records as one JSON object; `kind` says whether their times are simulated or measured."""
    return json.dumps({"displayTimeUnit": "ms", "otherData": {"time": kind}, "traceEvents": records})


def write_trace(text: str, path: str | os.PathLike[str]) -> Path:
    """Write the text, compressed if the name ends in .gz, the same bytes each time.  Raises OSError."""
    data = text.encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    Path(path).write_bytes(data)
    return Path(path)


def metadata(trace: Trace) -> Iterator[Record]:
    """The names of the process and of its threads."""
    plan = trace.plan
    name = f"{plan.tape.network}, {plan.tape.batch_label}, {plan.policy or 'own decisions'} ({trace.kind})"
    yield {"ph": "M", "pid": PROCESS, "name": "process_name", "args": {"name": name}}
    for thread, stream in enumerate(STREAMS, start=1):  # to Perfetto thread 0 is the machine's idle one
        where = {"ph": "M", "pid": PROCESS, "tid": thread}
        yield {**where, "name": "thread_name", "args": {"name": stream}}
        yield {**where, "name": "thread_sort_index", "args": {"sort_index": thread}}


def step_records(trace: Trace, begin: float = 0.0, step: int = 0, is_last: bool = True) -> Iterator[Record]:
    """Slices, arrows and counters of one step that began at `begin` seconds.

    step      its number: arrows of a file have different ids, and Perfetto takes only whole numbers
    is_last   whether memory is shown as free after it; else the next step's values follow
    """
    ran = {
        e.index: e
        for e in trace.events
        if e.start is not None and e.finish is not None and e.step.kind not in ("alloc", "free")
    }
    for event in ran.values():
        yield _slice(event, trace, begin)
    for number, (source, target, what) in enumerate(_links(ran)):
        yield from _arrow(source, target, what, (step << 20) + number, begin)
    times, by_role = trace.timeline
    for i, at in enumerate(times if is_last else times[:-1]):
        live = {role: values[i] for role, values in by_role.items()}
        yield {"ph": "C", "pid": PROCESS, "name": "live bytes", "ts": micro(begin + at), "args": live}


def micro(seconds: float) -> float:
    """Microseconds, the unit of these files, in whole nanoseconds: slices that touch then never overlap."""
    return round(seconds * 1e9) / 1e3


def _slice(event: Event, trace: Trace, begin: float) -> Record:
    assert event.start is not None
    assert event.finish is not None
    from vdnn.trace_files import shown_name

    step, plan = event.step, trace.plan
    layer = trace.layers.get(step.name, "")
    arguments: Record = {"step": event.index, "layer": layer, "after": " ".join(map(str, step.waits))}
    if step.kind == "compute":
        title, arguments["algorithm"] = step.name, step.algorithm
        arguments["bytes"] = sum(plan.payload(name) for name in trace.touched(step))
    else:
        title, arguments["tensor"] = f"{step.kind} {step.name}", shown_name(plan, step.name)
        arguments |= {"bytes": plan.payload(step.name), "tier": step.tier or "host"}
    start, finish = micro(begin + event.start), micro(begin + event.finish)
    where = {"pid": PROCESS, "tid": 1 + STREAMS.index(event.stream)}
    times = {"ts": start, "dur": round(finish - start, 3)}
    return {"ph": "X", **where, "name": title, "cat": step.kind, **times, "args": arguments}


def _links(ran: dict[int, Event]) -> Iterator[tuple[Event, Event, str]]:
    """(from, to, what the arrow says) for the ways of all copies, and for all waits."""
    left: dict[str, Event] = {}
    for event in ran.values():
        step = event.step
        if step.kind == "offload":
            left[step.name] = event
        elif step.kind == "prefetch" and step.name in left:
            yield left[step.name], event, "round trip"
        for wait in step.waits:
            if wait in ran and not (step.kind == "prefetch" and ran[wait] is left.get(step.name)):
                yield ran[wait], event, "wait"


def _arrow(source: Event, target: Event, what: str, identity: int, begin: float) -> Iterator[Record]:
    """An arrow from the end of one slice to the beginning of another; it must begin inside of the first."""
    assert source.start is not None
    assert source.finish is not None
    assert target.start is not None
    inside = max(source.start, source.finish - min(1e-6, (source.finish - source.start) / 2))
    arrow = {"pid": PROCESS, "name": what, "cat": what, "id": identity}
    yield {"ph": "s", **arrow, "tid": 1 + STREAMS.index(source.stream), "ts": micro(begin + inside)}
    yield {"ph": "f", "bp": "e", **arrow, "tid": 1 + STREAMS.index(target.stream), "ts": micro(begin + target.start)}
