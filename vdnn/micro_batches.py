"""Sub-batches: the tape of a step that runs forward and backward k times, each time on N / k samples.

    round 1       forward, backward   its weight gradients begin the sums           conv1.dw
    rounds 2..k   forward, backward   each adds its own as soon as it has it        conv1.dw@2 into conv1.dw.sum2
    round k       ...                 and each layer's update follows its backward  conv1.w.update

Feature maps, gradients and inputs are a k-th as large, and one round's are gone before the next begins; weight
gradients stay from the first round to the last.  What belongs to a round has its number behind the name, except in the
first.  Weights, optimizer state and statistics are the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vdnn.layers.base import BACKWARD, Algorithm, LayerError
from vdnn.network import Network, Role, Tensor
from vdnn.tape import Op, Tape

MARK = "@"  # between a name and the number of its round


PARTS = (2, 4, 8, 16)  # numbers of sub-batches that planners try, the largest sub-batch first
MOST_OPS = 8000  # of a tape: what has more takes long to plan


class MicroBatchError(ValueError):
    """A number of sub-batches that there cannot be."""


def in_round(name: str, number: int) -> str:
    """The name, in round `number` of 1, 2, ..., of what the first round calls `name`."""
    return name if number == 1 else f"{name}{MARK}{number}"


def without_round(name: str) -> str:
    """What the first round calls the input of this name."""
    return name.partition(MARK)[0]


def summed(gradient: str, rounds: int) -> str:
    """The name of the sum of a weight gradient over so many rounds."""
    return gradient if rounds == 1 else f"{gradient}.sum{rounds}"


def parts_of(samples: int, most: int) -> tuple[int, ...]:
    """How many samples each round has when no round may have more than `most`; the last has what is left."""
    full, rest = divmod(samples, most)
    return (most,) * full + ((rest,) if rest else ())


def parts_in(tape: Tape) -> tuple[int, ...]:
    """How many samples each round of a network's tape has."""
    return tuple(tape.tensors[in_round("input", n)].shape[0] for n in range(1, tape.micro_batches + 1))


def check_parts(network: Network, parts: int | Sequence[int], purpose: str, allow_coupled: bool) -> tuple[int, ...]:
    """How many samples each round has, given the number of equal parts of the batch, or this itself.

    Raises MicroBatchError if they are not the batch; LayerError if a layer's results depend on which samples are
    together, unless that is allowed, or if the loss cannot tell how many samples there are in all.
    """
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        sizes = tuple(parts)
        if not all(type(n) is int and n > 0 for n in sizes) or sum(sizes) != network.batch:
            raise MicroBatchError(f"micro_batches={parts!r}: no sizes that add up to a batch of {network.batch}")
    else:
        check_count(parts, network.batch, network.name)
        sizes = (network.batch // parts,) * parts
    if purpose != "evaluate" and len(sizes) > 1:
        _check_loss(network)
        if not allow_coupled:
            _check_coupled(network, sizes)
    return sizes


def check_count(count: int, batch: int, network: str) -> None:
    """Raise MicroBatchError unless a batch comes in so many equal parts."""
    if type(count) is not int or count < 1:
        raise MicroBatchError(f"micro_batches={count!r}: a number of sub-batches, at least 1")
    if batch % count:
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        near = [n for n in divisors if n < count][-1:] + [n for n in divisors if n > count][:1]
        raise MicroBatchError(
            f"micro_batches={count} does not divide the batch of {network}, {batch} samples; "
            f"{' or '.join(map(str, near))} would"
        )


def _check_coupled(network: Network, sizes: tuple[int, ...]) -> None:
    coupled = [node.name for node in network.nodes if node.layer.couples_samples]
    if coupled:
        shown = ", ".join(coupled[:5]) + (f" and {len(coupled) - 5} more" if len(coupled) > 5 else "")
        raise LayerError(
            f"{network.name}: {shown} take statistics over the batch, so {len(sizes)} sub-batches of "
            f"{max(sizes)} samples would train another function than one batch of {network.batch}; "
            "allow_coupled=True accepts that each sub-batch has statistics of its own"
        )


def _check_loss(network: Network) -> None:
    loss = network.loss
    if not any("samples" in loss.layer.needs(phase, len(loss.inputs)) for phase in BACKWARD):
        raise LayerError(
            f"{loss.name}: the backward of {loss.layer} names no `samples`, so in a sub-batch it would not know by how "
            "many samples to divide"
        )


def joined(tapes: Sequence[Tape]) -> Tape:
    """The tape of several rounds of a step, given the tape of each round by itself: of one network, they differ in
    the number of samples alone.
    """
    rounds = _Rounds(tapes[0], len(tapes))
    for number, tape in enumerate(tapes, start=1):
        rounds.add(tape, number)
    return replace(
        tapes[0],
        batch=sum(tape.batch for tape in tapes),
        tensors=rounds.tensors,
        alias=rounds.alias,
        ops=tuple(rounds.ops),
        results=tuple(rounds.results),
        micro_batches=len(tapes),
    )


class _Rounds:
    """Collects the rounds one after the other."""

    def __init__(self, tape: Tape, count: int) -> None:
        self.count = count
        self.resident = frozenset(tape.resident)
        self.tensors: dict[str, Tensor] = {name: tape.tensors[name] for name in tape.resident}
        self.alias: dict[str, str] = {}
        self.ops: list[Op] = []
        self.results: list[str] = []

    def add(self, tape: Tape, number: int) -> None:
        """One more round; the last has the updates, of the sums."""
        last = number == self.count
        names = {n: n if n in self.resident else in_round(n, number) for n in tape.tensors}
        self.tensors |= {names[n]: replace(t, name=names[n]) for n, t in tape.tensors.items()}
        self.alias |= {names[n]: names[into] for n, into in tape.alias.items()}
        totals = {n: summed(n, number) for n, t in tape.tensors.items() if t.role is Role.WEIGHT_GRADIENT}
        for op in tape.ops:
            if op.phase != "update":
                self.ops.append(_renamed(op, in_round(op.name, number), names))
                for name in op.writes if number > 1 else ():
                    if name in totals:
                        self._sum(tape.tensors[name], number)
            elif last:
                self.ops.append(_renamed(op, op.name, names | totals))
        self.results += [totals.get(n, names[n]) for n in tape.results if last or n not in totals]

    def _sum(self, gradient: Tensor, number: int) -> None:
        """Add this round's gradient to the sum of those before it, in the place of that sum."""
        before, own = summed(gradient.name, number - 1), in_round(gradient.name, number)
        total = replace(gradient, name=summed(gradient.name, number))
        self.tensors[total.name] = total
        self.alias[total.name] = before
        elements = total.nbytes // (8 if total.dtype == "float64" else 4)
        arguments = {"x0": before, "x1": own, "y": total.name}
        self.ops.append(
            Op(
                total.name, "", "sum", arguments, (before, own), (total.name,), (Algorithm("default", 0),), elements,
                target=gradient.name,
            )
        )  # fmt: skip


def _renamed(op: Op, name: str, names: Mapping[str, str]) -> Op:
    """The op under another name, on the tensors that `names` has for its own."""
    return replace(
        op,
        name=name,
        arguments={argument: names[n] if n else None for argument, n in op.arguments.items()},
        reads=tuple(names[n] for n in op.reads),
        writes=tuple(names[n] for n in op.writes),
    )


def numbers_of_parts(tape: Tape) -> tuple[int, ...]:
    """The numbers of sub-batches that planners try for the step of this tape, which are fewer where it has many ops."""
    return tuple(parts for parts in PARTS if parts == PARTS[0] or parts * len(tape.ops) <= MOST_OPS)
