"""`vdnn plan` says what a training step would take, without running it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from vdnn.commands import (
    PICTURES,
    byte_lines,
    check_writable,
    ending,
    exact_option,
    host_budget_option,
    leave,
    setting_of,
    share,
    summary_of,
    usage_errors,
    with_options,
)
from vdnn.commands.searching import certificate, search_options, searching_as_asked, telling

if TYPE_CHECKING:
    from vdnn.memory.cost import Cost
    from vdnn.memory.plan import Plan
    from vdnn.memory.searching import Searching
    from vdnn.memory.trace import Trace

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
    exact_option,
    click.option(
        "--rewrites",
        help="Exact changes of the step: all, standard, none, names, or all-relu_mask and the like.  [default: plan: "
        "the policy's choice; compare: those of any policy; under --rules paper the paper's]",
    ),
    click.option(
        "--micro-batches",
        type=click.IntRange(min=1),
        help="Parts of the batch, run forward and backward one after the other.  [default: the policy's choice]",
    ),
    click.option("--allow-coupled", is_flag=True, help="Parts even where batch norm then sees each by itself."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


COUNTED = {
    "all": "everything",
    "weights": "weights once, without gradients and optimizer state",
    "features": "of the weights those of convolutions only",
}
BUDGET = "12GiB (2^30), 8GB (10^9), 80% of the memory, floor+25% (of what keeping all takes above it)"

policy_options = with_options(
    click.option("--policy", default="vdnn_dyn", show_default=True, help="A name, or module:function."),
    click.option("--budget", help=f"Bytes of the arena: {BUDGET}.  [default: the hardware's memory]"),
    host_budget_option,
)
jitter_option = click.option("--jitter", help="Say by how much the step slows if all times vary by so much: 10%.")


@click.command(short_help="Say what one training step takes.")
@setting_options
@policy_options
@click.option("--table", is_flag=True, help="Print the fate of every tensor.")
@click.option("--explain", is_flag=True, help="Print the fate of every tensor, what it costs and saves, and why.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw memory over time into this .png, .svg or .pdf.")
@click.option(
    "--trace", type=click.Path(dir_okay=False), help="Write the simulated step for ui.perfetto.dev; .gz: small."
)
@jitter_option
@search_options
def plan(
    policy: str,
    budget: str | None,
    picture: str | None,
    trace: str | None,
    jitter: str | None,
    seconds: float | None,
    seed: int | None,
    robust: bool,
    **options: Any,
) -> None:
    """Say what one training step of NETWORK takes: bytes, and simulated seconds.

    NETWORK is a name, such as vgg16, module:function, or an ONNX file: model.onnx.
    """
    from vdnn.memory.simulate import simulate
    from vdnn.plot_front import new_figure

    as_json, table, explain = (options.pop(name) for name in ("as_json", "table", "explain"))
    with usage_errors():
        ending("--picture", picture, *PICTURES)
        for path in (picture, trace):
            if path is not None:
                check_writable(path)
        if picture is not None:
            new_figure()  # whether anything can draw is said before planning
        shaken = None if jitter is None else share(jitter)
        with telling(policy) as tell:
            asked = searching_as_asked([policy], seconds, seed, robust, jitter, tell)
            chosen = asked if policy == "search" else policy
            made, cost, summary, message = planned(chosen, budget, shaken, options)
        explanation = made.explain() if explain else None
    rows = {"explanation": explanation.summary()} if explanation else {}
    click.echo(json.dumps(summary | rows, indent=2) if as_json else _describe(summary))
    with usage_errors():
        _show(simulate(made, cost), summary["budget_bytes"], table and not as_json, picture, trace)
    if explanation and not as_json:
        click.echo("\n" + explanation.table(), nl=False)
    leave(message)


def planned(
    policy: str | Searching, budget: str | None, jitter: float | None, options: dict[str, Any]
) -> tuple[Plan, Cost, dict[str, Any], str]:
    """(plan, times, its summary, why it does not fit or ""); the smallest plan found if none fits."""
    from vdnn.budgets import budget_bytes
    from vdnn.comparing import certified
    from vdnn.fitting import BudgetError
    from vdnn.host_budgets import HostBudgetError
    from vdnn.memory.verify import verify

    start, message = time.perf_counter(), ""
    setting, algorithms = setting_of(options, policy if isinstance(policy, str) else "search")
    setting = setting.with_budget(budget_bytes(budget, setting, algorithms))
    made = setting.make(policy, algorithms)
    taken = time.perf_counter() - start
    if made.arena_bytes > setting.budget:
        error = BudgetError(setting, policy, algorithms, made)
        made, message = error.plan, str(error)
    elif not made.is_within_host:
        message = str(HostBudgetError(made)).replace("host_budget=", "--host-budget ")
    verify(made)
    return made, setting.cost, certified(summary_of(made, setting, taken, jitter)), message


def _describe(summary: dict[str, Any]) -> str:
    from vdnn.result_tables import is_of_whole
    from vdnn.rewrites import title
    from vdnn.tape import batch_label
    from vdnn.units import format_seconds

    batch = batch_label(summary["batch"], summary["micro_batches"])
    fits = "fits" if summary["fits"] else "does not fit"
    lines = [
        f"{summary['network']}, {batch}, {summary['optimizer']}, on {summary['hardware']}",
        f"{summary['policy']} with algorithms {summary['algorithms']}: {fits}",
        f"times {summary['time']}; kernels {summary['kernels']}, threads {summary['threads']}",
        f"rules {summary['rules']}; counted: {COUNTED[summary['count']]}",
        f"rewrites {title(summary['rewrites'])}",
        *summary["notes"],
        *(["floor and oracle are those of the whole batch"] if is_of_whole([summary]) else []),
        "",
    ]
    shown = ("budget", "arena", "peak", "average", "floor", "host", "disk", "offloaded")
    limited = summary["host_budget_bytes"] is not None
    amounts = {key: summary[f"{key}_bytes"] for key in shown if key != "disk" or limited or summary["disk_bytes"]}
    lines += byte_lines(amounts | ({"host budget": summary["host_budget_bytes"]} if limited else {}))
    lines += [
        f"{key:<16}{format_seconds(summary[f'{key}_seconds']):>10}" for key in ("step", "oracle", "stall", "planning")
    ]
    lines += certificate(summary)
    lines += [f"{'copies hidden':<16}{summary['hidden_copy_fraction']:>10.1%}", *_slowed(summary), "", "at the peak"]
    return "\n".join(lines + byte_lines(summary["breakdown"]))


def _slowed(summary: dict[str, Any]) -> list[str]:
    """How much the step slows where times vary; nothing if that was not asked for."""
    jitter = summary.get("jitter")
    if not jitter:
        return []
    ratios = [f"{name} {jitter[name + '_slowdown']:.3f}" for name in ("median", "p95", "worst")]
    return [f"{'times slower':<16}{', '.join(ratios)}, simulated, if times vary by {jitter['jitter']:.0%}"]


def _show(simulated: Trace, budget: int, table: bool, picture: str | None, trace: str | None) -> None:
    if table:
        from vdnn.tables import plan_table

        click.echo("\n" + plan_table(simulated.plan, simulated), nl=False)
    if picture:
        from vdnn.plot import memory_picture

        memory_picture(simulated, picture, budget)
    if trace:
        simulated.to_chrome(trace)
