"""What a timeline page shows of a trace: blocks of memory by role, and the work of the streams, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

from vdnn.memory.plan import DISK
from vdnn.network import Role
from vdnn.trace_files import shown_name
from vdnn.units import format_bytes

if TYPE_CHECKING:
    from vdnn.memory.trace import Event, Trace

# From the bottom up: first what stays for the whole step.
STACK = (
    *(Role.WEIGHT, Role.STATE, Role.STATISTICS, Role.INPUT, Role.FEATURE, Role.GRADIENT),
    *(Role.WEIGHT_GRADIENT, Role.WORKSPACE),
)
LANES = ("compute", "offload", "prefetch", "write to disk", "read from disk")
NAMED = 3  # of the tensors of a role, the largest that are named
FINEST = 2000  # a step with more events than MOST is drawn to so many parts of its time
MOST = 18000


@dataclass(frozen=True, slots=True)
class Block:
    """Live bytes of one role from `left` to `right` seconds: they lie between `bottom` and `top` of the stack.

    total   bytes of all roles at that time
    names   the largest of its tensors, with their layers and bytes, and how many others there are
    """

    role: str
    left: float
    right: float
    bottom: int
    top: int
    total: int
    names: str


@dataclass(frozen=True, slots=True)
class Bar:
    """What a lane does from `left` to `right` seconds.

    work    forward, rerun, backward, update, offload, prefetch or stall
    title   the op, or the tensor that is copied
    about   its layer, algorithm and bytes in words, or what a stall waits for
    """

    lane: str
    work: str
    left: float
    right: float
    title: str
    about: str


def is_coarse(trace: Trace) -> bool:
    """Whether a step has so many events that a page shows what is short together."""
    return len(trace.events) > MOST


# ---- memory


class _Stack:
    """The blocks that are open at a time, and how they follow from what is live."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.live: dict[str, dict[int, str]] = {role: {} for role in STACK}
        self.size = dict.fromkeys(STACK, 0)
        self.version = dict.fromkeys(STACK, 0)
        self.open: dict[str, tuple[float, tuple[int, int, int], str, int]] = {}

    def change(self, identity: int, name: str, is_born: bool) -> None:
        role = self.trace.plan.role(name)
        self.size[role] += self.trace.plan.size(name) * (1 if is_born else -1)
        self.version[role] += 1
        if is_born:
            self.live[role][identity] = name
        else:
            del self.live[role][identity]

    def turn(self, at: float) -> Iterator[Block]:
        """The blocks that end at this time, as others take their places."""
        bottom, total = 0, sum(self.size.values())
        for role in STACK:
            top = bottom + self.size[role]
            now = (bottom, top, self.version[role])
            before = self.open.get(role)
            if before is None or before[1] != now:
                if before and before[1][1] > before[1][0]:
                    yield Block(role, before[0], at, *before[1][:2], before[3], before[2])
                self.open[role] = (at, now, self._names(role) if top > bottom else "", total)
            bottom = top

    def _names(self, role: str) -> str:
        plan, layers = self.trace.plan, self.trace.layers
        names = list(self.live[role].values())
        largest = nlargest(NAMED, names, key=lambda name: (plan.size(name), name))
        told = [
            f"{shown}, layer {layers.get(shown) or '-'}, {format_bytes(plan.size(name))}"
            for name in largest
            for shown in [shown_name(plan, name)]
        ]
        left = len(names) - len(largest)
        return "; ".join(told) + (f"; and {left} more" if left else "")


def memory_blocks(trace: Trace) -> list[Block]:
    """Live bytes over the step, stacked by role; neighbours with the same tensors at the same height are one block.

    Under network-wide lifetimes each role has all its bytes all the time.  Of a step with very many changes those are
    drawn that come first after each of 2,000 equal parts of its time.
    """
    if trace.plan.decisions.lifetimes == "network":
        return _whole_step(trace)
    changes: dict[float, list[tuple[int, str, bool]]] = {}
    for identity, (name, _, _, birth, death) in enumerate(trace.lives()):
        if death > birth:
            changes.setdefault(birth, []).append((identity, name, True))
            changes.setdefault(death, []).append((identity, name, False))
    stack, blocks = _Stack(trace), list[Block]()
    least = trace.step_seconds / FINEST if is_coarse(trace) else 0.0
    drawn = float("-inf")
    end = max(changes, default=0.0)
    for at in sorted(changes):
        for change in sorted(changes[at], key=lambda change: change[2]):  # first what ends
            stack.change(*change)
        if at - drawn >= least or at == end:
            blocks += stack.turn(at)
            drawn = at
    return blocks


