"""`vdnn train`: train a network on this machine, within a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import (
    INTERRUPTED,
    bandwidth,
    check_writable,
    exact_option,
    host_budget_option,
    leave,
    network_named,
    spill_option,
    usage_errors,
    with_options,
)
from vdnn.commands.searching import robust_option, searching_as_asked, seconds_option, telling

if TYPE_CHECKING:
    from vdnn.commands.datasets import Data, Files
    from vdnn.network import Network
    from vdnn.optimizers import Optimizer
    from vdnn.train import Trainer

PATH = click.Path(dir_okay=False)
OPTIMIZERS = ("sgd", "momentum", "adam")
# Options that the Trainer has by the same names
NAMED = (
    *("policy", "budget", "algorithms", "rewrites", "seed", "threads", "exact", "micro_batches"),
    *("allow_coupled", "host_budget", "spill"),
)

options = with_options(
    click.argument("network"),
    click.option("--policy", help="A name, or module:function.  [default: vdnn_dyn]"),
    click.option("--budget", help="Bytes of the arena: 2GiB (2^30), 8GB (10^9), 80%.  [default: all that is free]"),
    host_budget_option,
    spill_option,
    click.option("--batch", type=click.IntRange(min=1), help="Samples per step.  [default: 32]"),
    click.option(
        "--algorithms",
        type=click.Choice(["performance", "memory", "mixed"]),
        help="The fastest algorithms, those with the least workspace, or as vdnn_dyn finds best.  "
        "[default: performance]",
    ),
    seconds_option,
    robust_option,
    click.option("--jitter", help="By how much times vary, for --robust: 10%."),
    click.option("--rewrites", help="Exact changes of the step: all, standard, none, names.  [default: the policy's]"),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), help="[default: momentum]"),
    click.option(
        "--learning-rate", type=click.FloatRange(min=0, min_open=True), help="[default: 0.01, for adam 0.001]"
    ),
    click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs in all."),
    click.option("--seed", type=click.IntRange(0, 2**53 - 1), help="Of weights, order and dropout.  [default: 0]"),
    click.option("--device", type=click.Choice(["host", "cuda"]), help="The CPU or a GPU.  [default: host]"),
    click.option(
        "--math", type=click.Choice(["fp32", "tf32"]), help="On a GPU: its tensor cores or not.  [default: fp32]"
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads that share one operation."),
    exact_option,
    click.option(
        "--micro-batches",
        type=click.IntRange(min=1),
        help="Parts of the batch, one after the other.  [default: the policy's choice]",
    ),
    click.option(
        "--allow-coupled", is_flag=True, default=None, help="Parts even where batch norm then sees each by itself."
    ),
    click.option("--link-bandwidth", help="Slow copies down to so much a second each way: 2GB, 500MiB."),
    click.option(
        "--data",
        "kind",
        metavar="KIND[:PATH]",
        help="What to learn: digits, synthetic, mnist:FOLDER, cifar10:PATH, cifar100:PATH (the binary version's "
        ".tar.gz or folder) or images:FOLDER (with a folder for each class).  [default: digits where images are "
        "1x8x8, else synthetic]",
    ),
    click.option("--augment", is_flag=True, help="Move, cut and mirror the images of a --data with a path at random."),
    click.option("--cache", help="Memory to keep decoded pictures of --data images in: 2GiB.  [default: none]"),
    click.option("--samples", type=click.IntRange(min=1), help="Synthetic images to train on.  [default: 4 batches]"),
    click.option(
        "--weights", type=PATH, help="Begin with the weights in this .safetensors file, or .pth of PyTorch's."
    ),
    click.option("--save", type=PATH, help="Write a checkpoint here after each epoch, and on Ctrl-C."),
    click.option("--resume", type=PATH, help="Go on from this checkpoint, with what it was trained with."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to standard error."),
)


@click.command(short_help="Train on this machine, within a budget.")
@options
def train(
    network: str, epochs: int, kind: str | None, samples: int | None, save: str | None, as_json: bool, **given: Any
) -> None:
    """Train NETWORK on this machine, with images that need no download or, by --data, your own.

    NETWORK is a name, such as digits_vgg, module:function, or an ONNX file, whose weights are what training begins
    with; by name it is made for the data's images and classes.  Ctrl-C ends training after the step that runs, and
    saves it if --save is given.
    """
    from vdnn.commands.datasets import make_data, opened
    from vdnn.commands.session import Session, report

    with failures(as_json), ExitStack() as stack:
        with usage_errors():
            if save is not None:
                check_writable(save)  # before an epoch, not after it
            resume, weights, augment = (given.pop(name) for name in ("resume", "weights", "augment"))
            if resume and weights:
                raise click.UsageError(f"--weights {weights}: {resume} has weights; one of the two can be begun with")
            asked = {name: given.pop(name) for name in ("seconds", "robust", "jitter")}
            files = opened(kind, given.pop("cache"))
            net, arguments = _resumed(network, resume, given, files) if resume else _new(network, given, files)
            data = make_data(net, kind, files, samples, arguments.get("seed") or 0, augment, stack)
            made = _trainer(net, resume, arguments, asked)
        with closing(made) as trainer:
            if not resume:
                with usage_errors():
                    _load_weights(trainer, network, weights)
            _check_progress(trainer, data, epochs, resume)
            click.echo(f"{net.name}: {data}", err=True)
            for note in trainer.plan.notes:
                click.echo(f"{net.name}: {note}", err=True)
            session = Session(trainer, data, epochs, save, say_to_stderr=as_json)
            session.run()
            figures = session.figures()
    click.echo(json.dumps(figures, indent=2) if as_json else report(figures))
    if session.stopped:
        where = f"saved; go on with --resume {save}" if save else "nothing was saved, as --save was not given"
        leave(f"stopped in epoch {session.epochs_done + 1} of {epochs}: {where}", INTERRUPTED)


@contextmanager
def failures(as_json: bool) -> Iterator[None]:
    """Turn what may go wrong into a message and an exit status; where no plan fits, JSON has the smallest."""
    from vdnn.data.files import DataError
    from vdnn.descriptions import CheckpointError
    from vdnn.host_budgets import HostBudgetError
    from vdnn.inputs import InputError
    from vdnn.kernels.cuda.driver import CudaError
    from vdnn.memory.device import DeviceError
    from vdnn.planning import BudgetError, summary
    from vdnn.train import TrainingError

    try:
        yield
    except BudgetError as error:
        if as_json:
            click.echo(json.dumps(summary(error.plan, error.cost, error.budget_bytes), indent=2))
        leave(str(error))
    except HostBudgetError as error:
        leave(str(error).replace("host_budget=", "--host-budget "))
    except BrokenPipeError:
        raise
    except (CheckpointError, CudaError, DataError, DeviceError, InputError, OSError, TrainingError) as error:
        raise click.ClickException(str(error)) from error
    except MemoryError as error:
        raise click.ClickException(f"this machine has not enough memory: {error}") from error
    except KeyboardInterrupt:
        leave("stopped", INTERRUPTED)


# ---- what to train


def _made_for(network: str, batch: int, files: Files | None) -> Network:
    """The network; one of vdnn's own is made for the images and classes of files."""
    is_given = ":" in network or network.endswith(".onnx")
    return network_named(network, batch, **({} if files is None or is_given else files.network))


