"""`vdnn hardware` lists the hardware that plans can be simulated on, and where its figures come from."""

from __future__ import annotations

import json

import click


@click.command(short_help="List the hardware that is known.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure with its source, as one JSON object.")
def hardware(as_json: bool) -> None:
    """List the hardware that --hardware takes, with the rates and sizes that simulated times follow from."""
    from vdnn.memory.cost import hardware_table

    table = hardware_table()
    if as_json:
        click.echo(json.dumps(table, indent=2))
        return
    from vdnn.tables import hardware_list

    click.echo(hardware_list(table), nl=False)
