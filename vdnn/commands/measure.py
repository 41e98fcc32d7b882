"""`vdnn measure`: time a network's ops on this machine: for its table, which decides what runs here from then on, or
with --out as a file of whole steps that plans can be simulated with, anywhere.
"""

from __future__ import annotations

import datetime
import os
import platform
import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import (
    INTERRUPTED,
    bandwidth,
    exact_option,
    leave,
    network_named,
    spill_option,
    usage_errors,
    with_options,
)
from vdnn.commands.train import OPTIMIZERS, failures
from vdnn.memory.op_times import processor

if TYPE_CHECKING:
    from vdnn.memory.cost import Measured
    from vdnn.memory.device import Device
    from vdnn.memory.measuring import Recorder, Round
    from vdnn.memory.plan import Plan
    from vdnn.memory.trace import Trace
    from vdnn.network import Network

ALGORITHMS = ("performance", "memory", "all")

options = with_options(
    click.argument("network"),
    click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Run whole steps instead, and write all times to this file, to plan with.",
    ),
    click.option("--again", is_flag=True, help="Time what is in the table as well."),
    click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per step."),
    click.option(
        "--algorithms",
        type=click.Choice(ALGORITHMS),
        help="For --out, which to time of each op: to plan by a policy that chooses takes all of them.  [default: all]",
    ),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="momentum", show_default=True),
    click.option(
        "--device",
        type=click.Choice(["host", "cuda"]),
        default="host",
        show_default=True,
        help="The CPU or, for --out, a GPU.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads that share one operation, on the host."),
    exact_option,
    click.option(
        "--link-bandwidth", help="For --out, on the host: slow copies down to so much a second each way: 2GB, 500MiB."
    ),
    spill_option,
    click.option(
        "--repeats", type=click.IntRange(min=1), default=9, show_default=True, help="Runs whose medians are taken."
    ),
)


@click.command(short_help="Time a network's ops on this machine.")
@options
def measure(
    network: str, out: Path | None, again: bool, batch: int, algorithms: str | None, repeats: int, **given: Any
) -> None:
    """Time every op of a training step of NETWORK on this machine, by every algorithm, each shape once.

    NETWORK is a name, such as digits_vgg, or module:function.  The times go to a table in the user's cache folder, by
    which algorithms are chosen and steps are planned on this machine from then on.  What the table has is not timed
    again.  Ctrl-C keeps what was timed until then.

    With --out whole steps are run instead, and copies with them, and the medians of all rounds go to a file, which
    `vdnn.measured` reads: to plan with anywhere.  It changes no table.  Ctrl-C ends after the round that runs, and
    writes the medians until then; press it again to write nothing.
    """
    with failures(False):
        with usage_errors():
            _check_mode(out, again, algorithms, given)
            device = _device_options(given)
            net = network_named(network, batch)
        if out is None:
            _fill_table(net, given["optimizer"], device, repeats, again)
        else:
            _write_file(net, out, algorithms or "all", repeats, given, device)


def _check_mode(out: Path | None, again: bool, algorithms: str | None, given: dict[str, Any]) -> None:
    """Refuse options of the other of the two things that the command does."""
    if out is not None and again:
        raise click.UsageError("--again is for the table; --out times everything anyway")
    if out is None and given["device"] == "cuda":
        raise click.UsageError("--device cuda is for --out; a GPU's algorithms are timed when they are first asked for")
    for name, value in (("algorithms", algorithms), ("link-bandwidth", given["link_bandwidth"])):
        if out is None and value is not None:
            raise click.UsageError(f"--{name} {value} is for --out; the table has all algorithms, and no copies")


def _fill_table(net: Network, optimizer: str, options: dict[str, Any], repeats: int, again: bool) -> None:
    from vdnn.commands.measure_table import fill, host_device, table_of
    from vdnn.memory.alone import questions

    with usage_errors():
        device = host_device(net, optimizer, options)
        table, every = table_of(device), questions(device)
    filled, stopped = fill(device, table, every, repeats, again)
    if stopped:
        leave(f"stopped: {filled}; they are kept", INTERRUPTED)
    where = f"on {processor()}, {device.kernels.threads} threads, measured"
    click.echo(f"{net.name}, batch {net.batch}: {filled}, {where}\n{table.folder}")


def _write_file(
    net: Network, out: Path, algorithms: str, repeats: int, given: dict[str, Any], options: dict[str, Any]
) -> None:
    with usage_errors():
        check_writable(out)
        made = Bench(net, given["device"], given["optimizer"], **options)
    with closing(made) as bench:
        rounds, stopped = _recorded(bench, algorithms, repeats)
        if rounds:
            write_whole(out, bench.cost(rounds, algorithms).to_json())
    if stopped:
        written = "has their medians" if rounds else "was not written"
        leave(f"stopped after {len(rounds)} of {repeats} rounds: {out} {written}", INTERRUPTED)
    click.echo(f"{out}: medians of {len(rounds)} rounds on {bench.name}, measured")


