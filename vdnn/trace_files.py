"""A trace as data: tables of events, memory and stalls, and JSON that reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vdnn.memory.plan import Plan, PlanError, workspace_of
from vdnn.naming import among
from vdnn.records import Cell, Table
from vdnn.tape import Tape

if TYPE_CHECKING:
    from vdnn.memory.trace import Trace

FORMAT = "vdnn trace 1"
FIGURES = (
    *("step_seconds", "compute_seconds", "copy_seconds", "hidden_copy_fraction"),
    *("moved_bytes", "average_bytes"),
)


class TraceError(ValueError):
    """What is no trace, or has no such table."""


def layers_of(tape: Tape) -> dict[str, str]:
    """{op, tensor or workspace: its layer}: of a tensor the first that writes it, or that reads it if none does.

    Buffers are named after tensors.  Sums and updates belong to no layer; what only they touch has "".
    """
    layers: dict[str, str] = {}
    for op in tape.ops:
        layers[op.name] = layers[workspace_of(op.name)] = op.layer
        if op.layer and op.phase != "update":
            for tensor in op.writes:
                layers.setdefault(tensor, op.layer)
    for op in tape.ops:
        for tensor in (*op.reads, *op.writes):
            layers.setdefault(tensor, op.layer)
    return layers


def shown_name(plan: Plan, name: str) -> str:
    """The name of the last tensor in a buffer, by which people know it; the name itself of an op or workspace."""
    buffer = plan.tape.buffers.get(name)
    return buffer.tensors[-1].name if buffer else name


# ---- tables


def trace_table(trace: Trace, what: str) -> Table:
    """The table of a trace: its "events", "memory" or "stalls".  Raises TraceError for any other word."""
    if what not in TABLES:
        raise TraceError(f"a trace has no table {what!r}{among(what, TABLES)}")
    return TABLES[what](trace)


def _title(trace: Trace, what: str) -> str:
    tape = trace.plan.tape
    return f"{what} of {tape.network}, {tape.batch_label}, {trace.plan.policy or 'own decisions'}, {trace.kind}"


def _events(trace: Trace) -> Table:
    """A row for each step of the plan: when it ran, what it moved, for which layer."""
    times = (f"start_seconds_{trace.kind}", f"finish_seconds_{trace.kind}")
    columns = ("index", "stream", "kind", "name", *times, "bytes", "layer", "algorithm", "tier")
    rows = []
    for e in trace.events:
        step = e.step
        size = trace.plan.payload(step.name) if step.kind != "compute" else None
        tier = (step.tier or "host") if step.kind in ("offload", "prefetch") else None
        told = (size, trace.layers.get(step.name) or None, step.algorithm or None, tier)
        rows.append((e.index, e.stream, step.kind, step.name, e.start, e.finish, *told))
    return Table(columns, tuple(rows), _title(trace, "events"))


def _memory(trace: Trace) -> Table:
    """A row for each time at which live bytes change: those of each role from then on, and of all."""
    times, by_role = trace.timeline
    columns = (f"seconds_{trace.kind}", *by_role, "total")
    values = zip(times, *by_role.values(), trace.timeline.total, strict=True)
    return Table(columns, tuple(values), _title(trace, "live bytes by role"))


def _stalls(trace: Trace) -> Table:
    """A row for each time that compute was idle before an op, and the copy that it waited for, if it did."""
    columns = ("index", "op", "layer", f"seconds_{trace.kind}", "waited_for", "kind", "bytes")
    rows: list[tuple[Cell, ...]] = []
    for stall in trace.stalls:
        copy = trace.plan.steps[stall.copy] if stall.copy >= 0 else None
        of = (stall.cause, copy.kind, trace.plan.payload(stall.cause)) if copy else (None, None, None)
        rows.append((stall.index, stall.op, trace.layers.get(stall.op) or None, stall.seconds, *of))
    return Table(columns, tuple(rows), _title(trace, "stalls"))


TABLES: dict[str, Callable[[Trace], Table]] = {"events": _events, "memory": _memory, "stalls": _stalls}


# ---- JSON


def trace_json(trace: Trace) -> str:
    """Figures, events, stalls, the memory timeline and the plan as one JSON object; see `trace_from_json`."""
    data: dict[str, Any] = {"format": FORMAT, "time": trace.kind}
    data |= {name: getattr(trace, name) for name in FIGURES}
    data["events"] = [[e.index, e.stream, e.step.kind, e.step.name, e.start, e.finish] for e in trace.events]
    data["stalls"] = [asdict(stall) for stall in trace.stalls]
    data["memory"] = {"times": trace.timeline.times, "bytes": trace.timeline.bytes}
    data["plan"] = json.loads(trace.plan.to_json())
    return json.dumps(data)


def trace_from_json(text: str) -> Trace:
    """The trace that `trace_json` wrote.  Raises TraceError if it is none, or its events are not of its plan."""
    from vdnn.memory.trace import Trace

    try:
        data = json.loads(text)
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise TraceError(f"format {found!r} is not {FORMAT!r}; a trace is what trace.to_json() writes")
        if "plan" not in data:
            raise TraceError("the trace has no plan in it, so that nobody knows what its events are; write it again")
        if data["time"] not in ("simulated", "measured"):
            raise TraceError(f"times are {data['time']!r}, neither 'simulated' nor 'measured'")
        plan = Plan.from_json(json.dumps(data["plan"]))
        return Trace(plan, _events_from(data["events"], plan), data["time"])
    except TraceError:
        raise
    except (PlanError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TraceError(f"not a trace in JSON: {type(error).__name__}: {error}") from error


def _events_from(rows: list[list[Any]], plan: Plan) -> list[Any]:
    from vdnn.memory.trace import Event

    events = []
    for index, stream, kind, name, start, finish in rows:
        step = plan.steps[index] if isinstance(index, int) and 0 <= index < len(plan.steps) else None
        if step is None or (step.stream, step.kind, step.name) != (stream, kind, name):
            raise TraceError(f"event {index}, {stream} {kind} {name}, is not step {index} of the plan: {step}")
        if (start is None) != (finish is None) or (start is not None and not 0 <= start <= finish < float("inf")):
            raise TraceError(f"event {index} runs from {start} to {finish} seconds")
        events.append(Event(index, step, stream, start, finish))
    return events
