"""Causes: what a plan holds at its peak and on average, and what its step waits for: the notes of Fig. 11 and 14."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from math import ceil
from typing import NamedTuple

from published import MIB
from study import TITAN_X, Run, is_feature

from vdnn.memory.decisions import Fate
from vdnn.memory.plan import Plan, workspace_of
from vdnn.memory.rules import offload_inputs
from vdnn.memory.trial import least_workspace, sketch
from vdnn.setting import name_algorithms
from vdnn.tape import Op

LETTER_OF = {"performance": "p", "memory": "m"}
LETTERS = {"x": "X", "y": "Y", "dx": "dX", "dy": "dY"}
GROUPED = {"weight": "weights", "workspace": "workspace"}  # roles that are summed up without names
FEW = 3  # names in a list
CLOSE = 0.1  # an average over layers that has no other cause to deviate than how one averages
PAPERS_DYN = {
    ("vgg19", 128): "the figure's is conv (p), whose bars are the same: unknown why",
    ("vgg19", 256): "the figure's seems to be all (mixed), by its height and by Fig. 14",
}  # elsewhere it does not differ from ours


class Moment(NamedTuple):
    """One op of a plan: bytes of what is live, by name, and what was fetched beside it."""

    op: Op
    live: dict[str, int]
    fetched: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of all that is live."""
        return sum(self.live.values())

    @property
    def found_by_pool(self) -> int:
        """Bytes that the search of Fig. 10 found for a POOL to fetch beside its backward."""
        is_pool = "pool" in self.op.kind and not self.op.is_forward
        return sum(self.live[name] for name in self.fetched) if is_pool else 0


@cache
def moments(plan: Plan) -> tuple[Moment, ...]:
    """Every op of the plan in order."""
    live: dict[str, int] = {}
    fetched: list[str] = []
    found = []
    for step in plan.steps:
        if step.kind == "alloc":
            live[step.name] = plan.size(step.name)
        elif step.kind == "free":
            del live[step.name]
        elif step.kind == "prefetch":
            fetched.append(step.name)
        elif step.kind == "compute":
            found.append(Moment(plan.tape.ops[plan.tape.index[step.name]], dict(live), tuple(fetched)))
            fetched = []
    return tuple(found)


def at_peak(plan: Plan, uncounted: float) -> str:
    """The op at which most is live and what that is, by tensor, in MiB; of the weights `uncounted` are left out."""
    op, live, fetched = max(moments(plan), key=lambda moment: moment.total)
    own: dict[str, list[str]] = {}
    for argument, tensor in op.arguments.items():
        if argument in LETTERS and tensor:
            own.setdefault(plan.tape.buffer_of[tensor], []).append(LETTERS[argument])
    parts = [f"{'/'.join(letters)} {name} {live[name] / MIB:,.0f}" for name, letters in own.items()]
    parts += [f"fetched beside it {name} {live[name] / MIB:,.0f}" for name in fetched if name not in own]
    groups: dict[str, list[str]] = {}
    for name in live:
        if name not in own and name not in fetched:
            role = str(plan.role(name))
            groups.setdefault(role if role in GROUPED else "others", []).append(name)
    for group, names in groups.items():
        total = sum(live[name] for name in names) / MIB - (uncounted if group == "weight" else 0)
        if total >= 0.5:
            parts.append(f"{GROUPED[group]} {total:,.0f}" if group in GROUPED else largest(names, live))
    return f"live at {op.name}: {', '.join(parts)}"


def largest(names: Iterable[str], sizes: Mapping[str, int]) -> str:
    """How many there are, their MiB, and the largest of them by name."""
    ordered = sorted((n for n in names if sizes[n] >= MIB / 2), key=lambda name: (-sizes[name], name))
    few = ", ".join(f"{name} {sizes[name] / MIB:,.0f}" for name in ordered[:FEW])
    if len(ordered) == 1:
        return few
    total, more = sum(sizes[name] for name in ordered) / MIB, ", ..." if len(ordered) > FEW else ""
    return f"{len(ordered)} others {total:,.0f} ({few}{more})"


@cache
def branch_ends(plan: Plan) -> tuple[str, ...]:
    """Maps that only a join reads on: kept by the plan, because ACTV's backward reads its Y; the largest first."""
    tape = plan.tape
    joined = {b for i, op in enumerate(tape.ops[: tape.turn]) if op.kind == "concat" for b in tape.reads[i]}
    return tuple(sorted((b for b in joined if plan.fate(b) is Fate.KEEP), key=lambda b: (-plan.size(b), b)))


def peak_without_ends(plan: Plan) -> float:
    """The peak in MiB if `branch_ends` took no bytes."""
    ends = branch_ends(plan)
    return max(moment.total - sum(moment.live.get(name, 0) for name in ends) for moment in moments(plan)) / MIB


def least_mib(plan: Plan) -> float:
    """The maximum of the same fates without any workspace, in MiB."""
    decisions = replace(plan.decisions, algorithms=least_workspace(plan.tape, TITAN_X))
    return sketch(plan.tape, decisions).peak_bytes / MIB


