"""Fig. 9: what vDNN_all does with two streams, over time; the time that compute waits for a copy is wasted.

    python experiments/paper/fig09.py

The figure is a sketch without numbers; here it is a simulated step of VGG-16 (64) under vDNN_all (p), drawn where it
is of interest: its first two groups of convolutions, forward and backward.  By the paper's rules a layer's offload
runs beside its forward, a prefetch beside the backward of a layer above, and both streams are joined where one copied:
compute waits at the join.  By ours each way has a stream of its own, compute waits only for the bytes it touches, and
copies are timed so that it waits little; the peaks stand beside the times.  Blocks of compute without a name are
in-place ReLUs, or too short for one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click
from drawing import Block, timeline
from published import MIB
from reporting import Result, console_table, write_results
from rich.console import Console
from study import Run, run

from vdnn.memory.trace import Event

HERE = Path(__file__).parent
NETWORK = ("vgg19", 64)
LAYERS = {"conv1_1": "CONV_01", "conv1_2": "CONV_02", "pool1": "POOL_1", "conv2_1": "CONV_03", "conv2_2": "CONV_04"}
RULES = {"paper": "paper's rules", "ours": "our rules"}


def step(rules: str) -> Run:
    """The simulated step under one set of rules."""
    return run(*NETWORK, "vdnn_all", "p", rules, "features")


def blocks(rules: str, phase: str) -> list[Block]:
    """What is drawn: ops and copies of the first layers and the waits between, in ms; phase "forward" or "backward"."""
    made = step(rules)
    first, last = _window(made, phase)
    found = []
    for event in made.trace.events:
        if event.step.kind in ("compute", "offload", "prefetch") and first <= event.start < last:
            block = _block(made, rules, event)
            found += [block] if block else []
    found += [
        Block(f"{RULES[rules]}\ncompute", "", start, finish, "wasted")
        for start, finish in waits(made)
        if first <= start < last
    ]
    return [
        block._replace(start=1e3 * (block.start - first), finish=1e3 * (block.finish - first))
        for block in sorted(found, key=lambda block: (block.start, not block.lane.endswith("compute")))
    ]


def _window(made: Run, phase: str) -> tuple[float, float]:
    """From when to when in seconds the first layers compute."""
    events = [e for e in made.trace.events if e.step.kind == "compute"]
    mine = [e for e in events if e.step.name.split(".")[0] in LAYERS and e.step.name.split(".")[1].startswith(phase)]
    return mine[0].start, max(e.finish for e in mine)


def _block(made: Run, rules: str, event: Event) -> Block | None:
    """An op of a layer or a copy of its X, by the paper's names; None for what is not drawn: ReLUs and updates."""
    lane = f"{RULES[rules]}\n{'memory' if rules == 'paper' and event.stream == 'offload' else event.stream}"
    if event.step.kind == "compute":
        op = made.plan.tape.ops[made.plan.tape.index[event.step.name]]
        if op.layer not in LAYERS and op.kind != "relu":
            return None
        part = {"backward_weights": " dW", "backward_data": " dX"}.get(op.phase, "") if rules == "ours" else ""
        label = LAYERS[op.layer] + part if op.layer in LAYERS else ""
        return Block(lane, label, event.start, event.finish, "forward" if op.phase == "forward" else "backward")
    layer = _reader(made, event.step.name)
    return Block(lane, f"X of {LAYERS[layer]}", event.start, event.finish, event.step.kind) if layer else None


def _reader(made: Run, buffer: str) -> str:
    """The first of the drawn layers of which the buffer is X; "" if there is none."""
    tape = made.plan.tape
    found = [op for op in tape.ops if op.layer in LAYERS and op.arguments.get("x")]
    return next((op.layer for op in found if tape.buffer_of[op.arguments["x"]] == buffer), "")


def waits(made: Run) -> list[tuple[float, float]]:
    """(start, finish) in seconds of every wait of compute for a copy; the images' first way to the device is none."""
    starts = made.trace.starts
    stalls = [stall for stall in made.trace.stalls if stall.copy >= 0 and starts[stall.index] > stall.seconds]
    return [(starts[stall.index] - stall.seconds, starts[stall.index]) for stall in stalls]


@cache
def results() -> list[Result]:
    """The time that compute waits for copies, by layers of the picture, for the whole step, and by both rules."""
    found = []
    for rules, name in RULES.items():
        made = step(rules)
        turn = min(e.start for e in made.trace.events if e.step.name.startswith("loss.backward"))
        wasted = {
            "wasted in forward": sum(b - a for a, b in waits(made) if b <= turn),
            "wasted in backward": sum(b - a for a, b in waits(made) if b > turn),
            "step": made.trace.step_seconds,
        }
        for phase in ("forward", "backward"):
            picture = [b for b in blocks(rules, phase) if b.kind == "wasted"]
            wasted[f"wasted in the picture, {phase}"] = sum(b.finish - b.start for b in picture) / 1e3
        peak, note = made.plan.peak_bytes / MIB, "convolutions' weights only; a sketch in the paper, without numbers"
        found.append(Result("Fig. 9", *NETWORK, f"peak, {name}", "MiB", None, peak, "exact", note=note))
        for quantity, seconds in wasted.items():
            what = f"{quantity}, {name}"
            found.append(Result("Fig. 9", *NETWORK, what, "ms", None, 1e3 * seconds, "simulated"))
    return found


def draw(folder: Path) -> None:
    """Write fig09.png, forward, and fig09_backward.png: the paper's rules above, ours below."""
    for phase, name in (("forward", "fig09.png"), ("backward", "fig09_backward.png")):
        drawn = [block for rules in RULES for block in blocks(rules, phase)]
        title = f"Fig. 9: vDNN_all, {phase} of the first layers of VGG-16 (64)"
        timeline(folder / name, title, drawn, kind="simulated")


@click.command()
def main() -> None:
    """Recompute Fig. 9: print it, and write results/fig09.csv, pictures/fig09.png and pictures/fig09_backward.png."""
    Console().print(console_table(results()))
    about = "Fig. 9 recomputed: waits of compute under vDNN_all (p), VGG-16 (64), Titan X; simulated"
    write_results(HERE / "results" / "fig09.csv", results(), about)
    draw(HERE / "pictures")


if __name__ == "__main__":
    main()
