"""A best-fit pool, as the paper takes memory from (section III-B), against the layout of a plan: fragmentation of both.

    python experiments/pool.py [--quick]       # writes experiments/results/pool.csv

Every number is exact bytes of a plan and of a simulated pool that replays its allocs and frees.  Best fit is not
monotone: a pool may fail where a smaller one does not.  So "pool" is the least that serves all, which takes luck or a
search; "secure" is the least from which on none fails ("?" where a bounded search ended before it); "high_water" is the
highest end in a pool without bound.  "<" marks the least found where smaller ones were left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import record
from fragmentation import DRAWN, random_decisions
from rich.console import Console
from rich.table import Table

from vdnn import models
from vdnn.memory.pool import fits, replay
from vdnn.setting import Setting, choose_algorithms, make_setting
from vdnn.tape import GRANULE
from vdnn.units import format_bytes

MODELS = ("vgg16", "vgg19", "vgg116", "vgg416", "resnet50", "resnet152", "googlenet")
POLICIES = ("keep_all", "vdnn_all", "vdnn_conv", "vdnn_dyn", "checkpoint", "least")
QUICK = ("vgg16", "resnet50")
SHARES = ("arena", "pool", "secure", "high_water")  # whose bytes are divided by the peak's
COLUMNS = (
    *("network", "batch", "algorithms", "decisions", "peak_bytes", *(f"{share}_bytes" for share in SHARES)),
    *(f"{share}_ratio" for share in SHARES),
    *("pool_is_least", "pool_of_high_water_fits", "pool_of_one_granule_less_fits", "replay_seconds"),
)

Row = dict[str, object]


def measure(setting: Setting, policy: object, algorithms: str, label: str, effort: int) -> Row:
    """One row: a plan and the pools that serve it."""
    chosen = choose_algorithms(setting.tape, setting.cost, algorithms)
    plan = setting.make(policy, chosen)  # type: ignore[arg-type]
    began = time.perf_counter()
    report = replay(plan, effort)
    taken = time.perf_counter() - began
    sizes = (report.arena_bytes, report.needed_bytes, report.secure_bytes, report.high_water_bytes)
    ratios = ("" if size is None else f"{size / report.peak_bytes:.6f}" for size in sizes)
    values = (
        *(setting.tape.network, setting.tape.batch, algorithms, label, report.peak_bytes),
        *("" if size is None else size for size in sizes),
        *(*ratios, report.is_least),
        *(fits(plan, report.high_water_bytes - less) for less in (0, GRANULE)),
        f"{taken:.3f}",
    )
    return dict(zip(COLUMNS, values, strict=True))


def rows(names: tuple[str, ...], batch: int, algorithms: str, draws: int, effort: int) -> Iterator[Row]:
    """Named policies, network by network, and then `draws` random decisions."""
    drawn = [name for name in DRAWN if name in names] if draws else []
    for name in names:
        setting = make_setting(models.get(name, batch=batch))
        for policy in POLICIES:
            yield measure(setting, policy, algorithms, policy, effort)
        if name in drawn:
            for seed in range(drawn.index(name), draws, len(drawn)):
                yield measure(setting, random_decisions(setting, seed), algorithms, f"random {seed}", effort // 5)


def show(found: list[Row]) -> Table:
    table = Table(title="bytes / peak; simulated pool")
    for column in ("network", "decisions", "peak", *SHARES):
        table.add_column(column, justify="left" if column in ("network", "decisions") else "right")
    for row in found:
        mark = "" if row["pool_is_least"] else "<"
        values = [f"{float(ratio):.4f}" if (ratio := str(row[f"{share}_ratio"])) else "?" for share in SHARES]
        values[1] = mark + values[1]
        table.add_row(str(row["network"]), str(row["decisions"]), format_bytes(int(str(row["peak_bytes"]))), *values)
    return table


def summary(found: list[Row], kind: str) -> str:
    if not found:
        return f"{kind}: none"
    parts = [f"{kind}, {len(found)} plans (simulated): median and worst"]
    for share in SHARES[:3]:
        known = [float(str(row[f"{share}_ratio"])) for row in found if row[f"{share}_ratio"]]
        middle, worst = (f"{statistics.median(known):.4f}", f"{max(known):.4f}") if known else ("?", "?")
        parts.append(f"{share} {middle} {worst}" + (f" (of {len(known)})" if len(known) < len(found) else ""))
    failed = sum(not row["pool_of_high_water_fits"] for row in found)
    return "; ".join(parts) + f"; a pool of the unbounded pool's high water fails for {failed}"


@click.command()
@click.option("--quick", is_flag=True, help="Two networks; writes no file unless --out.")
@click.option("--batch", default=32, show_default=True)
@click.option("--algorithms", default="performance", show_default=True)
@click.option("--draws", type=int, help="Random decisions.  [default: 40; 6 if quick]")
@click.option(
    "--effort", type=int, help="Requests served a plan; a fifth if random.  [default: 10 million; 200,000 if quick]"
)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/pool.csv]")
def main(quick: bool, batch: int, algorithms: str, draws: int | None, effort: int | None, out: Path | None) -> None:
    """Print and write what the layout of a plan and a best-fit pool take for the same allocs and frees."""
    effort = effort or (200_000 if quick else 10_000_000)
    draws = draws if draws is not None else 6 if quick else 40
    found = []
    for row in rows(QUICK if quick else MODELS, batch, algorithms, draws, effort):
        click.echo(f"{row['network']}, {row['decisions']}: {row['replay_seconds']} s", err=True)
        found.append(row)
    Console().print(show(found))
    for kind in ("named policies", "random decisions"):
        chosen = [row for row in found if str(row["decisions"]).startswith("random ") == (kind != "named policies")]
        click.echo(summary(chosen, kind))
    if out or not quick:
        lines = ([row[column] for column in COLUMNS] for row in found)
        record.write(out or record.RESULTS / "pool.csv", COLUMNS, lines, "simulated pool", f"effort {effort}")


if __name__ == "__main__":
    main()
