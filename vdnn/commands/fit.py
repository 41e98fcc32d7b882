"""`vdnn fit` says what the largest batch, depth or resolution is that fits a budget, under each policy."""

from __future__ import annotations

import json
from typing import Any

import click

from vdnn.commands import leave, network_named, usage_errors, with_kernels
from vdnn.commands.plan import setting_options


@click.command(short_help="Find the largest batch, depth or resolution that fits.")
@setting_options
@click.option("--policy", "names", multiple=True, help="A policy; repeat for more.  [default: all by name]")
@click.option("--budget", help="Bytes of the arena: 12GiB (2^30), 8GB (10^9), 80%.  [default: the hardware's memory]")
@click.option(
    "--vary",
    type=click.Choice(["batch", "depth", "resolution"]),
    default="batch",
    show_default=True,
    help="What grows: depth that of a vgg or a resnet, resolution in multiples of 32 pixels.",
)
def fit(names: tuple[str, ...], budget: str | None, vary: str, as_json: bool, **options: Any) -> None:
    """Find the largest batch of NETWORK that fits a budget under each policy, and how fast it then is, simulated.

    Policy search looks for each value for half a second, so it may find room for more.

    --batch says where the search begins; if depth or resolution varies, how many samples all have.  Exit status 3 if
    nothing fits.
    """
    from vdnn.budgets import is_relative
    from vdnn.largest import fit as find
    from vdnn.memory.policy import POLICIES, get
    from vdnn.memory.searching import searching
    from vdnn.progress import progress_bar

    if is_relative(budget):
        raise click.UsageError(f"--budget {budget}: it changes with the {vary}; give bytes, or a share such as 80%")
    network_named(options["network"], options["batch"], options["rules"])  # a wrong name is a usage error
    options = with_kernels(options)
    with usage_errors():
        for name in names:
            get(name)
        with progress_bar("fitting", len(names or POLICIES), keep=False) as advance:
            quick = [searching().quick if name == "search" else name for name in names or POLICIES]
            found = find(options.pop("network"), budget=budget, vary=vary, policies=quick, progress=advance, **options)
    if as_json:
        click.echo(json.dumps([largest.summary() for largest in found], indent=2))
    else:
        from vdnn.result_tables import fit_table

        click.echo(fit_table(found), nl=False)
    leave("" if any(largest.plan for largest in found) else _nothing(found))


def _nothing(found: list[Any]) -> str:
    """Why nothing fits, with the numbers of the policy that needs least."""
    from vdnn.units import format_bytes

    least = min(found, key=lambda largest: largest.refused_bytes)
    needed, available = (f"{format_bytes(n)} ({n} bytes)" for n in (least.refused_bytes, least.budget_bytes))
    needed = f"at least {needed}" if least.is_refused_by_floor else needed
    return f"not even {least.what} {least.smallest} fits: needed {needed}, by {least.policy}; available {available}"
