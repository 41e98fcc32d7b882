"""How the time of planning, verifying and simulating grows with the number of layers.

    python experiments/scale.py [--quick]       # writes experiments/results/scale.csv

Every time is *measured*: seconds of this machine's CPU, so that what else it does counts little; the device, a Titan X,
is simulated.  Sizes take turns, so that a machine that slows down slows all of them, and each figure is the median of
the turns.  Exit status 1 if planning, verifying and simulating take more than twice as long per layer with the most
layers as with the fewest, or if VGG-416 under vdnn_all takes a second or more, by our rules or the paper's, with either
kernel set.  Making the network itself is timed, too, but is no part of either.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import record
from rich.console import Console
from rich.table import Table

import vdnn
from vdnn import layers, models
from vdnn.memory.cost import roofline
from vdnn.memory.decisions import Decisions
from vdnn.memory.layout import EFFORT
from vdnn.memory.order import order
from vdnn.memory.passes import allocate, copy_offloaded, rerun_dropped
from vdnn.memory.place import place
from vdnn.memory.plan import Plan
from vdnn.memory.simulate import simulate
from vdnn.memory.trial import sketch
from vdnn.memory.verify import verify
from vdnn.network import Network, Tensor
from vdnn.setting import Setting, choose_algorithms, make_setting

SIZES = (100, 300, 1000, 3000, 10_000)  # layers: convolutions, ReLUs, joins and pools
POLICIES = ("keep_all", "vdnn_all", "vdnn_conv", "checkpoint", "least", "vdnn_dyn")
STAGES = ("tape", "decide", "passes", "place", "order", "verify", "simulate")
PAUSED = ("passes", "place", "order")  # here `make_plan` does not look for garbage
GROWTH, VGG_SECONDS = 2.0, 1.0  # limits
CHANNELS = (8, 12, 16)  # in turn, so that tensors differ in size wherever they are
COLUMNS = (
    *("network", "layers", "policy", "turns", "steps", "arena_bytes", "peak_bytes"),
    *(f"{stage}_seconds_measured" for stage in ("network", *STAGES)),
    *("seconds_measured", "microseconds_per_layer_measured"),
)

Seconds = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One policy on one network; `stages` has measured seconds, of making the network too, `total` is without that."""

    network: str
    layers: int
    policy: str
    turns: int
    steps: int
    arena: int
    peak: int
    stages: Seconds
    total: float

    def per_layer(self, stage: str = "") -> float:
        """Seconds per layer, of one stage or of all but making the network."""
        return (self.stages[stage] if stage else self.total) / self.layers

    def cells(self) -> tuple[object, ...]:
        """What stands under COLUMNS."""
        numbers = (*self.stages.values(), self.total)
        return (
            *(self.network, self.layers, self.policy, self.turns, self.steps, self.arena, self.peak),
            *(f"{seconds:.6f}" for seconds in numbers),
            f"{1e6 * self.per_layer():.3f}",
        )


