"""`vdnn policies` lists the policies that have a name, and where they come from."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Listed:
    """A policy by name: where it is from, in a line what it does, and why it cannot be used, or ""."""

    policy: str
    source: str
    about: str
    error: str


@click.command(short_help="List the policies that are known.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policies(as_json: bool) -> None:
    """List the policies that --policy takes by name: vdnn's own, and those that installed distributions offer.

    Distributions offer policies by the entry point group vdnn.policies.  What is broken is listed with what is wrong.
    """
    from vdnn.memory.policy import names

    found = [_listed(name) for name in names()]
    if as_json:
        click.echo(json.dumps([asdict(line) for line in found], indent=2))
        return
    from vdnn.tables import render

    title = "policies by name; any other function is module:function"
    lines = [
        [line.policy, line.source, f"cannot be used: {line.error}" if line.error else line.about] for line in found
    ]
    click.echo(render(title, ("policy", "from", "about"), lines, None), nl=False)


def _listed(name: str) -> Listed:
    from vdnn import plugins
    from vdnn.memory.policy import PolicyError, get

    points = plugins.offered().get(name, ())
    source = " and ".join(plugins.distribution(point) for point in points) or "vdnn"
    try:
        _, function = get(name)
    except PolicyError as error:
        return Listed(name, source, "", str(error))
    return Listed(name, source, _first_sentence(function), "")


def _first_sentence(function: Any) -> str:
    text = inspect.getdoc(function) or ""
    return re.split(r"\. (?=[A-Z])", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")
