"""explain: for every tensor whose fate was decided, what that costs and saves, and a reason that follows from it.

A reason holds the fate against what else could be done with that tensor alone, all others staying as they are: its
copies take what the cost model says, and running its makers again takes what the plan's reruns would take more.  What
each other fate would cost is planned and simulated for some of the tensors, and estimated for the rest
(vdnn.alternatives).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vdnn.alternatives import Alternative, alternatives
from vdnn.collector import collector_paused
from vdnn.facts import Facts
from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Fate
from vdnn.memory.plan import Plan
from vdnn.memory.trace import Trace
from vdnn.reasons import Case, reason

ORDERS = ("bytes", "stall", "step")
REPLANNED_STEPS = 60_000  # steps of all plans that are made for alternatives unless more is asked for: a second or two


@dataclass(frozen=True)
class Row:
    """One buffer, named after the last tensor in it; all times are simulated seconds.

    tier            where its copy is, host or disk, while it is offloaded; else ""
    is_read_back    whether backward reads it
    leaves          when its source begins to be copied, or when the last op that needs it before it is forgotten ends
    returns         when its copy back begins, or when the op that makes it again does; both None while it stays
    copy_seconds    of all its copies both ways
    hidden_seconds  of these, the time in which an op ran
    stall_seconds   in which compute waited for one of its copies
    rerun_seconds   of reruns there would not be if it were kept, and all else stayed as it is
    saved_bytes     by which the plan's peak would be higher if its bytes stayed where it is away, and all else was
                    as it is.  What is made again with others, as batch norm's statistics are, would come and go even
                    if it were kept.  And what leaving "would free at the peak" of a tensor that is kept makes the
                    peak no lower where as much is live at another place
    tensors         all that share its bytes
    written_by      the forward ops that write it; read_by: those that read it; read_back_by: the backward ops that do
    alternatives    what every other fate that it could have would change
    """

    tensor: str
    bytes: int
    fate: Fate
    tier: str
    is_read_back: bool
    leaves: float | None
    returns: float | None
    copy_seconds: float
    hidden_seconds: float
    stall_seconds: float
    rerun_seconds: float
    saved_bytes: int
    reason: str
    tensors: tuple[str, ...] = ()
    written_by: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    read_back_by: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Why the tensors of a plan have their fates: a row for each, in the order of their last forward uses."""

    plan: Plan
    trace: Trace
    peak_op: str
    rows: tuple[Row, ...]

    def __getitem__(self, tensor: str) -> Row:
        """The row of that tensor's bytes.  Raises KeyError with near matches, or saying what has no fate."""
        wanted = self.plan.tape.tensor(tensor).name
        for row in self.rows:
            if wanted in row.tensors:
                return row
        role = self.plan.tape.tensors[wanted].role
        raise KeyError(f"{wanted!r} has no fate to explain: its role is {role}; feature maps and inputs have one")

    def sorted(self, by: str = "bytes") -> Explanation:
        """The same, largest or longest first: by "bytes" or by "stall"; "step" is the order of last forward uses."""
        if by not in ORDERS:
            raise ValueError(f"rows are sorted by {', '.join(ORDERS)}, not by {by!r}")
        if by == "step":
            return self
        key = {"bytes": lambda row: -row.bytes, "stall": lambda row: (-row.stall_seconds, -row.bytes)}[by]
        return replace(self, rows=tuple(sorted(self.rows, key=key)))

    def table(self, width: int | None = None) -> str:
        """The rows as text."""
        from vdnn.explain_tables import explanation_table

        return explanation_table(self, width)

    def about(self, tensor: str) -> str:
        """All about one tensor as text.  Raises KeyError."""
        from vdnn.explain_tables import about_tensor

        return about_tensor(self, self[tensor])

    def summary(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [asdict(row) for row in self.rows]

    def _repr_html_(self) -> str:
        """The rows, for notebooks."""
        from vdnn.explain_tables import explanation_html

        return explanation_html(self)

    def __repr__(self) -> str:
        stalled = sum(row.stall_seconds > 0 for row in self.rows)
        return (
            f"Explanation({self.plan!r}: {len(self.rows)} tensors, peak at {self.peak_op}, {stalled} cause stalls, "
            f"{self.trace.kind})"
        )


@collector_paused()
def explain(plan: Plan, cost: Cost | None = None, *, replan: int | Iterable[str] | None = None) -> Explanation:
    """What every fate of the plan costs and saves, simulated with the times of `cost`, and why it may be so.

    cost    by default the times that the plan was decided by; PlanError if it knows none
    replan  for which tensors other fates are really planned and simulated, one at a time: the names of some, or how
            many of the largest that backward reads.  None: of the largest as many as take a second or two.  What they
            would cost the others is estimated
    Raises KeyError for a name that there is not, ValueError for a negative number.
    """
    facts = Facts(plan, plan.times(cost))
    chosen = _chosen(facts, replan)
    buffers = [plan.tape.buffer_of[tensor.name] for tensor in plan.tape.features]
    rows = tuple(_row(facts, buffer, buffer in chosen) for buffer in buffers)
    return Explanation(plan, facts.trace, facts.peak_op, rows)


def _chosen(facts: Facts, replan: int | Iterable[str] | None) -> frozenset[str]:
    """The buffers whose alternatives are planned."""
    tape = facts.tape
    if isinstance(replan, str):
        replan = [replan]
    if replan is not None and not isinstance(replan, int):
        return frozenset(tape.buffer_of[tape.tensor(name).name] for name in replan)
    if replan is None:
        replan = REPLANNED_STEPS // (2 * max(1, len(facts.plan.steps)))
    if replan < 0 or isinstance(replan, bool):
        raise ValueError(f"replan={replan!r}: how many tensors are planned otherwise, or the names of some")
    saved = sorted((tape.buffer_of[t.name] for t in tape.saved), key=lambda b: -facts.plan.payload(b))
    return frozenset(saved[:replan])


def _row(facts: Facts, buffer: str, is_replanned: bool) -> Row:
    """All about the buffer; with its alternatives planned, or estimated."""
    case = Case(facts, buffer, facts.plan.decisions.fates[buffer])
    tensors = tuple(t.name for t in facts.tape.buffers[buffer].tensors)
    return Row(
        tensors[-1], facts.plan.payload(buffer), case.fate, case.tier, case.is_read_back, case.leaves, case.returns,
        case.copy_seconds, case.hidden_seconds, case.stall_seconds, case.rerun_seconds, case.saved_bytes,
        reason(case), tensors, *facts.users[buffer], alternatives(case, is_replanned),
    )  # fmt: skip
