"""Variants: the same step in several sub-batches, for policies that may choose how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vdnn.layers.base import LayerError
from vdnn.memory.cost import Cost, CostError
from vdnn.memory.simulate import oracle_seconds
from vdnn.micro_batches import MicroBatchError, numbers_of_parts
from vdnn.tape import Tape

Variant = Callable[[int], Tape]


def variants(tape: Tape, variant: Variant | None, cost: Cost) -> Iterator[Tape]:
    """The tapes in ever smaller sub-batches, as far as there are any and their times are known.

    variant   the same step in so many sub-batches; None, and a tape that has several itself, leave no choice
    """
    if variant is None or tape.micro_batches != 1:
        return
    for parts in numbers_of_parts(tape):
        try:
            other = variant(parts)
            oracle_seconds(other, cost)
        except (CostError, LayerError, MicroBatchError):
            return
        yield other
