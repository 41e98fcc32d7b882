"""`vdnn explain` says of every tensor what it takes, who uses it, its fate and why, and what else it would cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import leave, usage_errors
from vdnn.commands.plan import planned, policy_options, setting_options
from vdnn.commands.searching import quick_search_options, searching_as_asked, telling

if TYPE_CHECKING:
    from vdnn.explain import Explanation
    from vdnn.memory.plan import Plan


@click.command(short_help="Say why every tensor has its fate.")
@setting_options
@policy_options
@click.option("--tensor", help="All about this one, such as conv1.y.")
@click.option(
    "--sort",
    type=click.Choice(["bytes", "stall", "step"]),
    help="The largest first, the longest waited for, or in the order of the step.  [default: bytes]",
)
@click.option(
    "--replan",
    help="For how many of the largest tensors other fates are really planned: a number, or all; what they would cost "
    "the rest is estimated.  [default: as many as take a second or two]",
)
@quick_search_options
def explain(
    policy: str,
    budget: str | None,
    tensor: str | None,
    sort: str | None,
    replan: str | None,
    as_json: bool,
    seconds: float | None,
    seed: int | None,
    **options: Any,
) -> None:
    """Say of every tensor of one training step of NETWORK what it takes, which ops use it, its fate and why, what
    waited for it, and what its other fates would have cost; all times are simulated.
    """
    count = _count(replan)
    for option, value in (("--sort", sort), ("--replan", replan)):
        if tensor is not None and value is not None:
            raise click.UsageError(f"{option} is for all tensors; --tensor says all about one, its fates planned again")
    with usage_errors(), telling(policy) as tell:
        asked = searching_as_asked([policy], seconds, seed, False, None, tell)
        made, _, _, message = planned(asked if policy == "search" else policy, budget, None, options)
        found = _explained(made, tensor, count)
    if tensor is not None:
        click.echo(json.dumps(asdict(found[tensor]), indent=2) if as_json else found.about(tensor), nl=as_json)
    else:
        found = found.sorted(sort or "bytes")
        click.echo(json.dumps(found.summary(), indent=2) if as_json else found.table(), nl=as_json)
    leave(message)


def _count(replan: str | None) -> int | None:
    """The number that --replan stands for; or a usage error."""
    if replan is None:
        return None
    if replan == "all":
        return 1 << 30
    if not replan.isascii() or not replan.isdigit() or len(replan) > 9:
        raise click.UsageError(f"--replan {replan or repr(replan)}: a number of tensors, such as 10, or all")
    return int(replan)


def _explained(made: Plan, tensor: str | None, count: int | None) -> Explanation:
    """The explanation, or a usage error for a tensor that has none."""
    try:
        found = made.explain(replan=count if tensor is None else [tensor])
        if tensor is not None:
            found[tensor]  # whether it has a fate is said before anything is printed
    except KeyError as error:
        raise click.UsageError(f"--tensor {tensor or repr(tensor)}: {error.args[0]}") from error
    return found
