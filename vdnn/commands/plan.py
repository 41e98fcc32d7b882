"""`vdnn plan` and `vdnn compare` say what a training step would take, without running it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import byte_lines, leave, network_named, usage_errors, with_options

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.network import Network

setting_options = with_options(
    click.argument("network"),
    click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Samples per step."),
    click.option(
        "--algorithms",
        type=click.Choice(["performance", "memory", "mixed"]),
        default="performance",
        show_default=True,
        help="The fastest algorithms, those with the least workspace, or as vdnn_dyn finds best.",
    ),
    click.option("--hardware", default="titan-x", show_default=True, help="Whose speed and memory: a name."),
    click.option("--optimizer", type=click.Choice(["sgd", "momentum", "adam"]), default="momentum", show_default=True),
    click.option(
        "--rules",
        type=click.Choice(["ours", "paper"]),
        default="ours",
        show_default=True,
        help="Whose scheduling: paper is vDNN's own, with its variant of the network.",
    ),
    click.option(
        "--count",
        type=click.Choice(["all", "weights", "features"]),
        default="all",
        show_default=True,
        help="What takes bytes: all; weights once; of the weights those of convolutions only, as in vDNN's peaks.",
    ),
    click.option(
        "--kernels",
        type=click.Choice(["numpy", "cudnn4"]),
        help="Whose algorithms and workspaces.  [default: numpy; under --rules paper cudnn4]",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads that share one operation on a CPU."),
    click.option(
        "--rewrites",
        help="Exact changes of the step: all, standard, none, names, or all-relu_mask and the like.  [default: plan: "
        "the policy's choice; compare: standard; under --rules paper the paper's]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


PICTURES = (".png", ".svg", ".pdf")
COUNTED = {
    "all": "everything",
    "weights": "weights once, without gradients and optimizer state",
    "features": "of the weights those of convolutions only",
}


@click.command(short_help="Say what one training step takes.")
@setting_options
@click.option("--policy", default="vdnn_dyn", show_default=True, help="A name, or module:function.")
@click.option("--budget", help="Bytes of the arena: 12GiB (2^30), 8GB (10^9), 80%.  [default: the hardware's memory]")
@click.option("--table", is_flag=True, help="Print the fate of every tensor.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw memory over time into this .png, .svg or .pdf.")
@click.option("--trace", type=click.Path(dir_okay=False), help="Write the simulated step for ui.perfetto.dev.")
def plan(policy: str, budget: str | None, table: bool, picture: str | None, trace: str | None, **setting: Any) -> None:
    """Say what one training step of NETWORK takes: bytes, and simulated seconds.

    NETWORK is a name, such as vgg16, or module:function.
    """
    as_json = setting.pop("as_json")
    with usage_errors():
        if picture and os.path.splitext(picture)[1].lower() not in PICTURES:
            raise click.UsageError(f"--picture {picture}: its name must end in one of {', '.join(PICTURES)}")
        for path in filter(None, (picture, trace)):
            _check_writable(path)
        made, summary, message = _planned(_network(setting), policy, budget, setting)
    click.echo(json.dumps(summary, indent=2) if as_json else _describe(summary))
    if table or picture or trace:
        with usage_errors():
            _show(made, setting["hardware"], summary["budget_bytes"], table and not as_json, picture, trace)
    leave(message)


@click.command(short_help="Policies and budgets side by side.")
@setting_options
@click.option("--policy", "names", multiple=True, help="A policy; repeat for more.  [default: all by name]")
@click.option("--budget", "budgets", multiple=True, help="A budget; repeat for more.  [default: the hardware's memory]")
def compare(names: tuple[str, ...], budgets: tuple[str, ...], as_json: bool, **setting: Any) -> None:
    """Plan one step of NETWORK under several policies and budgets, side by side.

    Where a policy does not fit, its smallest plan is shown.  Exit status 3 if nothing fits.
    """
    from vdnn.memory.policy import POLICIES

    if setting["rewrites"] is None and setting["rules"] == "ours":
        setting["rewrites"] = "standard"  # one tape for all
    with usage_errors():
        net = _network(setting)
        pairs = [(name, budget) for budget in budgets or (None,) for name in names or POLICIES]
        found = [_planned(net, name, budget, setting, explain=False)[1] for name, budget in pairs]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        from vdnn.tables import comparison_table

        click.echo(comparison_table(found), nl=False)
    leave("" if any(summary["fits"] for summary in found) else "nothing fits")


def _check_writable(path: str) -> None:
    """Raise OSError if the file cannot be written: before anything is printed, not after; leaves all as it was."""
    is_new = not os.path.lexists(path)
    with open(path, "ab"):
        pass
    if is_new:
        os.remove(path)


def _network(setting: dict[str, Any]) -> Network:
    return network_named(setting.pop("network"), setting.pop("batch"), setting["rules"])


def _planned(
    net: Network, policy: str, budget: str | None, setting: dict[str, Any], explain: bool = True
) -> tuple[Plan, dict[str, Any], str]:
    """(plan, its summary, why it does not fit or ""); the smallest plan found if none fits."""
    from vdnn import planning
    from vdnn.memory.cost import roofline

    cost = roofline(setting["hardware"])
    allowed = planning.budget_bytes(budget, cost)
    start, message = time.perf_counter(), ""
    try:
        made = planning.plan(net, policy, budget=allowed, **setting)
        taken = time.perf_counter() - start
    except planning.BudgetError as error:
        taken = time.perf_counter() - start
        made, message = error.plan, str(error) if explain else "does not fit"
    return made, {**planning.summary(made, cost, allowed), "planning_seconds": round(taken, 4)}, message


def _describe(summary: dict[str, Any]) -> str:
    from vdnn.rewrites import title
    from vdnn.units import format_seconds

    fits = "fits" if summary["fits"] else "does not fit"
    lines = [
        f"{summary['network']}, batch {summary['batch']}, {summary['optimizer']}, on {summary['hardware']}",
        f"{summary['policy']} with algorithms {summary['algorithms']}: {fits}",
        f"times {summary['time']}; kernels {summary['kernels']}, threads {summary['threads']}",
        f"rules {summary['rules']}; counted: {COUNTED[summary['count']]}",
        f"rewrites {title(summary['rewrites'])}",
        "",
    ]
    shown = ("budget", "arena", "peak", "average", "floor", "host", "offloaded")
    lines += byte_lines({key: summary[f"{key}_bytes"] for key in shown})
    lines += [
        f"{key:<16}{format_seconds(summary[f'{key}_seconds']):>10}" for key in ("step", "oracle", "stall", "planning")
    ]
    lines += [f"{'copies hidden':<16}{summary['hidden_copy_fraction']:>10.1%}", "", "at the peak"]
    return "\n".join(lines + byte_lines(summary["breakdown"]))


def _show(made: Plan, hardware: str, budget: int, table: bool, picture: str | None, trace: str | None) -> None:
    from vdnn.memory.cost import roofline
    from vdnn.memory.simulate import simulate

    simulated = simulate(made, roofline(hardware))
    if table:
        from vdnn.tables import plan_table

        click.echo("\n" + plan_table(made, simulated), nl=False)
    if picture:
        from vdnn.plot import memory_picture

        memory_picture(simulated, picture, budget)
    if trace:
        with open(trace, "w", encoding="utf-8") as file:
            file.write(simulated.to_chrome())
