"""Reruns: which ops run, and in which order, where forward tensors were dropped that backward reads."""

from __future__ import annotations

from collections.abc import Iterable

from vdnn.tape import Tape


def makers_of(buffer: str, tape: Tape) -> list[int]:
    """Places of the forward ops that make `buffer`, and of those that made, in place before them, what they change.

    Ops that change the same bytes later stay out: their weights may have been updated already.
    """
    ops = set(tape.makers[buffer])
    for j in tape.makers[buffer]:
        for b in tape.writes[j]:
            if b in tape.reads[j]:
                ops |= {k for k in tape.makers[b] if k < j}
    return sorted(ops)


class Reruns:
    """The ops of one tape as they run; it remembers which ops make what, so it may be asked often."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.is_backward = [op.is_backward for op in tape.ops]
        self.known: dict[str, list[int]] = {}

    def makers(self, buffer: str) -> list[int]:
        """Places of the ops that run again to bring `buffer` back, but for what they read."""
        if buffer not in self.known:
            self.known[buffer] = makers_of(buffer, self.tape)
        return self.known[buffer]

    def runs(self, dropped: Iterable[str]) -> list[int]:
        """Places of the ops in the order in which they run: those of the tape, and before a backward op the forward ops
        that bring back what it reads of what was dropped.
        """
        absent = set(dropped)
        runs: list[int] = []
        for i, reads in enumerate(self.tape.reads):
            if self.is_backward[i]:
                for buffer in reads:
                    if buffer in absent:
                        self._bring_back(buffer, absent, runs)
            runs.append(i)
        return runs

    def _bring_back(self, buffer: str, absent: set[str], runs: list[int]) -> None:
        """Append the ops that make `buffer` and all that they need; what they make is taken off `absent`."""
        tape = self.tape
        pending = [(buffer, False)]
        while pending:  # depth first without recursion: a network may be thousands of layers deep
            wanted, inputs_done = pending.pop()
            if wanted not in absent:
                continue
            ops = self.makers(wanted)
            made = {b for j in ops for b in tape.writes[j]}
            if inputs_done:
                runs += ops
                # an in-place op that is left out leaves its buffer as it was before: not what a reader would want
                partly = {b for b in made if not set(tape.makers[b]) <= set(ops)}
                absent -= made - partly
                absent |= partly
                continue
            pending.append((wanted, True))
            needed = (b for j in ops for b in tape.reads[j] if b in absent and b not in made)
            pending += [(b, False) for b in dict.fromkeys(needed)]