def _new(network: str, given: dict[str, Any], files: Files | None) -> tuple[Network, dict[str, Any]]:
    """(network, arguments of Trainer) for a training that begins."""
    _check_device(given, given["device"] or "host")
    net = _made_for(network, given["batch"] or 32, files)
    return net, _arguments(given, given["optimizer"] or "momentum")


def _resumed(network: str, path: str, given: dict[str, Any], files: Files | None) -> tuple[Network, dict[str, Any]]:
    """(network, arguments of Trainer.load) for a training that goes on; what defines it cannot be changed."""
    from vdnn.checkpoint import describe
    from vdnn.descriptions import CheckpointError, optimizer_of

    about = describe(path)
    optimizer, batch = optimizer_of(about["optimizer"], path), about["network"]["shape"][0]
    for name, saved in (("batch", batch), ("seed", about["seed"]), ("optimizer", optimizer.name)):
        if given[name] not in (None, saved):
            raise click.UsageError(f"--{name} {given[name]}: {path} was trained with {saved}, which cannot be changed")
    _check_device(given, given["device"] or about["options"]["device"]["name"])
    net = _made_for(network, batch, files)
    if net.name != about["network"]["name"]:
        raise CheckpointError(f"{path} was saved by {about['network']['name']}, not by {net.name}")
    return net, _arguments(given, optimizer) | {"seed": about["seed"]}


