"""Network-wide lifetimes: all is there for as long as there is work with it (the baseline of the paper, IV-A)."""

from __future__ import annotations

from vdnn.memory.plan import Step
from vdnn.network import Role
from vdnn.tape import Tape


def network_wide(lives: dict[str, list[list[int]]], steps: list[Step], tape: Tape) -> dict[str, list[list[int]]]:
    """{buffer: [[first step, last step]]}: all of the step, or, of what belongs to one of several rounds, all of that
    round; gradient maps keep their `lives`.

    What one round has and the next has, too, can then lie in one place.  An input may arrive before its round begins.
    """
    rounds = _rounds_of(tape)
    ranges = _ranges(steps, tape)
    last = len(steps) - 1
    wide = {}
    for buffer, spans in lives.items():
        within = rounds.get(buffer, set())
        first_step, last_step = ranges[min(within)] if len(within) == 1 else (0, last)
        whole = [[min(first_step, spans[0][0]), max(last_step, spans[-1][1])]]
        wide[buffer] = spans if tape.buffers[buffer].role is Role.GRADIENT else whole
    return wide


def _rounds_of(tape: Tape) -> dict[str, set[int]]:
    """{buffer: the rounds whose ops use it}."""
    found: dict[str, set[int]] = {}
    for number, halves in enumerate(tape.rounds):
        for i in (*halves[0], *halves[1]):
            for b in (*tape.reads[i], *tape.writes[i]):
                found.setdefault(b, set()).add(number)
    return found


def _ranges(steps: list[Step], tape: Tape) -> list[tuple[int, int]]:
    """(first, last) of the steps of each round: from its first op to the step before the next one's."""
    at = {step.name: i for i, step in reversed(list(enumerate(steps))) if step.kind == "compute"}
    starts = [0, *(at[tape.ops[forward.start].name] for forward, _ in tape.rounds[1:])]
    return [(start, stop - 1) for start, stop in zip(starts, [*starts[1:], len(steps)], strict=True)]
