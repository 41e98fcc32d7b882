"""Summaries for notebooks: a network layer by layer, and a trace by its figures and longest waits."""

from __future__ import annotations

from math import prod

from vdnn.html_tables import html_table
from vdnn.memory.trace import COPIES, Trace
from vdnn.network import Network, Node
from vdnn.tables import headline
from vdnn.units import format_bytes, format_seconds

WAITS = 5  # of the longest stalls that are shown


def network_html(network: Network) -> str:
    """The layers with their outputs, parameters and bytes."""
    maps = [node.y.nbytes for node in network.nodes]
    weights = sum(tensor.nbytes for tensor, _ in network.parameters.values())
    count = sum(prod(tensor.shape) for tensor, _ in network.parameters.values())
    title = (
        f"{network.name}, batch {network.batch}, {network.dtype}: {len(network.nodes)} layers, {count:,} parameters\n"
        f"input {_shape(network.input.shape)}; weights {format_bytes(weights)}; all outputs together "
        f"{format_bytes(sum(maps))}"
    )
    columns = ("layer", "kind", "reads", "output", "output bytes", "parameters")
    lines = [_layer(node, size) for node, size in zip(network.nodes, maps, strict=True)]
    return html_table(title, columns, lines, rows="layers", bar=("output bytes", maps))


def _layer(node: Node, size: int) -> list[str]:
    count = sum(prod(tensor.shape) for tensor in node.parameters.values())
    reads = ", ".join(tensor.name for tensor in node.inputs)
    shape = _shape(node.y.shape) if node.y.shape else "one number"
    return [node.name, node.layer.kind, reads, shape, format_bytes(size), f"{count:,}" if count else ""]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def trace_html(trace: Trace) -> str:
    """What each stream did in the step, and where compute waited longest."""
    plan = trace.plan
    title = (
        f"{headline(plan)}\na step of {format_seconds(trace.step_seconds)}, {trace.kind}; "
        f"{trace.hidden_copy_fraction:.0%} of the copies hidden; on average {format_bytes(trace.average_bytes)} in use"
    )
    columns = ("stream", "does", f"busy, {trace.kind}", "of the step", "moved")
    lines = [_stream(trace, kind) for kind in ("compute", *COPIES)]
    waits = sorted(trace.stalls, key=lambda stall: -stall.seconds)[:WAITS]
    found = [[s.op, s.cause or "no copy", format_seconds(s.seconds)] for s in waits]
    if not found:
        return html_table(title, columns, lines) + html_table("compute never waits", (), ())
    total = format_seconds(sum(stall.seconds for stall in trace.stalls))
    about = f"compute waits {len(trace.stalls)} times, {total} in all, {trace.kind}; the longest {len(found)}:"
    seconds = [stall.seconds for stall in waits]
    return html_table(title, columns, lines) + html_table(
        about, ("before", "waits for", "stall"), found, bar=("stall", seconds)
    )


def _stream(trace: Trace, kind: str) -> list[str]:
    steps = trace.plan.steps
    done = [e for e in trace.events if steps[e.index].kind == kind and e.start is not None and e.finish is not None]
    busy = sum((e.finish or 0.0) - (e.start or 0.0) for e in done)
    share = f"{busy / trace.step_seconds:.0%}" if trace.step_seconds else ""
    what = "ops" if kind == "compute" else "copies"
    moved = "" if kind == "compute" else format_bytes(trace.moved_bytes[kind])
    return [kind, f"{len(done)} {what}", format_seconds(busy), share, moved]
