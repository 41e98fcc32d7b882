"""Swaps as Capuchin weighs them: the free time of a tensor, and what a set of swaps costs on a link that it shares."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vdnn.memory.cost import Cost
from vdnn.network import Role
from vdnn.tape import Tape

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Access:
    """The gap between the uses of a tensor: after its last in forward, at op `last`, and before its first in backward,
    at op `first`; it begins and ends at these seconds, and a swap takes `out` and `back` of it (out: 0 for an input,
    which the host has).
    """

    buffer: str
    nbytes: int
    last: int
    first: int
    begin: float
    end: float
    out: float
    back: float

    @property
    def free_seconds(self) -> float:
        """From the end of the swap-out to the latest start of the swap-in."""
        return (self.end - self.back) - (self.begin + self.out)


def accesses(tape: Tape, buffers: Sequence[str], starts: Sequence[float], cost: Cost) -> list[Access]:
    """The gaps of these buffers, when op i starts at starts[i]."""
    last: dict[str, int] = {}
    first: dict[str, int] = {}
    for forward, backward in tape.rounds:
        for i in forward:
            last |= dict.fromkeys((*tape.reads[i], *tape.writes[i]), i)
        for i in backward:
            first |= {b: i for b in tape.reads[i] if b not in first}
    found = []
    for b in buffers:
        buffer = tape.buffers[b]
        out = 0.0 if buffer.role is Role.INPUT else cost.copy_seconds(buffer.payload, "offload")
        back = cost.copy_seconds(buffer.payload, "prefetch")
        begin, end = starts[last[b] + 1], starts[first[b]]
        found.append(Access(b, buffer.nbytes, last[b], first[b], begin, end, out, back))
    return found


class Link:
    """Seconds for which compute waits for a growing set of swaps in one round.

    Copies queue in the order of their accesses.  In forward, an op that lacks memory waits until enough has left; in
    backward it is the same with time reversed: enough must not have begun to return.  What has not been chosen yet to
    be evicted is not waited for.

    over  bytes by which each op is over the budget when nothing is evicted
    """

    def __init__(self, starts: Sequence[float], over: Sequence[int], halves: tuple[range, range]) -> None:
        self.overhead = 0.0
        self._outs: list[tuple[float, int, float, str]] = []
        self._backs: list[tuple[float, int, float, str]] = []
        forward = [i for i in halves[0] if over[i] > 0]
        backward = [i for i in reversed(halves[1]) if over[i] > 0]
        self._forward = _needs([starts[i] for i in forward], [over[i] for i in forward])
        self._backward = _needs([-starts[i + 1] for i in backward], [over[i] for i in backward])

    def overhead_with(self, access: Access) -> float:
        """The seconds if that tensor is swapped, too."""
        outs, backs = self._outs.copy(), self._backs.copy()
        _insert(outs, backs, access)
        return _waits(outs, *self._forward) + _waits(backs, *self._backward)

    def add(self, access: Access) -> None:
        """Swap that tensor, too."""
        _insert(self._outs, self._backs, access)
        self.overhead = _waits(self._outs, *self._forward) + _waits(self._backs, *self._backward)


def _insert(outs: list[tuple[float, int, float, str]], backs: list[tuple[float, int, float, str]], a: Access) -> None:
    insort(outs, (a.begin, a.nbytes, a.out, a.buffer))
    insort(backs, (-a.end, a.nbytes, a.back, a.buffer))


def _needs(times: list[float], over: list[int]) -> tuple[Array, Array]:
    """(seconds, bytes that must have left by then), for the ops at which that is more than before."""
    most = np.maximum.accumulate(np.array(over, dtype=np.float64))
    steps = np.flatnonzero(np.diff(most, prepend=0.0) > 0)
    return np.array(times)[steps], most[steps]


def _waits(queue: list[tuple[float, int, float, str]], times: Array, needs: Array) -> float:
    """Seconds by which the copies of `queue` end later than they are needed, at the worst."""
    if not queue or not len(needs):
        return 0.0
    ready, nbytes, took, _ = zip(*queue, strict=True)
    total = np.cumsum(took)
    ends = total + np.maximum.accumulate(np.array(ready) - (total - took))
    gone = np.cumsum(nbytes)
    enough = np.minimum(np.searchsorted(gone, needs), len(gone) - 1)
    return max(0.0, float((ends[enough] - times).max()))
