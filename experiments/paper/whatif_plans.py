"""The what-if study's machines, its plane of links and rates, and the plans that are simulated on them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from math import exp, log, sqrt
from typing import Any

import numpy as np
from published import Pair
from study import setting

import vdnn
from vdnn.memory.decisions import Decisions, resolve
from vdnn.memory.hardware import Roofline, hardware_names
from vdnn.memory.passes import make_plan
from vdnn.memory.plan import Plan
from vdnn.memory.rules import EXTRACTION, offload_inputs
from vdnn.memory.simulate import oracle_seconds
from vdnn.memory.timing import timed
from vdnn.memory.trial import sketch
from vdnn.setting import Setting, choose_algorithms

NETWORKS: tuple[Pair, ...] = (("vgg19", 256), ("resnet152", 64))
OFFLOADING = ("vdnn_all", "vdnn_conv", "within")
FIXED = ("checkpoint", "keep_all")  # ask for no times
LINKS, RATES = (12e9, 400e9), (6e12, 700e12)  # bounds of the plane: bytes per second each way, FLOP per second
POINTS = {
    "vgg19": (10, 10),
    "resnet152": (6, 5),
}  # along links and rates: a plan of ResNet-152 takes a second
CHANNELS = (64, 128, 256, 512)
# Peak of tensor cores in TF32, without sparsity: NVIDIA's datasheets of A100 (156 TFLOPS) and H100 (989 with sparsity)
TF32 = {"a100": 156e12, "h100-sxm": 494.5e12, "gh200": 494.5e12}


@dataclass(frozen=True)
class Found:
    """A simulated step: of a policy on a network, at a point of the plane or, if `machine` is not "", on that machine.

    Rates are in FLOP or bytes per second; performance is the oracle's time over the step's.
    """

    network: str
    batch: int
    machine: str
    policy: str
    flops_per_second: float
    bytes_per_second: float
    offload_bytes_per_second: float
    prefetch_bytes_per_second: float
    simulated_step_seconds: float
    simulated_hidden_copy_fraction: float
    simulated_performance: float
    peak_bytes: int
    offloaded_bytes: int

    @property
    def link(self) -> float:
        """Bytes per second: the geometric mean of both ways."""
        return sqrt(self.offload_bytes_per_second * self.prefetch_bytes_per_second)


COLUMNS = tuple(field.name for field in fields(Found))


# ---- machines


def machines() -> dict[str, Roofline]:
    """Every GPU of hardware.json in fp32, and three with their tensor cores: {"a100": ..., "a100 TF32": ...}."""
    found = {name: vdnn.roofline(name) for name in hardware_names() if name != "host"}
    return found | {f"{name} TF32": vdnn.roofline(name, flops_per_second=rate) for name, rate in TF32.items()}


@cache
def bandwidth_line() -> tuple[float, float]:
    """Slope and height of the least squares line through log bytes per second over log FLOP per second."""
    known = machines().values()
    slope, height = np.polyfit([log(m.flops_per_second) for m in known], [log(m.bytes_per_second) for m in known], 1)
    return float(slope), float(height)


def memory_bandwidth(flops_per_second: float) -> float:
    """Bytes per second of a machine of that arithmetic: the power law of all `machines`, to four digits."""
    slope, height = bandwidth_line()
    return float(f"{exp(height + slope * log(flops_per_second)):.4g}")


def at(flops_per_second: float, link: float) -> Roofline:
    """The machine at a point of the plane."""
    return vdnn.roofline(
        "titan-x",
        flops_per_second=flops_per_second,
        bytes_per_second=memory_bandwidth(flops_per_second),
        offload_bytes_per_second=link,
        prefetch_bytes_per_second=link,
    )


def hiding_channels(cost: Roofline, link: float) -> float:
    """The least C_out of a 3x3 CONV whose forward, at the attained share of the peak, hides the copy of its X."""
    return cost.attained * cost.flops_per_second / link / 4.5


# ---- plans


@cache
def _chosen(pair: Pair, cost: Roofline) -> tuple[tuple[str, str], ...]:
    """The fastest algorithm of each op."""
    return tuple(choose_algorithms(setting(*pair, "ours", "all").tape, cost, "performance").items())


@cache
def _oracle(pair: Pair, cost: Roofline) -> float:
    return oracle_seconds(setting(*pair, "ours", "all").tape, cost)


@cache
def _fixed(pair: Pair, policy: str, algorithms: tuple[tuple[str, str], ...]) -> Plan:
    """The plan of a policy that asks for no times."""
    return _laid_out(setting(*pair, "ours", "all"), policy, policy, dict(algorithms))


@cache
def _fewer(pair: Pair, algorithms: tuple[tuple[str, str], ...]) -> Decisions:
    """vdnn_all's decisions without the X of as many of the last layers as fit beside it into checkpoint's peak.

    vdnn_all's own where that needs more already.
    """
    tape, limit = setting(*pair, "ours", "all").tape, _fixed(pair, "checkpoint", algorithms).peak_bytes
    offered = offload_inputs(tape, EXTRACTION)

    def first(count: int) -> Decisions:
        moved = list(offered.fates)[:count]
        return Decisions({b: offered.fates[b] for b in moved}, ahead={b: offered.ahead_of(b) for b in moved})

    def fits(count: int) -> bool:
        return sketch(tape, resolve(first(count), tape, dict(algorithms))).peak_bytes <= limit

    return first(bisect_left(range(len(offered.fates)), True, key=fits))


def _laid_out(made_for: Setting, policy: Any, name: str, algorithms: dict[str, str]) -> Plan:
    decisions = made_for.decide(policy, algorithms).decisions
    return make_plan(made_for.tape, decisions, policy=name, effort=0)


def plan_for(pair: Pair, policy: str, cost: Roofline) -> Plan:
    """The plan of one of `OFFLOADING` or `FIXED`, its algorithms and copies timed by `cost`."""
    chosen = _chosen(pair, cost)
    if policy in FIXED:
        return _fixed(pair, policy, chosen)
    made_for = replace(setting(*pair, "ours", "all"), cost=cost)
    is_within = policy == "within"
    wanted = timed(made_for.tape, _fewer(pair, chosen), cost, dict(chosen)) if is_within else policy
    return _laid_out(made_for, wanted, policy, dict(chosen))


def step(pair: Pair, policy: str, cost: Roofline, machine: str = "") -> Found:
    """The simulated step of a policy at a point of the plane, or on a machine."""
    plan = plan_for(pair, policy, cost)
    trace = vdnn.simulate(plan, cost)
    return Found(
        *pair,
        machine,
        policy,
        *(getattr(cost, name) for name in COLUMNS if name.endswith("per_second")),
        float(f"{trace.step_seconds:.6g}"),
        float(f"{trace.hidden_copy_fraction:.6g}"),
        float(f"{_oracle(pair, cost) / trace.step_seconds:.6g}"),
        plan.peak_bytes,
        plan.offloaded_bytes,
    )


@cache
def on_machines(pairs: tuple[Pair, ...] = NETWORKS) -> tuple[Found, ...]:
    """The steps of every policy on all machines."""
    places = [(pair, name, cost) for pair in pairs for name, cost in machines().items()]
    return tuple(step(pair, policy, cost, name) for pair, name, cost in places for policy in OFFLOADING + FIXED)


def axis(bounds: tuple[float, float], count: int) -> list[float]:
    """So many values from bound to bound with one factor between them, to four digits."""
    return [float(f"{value:.4g}") for value in np.geomspace(*bounds, count)]


def over_plane(pair: Pair, links: Sequence[float], rates: Sequence[float]) -> list[Found]:
    """The steps of every policy but `within` at the points of the plane: by arithmetic, link and policy."""
    places = [at(rate, link) for rate in rates for link in links]
    return [step(pair, policy, cost) for cost in places for policy in OFFLOADING[:2] + FIXED]


def everywhere() -> list[Found]:
    """The steps of all networks over their planes and on all machines."""
    found = []
    for pair in NETWORKS:
        across, up = POINTS[pair[0]]
        found += over_plane(pair, axis(LINKS, across), axis(RATES, up))
    return [*found, *on_machines()]