def chain(count: int) -> Network:
    """`count` layers in a chain: convolutions with ReLUs, a pool after every eighth; four pools halve the image."""
    net = Network((8, 3, 32, 32), name="chain")
    x = net.input
    while len(net.nodes) < count - 4:
        x = _conv(net, x, CHANNELS[len(net.nodes) // 2 % len(CHANNELS)])
        if len(net.nodes) % 17 == 16:
            x = _pool(net, x, count)
    return _classifier(net, x, count)


def residual(count: int) -> Network:
    """`count` layers in blocks of two convolutions with ReLUs and a join; a pool after every third block."""
    net = Network((8, 3, 32, 32), name="residual")
    x = _conv(net, net.input, CHANNELS[0])
    while len(net.nodes) < count - 8:
        y = _conv(net, x, CHANNELS[len(net.nodes) // 5 % len(CHANNELS)])
        y = net.add(layers.Conv2d(CHANNELS[0], 3, padding=1), y)
        x = net.add(layers.ReLU(), net.add(layers.Add(), y, x))
        if len(net.nodes) % 16 == 1:
            x = _pool(net, x, count)
    return _classifier(net, x, count)


def _conv(net: Network, x: Tensor, channels: int) -> Tensor:
    return net.add(layers.ReLU(), net.add(layers.Conv2d(channels, 3, padding=1), x))


def _pool(net: Network, x: Tensor, count: int) -> Tensor:
    """A pool; it halves the image once in every further fifth of the network, and else leaves its size as it is."""
    wanted = 32 >> 5 * len(net.nodes) // count
    return net.add(layers.MaxPool2d(2) if x.shape[2] > wanted else layers.MaxPool2d(3, 1, 1), x)


def _classifier(net: Network, x: Tensor, count: int) -> Network:
    while len(net.nodes) < count - 3:
        x = net.add(layers.ReLU(), x)
    x = net.add(layers.Linear(10), net.add(layers.Flatten(), x))
    net.add(layers.SoftmaxCrossEntropy(), x)
    return net


NETWORKS: dict[str, Callable[[int], Network]] = {"chain": chain, "residual": residual}


class Watch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    def time(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns.  What was left over is collected before; what it leaves, only if it really is."""
        gc.collect()
        if stage in PAUSED:
            gc.disable()
        began = time.process_time()
        try:
            return function(*arguments)
        finally:
            self.seconds[stage] = time.process_time() - began
            gc.enable()


def middling(setting: Setting) -> int:
    """A budget in the middle between what keep_all and vdnn_all need, so that vdnn_dyn has to try several plans."""
    algorithms = choose_algorithms(setting.tape, setting.cost, "performance")
    peaks = [sketch(setting.tape, setting.decide(p, algorithms).decisions).peak_bytes for p in ("keep_all", "vdnn_all")]
    return sum(peaks) // 2


def staged(name: str, count: int, policy: str) -> tuple[Plan, Seconds]:
    """A plan, made as `vdnn.plan` makes it, verified and simulated; and the seconds of each stage."""
    watch = Watch()
    net = watch.time("network", NETWORKS[name], count)
    setting = watch.time("tape", make_setting, net)
    if policy == "vdnn_dyn":
        setting = replace(setting, budget=middling(setting))
    tape = setting.tape

    def decide() -> Decisions:
        return setting.decide(policy, choose_algorithms(tape, setting.cost, "performance")).decisions

    def passes(decisions: Decisions) -> Plan:
        steps = copy_offloaded(rerun_dropped(tape, decisions), tape, decisions, False)
        return Plan(tape, decisions, tuple(allocate(steps, tape, decisions)), 0, 0, policy)

    decisions = watch.time("decide", decide)
    plan = watch.time("place", place, watch.time("passes", passes, decisions), EFFORT)
    plan = replace(plan, steps=tuple(watch.time("order", order, plan)))
    watch.time("verify", verify, plan)
    watch.time("simulate", simulate, plan, setting.cost)
    return plan, watch.seconds


def measure(name: str, policy: str, sizes: Sequence[int], turns: int) -> list[Row]:
    """One row for every number of layers, each the median of `turns`."""
    plans: dict[int, Plan] = {}
    seconds: dict[int, list[Seconds]] = {count: [] for count in sizes}
    for _ in range(turns):
        for count in sizes:
            plans[count], found = staged(name, count, policy)
            seconds[count].append(found)
    rows = []
    for count, plan in plans.items():
        stages = {stage: statistics.median(s[stage] for s in seconds[count]) for stage in ("network", *STAGES)}
        total = statistics.median(sum(s[stage] for stage in STAGES) for s in seconds[count])
        rows.append(Row(name, count, policy, turns, len(plan.steps), plan.arena_bytes, plan.peak_bytes, stages, total))
    return rows


def growth(rows: Sequence[Row], stage: str = "") -> float:
    """Seconds per layer with the most layers, of all stages or one, divided by those with the fewest."""
    few, *_, many = (row.per_layer(stage) for row in rows)
    return many / few


def show(console: Console, name: str, rows: Mapping[str, list[Row]]) -> None:
    """Seconds with the most layers, by stage, and how many times as long a layer takes as with the fewest."""
    first, last = next((found[0], found[-1]) for found in rows.values())
    table = Table(
        title=f"{name}: measured CPU seconds for {last.layers} layers (x per layer as long as for {first.layers})"
    )
    table.add_column("", no_wrap=True)
    for policy in rows:
        table.add_column(policy, justify="right", no_wrap=True)
    for stage in ("network", *STAGES):
        table.add_row(stage, *(f"{r[-1].stages[stage]:.2f} x{growth(r, stage):.1f}" for r in rows.values()))
    table.add_row("all but network", *(f"{r[-1].total:.2f} x{growth(r):.2f}" for r in rows.values()))
    table.add_row("arena / peak", *(f"{r[-1].arena / r[-1].peak:.4f}" for r in rows.values()))
    console.print(table)


def vgg416(turns: int) -> dict[str, float]:
    """{"rules, kernels": measured seconds of planning, verifying and simulating VGG-416 under vdnn_all}."""
    found = {}
    for rules in ("ours", "paper"):
        net = models.get("vgg416", rules=rules)
        for kernels in ("numpy", "cudnn4"):
            seconds = []
            for _ in range(turns):
                gc.collect()
                began = time.process_time()
                plan = vdnn.plan(net, "vdnn_all", budget="1TiB", rules=rules, kernels=kernels)
                simulate(plan, roofline("titan-x"))
                seconds.append(time.process_time() - began)
            found[f"rules {rules}, kernels {kernels}"] = statistics.median(seconds)
    return found


@click.command()
@click.option("--quick", is_flag=True, help="Up to 1000 layers; writes no file unless --out.")
@click.option("--turns", default=3, show_default=True, type=click.IntRange(1), help="Medians of so many.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES), help="[default: all]")
@click.option("--network", "names", multiple=True, type=click.Choice(list(NETWORKS)), help="[default: both]")
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/scale.csv]")
def main(quick: bool, turns: int, policies: tuple[str, ...], names: tuple[str, ...], out: Path | None) -> None:
    """Print how time grows with layers, and check it against the limits."""
    sizes = SIZES[:3] if quick else SIZES
    console, rows, failed = Console(width=120), list[Row](), list[str]()
    for name in names or NETWORKS:
        by_policy = {policy: measure(name, policy, sizes, turns) for policy in policies or POLICIES}
        show(console, name, by_policy)
        rows += [row for found in by_policy.values() for row in found]
        grown = {f"{name} {policy}": growth(found) for policy, found in by_policy.items()}
        failed += [f"{label}: {ratio:.2f} times as long per layer" for label, ratio in grown.items() if ratio > GROWTH]
    for label, seconds in vgg416(turns).items():
        console.print(f"VGG-416, vdnn_all, {label}: {seconds:.3f} s measured, less than {VGG_SECONDS} wanted")
        failed += [f"VGG-416, {label}: {seconds:.3f} s"] if seconds >= VGG_SECONDS else []
    if out or not quick:
        path = out or record.RESULTS / "scale.csv"
        record.write(path, COLUMNS, (row.cells() for row in rows), platform.machine())
    console.print(f"per layer, {sizes[-1]} layers against {sizes[0]}: at most {GROWTH} times as long wanted")
    for reason in failed:
        console.print(f"above its limit: {reason}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
