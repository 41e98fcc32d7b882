"""SuperNeurons: dynamic GPU memory management (Wang et al., PPoPP 2018, arXiv 1801.04380)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import DROP, OFFLOAD, Decisions, Fate
from vdnn.memory.published.copies import Returns, by_events
from vdnn.memory.published.fitting import Candidate, done_for, quickest, sizeable
from vdnn.network import Role
from vdnn.tape import Tape

CHECKPOINTS = ("conv", "linear", "add", "concat")  # as in the authors' code: CONV, FC, JOIN, CONCAT
TRIGGERS = ("conv", "linear")


def superneurons(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """Offloaded checkpoints and reruns between them, as many of each as the budget asks for.

    Follows: liveness (all plans here have it); the unified tensor pool: what CONV, FC and joins make leaves in the
    background at its last forward use and returns while the CONV before, in backward, computes; the tensor cache: the
    least recently used leave first, and nothing while all fits; cost-aware reruns of pooling, activation, LRN and batch
    norm, a segment at a time; workspaces: where memory lacks, the fastest algorithm that has room at that moment.
    The budget decides how much of each is done; cache alone, all reruns and then cache, and reruns alone as far as
    needed are compared by their simulated steps.
    Leaves out: memory-centric reruns, which free and run again for each backward layer: our passes keep what was run
    again until its last use.  A segment too large for the speed-centric way (it exceeds the largest layer) is cached.
    """
    cached = [b for b in sizeable(tape) if _is_checkpoint(b, tape) or tape.buffers[b].role is Role.INPUT]
    cheap, large = _segments(tape)
    order = {b: k for k, b in enumerate(sizeable(tape))}  # least recently used first
    evictable = sorted({*cached, *large}, key=order.__getitem__)
    every: dict[str, Fate] = dict.fromkeys(order, OFFLOAD)
    reruns: dict[str, Fate] = dict.fromkeys(cheap, DROP)

    def cache(n: int) -> Decisions:
        return Decisions(dict(list(every.items())[:n]))

    def reruns_and_cache(n: int) -> Decisions:
        return Decisions(reruns | dict.fromkeys(evictable[:n], OFFLOAD))

    def some_reruns(n: int) -> Decisions:
        return Decisions(dict(list(reruns.items())[:n]))

    candidates: list[Candidate] = []
    for decide, most in ((cache, len(every)), (reruns_and_cache, len(evictable)), (some_reruns, len(reruns))):
        candidates.append(_within(tape, budget, cost, algorithms, decide, most))
        first = candidates[0].decisions
        if not first.fates and not first.algorithms:
            return first  # nothing moves while all fits
    return quickest(cost, budget, candidates).decisions


def _within(
    tape: Tape,
    budget: int,
    cost: Cost,
    algorithms: Mapping[str, str],
    decide: Callable[[int], Decisions],
    most: int,
) -> Candidate:
    """Decisions for as few tensors as the budget allows, with their copies timed."""
    _, _, decisions = done_for(tape, budget, cost, algorithms, most, lambda n: replace(decide(n), ahead=0))
    chosen = {**algorithms, **decisions.algorithms}
    return by_events(tape, decisions, cost, chosen, budget, _conv_before)


def _is_checkpoint(buffer: str, tape: Tape) -> bool:
    return any(tape.ops[i].kind in CHECKPOINTS for i in tape.makers.get(buffer, ()))


def _segments(tape: Tape) -> tuple[list[str], list[str]]:
    """(feature maps between checkpoints in segments that may be run again at once, those in larger ones).

    A segment is what is made one from another without a checkpoint between; it is too large if it takes more bytes than
    the layer that needs most.
    """
    largest = max(
        sum(tape.buffers[b].nbytes for b in {*reads, *writes} - set(tape.resident))
        for reads, writes in zip(tape.reads, tape.writes, strict=True)
    )
    saved = {tape.buffer_of[t.name] for t in tape.saved if t.role is Role.FEATURE}
    segment: dict[str, list[str]] = {}  # {buffer: its segment}
    for i in (i for forward, _ in tape.rounds for i in forward):
        cheap = [b for b in tape.writes[i] if tape.buffers[b].role is Role.FEATURE and not _is_checkpoint(b, tape)]
        before = next((segment[b] for b in tape.reads[i] if b in segment), [])
        for b in cheap:
            if b not in segment:
                before.append(b)
                segment[b] = before
    sizes = {b: sum(tape.buffers[s].nbytes for s in members) for b, members in segment.items()}
    worth = [b for b in sizeable(tape) if b in segment and b in saved]
    return [b for b in worth if sizes[b] <= largest], [b for b in worth if sizes[b] > largest]


def _conv_before(returns: Returns) -> dict[str, int]:
    """{buffer: place of the first backward op of the CONV (or FC) whose turn comes before its own use's}."""
    begins = [returns.turn]
    layer = ""
    for place, op in enumerate(returns.ops):
        if place >= returns.turn and not op.is_forward and op.layer and op.kind in TRIGGERS and op.layer != layer:
            layer = op.layer
            begins.append(place)
    places = {}
    k = 0
    for b, use in returns.uses.items():
        while k + 1 < len(begins) and begins[k + 1] < use:
            k += 1
        places[b] = begins[k]
    return places
