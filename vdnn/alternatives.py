"""alternatives: what another fate of one tensor would change, all others as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Fate
from vdnn.memory.passes import make_plan
from vdnn.memory.simulate import simulate
from vdnn.reasons import Case

FATES = (KEEP, OFFLOAD, DROP)


@dataclass(frozen=True)
class Alternative:
    """Another fate of one tensor, against the plan as it is.

    is_replanned  whether the plan was really made with that one fate changed, and simulated.  Else it is an estimate:
                  copies count in full, as if nothing hid them, what would no longer be copied or run again is saved in
                  full, and bytes are those that the tensor alone adds to the peak or takes off it at most
    step_seconds  by which the step gets longer, or shorter if below 0; simulated
    peak_bytes    by which the peak rises, or falls if below 0
    arena_bytes   of the arena of that plan; None of an estimate
    """

    fate: Fate
    is_replanned: bool
    step_seconds: float
    peak_bytes: int
    arena_bytes: int | None = None


def alternatives(case: Case, is_replanned: bool) -> tuple[Alternative, ...]:
    """Every other fate that the tensor could have; none if backward does not read it, or if everything stays for the
    whole step.
    """
    if not case.is_read_back or case.facts.plan.decisions.lifetimes == "network":
        return ()
    others = [fate for fate in FATES if fate is not case.fate and not (fate is DROP and case.is_input)]
    make = _replanned if is_replanned else _estimated
    return tuple(make(case, fate) for fate in others)


def _replanned(case: Case, fate: Fate) -> Alternative:
    facts, plan = case.facts, case.facts.plan
    decisions = replace(plan.decisions, fates={**plan.decisions.fates, case.buffer: fate})
    other = make_plan(plan.tape, decisions, undo=facts.has_undo)
    seconds = simulate(other, facts.cost).step_seconds - facts.trace.step_seconds
    return Alternative(fate, True, seconds, other.peak_bytes - plan.peak_bytes, other.arena_bytes)


def _estimated(case: Case, fate: Fate) -> Alternative:
    saved = {KEEP: 0.0, OFFLOAD: case.stall_seconds, DROP: case.rerun_seconds}[case.fate]
    added = {KEEP: 0.0, OFFLOAD: case.there_and_back, DROP: case.rerun_if_dropped or 0.0}[fate]
    return Alternative(fate, False, added - saved, _estimated_bytes(case, fate))


def _estimated_bytes(case: Case, fate: Fate) -> int:
    if fate is KEEP:
        return case.saved_bytes
    return -case.facts.plan.size(case.buffer) if case.fate is KEEP and case.is_apart else 0