def largest_share(plan: Plan) -> float:
    """The largest share of the plan's peak that one op reads, writes and works in."""
    uses = [0]
    for i, op in enumerate(plan.tape.ops):
        if op.phase not in ("update", "sum"):
            names = {*plan.tape.reads[i], *plan.tape.writes[i], workspace_of(op.name)}
            uses.append(sum(plan.size(name) for name in names))
    return max(uses) / plan.peak_bytes


def outputs(plan: Plan, kind: str) -> float:
    """MiB of what all layers of a kind write in forward."""
    places = [i for i in range(plan.tape.turn) if plan.tape.ops[i].kind == kind]
    return sum(plan.size(name) for i in places for name in plan.tape.writes[i]) / MIB


def averages(plan: Plan) -> Counter[str]:
    """MiB over the layers of feature extraction: of each role, of "ends" (branch_ends) and of "found" by POOL."""
    middle = [m for m in moments(plan) if is_feature(m.op, plan.tape) and m.op.phase != "update"]
    total: Counter[str] = Counter()
    ends = set(branch_ends(plan))
    for moment in middle:
        total["found"] += moment.found_by_pool
        for name, size in moment.live.items():
            total["ends" if name in ends else str(plan.role(name))] += size
    return Counter({role: size / len(middle) / MIB for role, size in total.items()})


def of_average(plan: Plan, ours: float) -> str:
    """What an average over layers, `ours` in MiB, is made of."""
    found, ends = averages(plan), branch_ends(plan)
    parts = [f"{found['feature map'] + found['input']:,.0f} maps", f"{found['gradient map']:,.0f} gradient maps"]
    if found["workspace"] >= 0.5:
        parts.append(f"{found['workspace']:,.0f} workspaces by our model (the paper's are not published)")
    if ends:
        parts.append(f"{found['ends']:,.0f} outputs of inception branches")
    if found["found"] < 0.5:
        return f"of it {', '.join(parts)}" + (f"; without these outputs {ours - found['ends']:,.0f}" if ends else "")
    without = "these outputs and what POOL's search finds" if ends else "what POOL's search finds"
    return f"of it {', '.join(parts)}; without {without} {ours - found['ends'] - found['found']:,.0f}"


def of_maximum(plan: Plan, uncounted: float) -> str:
    """What is live at the maximum, and the maximum without `branch_ends`; `uncounted` MiB of weights are left out."""
    text = at_peak(plan, uncounted)
    if not branch_ends(plan):
        return text
    return f"{text}; without outputs of inception branches {peak_without_ends(plan) - uncounted:,.0f} at most"


def over_time(layers: float, time: float, paper: float) -> str:
    """How the average over layers compares with the paper's where the one over time deviates."""
    text, by_layers = f"the same plan as the {layers:,.0f} over layers", abs(layers / paper - 1)
    if by_layers < min(CLOSE, abs(time / paper - 1)):
        text += f"; unknown why; over layers it is within {ceil(100 * by_layers)} %"
    return text


def place(paper: float, least: float, most: float, grid: float) -> str:
    """Where the figure's maximum lies, read to `grid` MiB: most is with Fig. 4's workspace, least is without any."""
    text = f"the figure's {paper:,.0f} is"
    if paper < least - grid:
        return f"{text} below it"
    if paper > most + grid:
        return f"{text} above even the {most:,.0f} with Fig. 4's workspace: unexplained"
    return f"{text} between this and the one with Fig. 4's workspace"


def chosen(plan: Plan) -> str:
    """What vdnn_dyn chose: which X it offloads, and the algorithms."""
    moved = {name for name, fate in plan.decisions.fates.items() if fate is Fate.OFFLOAD}
    conv = set(offload_inputs(plan.tape, ("conv",), "paper").fates)
    offloads = "no offload" if not moved else "conv" if moved == conv else "all"
    return f"{offloads} ({LETTER_OF.get(name_algorithms(plan, TITAN_X), 'mixed')})"


# ---- time


class Times(NamedTuple):
    """Seconds of feature extraction: of its ops with the plan's algorithms, and of waiting, by what is waited for."""

    compute: float
    waits: dict[str, float]

    @property
    def waiting(self) -> float:
        """Seconds of all waits."""
        return sum(self.waits.values())


def times(made: Run) -> Times:
    """How long the ops of feature extraction compute, and which copies they wait for, longest first."""
    plan = made.plan
    feature = [is_feature(op, plan.tape) for op in plan.tape.ops]
    compute = 0.0
    for event in made.trace.events:
        if event.step.kind == "compute" and feature[plan.tape.index[event.step.name]]:
            compute += event.finish - event.start
    waits: Counter[str] = Counter()
    for stall in made.trace.stalls[1:] if made.trace.stalls else ():  # the first is for the images
        step = plan.steps[stall.copy]
        if feature[plan.tape.index[stall.op]]:
            waits[f"{step.name} {'out' if step.kind == 'offload' else 'back'}"] += stall.seconds
    return Times(compute, dict(waits.most_common()))


def convolution_share(made: Run) -> float:
    """The share of all computing time that convolutions take."""
    took: Counter[str] = Counter()
    for event in made.trace.events:
        if event.step.kind == "compute":
            took[made.plan.tape.ops[made.plan.tape.index[event.step.name]].kind] += event.finish - event.start
    return took["conv"] / sum(took.values())
