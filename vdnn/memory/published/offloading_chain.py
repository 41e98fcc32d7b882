"""The dynamic program of POFO: for each stage of a chain keep, offload or recompute, in the least time.

Forward walks the stages up, backward walks them down.  Seen from its end, backward is a forward too: what must be back
before a stage queues for the link there just as what leaves after a stage queues in forward.  So one walk up the chain
prices both, with this state before each stage:

    cut    fate of the stage's input: kept, offloaded, or dropped, and then where the run of dropped stages began
    kept   bytes that stay below it, the input itself not counted
    out    seconds of copies to the host that compute has not covered yet; their bytes are still on the device
    back   seconds of copies to the device that must be over when the backward of this stage ends, theirs likewise

A copy costs time only where its bytes are in the way: compute waits until as much of the queue has gone as the stage
lacks.  Both queues are empty at the turn.  Bytes leave the queue as they are copied, not tensor by tensor.

A run of dropped stages is run again once, from its input, when the backward of the stage after it begins; all that it
saves is there from then on.  An offloaded input of the run must be back by then.  The inside of a stage may be dropped
alone; it is run again at the stage's own backward.  A stage whose output is dropped drops its inside as well.

Of two states in one cell (kept, out, back to a resolution) the faster survives, and those that are no better than
another in any respect go.  Where every value is a cell of its own, as with small integers, the result is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdnn.memory.chain import Stage, queue
from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, Fate

Array = NDArray[Any]
CUTS = (KEEP, OFFLOAD, DROP)
PASSES = ((64, 6, 4), (160, 16, 8))  # cells of memory and of the two queues; a pass bounds the next
MOST_STATES = 100_000  # in all layers of a pass: no finer one follows a pass that had more


@dataclass(frozen=True)
class Solution:
    """Fates by stage, (inside, output) each, and the seconds that they cost above keeping all in enough memory."""

    fates: tuple[tuple[Fate, Fate], ...]
    seconds: float


@dataclass(frozen=True)
class _States:
    """States side by side, an array per field.

    cut, run               0, 1, 2: the input is kept, offloaded, dropped; number of the run that it is in, else -1
    kept, out, back, seconds   see above; seconds so far
    held, burst, owed      of the open run: bytes saved in it before the input; most that running it again takes on top
                           of `kept`; seconds of its own input's copy back
    parent, choice         the state it came from, and the choice that led here
    """

    cut: Array
    run: Array
    kept: Array
    out: Array
    back: Array
    seconds: Array
    held: Array
    burst: Array
    owed: Array
    parent: Array
    choice: Array

    def take(self, index: Array) -> _States:
        return _States(*(getattr(self, f.name)[index] for f in fields(self)))


def solve(stages: Sequence[Stage], memory: float, cells: tuple[int, int, int] | None = None) -> Solution | None:
    """The fastest fates for a chain in `memory` bytes; None if there are none.

    cells  into how many the memory, and each queue, is divided; by default several resolutions, as time allows
    """
    best: Solution | None = None
    for resolution in PASSES if cells is None else (cells,):
        problem = _Problem(stages, memory, resolution, np.inf if best is None else best.seconds)
        layers = problem.walk() if memory > 0 else []
        if not layers:
            break
        found = _solution(layers)
        if best is None or found.seconds < best.seconds:
            best = found
        if sum(len(layer.seconds) for layer in layers) > MOST_STATES:
            break
    return best


def _solution(layers: list[_States]) -> Solution:
    """The fastest way through the layers, in seconds and as fates."""
    total = layers[-1].seconds + layers[-1].out + layers[-1].back
    at = int(np.argmin(total))
    fates: list[tuple[Fate, Fate]] = []
    for layer in reversed(layers):
        inside, output = divmod(int(layer.choice[at]), 3)
        fates.append((CUTS[inside], CUTS[output]))
        at = int(layer.parent[at])
    return Solution(tuple(reversed(fates)), float(total.min()))


class _Problem:
    """The chain, its memory and the rates of the link, and the steps of the walk up."""

    def __init__(self, stages: Sequence[Stage], memory: float, cells: tuple[int, int, int], most: float) -> None:
        self.stages, self.memory = stages, memory
        self.most = min(most * (1 + 1e-9) + 1e-12, sys.float_info.max)  # infinite seconds are too many in any case
        size = max(sum(s.output_bytes + s.inside_bytes for s in stages), 1)
        leaves = max(size - stages[0].output_bytes, 1)  # the input is not copied out
        self.out_rate = sum(s.output_out + s.inside_out for s in stages) / leaves  # seconds per byte
        self.back_rate = sum(s.output_in + s.inside_in for s in stages) / size
        self.slot = memory / cells[0]
        self.cells, self.ticks = cells, (self.out_rate * memory / cells[1], self.back_rate * memory / cells[2])

    def walk(self) -> list[_States]:
        """The states after each stage; empty if there is no way through."""
        layers = [self.start()]
        for k in range(1, len(self.stages)):
            layers.append(self.step(k, layers[-1]))
            if not len(layers[-1].seconds):
                return []
        return layers

    def start(self) -> _States:
        """The network's input: kept, or fetched again."""
        cut = np.arange(2 if self.stages[0].output else 1)
        return _States(cut, cut * 0 - 1, *(cut * 0.0,) * 7, parent=cut * 0, choice=cut)

    def step(self, k: int, states: _States) -> _States:
        """All states after stage k."""
        found = []
        insides = range(3) if self.stages[k].inside_bytes else (0,)
        outputs = range(3) if self.stages[k].output else (0,)
        for cut, inside, output in product(range(3), insides, outputs):
            if output == 2 and inside != 2 and len(insides) > 1:
                continue
            index = np.flatnonzero(states.cut == cut)
            if len(index):
                found.append(self._choose(k, states.take(index), index, cut, 2 if output == 2 else inside, output))
        joined = _States(*(np.concatenate([getattr(s, f.name) for s in found]) for f in fields(_States)))
        # what the stages to come cannot cover of the queues is waited for, or spent on running again
        out = np.maximum(joined.out - sum(s.forward_seconds for s in self.stages[k + 1 :]), 0.0)
        back = np.maximum(joined.back - sum(s.backward_seconds for s in self.stages[k + 1 :]), 0.0)
        return self._thin(joined.take(np.flatnonzero(joined.seconds + out + back <= self.most)))

    def _choose(self, k: int, states: _States, index: Array, cut: int, inside: int, output: int) -> _States:
        """`states`, whose inputs have the fate `cut`, after this choice; seconds are infinite where it cannot be."""
        stage, source = self.stages[k], self.stages[k - 1]
        out, seconds = self._forward(stage, source, states, cut, inside)
        back, spent = self._backward(stage, source, states, cut, inside, output)
        seconds = seconds + spent + self._reruns(stage, states, cut, inside, output)
        kept = states.kept + (source.output_bytes if cut == 0 else 0) + (stage.inside_bytes if inside == 0 else 0)
        states = replace(states, kept=kept, out=out, back=back, seconds=seconds, parent=index)
        states = replace(states, cut=states.cut * 0 + output, choice=states.cut * 0 + 3 * inside + output)
        if output != 2:
            return replace(states, run=states.run * 0 - 1, held=kept * 0, burst=kept * 0, owed=kept * 0)
        if cut == 2:
            burst = np.maximum(states.burst, states.held + stage.forward_bytes)
            return replace(states, burst=burst, held=states.held + source.output_bytes + stage.inside_bytes)
        own = source.output_bytes if cut == 1 else 0  # a kept input of the run is in `kept` already
        return replace(
            states,
            run=states.run * 0 + 2 * k + cut,
            held=kept * 0 + own + stage.inside_bytes,
            burst=kept * 0 + stage.forward_bytes - (source.output_bytes - own),
            owed=kept * 0 + (source.output_in if cut == 1 else 0.0),
        )

    def _forward(self, stage: Stage, source: Stage, states: _States, cut: int, inside: int) -> tuple[Array, Array]:
        """(copies out that are left after the stage, seconds so far)."""
        room = self.memory - states.kept - (stage.passing_bytes if inside == 2 else stage.forward_bytes)
        stall = np.maximum(states.out - np.maximum(room, 0.0) * self.out_rate, 0.0)
        joining = [(stage.input_lead, source.output_out)] if cut == 1 else []
        joining += [(stage.inside_lead, stage.inside_out)] if inside == 1 else []
        out = queue(states.out - stall, stage.forward_seconds, joining)
        return out, np.where(room < 0, np.inf, states.seconds + stall)

    def _backward(
        self, stage: Stage, source: Stage, states: _States, cut: int, inside: int, output: int
    ) -> tuple[Array, Array]:
        """(copies back that must be over before the stage's backward, or run again, begins; seconds spent)."""
        free = self.memory - states.kept - states.held
        room = free - stage.backward_bytes
        again = stage.again_seconds if output == 2 else stage.inside_seconds if inside == 2 else 0.0
        returns = cut == 1 and output != 2
        stall = np.maximum(states.back - np.maximum(room, 0.0) * self.back_rate, 0.0)
        joining = [(0.0 if inside == 2 else stage.input_need, source.output_in)] if returns else []
        joining += [(stage.inside_need, stage.inside_in)] if inside == 1 else []
        back = queue(states.back - stall, stage.backward_seconds + again, joining)
        spent = np.where(room < 0, np.inf, stall + again)
        if cut == 2 and output != 2:
            back = back + states.owed
        if returns and inside != 2 and stage.late_bytes < stage.backward_bytes:
            # where the input fits only from the moment it is read, its copy is waited for, and all behind it
            late = free - stage.late_bytes
            stall = np.maximum(states.back - np.maximum(late, 0.0) * self.back_rate, 0.0)
            rest = np.maximum(states.back - stall - (stage.backward_seconds - stage.input_need), 0.0)
            spent = np.where((room < 0) & (late >= 0), stall + rest + source.output_in, spent)
            back = np.where(room < 0, stage.inside_in if inside == 1 else 0.0, back)
        return back, spent

    def _reruns(self, stage: Stage, states: _States, cut: int, inside: int, output: int) -> Array:
        """0, or infinity where running something again just before the stage's backward takes too much memory."""
        need = states.kept * 0
        if output == 2:
            return need
        if inside == 2 and stage.inside_bytes:
            need = states.held + stage.forward_bytes + stage.gradient_bytes
        if cut == 2:
            there = stage.gradient_bytes + stage.output_bytes + (stage.inside_bytes if inside != 2 else 0)
            need = np.maximum(need, states.burst + there)
        return np.where(states.kept + need > self.memory, np.inf, 0.0)

    def _thin(self, states: _States) -> _States:
        """The fastest state of each cell, without those that another is better than."""
        if not len(states.seconds):
            return states
        groups = np.unique(3 * states.run + states.cut, return_inverse=True)[1]
        cells = [groups, np.floor(states.kept / self.slot + 1e-9).astype(np.int64)]
        for values, tick, count in zip((states.out, states.back), self.ticks, self.cells[1:], strict=True):
            tick = min(tick, float(values.max()) / count) or 1.0
            cells.append(np.floor(values / tick + 1e-9).astype(np.int64))
        shape = tuple(int(c.max()) + 1 for c in cells)
        key = np.ravel_multi_index(cells, shape)
        # all that waits may cost as much time at the worst: within a cell this tells better states from worse
        worst = states.seconds + states.out + states.back + states.kept * self.out_rate
        order = np.lexsort((worst, key))
        best = order[np.flatnonzero(np.diff(key[order], prepend=-1))]
        keep = [self._undominated(best[groups[best] == g], cells, states) for g in range(shape[0])]
        return states.take(np.concatenate(keep))

    def _undominated(self, index: Array, cells: list[Array], states: _States) -> Array:
        """Of the states `index`, one a cell and all of one group, those that no other beats in every respect."""
        places = [c[index] - c[index].min() for c in cells[1:]]
        shape = tuple(int(p.max()) + 2 for p in places)
        table = np.full(shape, np.inf)
        inner = tuple(p + 1 for p in places)
        table[inner] = states.seconds[index]
        for axis in range(3):
            np.minimum.accumulate(table, axis=axis, out=table)
        a, b, c = inner
        other = np.minimum(np.minimum(table[a - 1, b, c], table[a, b - 1, c]), table[a, b, c - 1])
        return np.compress(states.seconds[index] < other, index)
