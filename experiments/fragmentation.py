"""Fragmentation: how much larger the arena is than the peak, for named policies and for random decisions.

    python experiments/fragmentation.py [--quick]       # writes experiments/results/fragmentation.csv

No device is needed: bytes are exact.  Exit status 1 if a ratio is above its limit: 1.02 for each named policy; 1.01 in
the median and 1.10 at worst for random decisions, which keep, offload and drop in random shares, with copies that leave
and return earlier or later.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import record

import vdnn
from vdnn import models
from vdnn.memory.policy import POLICIES
from vdnn.network import Role
from vdnn.setting import Setting, choose_algorithms, make_setting

ALGORITHMS = ("performance", "memory")
MODELS = (
    "alexnet",
    "overfeat",
    "vgg11",
    "vgg16",
    "vgg19",
    "vgg116",
    "vgg416",
    "resnet18",
    "resnet50",
    "resnet152",
    "googlenet",
    "digits_vgg",
)
DRAWN = ("vgg16", "resnet18", "resnet50", "googlenet", "digits_vgg", "vgg116")  # under random decisions, in turn
QUICK = ("vgg16", "resnet18", "googlenet", "digits_vgg")
NAMED, MEDIAN, WORST = 1.02, 1.01, 1.10  # limits of arena / peak
COLUMNS = ("network", "batch", "algorithms", "decisions", "peak_bytes", "arena_bytes", "ratio", "planning_seconds")

Row = tuple[str, int, str, str, int, int, float, float]


def measure(setting: Setting, policy: object, algorithms: str, label: str) -> Row:
    """Plan once; the budget guides vdnn_dyn and is otherwise not applied."""
    chosen = choose_algorithms(setting.tape, setting.cost, algorithms)
    began = time.perf_counter()
    plan = setting.make(policy, chosen)  # type: ignore[arg-type]
    taken = time.perf_counter() - began
    peak, arena = plan.peak_bytes, plan.arena_bytes
    return setting.tape.network, setting.tape.batch, algorithms, label, peak, arena, arena / peak, taken


def random_decisions(setting: Setting, seed: int) -> vdnn.Decisions:
    """Fates of all that backward reads, in shares that are drawn as well, and timing; an input cannot be dropped."""
    draw = random.Random(seed)
    shares = [draw.random() for _ in vdnn.Fate]
    fates = draw.choices(list(vdnn.Fate), shares, k=len(setting.tape.saved))
    legal = {
        t.name: vdnn.OFFLOAD if t.role is Role.INPUT and fate is vdnn.DROP else fate
        for t, fate in zip(setting.tape.saved, fates, strict=True)
    }
    return vdnn.Decisions(legal, ahead=draw.randint(0, 3), slack=draw.randint(0, 2))


def named(settings: dict[str, Setting]) -> Iterator[Row]:
    for setting in settings.values():
        for algorithms in ALGORITHMS:
            for policy in POLICIES:
                yield measure(setting, policy, algorithms, policy)


def drawn(settings: dict[str, Setting], count: int) -> Iterator[Row]:
    names = [name for name in DRAWN if name in settings]
    for seed in range(count):
        setting = settings[names[seed % len(names)]]
        algorithms = ALGORITHMS[seed // len(names) % 2]
        yield measure(setting, random_decisions(setting, seed), algorithms, f"random {seed}")


def show(rows: Iterator[Row]) -> list[Row]:
    """Print each row as it comes."""
    out = []
    for row in rows:
        network, _, algorithms, label, peak, arena, ratio, taken = row
        click.echo(f"{network:<11} {algorithms:<12} {label:<11} {peak:>12} {arena:>12} {ratio:>8.4f} {taken:>7.2f} s")
        out.append(row)
    return out


@click.command()
@click.option("--quick", is_flag=True, help="Four networks and 20 random decisions; writes no file unless --out.")
@click.option("--batch", default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/fragmentation.csv]")
def main(quick: bool, batch: int, out: Path | None) -> None:
    """Print arena / peak and check it against the limits."""
    settings = {name: make_setting(models.get(name, batch=batch)) for name in (QUICK if quick else MODELS)}
    policies, mixed = show(named(settings)), show(drawn(settings, 20 if quick else 200))
    worst, ratios = max(row[-2] for row in policies), [row[-2] for row in mixed]
    median, most = statistics.median(ratios), max(ratios)
    if out or not quick:
        rows = ((*row[:-2], f"{row[-2]:.6f}", f"{row[-1]:.3f}") for row in policies + mixed)
        record.write(out or record.RESULTS / "fragmentation.csv", COLUMNS, rows)
    click.echo(f"named policies, {len(policies)} plans: worst {worst:.4f}, at most {NAMED} wanted")
    click.echo(
        f"random decisions, {len(ratios)} plans: median {median:.4f}, at most {MEDIAN} wanted; "
        f"worst {most:.4f}, at most {WORST} wanted"
    )
    raise SystemExit(worst > NAMED or median > MEDIAN or most > WORST)


if __name__ == "__main__":
    main()
