"""What was asked for and has no effect is said."""

from __future__ import annotations

import json

import networks
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main


def test_a_policy_that_moves_nothing_says_so():
    plan = vdnn.plan(networks.chain(), "vdnn_dyn")
    assert plan.offloaded_bytes == 0
    assert plan.notes == ("vdnn_dyn moves nothing and runs nothing again: all that backward reads is kept",)
    assert plan.notes[0] in " ".join(plan.table().split())
    assert plan.notes[0] in plan._repr_html_()


def test_policies_that_move_or_drop_something_and_those_that_never_do_say_nothing():
    for name in ("keep_all", "baseline", "vdnn_all", "least"):
        assert vdnn.plan(networks.chain(), name).notes == ()


def test_a_policy_of_ones_own_that_moves_nothing_says_so():
    def lazy(tape):
        return {}

    (said,) = vdnn.plan(networks.chain(), lazy).notes
    assert said.startswith("lazy moves nothing")


def test_a_fate_without_effect_is_named():
    plan = vdnn.plan(networks.chain(), {"loss1.y": vdnn.OFFLOAD, "relu1.y": vdnn.OFFLOAD})
    (said,) = plan.notes
    assert said == "to be offloaded, but never copied, as no backward op needs a copy of it: loss1.y"


def test_a_plan_of_evaluation_is_not_asked_to_move_anything():
    assert vdnn.plan(networks.chain(), "vdnn_all", purpose="evaluate").notes == ()


def test_the_commands_say_it():
    arguments = ["digits_vgg", "--policy", "vdnn_dyn"]
    text = CliRunner().invoke(main, ["plan", *arguments]).stdout
    assert "vdnn_dyn moves nothing and runs nothing again" in text
    figures = json.loads(CliRunner().invoke(main, ["plan", *arguments, "--json"]).stdout)
    assert figures["is_idle"] is True
    assert len(figures["notes"]) == 1
    text = CliRunner().invoke(main, ["compare", *arguments, "--policy", "vdnn_all"]).stdout
    assert "moving nothing and running nothing again: vdnn_dyn\n" in text
