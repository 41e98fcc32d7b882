"""host_cost: what ops take on this CPU: as they were timed here, and by published rates for all else.

Published rates may be off for this machine, and a time may only be compared with one on the same scale.  So all that
was not timed is the rates' time multiplied by the median of timed by rated, over the ops of the network's step that
were timed: of the same kind, phase and algorithm where there are any, else of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

from vdnn.building import build
from vdnn.layers.base import LayerError
from vdnn.memory.cost import Cost, roofline
from vdnn.memory.hardware import Contention, Roofline
from vdnn.memory.op_times import Names, OpTimes, Seconds, key_of
from vdnn.network import Network
from vdnn.tape import Op, Tape

ALL = ""  # the scale of what nothing alike was timed of


@dataclass(frozen=True)
class HostCost:
    """Times of a network's ops on this CPU.

    rates    the published ones
    names    what computes the ops
    seconds  {op: {algorithm: seconds}} as timed, see vdnn.memory.op_times
    scales   {kind, phase and algorithm: timed by rated}, and of all together
    """

    rates: Roofline
    names: Names
    seconds: Mapping[str, Seconds]
    scales: Mapping[str, float]

    @property
    def name(self) -> str:
        """The name of the rates."""
        return self.rates.name

    @property
    def memory_bytes(self) -> int:
        """Memory by the published figures."""
        return self.rates.memory_bytes

    @property
    def contention(self) -> Contention | None:
        """By the published figures."""
        return self.rates.contention

    @property
    def launch_seconds(self) -> float:
        """The part of an op's time that nothing slows."""
        return self.rates.launch_seconds

    def op_seconds(self, tape: Tape, op: Op, algorithm: str) -> float:
        """As timed, or by the rates on the scale of what was timed."""
        found = self._seconds_of(tape).get(op.name, {}).get(algorithm)
        if found is not None:
            return found
        scale = self.scales.get(scale_name(op, algorithm), self.scales[ALL])
        return scale * self.rates.op_seconds(tape, op, algorithm)

    def copy_seconds(self, nbytes: int, kind: str, tier: str = "host") -> float:
        """Seconds to copy `nbytes`: by the published figures."""
        return self.rates.copy_seconds(nbytes, kind, tier)

    def is_measured(self, tape: Tape, op: Op, algorithm: str) -> bool:
        """Whether that was timed."""
        return algorithm in self._seconds_of(tape).get(op.name, {})

    @cached_property
    def _tapes(self) -> WeakKeyDictionary[Tape, dict[str, Seconds]]:
        return WeakKeyDictionary()

    def _seconds_of(self, tape: Tape) -> dict[str, Seconds]:
        """{op: {algorithm: seconds}} of those of a tape that were timed."""
        found = self._tapes.get(tape)
        if found is None:
            keys = {op.name: key_of(tape, op, self.names) for op in tape.ops}
            found = {name: self.seconds[key] for name, key in keys.items() if key in self.seconds}
            self._tapes[tape] = found
        return found


def scale_name(op: Op, algorithm: str) -> str:
    """The name of the scale for an op by an algorithm."""
    return f"{op.kind} {op.phase} {algorithm}"


def scales_of(tape: Tape, names: Names, seconds: Mapping[str, Seconds], rates: Roofline) -> dict[str, float]:
    """{kind, phase and algorithm: the median of timed by rated}, and of all; empty if no op of the tape was timed."""
    ratios: dict[str, list[float]] = {}
    for op in tape.ops:
        timed = seconds.get(key_of(tape, op, names), {})
        for algorithm in (a.name for a in op.algorithms if a.name in timed):
            ratio = timed[algorithm] / rates.op_seconds(tape, op, algorithm)
            for name in (ALL, scale_name(op, algorithm)):
                ratios.setdefault(name, []).append(ratio)
    return {name: median(values) for name, values in ratios.items()}


def host_cost(network: Network, kernels: Any, optimizer: Any = None) -> Cost:
    """The cost model of a network's steps on this CPU: the published rates alone where nothing of them was timed."""
    rates, table, names = roofline("host"), OpTimes.of(kernels), Names.of(network, optimizer)
    seconds = table.load(names.known) if table else {}
    if not seconds:
        return rates
    scales = scales_of(_tape(network, kernels, optimizer), names, seconds, rates)
    return HostCost(rates, names, seconds, scales) if scales else rates


def _tape(network: Network, kernels: Any, optimizer: Any) -> Tape:
    """The step's tape, or as much of it as there can be."""
    try:
        return build(network, kernels, optimizer, "gradients" if optimizer is None else "step")
    except LayerError:
        return build(network, kernels, purpose="evaluate")
