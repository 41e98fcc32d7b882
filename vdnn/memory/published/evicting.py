"""A walk through a step as DTR takes it: what is evicted under a threshold of memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vdnn.memory.cost import Cost
from vdnn.memory.published.fitting import sizeable
from vdnn.memory.rerun import makers_of
from vdnn.network import Role
from vdnn.tape import Tape, granules

MOMENT = 1e-9  # seconds: what was used right now is nearly fresh


class Evicting:
    """What DTR needs to know of a tape, whatever the threshold.

    cost        {evictable buffer: seconds of the ops that make it}
    neighbours  {evictable buffer: those that it is made of or that are made of it}
    """

    def __init__(self, tape: Tape, cost: Cost, algorithms: Mapping[str, str]) -> None:
        self.tape = tape
        self.seconds = [cost.op_seconds(tape, op, algorithms[op.name]) for op in tape.ops]
        self.scratch = [granules(op.algorithm(algorithms[op.name]).workspace) for op in tape.ops]
        self.worth = set(sizeable(tape))
        self.resident = set(tape.resident)
        features = [tape.buffer_of[t.name] for t in tape.features if t.role is Role.FEATURE]
        self.makers = {b: makers_of(b, tape) for b in features}
        self.cost = {b: sum(self.seconds[i] for i in ops) for b, ops in self.makers.items()}
        self.neighbours: dict[str, dict[str, None]] = {b: {} for b in features}
        for b in features:
            for i in self.makers[b]:
                for other in tape.reads[i]:
                    if other in self.neighbours and other != b:
                        self.neighbours[b][other] = None
                        self.neighbours[other][b] = None
        self.last_use = {b: i for i in range(len(tape.ops)) for b in (*tape.reads[i], *tape.writes[i])}

    def under(self, threshold: int) -> list[str]:
        """The buffers that are ever evicted, and worth a decision, in order."""
        walk = _Walk(self, threshold)
        for i in range(len(self.tape.ops)):
            walk.run(i)
        return [b for b in walk.evicted if b in self.worth]


class _Walk:
    """The state of memory during the walk."""

    def __init__(self, known: Evicting, threshold: int) -> None:
        self.known = known
        self.threshold = threshold
        self.sizes = {b: buffer.nbytes for b, buffer in known.tape.buffers.items()}
        self.here: dict[str, float] = {}  # {buffer that does not stay: when it was last used}
        self.live = known.tape.resident_bytes
        self.now = 0.0
        self.evicted: dict[str, None] = {}
        self.classes = _Classes(known.cost)
        self.costs: dict[str, float] = {}  # {evictable buffer: its cost and its neighbourhood's}, where known

    def run(self, i: int) -> None:
        """Run op i of the tape: bring back what it reads, make room for what it makes, and free what is dead."""
        tape = self.known.tape
        pinned = {*tape.reads[i], *tape.writes[i]}
        lost = sorted({j for b in tape.reads[i] for j in self._lost(b)})
        pinned |= {b for j in lost for b in (*tape.reads[j], *tape.writes[j])}
        for j in (*lost, i):
            self._compute(j, pinned)
        for b in dict.fromkeys(b for j in (*lost, i) for b in (*tape.reads[j], *tape.writes[j])):
            if b in self.here and self.known.last_use[b] <= i:
                self._forget(b)

    def _lost(self, buffer: str) -> set[int]:
        """Places of the ops that bring back `buffer`; none if it is here."""
        ops: set[int] = set()
        pending, seen = [buffer], {buffer}
        while pending:
            b = pending.pop()
            if b in self.here or b not in self.classes:
                continue
            ops |= set(self.known.makers[b])
            reads = (r for i in self.known.makers[b] for r in self.known.tape.reads[i] if r not in seen)
            pending += (new := list(dict.fromkeys(reads)))
            seen |= set(new)
        return ops

    def _compute(self, i: int, pinned: set[str]) -> None:
        """Run op i alone; what it touches has been used now."""
        tape = self.known.tape
        touched = dict.fromkeys(b for b in (*tape.reads[i], *tape.writes[i]) if b not in self.known.resident)
        new = [b for b in touched if b not in self.here]  # what it makes, and inputs, which come from the host
        self._make_room(sum(self.sizes[b] for b in new) + self.known.scratch[i], pinned)
        self.now += self.known.seconds[i]
        self.here |= dict.fromkeys(touched, self.now)
        for b in new:
            self.live += self.sizes[b]
            if b in self.classes:
                self._changed(self.classes.leave(b))

    def _make_room(self, nbytes: int, pinned: set[str]) -> None:
        """Evict until `nbytes` more are under the threshold, or nothing is left to evict: a plan's peak will say so."""
        while self.live + nbytes > self.threshold:
            choices = [b for b in self.here if b in self.known.cost and b not in pinned]
            if not choices:
                return
            chosen = min(choices, key=self._score)
            self.evicted[chosen] = None
            self._forget(chosen)

    def _score(self, b: str) -> float:
        """h_DTR^eq of a buffer that is here."""
        if b not in self.costs:
            self.costs[b] = self.known.cost[b] + self.classes.seconds(self.known.neighbours[b])
        return self.costs[b] / ((self.sizes[b] + 1) * (self.now - self.here[b] + MOMENT))

    def _forget(self, b: str) -> None:
        del self.here[b]
        self.live -= self.sizes[b]
        if b in self.known.cost:
            self._changed(self.classes.join(b, self.known.neighbours[b]))

    def _changed(self, buffers: Iterable[str]) -> None:
        """The costs of these buffers are not known any more."""
        for b in buffers:
            self.costs.pop(b, None)


class _Classes:
    """The evicted buffers in classes of neighbours, each with the seconds that its members take together.

    A buffer that is made again leaves its class, which is not split: that is the paper's approximation.
    """

    def __init__(self, cost: Mapping[str, float]) -> None:
        self.cost = cost
        self.members: dict[str, list[str]] = {}  # {evicted buffer: its class, shared by the members}
        self.total: dict[int, float] = {}  # {identity of a class: seconds}
        self.beside: dict[int, dict[str, None]] = {}  # {identity of a class: the buffers next to it}

    def __contains__(self, b: str) -> bool:
        return b in self.members

    def seconds(self, buffers: Iterable[str]) -> float:
        """The seconds of all the classes that these buffers are in."""
        return sum(self.total[k] for k in dict.fromkeys(id(self.members[b]) for b in buffers if b in self.members))

    def join(self, b: str, neighbours: Iterable[str]) -> dict[str, None]:
        """What is next to the class of `b`, which is evicted and joins the classes of its neighbours."""
        found = {id(self.members[n]): self.members[n] for n in neighbours if n in self.members}
        merged = max(found.values(), key=len, default=[])
        seconds = self.cost[b]
        beside = dict.fromkeys(neighbours)
        for k, members in found.items():
            seconds += self.total.pop(k)
            beside |= self.beside.pop(k)
            if members is not merged:
                merged += members
                self.members |= dict.fromkeys(members, merged)
        merged.append(b)
        self.members[b] = merged
        self.total[id(merged)] = seconds
        self.beside[id(merged)] = {n: None for n in beside if n not in self.members}
        return self.beside[id(merged)]

    def leave(self, b: str) -> dict[str, None]:
        """What is next to the class of `b`, which is made again: the class as it was, for it is not split."""
        members = self.members.pop(b)
        members.remove(b)
        beside = self.beside[id(members)]
        beside[b] = None
        self.total[id(members)] -= self.cost[b]
        if not members:
            del self.total[id(members)], self.beside[id(members)]
        return beside
