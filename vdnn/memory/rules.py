"""Rules: when the X of a layer leaves and returns, by our schedule or by the paper's.

                    ours                                  paper (section III)
waits               where bytes are touched by both       as well: join after every layer that copied
streams for copies  one each way                          one, stream_memory
prefetch            beside the layer before               found by the search of Fig. 10
images              fetched again, as the host has them   copied out like any other X
pooling             saves where its maxima were           reads x and y (vdnn.models.paper)
backward            weights, then data                    one op that needs {x, w, dy, dx} at once

The last two are the tape's: `build(paper(network), kernels, optimizer, rewrites="paper")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vdnn.memory.decisions import OFFLOAD, Decisions, Fate
from vdnn.tape import Op, Tape

RULES = ("ours", "paper")
EXTRACTION = ("conv", "pool", "bn", "lrn")  # layers of feature extraction that are not in place


def offload_inputs(tape: Tape, kinds: tuple[str, ...], rules: str = "ours") -> Decisions:
    """Offload the X of every layer of these kinds that backward reads; where several read it, at the last that does.

    Under our rules what pooling saves instead of its X goes along: small, but it would pile up.
    """
    saved = {tape.buffer_of[t.name] for t in tape.saved}
    fates: dict[str, Fate] = {}
    ahead: dict[str, int] = {}
    for halves in tape.rounds:
        last_reader = _last_readers(tape, halves[0], kinds, rules, saved)
        fates |= dict.fromkeys(last_reader, OFFLOAD)
        ahead |= (_found if rules == "paper" else _one_layer_ahead)(tape, halves, last_reader)
    return Decisions(fates, ahead=ahead)


def _last_readers(tape: Tape, forward: range, kinds: tuple[str, ...], rules: str, saved: set[str]) -> dict[str, str]:
    """{X: the last layer that reads it in forward, so the first in backward} of what leaves in one round."""
    last_reader: dict[str, str] = {}
    for op in (tape.ops[i] for i in forward):
        x = op.arguments.get("x")
        if x and _is_a(kinds, op) and tape.buffer_of[x] in saved:
            last_reader[tape.buffer_of[x]] = op.layer
        if rules == "ours" and "pool" in op.kind:
            extra = (tape.buffer_of[name] for name in op.writes if name != op.arguments.get("y"))
            last_reader |= {buffer: op.layer for buffer in extra if buffer in saved}
    return last_reader


def under(rules: str, decisions: Decisions, host_budget: int | None = None) -> Decisions:
    """`decisions` of any policy, carried out by these rules and, if that is given, in so many bytes of host memory."""
    if host_budget is not None:
        decisions = replace(decisions, host_budget=host_budget)
    if rules == "paper":
        return replace(decisions, sync="layer", streams=1, inputs="copied")
    return decisions


def _one_layer_ahead(tape: Tape, halves: tuple[range, range], last_reader: Mapping[str, str]) -> dict[str, int]:
    """{X: how many ops before the first that reads X the layer begins that comes before X's own layer}.

    Before in backward, that is: while one layer (CONV, POOL, ...) computes, the X of the next comes back (Fig. 10).
    """
    backward = halves[1]
    first = _first_use(tape, backward, last_reader)
    begins = {"": backward.start}  # {layer: its first backward op}, in order
    for i in backward:
        if _is_a(EXTRACTION, tape.ops[i]):
            begins.setdefault(tape.ops[i].layer, i)
    layers = list(begins)
    number = {layer: k for k, layer in enumerate(layers)}
    ahead = {}
    for buffer, layer in last_reader.items():
        before = layers[max(0, number[layer] - 1)] if layer in begins else ""
        ahead[buffer] = max(1, first[buffer] - begins[before])
    return ahead


def _found(tape: Tape, halves: tuple[range, range], last_reader: Mapping[str, str]) -> dict[str, int]:
    """{X: how many ops before its first use the layer begins whose search finds it} (section III-B, Fig. 10).

    Every layer, as its backward begins, looks for one X to fetch: that of the nearest layer below that was offloaded
    and not fetched yet, but no further down than the next CONV.  What no search finds comes back just before its use.
    """
    forward, backward = halves
    first = _first_use(tape, backward, last_reader)
    x_of = {layer: buffer for buffer, layer in last_reader.items()}
    kinds: dict[str, str] = {}  # {layer: kind} in forward order
    for op in (tape.ops[i] for i in forward):
        kinds.setdefault(op.layer, op.kind)
    layers = list(kinds)
    begins: dict[str, int] = {}
    for i in backward:
        begins.setdefault(tape.ops[i].layer, i)
    ahead: dict[str, int] = {}
    for current in range(len(layers) - 1, 0, -1):
        at = begins.get(layers[current], -1)
        for below in range(current - 1, -1, -1) if at >= 0 else ():
            layer = layers[below]
            buffer = x_of.get(layer, "")
            if buffer and buffer not in ahead:
                ahead[buffer] = max(0, first[buffer] - at)
                break
            if "conv" in kinds[layer]:
                break
    return {buffer: ahead.get(buffer, 0) for buffer in last_reader}


def _first_use(tape: Tape, backward: range, buffers: Mapping[str, str]) -> dict[str, int]:
    """{buffer: the first of these ops that reads it}."""
    first: dict[str, int] = {}
    for i in backward:
        first |= {b: i for b in tape.reads[i] if b in buffers and b not in first}
    return first


def _is_a(kinds: tuple[str, ...], op: Op) -> bool:
    """Whether the op's layer is of one of these kinds: max and average pooling are both "pool"."""
    return any(kind in op.kind for kind in kinds)
