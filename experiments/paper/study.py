"""What every figure is recomputed from: plans of the paper's networks under the paper's rules, and under ours.

Everything is simulated on a Titan X with cuDNN 4 as Fig. 5 and Fig. 6 show it (vdnn.kernels.cudnn4); bytes are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import vdnn
from vdnn import models
from vdnn.memory.plan import Plan
from vdnn.memory.trace import Trace
from vdnn.network import Network
from vdnn.setting import Setting, choose_algorithms, make_setting
from vdnn.tape import Op, Tape

SIX = (("alexnet", 128), ("overfeat", 128), ("googlenet", 128), ("vgg19", 64), ("vgg19", 128), ("vgg19", 256))
DEEP = (("vgg116", 32), ("vgg216", 32), ("vgg316", 32), ("vgg416", 32))
TEN = SIX + DEEP
TITAN_X = vdnn.roofline("titan-x")
EXTRACTION = ("conv", "pool", "relu", "concat", "lrn", "bn", "add")
ALGORITHMS = {"m": "memory", "p": "performance"}


@cache
def network(name: str, batch: int) -> Network:
    """One of the paper's networks in its variant (GoogLeNet without LRN), before any rules."""
    return models.get(name, batch=batch, **models.PAPER_OPTIONS.get(name, {}))


@cache
def setting(name: str, batch: int, rules: str, count: str, budget: int = 0, saves: str = "indices") -> Setting:
    """What plans of this network are made for: cuDNN 4, SGD without momentum; budget in bytes, 0 for no limit.

    saves   what pooling saves under our rules: "indices" or "input"; under the paper's it is always its input
    """
    net = network(name, batch)
    return make_setting(
        models.paper(net) if saves == "input" else net,
        budget=budget or 1 << 60,
        kernels="cudnn4",
        optimizer="sgd",
        cost=TITAN_X,
        rules=rules,
        count=count,
    )


@dataclass(frozen=True)
class Run:
    """One plan and its simulated step."""

    plan: Plan
    trace: Trace

    @cached_property
    def feature_seconds(self) -> float:
        """Seconds of the layers of feature extraction, which is what the paper's times are of (section IV-B).

        The step without the images' way to the device, and without the classifier: from the start of its first op to
        the end of its last.
        """
        times = [(e.start, e.finish, op) for e, op in self._ops()]
        middle = [(start, finish) for start, finish, op in times if not is_feature(op, self.plan.tape)]
        ends = [finish for _, finish, _ in times]
        return ends[-1] - times[0][0] - (middle[-1][1] - middle[0][0])

    @cached_property
    def feature_oracle(self) -> float:
        """Seconds of the same ops with the fastest algorithms, one after the other, waiting for nothing."""
        tape = self.plan.tape
        return sum(
            min(TITAN_X.op_seconds(tape, op, a.name) for a in op.algorithms) for op in tape.ops if is_feature(op, tape)
        )

    @property
    def performance(self) -> float:
        """Fig. 14: 1 is the oracle."""
        return self.feature_oracle / self.feature_seconds

    @property
    def average_over_time(self) -> int:
        """Live bytes averaged over the whole simulated step."""
        return self.trace.average_bytes

    @cached_property
    def average_over_layers(self) -> float:
        """Live bytes averaged over the ops of feature extraction, each with the same weight, however long it takes."""
        plan = self.plan
        live = [
            plan.live_bytes[i] for i, _, op in plan.computes() if is_feature(op, plan.tape) and op.phase != "update"
        ]
        return sum(live) / len(live)

    def _ops(self):
        tape = self.plan.tape
        return [(e, tape.ops[tape.index[e.step.name]]) for e in self.trace.events if e.step.kind == "compute"]


@cache
def _classifier(tape: Tape) -> frozenset[str]:
    """Layers behind the last convolution or pooling."""
    last = max(i for i, op in enumerate(tape.ops[: tape.turn]) if op.kind in ("conv", "pool"))
    return frozenset(op.layer for op in tape.ops[last + 1 : tape.turn])


def is_feature(op: Op, tape: Tape) -> bool:
    """Whether the op is one of feature extraction; an update is if its layer is."""
    layer = op.target.partition(".")[0] if op.phase in ("update", "sum") else op.layer
    return layer not in _classifier(tape)


@cache
def run(
    name: str,
    batch: int,
    policy: str,
    algorithms: str,
    rules: str = "paper",
    count: str = "features",
    budget: int = 0,
    saves: str = "indices",
) -> Run:
    """The verified plan of a policy with algorithms "m" or "p", and its simulated step; see `setting`."""
    made_for = setting(name, batch, rules, count, budget, saves)
    chosen = choose_algorithms(made_for.tape, TITAN_X, ALGORITHMS[algorithms])
    plan = made_for.make(policy, chosen)
    vdnn.verify(plan)
    return Run(plan, vdnn.simulate(plan, TITAN_X))
