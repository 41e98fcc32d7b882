"""Running: a step's ops as a plan really runs them, with those that run again, and where its rounds lie among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vdnn.memory.decisions import Decisions
from vdnn.memory.passes import rerun_dropped
from vdnn.tape import Tape


@dataclass(frozen=True)
class Running:
    """What is run.

    tape    whose ops are those that run, some of them twice; its own rounds mean nothing
    rounds  (places of the forward ops, places of the backward ops) of each round; what runs again is in backward
    """

    tape: Tape
    rounds: tuple[tuple[range, range], ...]

    @classmethod
    def of(cls, tape: Tape, given: Decisions) -> Running:
        """What runs under these resolved decisions."""
        places = [tape.index[step.name] for step in rerun_dropped(tape, given)]
        at = {i: k for k, i in enumerate(places)}  # right for backward ops, which run but once
        rounds = []
        start = 0
        for forward, backward in tape.rounds:
            turn = start + len(forward)
            stop = at[backward[-1]] + 1 if backward else turn
            rounds.append((range(start, turn), range(turn, stop)))
            start = stop
        return cls(replace(tape, ops=tuple(tape.ops[i] for i in places)), tuple(rounds))