def _check_device(given: dict[str, Any], device: str) -> None:
    """Refuse options of another kind of device than the one that will be used."""
    others = ("math",) if device == "host" else ("threads", "exact", "link_bandwidth", "spill")
    for name in others:
        if given[name] is not None:
            option = f"--{name.replace('_', '-')}" + (f" {given[name]}" if given[name] is not True else "")
            raise click.UsageError(f"{option} is for --device {'cuda' if device == 'host' else 'host'}")


def _arguments(given: dict[str, Any], optimizer: Optimizer | str) -> dict[str, Any]:
    """Arguments of Trainer: what was given, and the optimizer."""
    from vdnn import optimizers

    made = optimizers.get(optimizer)
    if given["learning_rate"] is not None:
        if not math.isfinite(given["learning_rate"]):
            raise click.UsageError(f"--learning-rate {given['learning_rate']} is no number")
        made = replace(made, learning_rate=given["learning_rate"])  # type: ignore[type-var]
    arguments = {name: given[name] for name in NAMED if given[name] is not None}
    if given["device"] is not None:
        arguments["device"] = given["device"]
    if given["math"] is not None:
        arguments["math"] = given["math"]
    if given["link_bandwidth"] is not None:
        arguments["link_bandwidth"] = bandwidth(given["link_bandwidth"])
    return arguments | {"optimizer": made}


def _trainer(net: Network, resume: str | None, arguments: dict[str, Any], asked: dict[str, Any]) -> Trainer:
    """The trainer; `asked` are the options of policy search."""
    from vdnn.train import Trainer

    name = arguments.get("policy", "")
    if asked["jitter"] and not asked["robust"]:
        raise click.UsageError(f"--jitter {asked['jitter']}: for --robust only; vdnn plan says what it does to a step")
    with telling(name) as tell:
        search = searching_as_asked([name], **asked, seed=None, progress=tell)
        chosen = arguments | ({"policy": search} if name == "search" else {})
        trainer = Trainer.load(resume, net=net, **chosen) if resume else Trainer(net, **chosen)
    trainer.policy = name or trainer.policy  # by which a checkpoint can be planned again
    trainer.device.timed = True  # the report says how much of the copying was hidden
    return trainer


def _load_weights(trainer: Trainer, network: str, path: str | None) -> None:
    """Begin with the weights in that file; without one, with those of an ONNX network.  Says what was loaded."""
    from vdnn.exchange.onnx_model import ENDING, from_onnx

    if path is None and network.endswith(ENDING):
        model = from_onnx(network, trainer.net.batch)
        for note in model.notes:
            click.echo(f"{network}: {note}", err=True)
        report = trainer.load_weights(model.weights)
        click.echo(f"{network}: begins with its {len(report.loaded)} weights and statistics", err=True)
    elif path is not None:
        click.echo(str(trainer.load_weights(path)), err=True)


def _check_progress(trainer: Trainer, data: Data, epochs: int, resume: str | None) -> None:
    """A training that goes on must have something left to do and, within an epoch, the same data."""
    from vdnn.data.batches import other_recipe, plain_recipe

    if trainer.epoch >= epochs:
        raise click.UsageError(f"{resume} has {trainer.epoch} epochs done; ask for more with --epochs")
    if not trainer.position:
        return
    batches, other = len(data.train), other_recipe(trainer.recipe, plain_recipe(data.train))
    if trainer.position > batches:
        other = f"this data makes {batches}"
    if other:
        raise click.UsageError(
            f"{resume} stopped after {trainer.position} batches of an epoch, which goes on with no others: {other}; "
            "give --data, --samples and --augment as before"
        )
