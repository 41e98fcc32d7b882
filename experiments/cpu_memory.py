"""The largest batch that PyTorch trains in a given RAM, and vdnn with the same batch in a half, a third and a quarter.

    python experiments/cpu_memory.py [--ram 16GiB] [--only vgg16]    # writes experiments/results/cpu_memory.csv

PyTorch's largest batch is found by bisection in child processes under a real limit: a control group's where one can be
made, else RLIMIT_DATA (cpu_limit.py).  Then every side trains that batch, rounded down to a multiple of 8, for a few
steps in a process of its own: PyTorch, PyTorch with torch.utils.checkpoint, and vdnn within shares of PyTorch's peak
resident set, in several ways, each said: sub-batches, recompute, what the planner finds, offload to disk.  Offload to
host memory would save nothing here: it is the same RAM.  A process's peak resident set is the system's VmHWM, all that
Python and libraries take included; of the steps the first, which touches the memory, does not count.  PyTorch trains
once more at the end, so that a machine that became slower shows.

Children's answers are kept in runs/cpu_memory.json: a run that was cut short goes on where it stopped (--fresh: not).
All numbers are measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import record
from children import ChildError
from cpu_cases import CASES, Case, kernels_here, named
from cpu_child import FEWEST, Task, ask
from cpu_limit import limited
from cpu_memory_report import COLUMNS, Row, table_of
from cpu_report import wide_console

from vdnn.commands.measure import processor, write_whole
from vdnn.network import Network
from vdnn.units import format_bytes, parse_bytes

NETWORKS = ("vgg16", "resnet50")
SHARES = {"1/2": 2, "1/3": 3, "1/4": 4}
PROBES = (4, 12)  # batches from whose peaks the first guess follows
UNIT = 8  # the batch is a multiple of it, so that it has parts
CLOSE = 32  # bisection ends within a 32nd of the batch
PATIENCE = 3600.0  # seconds for one child


@dataclass(frozen=True)
class Way:
    """How vdnn saves memory: a policy and more of the Trainer's arguments."""

    name: str
    policy: str
    how: dict[str, Any] = field(default_factory=dict)


WAYS = (
    Way("sub-batches", "keep_all", {"micro_batches": FEWEST}),
    Way("recompute", "checkpoint"),
    Way("search, disk", "search", {"host_budget": 0}),
    Way("offload to disk", "vdnn_all", {"host_budget": 0}),
    Way("offload to disk, each use", "least", {"host_budget": 0, "algorithms": "memory"}),
)


def ways_of(net: Network) -> list[Way]:
    """Those that train the same: no sub-batches where a layer couples samples."""
    coupled = any(node.layer.couples_samples for node in net.nodes)
    return [way for way in WAYS if not (coupled and way.name == "sub-batches")]


