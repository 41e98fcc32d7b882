"""Reruns as Capuchin weighs them: memory saved per second (MSPS), kept up to date as in its Algorithm 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vdnn.memory.decisions import KEEP, resolve
from vdnn.memory.rerun import makers_of
from vdnn.network import Role
from vdnn.tape import Tape


@dataclass
class _Candidate:
    """A tensor that may be run again.

    sources  the other candidates that its rerun reads
    again    seconds of its rerun, with those of the sources that are not there
    extra    seconds that it adds to the reruns of those chosen already that read it
    """

    nbytes: int
    sources: set[str]
    again: float
    extra: float = 0.0


@dataclass
class Recompute:
    """Candidates and what is chosen among them.

    collective  whether what is run again stays for later reruns, so that each candidate is run again but once; if not,
                each rerun begins at what is there anyway
    """

    candidates: dict[str, _Candidate]
    collective: bool
    chosen: dict[str, set[str]] = field(default_factory=dict)  # {tensor: its sources}

    @classmethod
    def of(cls, tape: Tape, buffers: Iterable[str], seconds: Sequence[float], collective: bool) -> Recompute:
        """Of these buffers, those that ops make; op i takes seconds[i]."""
        there = {b for b, fate in resolve({}, tape, {}).fates.items() if fate is KEEP}
        made = dict.fromkeys(b for b in buffers if tape.buffers[b].role is Role.FEATURE)
        candidates = {}
        for b in made:
            ops, read = _lineage(tape, b, there)
            candidates[b] = _Candidate(tape.buffers[b].nbytes, read & made.keys(), sum(seconds[i] for i in ops))
        return cls(candidates, collective)

    def seconds(self, buffer: str) -> float:
        """What running that candidate again costs now."""
        return self.candidates[buffer].again + self.candidates[buffer].extra

    def best(self) -> str | None:
        """The candidate that saves the most bytes per second; None if there is none."""
        if not self.candidates:
            return None
        return min(self.candidates, key=lambda b: (self.seconds(b) / self.candidates[b].nbytes, b))

    def remove(self, buffer: str) -> None:
        """That tensor is swapped: it is no candidate any more."""
        self.candidates.pop(buffer, None)

    def choose(self, buffer: str) -> None:
        """Run that candidate again: whatever reads it reads its sources now."""
        target = self.candidates.pop(buffer)
        if self.collective:
            return
        times = 1
        for sources in self.chosen.values():
            if buffer in sources:
                sources.remove(buffer)
                sources |= target.sources
                times += 1
        self.chosen[buffer] = set(target.sources)
        for name, candidate in self.candidates.items():
            if buffer in candidate.sources:
                candidate.sources.remove(buffer)
                candidate.sources |= target.sources
                candidate.again += target.again
                candidate.extra = candidate.again * sum(name in sources for sources in self.chosen.values())
            if name in target.sources:
                candidate.extra = times * candidate.again


def _lineage(tape: Tape, buffer: str, there: set[str]) -> tuple[list[int], set[str]]:
    """(places of the ops that make `buffer` from what is there, the buffers that they read of that)."""
    ops: set[int] = set()
    read: set[str] = set()
    pending, seen = [buffer], {buffer}
    while pending:
        for i in makers_of(pending.pop(), tape):
            ops.add(i)
            for b in tape.reads[i]:
                if b in seen:
                    continue
                seen.add(b)
                if b in there:
                    read.add(b)
                elif b in tape.makers:
                    pending.append(b)
    return sorted(ops), read
