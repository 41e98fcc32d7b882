"""Times of single layers in a step, of vdnn and of PyTorch, so that they can stand beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cpu_cases import KERNELS, LAYOUTS
from rich.table import Table

from vdnn.tape import FORWARD_PHASES

LayerTimes = dict[tuple[str, str], float]  # {(layer, "forward", "backward" or "update"): seconds}
SIDES = (*(f"vdnn {kernels}" for kernels in KERNELS), *(f"torch {layout} fused" for layout in LAYOUTS))
LAYER_COLUMNS = ("network", "batch", "image", "threads", "layer", "phase", *(f"{side} ms measured" for side in SIDES))
MOST = 20  # layers that are printed
EVERY = "all"  # PyTorch updates all weights in one call


def of_trace(trace: Any) -> LayerTimes:
    """Seconds of each layer's ops in a step that vdnn ran; all updates together, as PyTorch has them."""
    found: LayerTimes = {}
    ops = {i: op for i, _, op in trace.plan.computes()}
    for event in trace.events:
        op = ops.get(event.index)
        if op is None:
            continue
        if op.phase == "update":
            key = EVERY, "update"
        else:
            key = op.layer or "sums", "forward" if op.phase in FORWARD_PHASES else "backward"
        found[key] = found.get(key, 0.0) + event.finish - event.start
    return found


def of_torch(seconds: Mapping[tuple[str, str], float]) -> LayerTimes:
    """PyTorch's, which are in that form already."""
    return dict(seconds)


def rows_of(times: Mapping[str, LayerTimes]) -> Iterator[tuple[str, ...]]:
    """(layer, phase, every side's time in ms) of each layer that any side has; "" where a side has it not."""
    for key in dict.fromkeys(key for side in times.values() for key in side):
        found = [times.get(side, {}).get(key) for side in SIDES]
        yield *key, *("" if seconds is None else f"{1e3 * seconds:.3f}" for seconds in found)


def slowest(times: Mapping[str, LayerTimes], most: int = MOST) -> Table:
    """The layers that take vdnn longest, with every side's time in ms, and the rest of them together."""
    ours = [name for name in times if name.startswith("vdnn")]
    keys = sorted(times[ours[-1]], key=times[ours[-1]].__getitem__, reverse=True)
    table = Table(title="layers, ms, measured in a step of their own")
    for column in ("layer", "phase", *times):
        table.add_column(column, justify="left" if column in ("layer", "phase") else "right")
    for key in keys[:most]:
        table.add_row(*key, *(f"{1e3 * side.get(key, 0.0):.2f}" for side in times.values()))
    shown = set(keys[:most])
    for phase in ("forward", "backward"):
        rest = [sum(s for key, s in side.items() if key[1] == phase and key not in shown) for side in times.values()]
        table.add_row("all others", phase, *(f"{1e3 * seconds:.2f}" for seconds in rest))
    table.add_row("all", "", *(f"{1e3 * sum(side.values()):.2f}" for side in times.values()), style="bold")
    return table