def largest(fits: Callable[[int], bool], guess: int, close: int = CLOSE) -> int:
    """The largest batch that fits, to within a `close`-th of it, found by doubling or halving and then by bisection.

    Raises ValueError if not even one sample fits.
    """
    low, high = 0, 0
    batch = max(1, guess)
    while not (low and high):
        if fits(batch):
            low = batch
            batch += max(1, batch // 8)
        else:
            high = batch
            batch -= max(1, batch // 8)
        if batch == 0:
            raise ValueError("not even one sample fits")
    while high - low > max(1, low // close):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def guessed(peaks: dict[int, int], nbytes: int) -> int:
    """The batch at which a peak that grows evenly with the batch reaches so many bytes; at least 1."""
    (first, least), (last, most) = sorted(peaks.items())
    slope = max(1.0, (most - least) / (last - first))
    return max(1, int(first + (nbytes - least) / slope))


class Answers:
    """Children's answers, kept on disk: the same task is not done twice."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.known: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())

    def ask(self, task: Task, about: str, turn: int = 0) -> dict[str, Any]:
        """The answer, from a child or kept; `turn` tells apart tasks that shall be done again.

        A failure that is not for want of memory is an answer too, {"error"}, but is not kept.
        """
        plain = {**asdict(task), "group": bool(task.group)}
        key = json.dumps([plain, turn], sort_keys=True)
        if key not in self.known:
            began = time.perf_counter()
            click.echo(f"{time.strftime('%H:%M:%S')} {about} ... ", nl=False)
            try:
                found = ask(task, PATIENCE)
            except ChildError as error:
                click.echo(f"failed: {error}")
                return {"error": str(error), "memory": False}
            click.echo(f"{_told(found)} ({time.perf_counter() - began:.0f} s)")
            self.known[key] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.known, indent=1) + "\n")
        return dict(self.known[key])


def _told(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"does not fit: {found['error'][:90]}"
    return f"{format_bytes(found['peak'])}, {found['seconds'][-1]:.2f} s a step"


class Study:
    """One network under one limit."""

    def __init__(self, case: Case, nbytes: int, threads: int, steps: int, kind: str, answers: Answers) -> None:
        self.case, self.nbytes, self.threads, self.steps = case, nbytes, threads, steps
        self.kind, self.answers = kind, answers
        self.limit_kind = ""

    def torch(self, batch: int, steps: int, limit: int, about: str, turn: int = 0, **how: Any) -> dict[str, Any]:
        """PyTorch's answer, under that limit in bytes; 0: none."""
        task = Task("torch", self.case.smaller(batch).plain(), self.threads, steps, **how)
        told = f"{self.case.network}: torch, batch {batch}{about}"
        if not limit:
            return self.answers.ask(task, told, turn)
        with limited(limit, self.kind) as bound:
            self.limit_kind = bound.kind
            task = Task(**{**asdict(task), "limit": limit, "group": bound.group})
            return self.answers.ask(task, told, turn)

    def largest_batch(self) -> int:
        """PyTorch's; two steps, since the second has the optimizer's state from its beginning on."""
        probes = {batch: self.torch(batch, 2, 0, ", a probe") for batch in PROBES}
        failed = [found["error"] for found in probes.values() if "error" in found]
        if failed:
            raise click.ClickException(f"PyTorch does not run: {failed[0]}")
        guess = guessed({batch: found["peak"] for batch, found in probes.items()}, self.nbytes)
        limit = format_bytes(self.nbytes)
        return largest(lambda batch: "peak" in self.torch(batch, 2, self.nbytes, f" in {limit}"), guess)

    def rows(self, ways: list[Way], kernels: str) -> Iterator[Row]:
        """PyTorch, PyTorch with recompute, vdnn in every share and way, and PyTorch again."""
        most = self.largest_batch()
        batch = most if most < UNIT else most // UNIT * UNIT
        click.echo(f"{self.case.network}: PyTorch's largest batch is {most}, all train {batch}; {self.limit_kind}")
        case, limit = self.case.smaller(batch), self.nbytes
        plain = Row(case, self.threads, "torch", "plain", "", 0, self.torch(batch, self.steps, limit, ", plain"))
        yield plain
        if not plain.peak:
            return
        again = self.torch(batch, self.steps, limit, ", checkpoint", recompute=True)
        yield Row(case, self.threads, "torch", "checkpoint", "", 0, again)
        for share, parts in SHARES.items():
            for way in ways:
                target = plain.peak // parts
                about = f"{case.network}: vdnn {kernels}, {way.name} in {format_bytes(target)}"
                how = {"kernels": kernels, "policy": way.policy, "how": way.how, "target": target}
                found = self.answers.ask(Task("vdnn", case.plain(), self.threads, self.steps, **how), about)
                yield Row(case, self.threads, f"vdnn {kernels}", way.name, share, target, found)
        last = self.torch(batch, self.steps, limit, ", plain again", turn=1)
        yield Row(case, self.threads, "torch", "plain again", "", 0, last)


@click.command()
@click.option("--quick", is_flag=True, help="A small network in 1 GiB; writes no file unless --out.")
@click.option("--only", type=click.Choice(NETWORKS), help="Of the networks only this.")
@click.option("--ram", default="16GiB", show_default=True, help="What PyTorch has.")
@click.option("--limit", "kind", type=click.Choice(["any", "cgroup", "rlimit"]), default="any", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--steps", type=click.IntRange(min=2), default=3, show_default=True, help="The first does not count.")
@click.option("--way", "chosen", multiple=True, help="Only these ways; may be given again.")
@click.option("--kernels", type=click.Choice(kernels_here()), default=kernels_here()[-1], show_default=True)
@click.option("--fresh", is_flag=True, help="Forget what earlier runs found.")
@click.option("--state", type=click.Path(path_type=Path), default=Path("runs/cpu_memory.json"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: experiments/results/cpu_memory.csv]")
def main(
    quick: bool,
    only: str | None,
    ram: str,
    kind: str,
    threads: int,
    steps: int,
    chosen: tuple[str, ...],
    kernels: str,
    fresh: bool,
    state: Path,
    out: Path | None,
) -> None:
    """Find PyTorch's largest batch, train it in less memory, print and write what was measured."""
    unknown = set(chosen) - {way.name for way in WAYS}
    if unknown:
        raise click.UsageError(f"no way {sorted(unknown)}; there are {', '.join(way.name for way in WAYS)}")
    nbytes = parse_bytes("1GiB" if quick else ram, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    cases = [named("small_vgg", CASES)] if quick else [named(n, CASES) for n in NETWORKS if only in (None, n)]
    answers, lines, kinds = Answers(state, fresh), [], set()
    out = out or (None if quick else record.RESULTS / "cpu_memory.csv")
    for case in cases:
        study = Study(case, nbytes, threads, steps, kind, answers)
        ways = [way for way in ways_of(case.make()) if not chosen or way.name in chosen]
        rows = list(study.rows(ways, kernels))
        lines += [row.cells(rows[0]) for row in rows]
        kinds.add(study.limit_kind)
        wide_console().print(table_of(rows))
        if out:
            facts = processor(), f"{threads} threads", f"PyTorch in {nbytes} bytes by {' and '.join(sorted(kinds))}"
            record.write(out, COLUMNS, lines, *facts, rows[0].found.get("versions", "PyTorch"))


if __name__ == "__main__":
    main()