def _device_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of Trainer that the device takes; those of the host are refused for a GPU."""
    names = ("threads", "exact", "link_bandwidth", "spill")
    found = {name: given[name] for name in names if given[name] is not None}
    if found and given["device"] == "cuda":
        raise click.UsageError(f"--{next(iter(found)).replace('_', '-')} is for --device host")
    if "link_bandwidth" in found:
        found["link_bandwidth"] = bandwidth(found["link_bandwidth"])
    return found


def _recorded(bench: Bench, algorithms: str, repeats: int) -> tuple[list[Round], bool]:
    """(the rounds until all are done or Ctrl-C, whether that was pressed)."""
    from vdnn.commands.session import stop_on_interrupt
    from vdnn.progress import progress_bar

    with stop_on_interrupt() as pressed:
        recorder = bench.recorder(algorithms)
        with progress_bar(f"{bench.net.name} on {bench.name}", repeats * recorder.runs, keep=False) as advance:
            while len(recorder.rounds) < repeats and not pressed():
                recorder.round(advance)
        return recorder.rounds, pressed()


class Bench:
    """A network on a device, with weights and one batch, on which any of its plans can be run.

    The learning rate is 0, so that the weights stay: a run does not depend on those before it.

    device, optimizer, options   as Trainer takes them
    Raises BudgetError if a step with everything kept does not fit the device.
    """

    def __init__(
        self, net: Network, device: str | Device = "host", optimizer: str = "momentum", **options: Any
    ) -> None:
        from dataclasses import replace

        import numpy as np

        from vdnn import clock as clocks
        from vdnn import optimizers
        from vdnn.train import Trainer

        self.net = net
        self.optimizer = replace(optimizers.get(optimizer), learning_rate=0.0)  # type: ignore[type-var]
        self.trainer = Trainer(net, "keep_all", device=device, optimizer=self.optimizer, undo=False, **options)
        self.device, self.tape = self.trainer.device, self.trainer.plan.tape
        self.memory_bytes = self.trainer.budget_bytes
        images = np.random.default_rng(0).standard_normal(net.input.shape, np.float32)
        clock = np.zeros(clocks.SIZE)
        clock[[clocks.BIAS_1, clocks.BIAS_2]] = [1 - beta for beta in self.optimizer.betas]
        self.inputs = {"input": images, "clock": clock}
        if net.labels is not None:
            self.inputs["labels"] = np.zeros(net.labels.shape, net.labels.dtype)

    def recorder(self, algorithms: str = "performance") -> Recorder:
        """What records the times of this network's ops, by the algorithms that `plan` chooses so, or by "all"."""
        from vdnn.memory.measuring import Recorder, choices
        from vdnn.setting import choose_algorithms

        named = "performance" if algorithms == "all" else algorithms
        first = choose_algorithms(self.tape, self.device.cost, named)
        chosen = [first, *(choices(self.tape) if algorithms == "all" else [])]
        return Recorder(self.tape, chosen, self.run, self.device.spills)

    def cost(self, rounds: Sequence[Round], algorithms: str = "performance") -> Measured:
        """The times that were recorded, with what they are of."""
        from vdnn.memory.measuring import cost_of

        return cost_of(rounds, f"{self.name}, measured", self.memory_bytes, self.about(algorithms, len(rounds)))

    def plan(self, policy: Any, algorithms: Any = "performance") -> Plan:
        """The plan under a policy, within the device's memory, by the device's own cost model."""
        from vdnn import planning

        about = {"kernels": self.device.kernels, "optimizer": self.optimizer, "cost": self.device.cost}
        return planning.plan(self.tape, policy, algorithms=algorithms, budget=self.memory_bytes, **about)

    def run(self, plan: Plan) -> Trace:
        """Run one step, its inputs put in place before, and say what happened when."""
        from vdnn.memory.execute import execute

        self.device.grow(plan.arena_bytes, self.device.host_bytes_of(plan), plan.disk_bytes)
        for name, value in self.inputs.items():
            self.device.write(plan, name, value)
        return execute(plan, self.device, apart=True)

    @property
    def name(self) -> str:
        """What runs the ops."""
        return processor() if self.device.name == "host" else self.device.cost.name

    def about(self, algorithms: str, rounds: int) -> dict[str, Any]:
        """What the times are of, and under what they were measured."""
        import numpy as np

        from vdnn import __version__

        facts = {
            "network": self.net.name,
            "batch": self.net.batch,
            "input": "x".join(map(str, self.net.input.shape[1:])),
            "optimizer": self.optimizer.name,
            "device": self.device.name,
            "kernels": self.tape.kernels,
            "threads": self.tape.threads,
            "link_bandwidth": getattr(self.device, "link_bandwidth", None),
            "algorithms": algorithms,
            "rounds": rounds,
            "processor": processor(),
            "vdnn": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "date": datetime.date.today().isoformat(),
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    def close(self) -> None:
        """Give back what the device holds."""
        self.trainer.close()


# ---- the file


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(8)}.part"


def check_writable(path: Path) -> None:
    """Raise OSError if `write_whole` could not write this file; leaves all as it was."""
    if not path.name or path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder, not a file to write")
    part = _beside(path)
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(path)) from error
    part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write the file whole or not at all: to one beside it first, which then takes its name."""
    part = _beside(path)
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