def _whole_step(trace: Trace) -> list[Block]:
    blocks, bottom = [], 0
    for role in STACK:
        size = trace.plan.breakdown.get(str(role), 0)
        if size:
            told = "one slot each for the whole step"
            block = Block(role, 0.0, trace.step_seconds, bottom, bottom + size, trace.plan.arena_bytes, told)
            blocks.append(block)
            bottom += size
    return blocks


# ---- streams


def stream_bars(trace: Trace) -> list[Bar]:
    """What each stream does, and where compute waits; alloc and free take no time."""
    seen: set[str] = set()
    bars = []
    for event in trace.events:
        if event.start is None or event.finish is None or event.step.kind in ("alloc", "free"):
            continue
        bars.append(_op_bar(event, trace, seen) if event.step.kind == "compute" else _copy_bar(event, trace))
    bars += _stall_bars(trace)
    return _drawn_together(bars, trace.step_seconds / FINEST) if is_coarse(trace) else bars


def _op_bar(event: Event, trace: Trace, seen: set[str]) -> Bar:
    step, plan = event.step, trace.plan
    op = plan.tape.ops[plan.tape.index[step.name]]
    work = "update" if op.phase == "update" else "backward" if op.is_backward else "forward"
    if step.name in seen:
        work = "rerun"
    seen.add(step.name)
    touched = sum(plan.payload(name) for name in trace.touched(step))
    about = [f"layer {op.layer}"] if op.layer else [f"of {op.target}"] if op.target else []
    about += [f"by {step.algorithm}"] if step.algorithm not in ("", "default") else []
    return _bar(event, "compute", work, step.name, ", ".join([*about, f"touches {format_bytes(touched)}"]))


def _copy_bar(event: Event, trace: Trace) -> Bar:
    step, plan = event.step, trace.plan
    on_disk = {"offload": "write to disk", "prefetch": "read from disk"}
    lane = on_disk[step.kind] if step.tier == DISK else step.kind
    shown = shown_name(plan, step.name)
    layer = trace.layers.get(shown)
    about = ([f"layer {layer}"] if layer else []) + [format_bytes(plan.payload(step.name))]
    about += [str(plan.role(step.name))]
    return _bar(event, lane, step.kind, shown, ", ".join(about))


def _bar(event: Event, lane: str, work: str, title: str, about: str) -> Bar:
    assert event.start is not None
    assert event.finish is not None
    return Bar(lane, work, event.start, event.finish, title, about)


def _stall_bars(trace: Trace) -> Iterator[Bar]:
    starts = trace.starts
    for stall in trace.stalls:
        start = starts[stall.index]
        why = waited_for(trace, stall.copy, stall.cause)
        yield Bar("compute", "stall", start - stall.seconds, start, f"{stall.op} waits", why)


def waited_for(trace: Trace, copy: int, cause: str) -> str:
    """What a stall waited for, in words."""
    if copy < 0:
        return "for no copy: the time went elsewhere"
    kind = trace.plan.steps[copy].kind
    return f"for the {kind} of {shown_name(trace.plan, cause)}, {format_bytes(trace.plan.payload(cause))}"


def _drawn_together(bars: list[Bar], least: float) -> list[Bar]:
    """The bars, with those that follow each other in a lane at one work joined until they take `least` seconds."""
    out: list[Bar] = []
    counts: list[int] = []
    for bar in sorted(bars, key=lambda bar: (bar.lane, bar.left)):
        last = out[-1] if out else None
        if last and (last.lane, last.work) == (bar.lane, bar.work) and bar.right - last.left < least:
            counts[-1] += 1
            title = f"{last.title.split(' to ')[0]} to {bar.title}"
            out[-1] = Bar(bar.lane, bar.work, last.left, bar.right, title, f"{counts[-1]} drawn as one")
        else:
            out.append(bar)
            counts.append(1)
    return out
