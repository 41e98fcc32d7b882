"""vDNN under the paper's own rules, and vDNN++, which drops its waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vdnn.memory.cost import Cost
from vdnn.memory.decisions import Decisions
from vdnn.memory.published.copies import ahead_by, by_events
from vdnn.memory.published.fitting import fits, with_workspaces
from vdnn.memory.rules import EXTRACTION, offload_inputs, under
from vdnn.memory.trial import least_workspace
from vdnn.tape import Tape


def paper_all(tape: Tape) -> Decisions:
    """vDNN_all (Rhu et al., MICRO 2016, arXiv 1602.08124, section III) under the paper's rules.

    Follows: the X of every layer of feature extraction that is not in place leaves beside the last layer that reads it;
    one stream of copies; compute joins it after every layer that copied; the prefetch search of Fig. 10; the images are
    copied out, too.  The paper's networks have no batch norm; here its X leaves as that of CONV does.
    Leaves out: the backward in one op and the pooling that reads x and y are properties of another tape
    (`rules="paper"` builds it).
    """
    return under("paper", offload_inputs(tape, EXTRACTION, "paper"))


def paper_conv(tape: Tape) -> Decisions:
    """vDNN_conv: as `paper_all`, but only the X of CONV layers (section III-C)."""
    return under("paper", offload_inputs(tape, ("conv",), "paper"))


def paper_dyn(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """vDNN_dyn: the first of the paper's trials (section III-C) that fits the budget, under the paper's rules.

    Follows: all with the least workspaces must fit, or nothing does; then nothing, conv, all with the given algorithms;
    then conv and all with those downgraded that overflow.  As `vdnn.memory.policy.vdnn_dyn`, with `paper_all`'s fates.
    Leaves out: what `paper_all` does.
    """
    least = replace(paper_all(tape), algorithms=least_workspace(tape, cost))
    if not fits(tape, least, algorithms, budget):
        return least
    trials = [under("paper", Decisions()), paper_conv(tape), paper_all(tape)]
    return _first(tape, budget, cost, algorithms, trials) or least


def vdnn_plus_plus(tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str]) -> Decisions:
    """vDNN++ (Shriram, Garg, Kulkarni, IPDPS 2019): vDNN_dyn's choice, without its waits.

    Follows: an event per copy in place of the join after the layer; X is freed when its offload's event has fired, and
    only a lack of memory makes compute wait for it; what the paper's search finds, and at least the X of the next
    layer, is fetched without blocking; nothing, conv or all is offloaded, whichever fits first.
    Leaves out: its allocation orders against fragmentation (offsets are laid out beforehand here, for every policy) and
    the compression of pinned host memory, which saves no device memory.
    """
    trials = [Decisions()]
    for kinds in (("conv",), EXTRACTION):
        decisions = offload_inputs(tape, kinds)
        found = offload_inputs(tape, kinds, "paper")
        ahead = {b: max(decisions.ahead_of(b), found.ahead_of(b)) for b in decisions.fates}
        trials.append(by_events(tape, decisions, cost, algorithms, budget, ahead_by(ahead)).decisions)
    lean = least_workspace(tape, cost)
    least = replace(trials[-1], ahead=0, slack=0, algorithms=lean)
    return _first(tape, budget, cost, algorithms, trials) or least


def _first(
    tape: Tape, budget: int, cost: Cost, algorithms: Mapping[str, str], trials: list[Decisions]
) -> Decisions | None:
    """The first of `trials` that fits the budget, then the first that does so with algorithms downgraded."""
    for decisions in trials:
        if fits(tape, decisions, algorithms, budget):
            return decisions
    for decisions in trials[1:]:
        found = with_workspaces(tape, budget, cost, algorithms, decisions)
        if found is not None:
            return found
    return None
