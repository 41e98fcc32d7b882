"""Step and Plan: a training step as a list that can be printed, parsed back, verified, simulated and run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vdnn.layers.base import Algorithm
from vdnn.memory.decisions import CHOICES, Decisions, Fate
from vdnn.memory.decisions import PlanError as PlanError
from vdnn.naming import hint
from vdnn.network import Role, Tensor
from vdnn.rewrites import title
from vdnn.tape import GRANULE, Op, Tape, granules

if TYPE_CHECKING:
    from vdnn.explain import Explanation
    from vdnn.memory.cost import Cost
    from vdnn.memory.trace import Trace

KINDS = ("compute", "alloc", "free", "offload", "prefetch")
STREAMS = ("compute", "offload", "prefetch")
DISK = "disk"  # the tier of a copy to or from the spill file
SECTOR = 4096  # bytes: what lies in that file takes whole ones, as direct I/O may ask for
SHARED = (Role.GRADIENT, Role.WORKSPACE)  # what shares slots under network-wide lifetimes


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a plan.

    kind       compute, alloc, free, offload (device to host or disk) or prefetch (back to the device)
    name       the op of a compute step; else the buffer ("conv1.forward.workspace" for an op's scratch)
    stream     where it runs: compute, offload or prefetch; alloc and free do nothing when a plan runs
    offset     alloc: bytes into the arena; offload and prefetch: bytes into the host slab, or the spill file; else -1
    algorithm  of a compute step
    waits      indices of earlier steps on other streams that must have finished
    tier       of a copy to or from the spill file, disk; else nothing
    """

    kind: str
    name: str
    stream: str = "compute"
    offset: int = -1
    algorithm: str = ""
    waits: tuple[int, ...] = ()
    tier: str = ""

    def __str__(self) -> str:
        text = f"{self.stream:<8} {self.kind:<8} {self.name}"
        if self.algorithm:
            text += f" by {self.algorithm}"
        if self.tier:
            text += f" on {self.tier}"
        if self.offset >= 0:
            text += f" @{self.offset}"
        if self.waits:
            text += f" after {' '.join(map(str, self.waits))}"
        return text

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step that prints as `text`.  Raises PlanError."""
        found = _LINE.fullmatch(text.strip())
        if not found:
            raise PlanError(f"not a step: {text!r}")
        stream, kind, name, algorithm, tier, offset, waits = found.groups()
        if kind not in KINDS or stream not in STREAMS or tier not in (None, DISK):
            raise PlanError(f"no such kind of step, stream or tier: {text!r}")
        after = tuple(int(i) for i in (waits or "").split())
        return cls(kind, name, stream, int(offset) if offset else -1, algorithm or "", after, tier or "")


_LINE = re.compile(r"(\w+) +(\w+) +(\S+)(?: by (\S+))?(?: on (\w+))?(?: @(\d+))?(?: after ([\d ]+))?")


@dataclass(frozen=True, eq=False)
class Plan:
    """A step of training, decided to the byte before it runs.  Immutable.

    steps        in the order in which they are issued; each stream runs its own in this order
    arena_bytes  size of the device slab that the layout needs
    host_bytes   size of the host slab: offloaded tensors, inputs, results and the undo area
    disk_bytes   size of the spill file: what of offloaded tensors and the undo area is on disk
    bound_seconds  as a search says: no plan of the step is faster within the budget that this one was found for; else 0
    cost         the times that it was decided by, if it was made with some; its text and JSON have none
    """

    tape: Tape
    decisions: Decisions
    steps: tuple[Step, ...]
    arena_bytes: int
    host_bytes: int
    policy: str = ""
    bound_seconds: float = 0.0
    disk_bytes: int = 0
    cost: Cost | None = None

    def times(self, cost: Cost | None = None) -> Cost:
        """`cost`, or the times that the plan was decided by.  Raises PlanError if there are neither."""
        known = self.cost if cost is None else cost
        if known is None:
            raise PlanError("the plan was made without times; give some, such as cost=vdnn.roofline('titan-x')")
        return known

    # ---- figures

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Bytes live after each step, in plan order."""
        live, out = 0, []
        for step in self.steps:
            if step.kind == "alloc":
                live += self.size(step.name)
            elif step.kind == "free":
                live -= self.size(step.name)
            out.append(live)
        return tuple(out)

    @cached_property
    def peak_bytes(self) -> int:
        """Most bytes live at one time: what an ideal allocator would need."""
        if self.decisions.lifetimes == "network":
            return self.arena_bytes
        return max(self.live_bytes, default=0)

    @cached_property
    def offloaded_bytes(self) -> int:
        """Bytes that fates send to host memory or disk in one step (results and the undo area are not among them)."""
        copies = Counter(s.name for s in self.steps if s.kind == "offload" and self.fate(s.name) is Fate.OFFLOAD)
        copies.subtract(b for name in self.tape.results if (b := self.tape.buffer_of[name]) in copies)
        return sum(count * self.payload(name) for name, count in copies.items())

    @property
    def is_within_host(self) -> bool:
        """Whether the host slab is within its budget, if it has one; a budget of 0 is one of as little as can be."""
        return not self.decisions.host_budget or self.host_bytes <= self.decisions.host_budget

    @property
    def floor_bytes(self) -> int:
        """What no plan of this tape can undercut."""
        return self.tape.floor_bytes

    @cached_property
    def breakdown(self) -> dict[str, int]:
        """Bytes live at the peak, by role; they add up to `peak_bytes`."""
        if self.decisions.lifetimes == "network":
            return self._slots()
        at = max(range(len(self.steps)), key=self.live_bytes.__getitem__, default=-1)
        live: dict[str, int] = {}
        for step in self.steps[: at + 1]:
            if step.kind in ("alloc", "free"):
                sign = 1 if step.kind == "alloc" else -1
                role = self.role(step.name)
                live[role] = live.get(role, 0) + sign * self.size(step.name)
        return {str(role): n for role, n in live.items() if n}

    def _slots(self) -> dict[str, int]:
        """Bytes of the arena by role under network-wide lifetimes; the slots of a shared role are equally large."""
        allocs = [s for s in self.steps if s.kind == "alloc"]
        sizes: dict[Role, list[int]] = {}
        for role, _, size in dict.fromkeys((self.role(s.name), s.offset, self.size(s.name)) for s in allocs):
            sizes.setdefault(role, []).append(size)
        slots = {role: len({s.offset for s in allocs if self.role(s.name) == role}) for role in SHARED}
        return {str(role): slots[role] * max(n) if role in SHARED else sum(n) for role, n in sizes.items()}

    @property
    def threads(self) -> int:
        """Workers that the workspaces are sized for."""
        return self.tape.threads

    # ---- what names mean

    def fate(self, name: str) -> Fate | None:
        """The fate of a buffer, or of a tensor in it; None for what has none (weights, gradients, workspaces).

        Raises KeyError, with near matches, for what is not in the plan.
        """
        found = self.decisions.fates.get(name)
        if found is not None or not name or name in self._scratch:
            return found
        return self.decisions.fates.get(self.tape.buffer_of[self.tape.tensor(name).name])

    def tier(self, name: str) -> str:
        """Where the copy of a buffer is, host or disk; "" of what is never copied."""
        return self._tiers.get(name, "")

    @cached_property
    def _tiers(self) -> dict[str, str]:
        return {s.name: s.tier or "host" for s in self.steps if s.kind in ("offload", "prefetch")}

    @property
    def spilled(self) -> tuple[str, ...]:
        """The buffers whose copies are on disk, in the order in which they leave."""
        return tuple(name for name, tier in self._tiers.items() if tier == DISK)

    def size(self, name: str) -> int:
        """Bytes that a buffer, or an op's workspace, takes in the arena.  Raises KeyError with near matches."""
        buffer = self.tape.buffers.get(name)
        return buffer.nbytes if buffer else granules(self._workspace_bytes(name))

    def payload(self, name: str) -> int:
        """Bytes that a buffer or workspace really holds, without padding."""
        buffer = self.tape.buffers.get(name)
        return buffer.payload if buffer else self._workspace_bytes(name)

    def _workspace_bytes(self, name: str) -> int:
        if name not in self._scratch:
            wrong = f"{name!r} is no buffer and no workspace of {self.tape.network}"
            raise KeyError(f"{wrong}{hint(name, (*self.tape.buffers, *self._scratch))}")
        return self._scratch[name]

    def role(self, name: str) -> Role:
        """The role of a buffer or workspace."""
        return self.tape.buffers[name].role if name in self.tape.buffers else Role.WORKSPACE

    @cached_property
    def _scratch(self) -> dict[str, int]:
        chosen = self.decisions.algorithms
        return {workspace_of(op.name): op.algorithm(chosen[op.name]).workspace for op in self.tape.ops}

    # ---- text and JSON

    def __str__(self) -> str:
        head = json.dumps(self._header())
        return "\n".join([f"# vdnn plan {head}", *(f"{i:>5} {step}" for i, step in enumerate(self.steps))]) + "\n"

    @classmethod
    def parse(cls, text: str, tape: Tape) -> Plan:
        """The plan of `tape` that prints as `text`.  Raises PlanError."""
        first, *lines = text.strip().splitlines() or [""]
        if not first.startswith("# vdnn plan "):
            raise PlanError(f"a plan's text begins with '# vdnn plan', not {first[:40]!r}")
        steps: list[Step] = []
        for line in filter(str.strip, lines):
            number, _, rest = line.strip().partition(" ")
            if number != str(len(steps)):  # waits are numbers of steps
                raise PlanError(f"step {len(steps)} is numbered {number!r}; waits would mean other steps: {line!r}")
            steps.append(Step.parse(rest))
        try:
            return cls._from(json.loads(first.removeprefix("# vdnn plan ")), tuple(steps), tape)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise PlanError(f"not the first line of a plan: {type(error).__name__}: {error}") from error

    def to_json(self) -> str:
        """The plan with its tape as one JSON object; `Plan.from_json` reads it back."""
        tape = {k: getattr(self.tape, k) for k in (*_FACTS, "rewrites", "optimizer", *_SET)}
        tape |= {"resident": self.tape.resident, "results": self.tape.results, "alias": dict(self.tape.alias)}
        tape["tensors"] = [[t.name, t.shape, t.dtype, t.role] for t in self.tape.tensors.values()]
        tape["ops"] = [asdict(op) for op in self.tape.ops]
        steps = [[s.kind, s.name, s.stream, s.offset, s.algorithm, s.waits, s.tier] for s in self.steps]
        steps = [step if step[-1] else step[:-1] for step in steps]  # as before there were tiers
        return json.dumps({"format": "vdnn plan 1", "header": self._header(), "tape": tape, "steps": steps})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.  Raises PlanError if it is none."""
        try:
            data = json.loads(text)
            if data["format"] != "vdnn plan 1":
                raise PlanError(f"format {data['format']!r} is not 'vdnn plan 1'")
            tape = _tape_from(data["tape"])
            steps = tuple(Step(k, n, s, o, a, tuple(w), *tier) for k, n, s, o, a, w, *tier in data["steps"])
            return cls._from(data["header"], steps, tape)
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"not a plan in JSON: {type(error).__name__}: {error}") from error

    def _header(self) -> dict[str, Any]:
        tape = self.tape
        d = self.decisions
        return {
            **{k: getattr(tape, k) for k in _FACTS},
            "rewrites": list(tape.rewrites),
            "policy": self.policy,
            **{k: getattr(tape, k) for k in _SET},
            "alignment": GRANULE,
            "arena_bytes": self.arena_bytes,
            "host_bytes": self.host_bytes,
            "disk_bytes": self.disk_bytes,
            "decisions": {
                "fates": dict(d.fates),
                "algorithms": dict(d.algorithms),
                "ahead": d.ahead,
                "slack": d.slack,
                "returns": d.returns,
                "effort": d.effort,
                "within": d.within,
                "tiers": dict(d.tiers),
                "host_budget": d.host_budget,
                **{name: getattr(d, name) for name in CHOICES},
            },
        }

    @classmethod
    def _from(cls, header: Mapping[str, Any], steps: tuple[Step, ...], tape: Tape) -> Plan:
        header = {"micro_batches": 1, "disk_bytes": 0, **header}  # before there were any, nothing was said
        for key in (*_FACTS, *_SET):
            if header[key] != getattr(tape, key):
                raise PlanError(f"the plan is for {key} {header[key]!r}, the tape for {getattr(tape, key)!r}")
        rewrites = tuple(header.get("rewrites", tape.rewrites))  # before there were any, nothing was said
        if rewrites != tape.rewrites:
            raise PlanError(f"the plan is for the rewrites {title(rewrites)}, the tape for {title(tape.rewrites)}")
        if header["alignment"] != GRANULE:
            raise PlanError(f"the plan is aligned to {header['alignment']} bytes, this vdnn to {GRANULE}")
        d = dict(header["decisions"])
        d["fates"] = {k: Fate(v) for k, v in d["fates"].items()}
        sizes = {name: header[name] for name in ("arena_bytes", "host_bytes", "disk_bytes")}
        return cls(tape, Decisions(**d), steps, policy=header["policy"], **sizes)

    # ---- for people

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked for and had no effect, a sentence each (vdnn.notes)."""
        from vdnn.notes import notes_on

        return notes_on(self)

    def explain(self, cost: Cost | None = None, *, replan: int | Iterable[str] | None = None) -> Explanation:
        """For every tensor its bytes, uses, fate and stall, why, and what else it could cost; see vdnn.explain."""
        from vdnn.explain import explain

        return explain(self, cost, replan=replan)

    def table(self, trace: Trace | None = None) -> str:
        """Tensor by tensor: fate, bytes, when it leaves and returns; with a trace of the plan also times and stalls."""
        from vdnn.tables import plan_table

        return plan_table(self, trace)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        from vdnn.tables import plan_html

        return plan_html(self)

    def excerpt(self, at: int, around: int = 6) -> str:
        """The steps around index `at`, with an arrow."""
        first = max(0, at - around)
        lines = []
        for i, step in enumerate(self.steps[first : at + around + 1], first):
            lines.append(f"{i:>5} {step}{'   <-- HERE' if i == at else ''}")
        return "\n".join(lines)

    def computes(self) -> Iterator[tuple[int, Step, Op]]:
        """(index, step, op) of every compute step."""
        for i, step in enumerate(self.steps):
            if step.kind == "compute":
                yield i, step, self.tape.ops[self.tape.index[step.name]]

    def __repr__(self) -> str:
        return (
            f"Plan({self.tape.network}, {self.tape.batch_label}, {self.policy or 'own decisions'}: "
            f"{len(self.steps)} steps, arena {self.arena_bytes} bytes, host {self.host_bytes} bytes"
            f"{f', disk {self.disk_bytes} bytes' if self.disk_bytes else ''})"
        )


_SET = ("kernels", "storage", "threads")  # what, with the alignment, a device must match
_FACTS = ("network", "batch", "micro_batches", "purpose", "count")  # what else a plan's tape must match


def workspace_of(op: str) -> str:
    """The name under which an op's scratch is allocated."""
    return f"{op}.workspace"


def _tape_from(data: Mapping[str, Any]) -> Tape:
    tensors = {n: Tensor(n, tuple(shape), dtype, Role(role)) for n, shape, dtype, role in data["tensors"]}
    ops = []
    for o in data["ops"]:
        lists = {"reads": tuple(o["reads"]), "writes": tuple(o["writes"])}
        ops.append(Op(**{**o, **lists, "algorithms": tuple(Algorithm(**a) for a in o["algorithms"])}))
    data = {"micro_batches": 1, "rewrites": (), **data}  # before there were any, nothing was said
    plain = {k: data[k] for k in (*_FACTS, "optimizer", *_SET)}
    plain |= {k: tuple(data[k]) for k in ("resident", "results", "rewrites")}
    return Tape(**plain, tensors=tensors, alias=dict(data["alias"]), ops=tuple(ops))
