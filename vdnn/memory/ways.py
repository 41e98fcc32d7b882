"""Ways: what a search chooses of for a buffer."""

from __future__ import annotations

from enum import StrEnum

from vdnn.memory.decisions import OFFLOAD, Decisions, Fate


class Way(StrEnum):
    """What a search chooses of for a buffer: a fate, or an offload that returns for each use by itself."""

    KEEP = "keep"
    OFFLOAD = "offload"
    EACH = "each"
    DROP = "drop"

    @property
    def fate(self) -> Fate:
        """The fate that it stands for."""
        return OFFLOAD if self is Way.EACH else Fate(self.value)

    @property
    def is_moved(self) -> bool:
        """Whether it copies."""
        return self in MOVED


def ways_of(decisions: Decisions) -> dict[str, Way]:
    """The ways that resolved decisions go."""
    ways = {b: Way(fate.value) for b, fate in decisions.fates.items()}
    return {b: Way.EACH if w is Way.OFFLOAD and decisions.comes_back_for_each(b) else w for b, w in ways.items()}


MOVED = (Way.OFFLOAD, Way.EACH)
