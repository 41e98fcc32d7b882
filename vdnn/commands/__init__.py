"""commands: the parts of the command line; here what all of them share.

Exit status: 0 done, and it fits; 1 a failure while running; 2 the command is wrong; 3 it does not fit; 130 Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.network import Network
    from vdnn.setting import Setting

PICTURES = (".png", ".svg", ".pdf")
DOES_NOT_FIT = 3
INTERRUPTED = 130

Command = Callable[..., Any]


exact_option = click.option(
    "--exact",
    is_flag=True,
    default=None,
    help="On the host: convolve by plain products alone, without the faster algorithms that round more.",
)


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator that adds these click options and arguments, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


host_budget_option = click.option(
    "--host-budget",
    help="Bytes of host memory for what is offloaded, 2GiB (2^30), 0 for as few as there can be; what is beyond goes "
    "to disk.  [default: any number]",
)
spill_option = click.option(
    "--spill",
    type=click.Path(file_okay=False),
    help="The folder of the file for what goes to disk.  [default: VDNN_SPILL, or that for temporary files]",
)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn errors about names, units and files into usage errors, with exit status 2."""
    from vdnn.data.files import DataError
    from vdnn.exchange.errors import ModelError
    from vdnn.ladder import FitError
    from vdnn.layers.base import LayerError
    from vdnn.memory.cost import CostError
    from vdnn.memory.decisions import DecisionError
    from vdnn.memory.jitter import JitterError
    from vdnn.memory.policy import PolicyError
    from vdnn.micro_batches import MicroBatchError
    from vdnn.plot import PlotError
    from vdnn.rewrites import RewriteError
    from vdnn.setting import SettingError
    from vdnn.units import UnitError

    named = (CostError, DecisionError, FitError, JitterError, LayerError, PolicyError, RewriteError, SettingError)
    try:
        yield
    except BrokenPipeError:  # whoever read the output has seen enough; click ends quietly
        raise
    except UnitError as error:
        raise click.UsageError(f"{error}{_elsewhere()}") from error
    except (*named, DataError, MicroBatchError, ModelError, OSError, PlotError) as error:
        raise click.UsageError(str(error).replace("allow_coupled=True", "--allow-coupled")) from error


def _elsewhere() -> str:
    """Which commands take a budget relative to the tape, if that is what a command was given that takes none."""
    from vdnn.budgets import is_relative

    context = click.get_current_context()
    if context.command.name == "plan" or not is_relative(context.params.get("budget")):
        return ""
    return "; budgets relative to floor or keep_all are for vdnn plan and vdnn compare"


def network_named(name: str, batch: int, rules: str = "ours", **options: Any) -> Network:
    """The network that a user named, made with `options`, or a usage error."""
    from vdnn import models

    try:
        return models.get(name, batch=batch, rules=rules, **options)
    except (ImportError, TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def with_kernels(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a plan, with the kernel set itself in place of --exact; or a usage error."""
    others = {name: value for name, value in options.items() if name != "exact"}
    if not options.get("exact"):
        return others
    from vdnn.kernels.numpy import NumpyKernels

    if options["kernels"] == "cudnn4" or (options["rules"] == "paper" and options["kernels"] is None):
        raise click.UsageError("--exact is for the kernel set numpy, not for cudnn4")
    return others | {"kernels": NumpyKernels(options["threads"], exact=True)}


def setting_of(options: dict[str, Any], *policies: str) -> tuple[Setting, dict[str, str]]:
    """(what the options of a plan stand for, {op: algorithm}); built once, whatever is then planned for it.

    policies   if the options name no rewrites, the tape has all those that one of these is for
    """
    from vdnn.memory.policy import rewrites_of
    from vdnn.setting import choose_algorithms, make_setting

    others = {k: v for k, v in with_kernels(options).items() if k not in ("network", "batch", "algorithms")}
    if options["rewrites"] is None and options["rules"] == "ours":
        others["rewrites"] = [name for policy in policies for name in rewrites_of(policy)] or None
    network = network_named(options["network"], options["batch"], options["rules"])
    setting = make_setting(network, **others)
    return setting, choose_algorithms(setting.tape, setting.cost, options["algorithms"])


def summary_of(made: Plan, setting: Setting, planning_seconds: float, jitter: float | None = None) -> dict[str, Any]:
    """The figures of a plan (vdnn.planning.summary), how long planning took, and how it fares under jitter, if asked;
    floor and oracle are those of the setting's tape.
    """
    from vdnn.memory.jitter import jittered
    from vdnn.planning import summary

    figures = summary(made, setting.cost, setting.budget, whole=setting.tape)
    figures["planning_seconds"] = round(planning_seconds, 4)
    return figures | ({} if jitter is None else {"jitter": jittered(made, setting.cost, jitter).summary()})


def share(text: str) -> float:
    """The number that a user typed for --jitter, "10%" or "0.1"; or a usage error."""
    from vdnn.memory.jitter import JitterError

    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise JitterError(
            f"--jitter {text or repr(text)}: a share of each duration, such as 10% or 0.1, not {text!r}"
        ) from error


def ending(option: str, path: str | None, *endings: str) -> None:
    """Raise a usage error unless there is no such file to write, or its name ends as it must."""
    if path is not None and os.path.splitext(path)[1].lower() not in endings:
        raise click.UsageError(f"{option} {path or repr(path)}: its name must end in one of {', '.join(endings)}")


def refuse_given(refused: Callable[[str], bool], why: str) -> None:
    """Raise a usage error, `why` after its name, for the first option or argument on the command line that is refused.

    refused   a function of the parameter's name
    """
    context = click.get_current_context()
    for param in context.command.params:
        name = param.name or ""
        if refused(name) and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} {why}")


def check_writable(path: str) -> None:
    """Raise OSError, or a usage error for no name, if the file cannot be written: before anything is printed, not
    after; leaves all as it was.
    """
    if not path:
        raise click.UsageError("the name of a file to write is empty")
    is_new = not os.path.lexists(path)
    with open(path, "ab"):
        pass
    if is_new:
        os.remove(path)


def bandwidth(text: str) -> int:
    """Bytes per second, of what a user typed for --link-bandwidth; or a usage error."""
    from vdnn.units import UnitError, parse_bytes

    try:
        return parse_bytes(text.removesuffix("/s"))
    except UnitError as error:
        raise click.UsageError(
            f"--link-bandwidth {text}: bytes a second, such as 2GB or 500MiB, not {text!r}"
        ) from error


def byte_lines(amounts: dict[str, int]) -> list[str]:
    """A line for each amount: its name, in a fitting unit, exactly."""
    from vdnn.units import format_bytes

    return [f"{name:<16}{format_bytes(count):>10}{count:>18} bytes" for name, count in amounts.items()]


def leave(message: str, status: int = DOES_NOT_FIT) -> None:
    """Exit with this message and status, or go on if there is no message."""
    if message:
        click.echo(message, err=True)
        raise SystemExit(status)
