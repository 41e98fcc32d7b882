"""A trace in the format that chrome://tracing and https://ui.perfetto.dev open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vdnn.memory.plan import STREAMS

if TYPE_CHECKING:
    from vdnn.memory.trace import Event, Trace

MICRO = 1e6  # times in these files are microseconds


def chrome_trace(trace: Trace) -> str:
    """JSON with a thread per stream, an arrow from each copy to the op that waits for it, and live bytes by role."""
    plan = trace.plan
    name = f"{plan.tape.network}, {plan.tape.batch_label}, {plan.policy or 'own decisions'} ({trace.kind})"
    out: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": name}}]
    for thread, stream in enumerate(STREAMS):
        out.append({"ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": stream}})
        out.append({"ph": "M", "pid": 1, "tid": thread, "name": "thread_sort_index", "args": {"sort_index": thread}})
    ran = {e.index: e for e in trace.events if e.start is not None and e.finish is not None}
    out += [_slice(event, trace) for event in ran.values()]
    for event in ran.values():
        for wait in event.step.waits:
            if wait in ran:
                out += _arrow(ran[wait], event)
    times, by_role = trace.timeline
    for i, at in enumerate(times):
        live = {role: values[i] for role, values in by_role.items()}
        out.append({"ph": "C", "pid": 1, "name": "live bytes", "ts": at * MICRO, "args": live})
    return json.dumps({"displayTimeUnit": "ms", "otherData": {"time": trace.kind}, "traceEvents": out})


def _slice(event: Event, trace: Trace) -> dict[str, Any]:
    assert event.start is not None
    assert event.finish is not None
    step = event.step
    arguments: dict[str, Any] = {"step": event.index, "after": list(step.waits)}
    if step.kind == "compute":
        title, arguments["algorithm"] = step.name, step.algorithm
    else:
        title, arguments["bytes"] = f"{step.kind} {step.name}", trace.plan.payload(step.name)
    where = {"pid": 1, "tid": STREAMS.index(event.stream)}
    times = {"ts": event.start * MICRO, "dur": (event.finish - event.start) * MICRO}
    return {"ph": "X", **where, "name": title, "cat": step.kind, **times, "args": arguments}


def _arrow(source: Event, target: Event) -> list[dict[str, Any]]:
    assert source.finish is not None
    assert target.start is not None
    arrow = {"pid": 1, "name": "wait", "cat": "wait", "id": f"{source.index}-{target.index}"}
    begin = {"ph": "s", **arrow, "tid": STREAMS.index(source.stream), "ts": source.finish * MICRO}
    end = {"ph": "f", "bp": "e", **arrow, "tid": STREAMS.index(target.stream), "ts": target.start * MICRO}
    return [begin, end]
