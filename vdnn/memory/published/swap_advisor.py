"""SwapAdvisor: pushing deep learning beyond the GPU memory limit via smart swapping (Huang et al., ASPLOS 2020)."""

from __future__ import annotations

from collections.abc import Mapping

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions
from vdnn.memory.published.copies import offloading
from vdnn.memory.published.fitting import in_turn, sizeable
from vdnn.tape import Tape


def swap_advisor(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """Swap out what is used furthest in the future, swap in as early as memory allows; a simulator says how much.

    Follows: its swap planning (Belady's choice, in time for the ops that lack memory; the earliest swap-in that has
    room, in order of use), and its simulator as the judge between plans, here of different numbers of swaps.
    Leaves out: the genetic search over schedules and size classes: the tape's order is fixed, and offsets are laid out
    exactly in place of its pools.  Weights do not move.  A tensor leaves once a step, at its last forward use.
    """
    first: dict[str, int] = {}
    for i in (i for _, backward in tape.rounds for i in backward):
        first |= {b: i for b in tape.reads[i] if b not in first}
    order = in_turn(tape, sorted(sizeable(tape), key=lambda b: -first[b]))
    return offloading(tape, budget, cost, algorithms, order).decisions
