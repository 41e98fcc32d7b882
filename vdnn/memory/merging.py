"""Merging: ops that a device can do in one pass over memory, though they are two steps of a plan.

    bn.forward     y = x * scale + offset    } bn.forward(rectify=True), and relu.forward does nothing
    relu.forward   y = max(y, 0), over y     }

The plan stays as it is, and so does every bit: layers say whose work is of this kind, and which of their methods can do
it in passing (Layer.rectifies, Layer.takes_rectify).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vdnn.memory.plan import Plan
from vdnn.network import Network
from vdnn.rewrites import as_on_tape
from vdnn.tape import Op


def merges(plan: Plan, network: Network, kernels: Any) -> Iterator[tuple[int, int]]:
    """(step that does the work of both, step that does nothing) of every pair of ops that can be merged.

    The second overwrites what the first has written, and no op and no copy touches these bytes between the two.
    """
    touched: dict[str, int] = {}  # {buffer: the last step so far that touches it}
    for j, step in enumerate(plan.steps):
        if step.kind != "compute":
            touched[step.name] = j
            continue
        k = plan.tape.index[step.name]
        op = plan.tape.ops[k]
        if op.is_forward and _rectifies(op, plan, network):
            i = touched.get(plan.tape.buffer_of[op.arguments["x"] or ""], -1)
            if i >= 0 and plan.steps[i].kind == "compute":
                first = plan.tape.ops[plan.tape.index[plan.steps[i].name]]
                if first.arguments.get("y") == op.arguments["x"] and _takes_rectify(first, network, kernels):
                    yield i, j
        touched |= dict.fromkeys((*plan.tape.reads[k], *plan.tape.writes[k]), j)


def _rectifies(op: Op, plan: Plan, network: Network) -> bool:
    """Whether the op is y = max(x, 0) and y is in x's bytes."""
    layer = as_on_tape(network[op.layer].layer, op.arguments)
    return layer.rectifies(op.phase) and len({plan.tape.buffer_of[op.arguments[n] or ""] for n in ("x", "y")}) == 1


def _takes_rectify(op: Op, network: Network, kernels: Any) -> bool:
    node = network[op.layer]
    named = node.layer.needs(op.phase, len(node.inputs))  # a subclass may have a method of its own
    return op.is_forward and "rectify" in named and node.layer.takes_rectify(kernels, op.phase)
