"""The Trace Event Format's rules as its document has them, for the kinds of events that vdnn writes.

Source: "Trace Event Format", the document that chrome://tracing and Perfetto refer to.  Ids of arrows must be whole
numbers here, which is Perfetto's rule: it drops others.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

_NUMBER = {"type": "number", "minimum": 0}
_PLACE = {"pid": {"type": "integer"}, "tid": {"type": "integer", "minimum": 1}}
_NAMED = {"name": {"type": "string", "minLength": 1}, "cat": {"type": "string"}, "args": {"type": "object"}}


def _kind(phase, required, **properties):
    fields = {"ph": {"const": phase}, **_PLACE, **_NAMED, **properties}
    return {
        "if": {"properties": {"ph": {"const": phase}}},
        "then": {"properties": fields, "required": ["ph", "pid", "name", *required], "additionalProperties": False},
    }


_META = {"enum": ["process_name", "thread_name", "thread_sort_index"]}
_VALUES = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["ph"],
                "properties": {"ph": {"enum": ["X", "M", "C", "s", "f"]}},
                "allOf": [
                    _kind("X", ["tid", "ts", "dur"], ts=_NUMBER, dur=_NUMBER),
                    _kind("M", ["args"], name=_META),
                    _kind("C", ["ts", "args"], ts=_NUMBER, args=_VALUES),
                    _kind("s", ["tid", "ts", "id"], ts=_NUMBER, id={"type": "integer", "minimum": 0}),
                    _kind("f", ["tid", "ts", "id", "bp"], ts=_NUMBER, id={"type": "integer"}, bp={"const": "e"}),
                ],
            },
        },
    },
}


def problems(events):
    """What is wrong with the events taken together: slices that overlap without nesting, and arrows in the air."""
    slices = {}
    for e in events:
        if e["ph"] == "X":
            slices.setdefault((e["pid"], e["tid"]), []).append((e["ts"], round(e["ts"] + e["dur"], 3), e["name"]))
    found = []
    for (pid, tid), spans in slices.items():
        spans.sort(key=lambda span: (span[0], -span[1]))
        for (_, end, name), (begin, after, inner) in pairwise(spans):
            if begin < end < after:
                found.append(f"on thread {pid}.{tid} {inner!r} begins at {begin} inside of {name!r} and ends after it")
    arrows = {}
    for e in events:
        if e["ph"] in "sf":
            arrows.setdefault(e["id"], []).append(e)
    for identity, ends in arrows.items():
        count = Counter(e["ph"] for e in ends)
        if count != {"s": 1, "f": 1}:
            found.append(f"arrow {identity} has {count['s']} begin, {count['f']} end")
            continue
        for e in ends:
            spans = slices.get((e["pid"], e["tid"]), [])
            if not any(begin <= e["ts"] <= end for begin, end, _ in spans):
                found.append(f"arrow {identity} is at {e['ts']} on thread {e['pid']}.{e['tid']} outside of all slices")
    return found
