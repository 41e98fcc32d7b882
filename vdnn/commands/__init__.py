"""commands: the parts of the command line; here what all of them share.

Exit status: 0 done, and it fits; 1 a failure while running; 2 the command is wrong; 3 it does not fit; 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vdnn.network import Network

DOES_NOT_FIT = 3
INTERRUPTED = 130

Command = Callable[..., Any]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator that adds these click options and arguments, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn errors about names, units and files into usage errors, with exit status 2."""
    from vdnn.layers.base import LayerError
    from vdnn.memory.cost import CostError
    from vdnn.memory.decisions import DecisionError
    from vdnn.memory.policy import PolicyError
    from vdnn.plot import PlotError
    from vdnn.rewrites import RewriteError
    from vdnn.setting import SettingError
    from vdnn.units import UnitError

    try:
        yield
    except BrokenPipeError:  # whoever read the output has seen enough; click ends quietly
        raise
    except (
        CostError,
        DecisionError,
        LayerError,
        OSError,
        PlotError,
        PolicyError,
        RewriteError,
        SettingError,
        UnitError,
    ) as error:
        raise click.UsageError(str(error)) from error


def network_named(name: str, batch: int, rules: str = "ours") -> Network:
    """The network that a user named, or a usage error."""
    from vdnn import models

    try:
        return models.get(name, batch=batch, rules=rules)
    except (ImportError, TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


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
