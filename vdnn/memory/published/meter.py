"""Meter: how much is live at each op under some fates, many times faster than a sketch, for policies that ask often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdnn.memory.decisions import DROP, OFFLOAD, Decisions, resolve
from vdnn.memory.passes import rerun_dropped
from vdnn.memory.place import RESIDENT
from vdnn.tape import Tape, granules


def in_backward(tape: Tape, places: Iterable[int]) -> list[bool]:
    """Whether each compute step, given by its op's place on the tape, is in the backward half of its round."""
    found, furthest = [], -1
    for i in places:
        found.append(i < furthest or tape.ops[i].is_backward)  # what comes behind a later op is run again
        furthest = max(furthest, i)
    return found


@dataclass(frozen=True)
class Reading:
    """What a meter shows.

    live      bytes live at each compute step, reruns included
    lives     (buffer, places of its uses), one for each time that it is on the device
    backward  whether each compute step is in the backward half of its round, as reruns are
    """

    live: npt.NDArray[np.int64]
    lives: list[tuple[str, list[int]]]
    backward: list[bool]

    @property
    def peak(self) -> int:
        """Most bytes live at one time."""
        return int(self.live.max())


class Meter:
    """Bytes under decisions whose copies start as late and whose sources go as early as can be (ahead and slack 0)."""

    def __init__(self, tape: Tape, algorithms: Mapping[str, str]) -> None:
        self.tape = tape
        self.algorithms = algorithms
        moving = {name for name, buffer in tape.buffers.items() if buffer.role not in RESIDENT}
        self._reads = [[b for b in reads if b in moving] for reads in tape.reads]
        self._makes = [
            [b for b in writes if b in moving and b not in reads]
            for reads, writes in zip(tape.reads, tape.writes, strict=True)
        ]

    def read(self, decisions: Decisions) -> Reading:
        """The reading under these decisions."""
        given = resolve(decisions, self.tape, self.algorithms)
        if DROP in decisions.fates.values():
            places = [self.tape.index[step.name] for step in rerun_dropped(self.tape, given)]
        else:
            places = list(range(len(self.tape.ops)))
        moved = {b for b, fate in given.fates.items() if fate is OFFLOAD}
        each = {b for b in moved if given.comes_back_for_each(b)}
        backward = in_backward(self.tape, places)
        lives: list[tuple[str, list[int]]] = []
        now: dict[str, list[int]] = {}
        for k, i in enumerate(places):
            for b in self._reads[i]:
                uses = now.get(b)
                away = (
                    b in moved and backward[k] and uses and (not backward[uses[-1]] or (b in each and uses[-1] < k - 1))
                )
                if uses is None or away:
                    now[b] = uses = []
                    lives.append((b, uses))
                uses.append(k)
            for b in self._makes[i]:
                now[b] = [k]
                lives.append((b, now[b]))
        return Reading(self._live(places, lives, given), lives, backward)

    def _live(self, places: list[int], lives: list[tuple[str, list[int]]], given: Decisions) -> npt.NDArray[np.int64]:
        change = np.zeros(len(places) + 1, dtype=np.int64)
        sizes = [self.tape.buffers[b].nbytes for b, _ in lives]
        np.add.at(change, [uses[0] for _, uses in lives], sizes)
        np.subtract.at(change, [uses[-1] + 1 for _, uses in lives], sizes)
        ops = self.tape.ops
        scratch = [granules(op.algorithm(given.algorithms[op.name]).workspace) for op in ops]
        live: npt.NDArray[np.int64] = np.cumsum(change)[:-1] + np.array(scratch)[places] + self.tape.resident_bytes
        return live
