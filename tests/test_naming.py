"""Whatever is named wrongly is refused, with the nearest names and all there are."""

from __future__ import annotations

from contextlib import closing

import networks
import pytest
from click.testing import CliRunner

import vdnn
from vdnn.__main__ import main
from vdnn.layers import Conv2d, ReLU
from vdnn.naming import LISTED, among, check_options, hint, nearest
from vdnn.units import MOST, UnitError, parse_bytes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", ["h100-sxm", "h100-pcie"]),  # rather than v100, which is spelled more like it
        ("Titan X", ["titan-x"]),
        ("titanx2", ["titan-x"]),
        ("tpu", []),
        ("", []),
        (3, []),
    ],
)
def test_the_nearest_names_begin_like_it_or_are_spelled_like_it(name, found):
    assert nearest(name, ["titan-x", "v100", "h100-pcie", "h100-sxm"]) == found


def test_what_there_is_is_listed_up_to_a_number():
    assert among("c", ["a", "b"], "or one of one's own") == "; there are a, b, or one of one's own"
    assert hint("aa", ["aab"]) == " (did you mean aab?)"
    assert among("zz", map(str, range(LISTED + 2))).endswith(f"{LISTED - 1}, 2 more")


def test_an_unknown_option_is_named_with_the_function():
    with pytest.raises(TypeError, match=r"fit\(\) has no option 'hardwre' \(did you mean hardware\?\); there are"):
        check_options("fit", ["hardwre"], ["hardware"])


NET = networks.chain()
WRONG = {
    "policy": (lambda: vdnn.plan(NET, "vdn_all"), "did you mean vdnn_all"),
    "hardware": (lambda: vdnn.plan(NET, hardware="h100"), "no hardware is named 'h100' .did you mean h100-sxm or"),
    "algorithms": (lambda: vdnn.plan(NET, algorithms="perfomance"), "did you mean performance"),
    "op": (lambda: vdnn.plan(NET, algorithms={"conv1.forwrd": "direct"}), "did you mean conv1.forward"),
    "optimizer": (lambda: vdnn.plan(NET, optimizer="adamm"), "did you mean adam"),
    "no optimizer": (lambda: vdnn.plan(NET, optimizer=3), "no optimizer 3; there are sgd"),
    "kernels": (lambda: vdnn.plan(NET, kernels="cudnn"), "did you mean cudnn4"),
    "rules": (lambda: vdnn.plan(NET, rules="papr"), "did you mean paper"),
    "count": (lambda: vdnn.plan(NET, count="feature"), "did you mean features"),
    "purpose": (lambda: vdnn.plan(NET, purpose="evalute"), "did you mean evaluate"),
    "rewrites": (lambda: vdnn.plan(NET, rewrites="inplce"), "did you mean inplace"),
    "tensor in fates": (lambda: vdnn.plan(NET, {"relu11.y": vdnn.OFFLOAD}), "did you mean relu1.y"),
    "fate": (lambda: vdnn.plan(NET, {"relu1.y": "offlod"}), "fates are keep, offload, drop"),
    "parts": (lambda: vdnn.plan(NET, micro_batches=0), "micro_batches=0: a number of sub-batches, at least 1"),
    "threads": (lambda: vdnn.plan(NET, threads="2"), "threads='2': a whole number"),
    "network": (lambda: vdnn.models.get("vgg61"), "did you mean vgg16 or vgg19|did you mean vgg19 or vgg16"),
    "no name": (lambda: vdnn.models.get(3), "a network's name is text"),
    "figure": (lambda: vdnn.roofline("titan-x", flops=3), "did you mean flops_per_second"),
    "layer": (lambda: NET["conv11"], "did you mean conv1"),
    "plan's tensor": (lambda: vdnn.plan(NET).fate("conv11.y"), "did you mean conv1.y"),
    "plan's buffer": (lambda: vdnn.plan(NET).size("conv11.y"), "did you mean conv1.y"),
    "vary": (lambda: vdnn.fit(NET, vary="bach"), "did you mean batch"),
    "option of fit": (lambda: vdnn.fit(NET, hardwre="v100"), "did you mean hardware"),
    "option of compare": (lambda: vdnn.compare(NET, hardwre="v100"), "did you mean hardware"),
    "init": (lambda: Conv2d(3, 3, init="kaimin"), "did you mean kaiming"),
    "kind of init": (lambda: vdnn.Init("unifrom"), "did you mean uniform"),
    "empty shape": (lambda: vdnn.check_layer(ReLU(), (0, 3)), "positive integers"),
    "batch": (lambda: vdnn.plan(NET, batch=10**9), "at most 16777216 samples; got 1000000000"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_there_is_not_is_refused_with_what_there_is(what):
    call, message = WRONG[what]
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        call()


@pytest.mark.parametrize(
    "amount",
    [
        "9" * 400,
        "9" * 400 + "GiB",
        "9" * 400 + "%",
        10**400,
        MOST + 1,
        "9223372036855TB",
        pytest.param(10**5000, id=""),
    ],
)
def test_an_amount_beyond_all_bounds_is_refused_in_few_words(amount):
    with pytest.raises(UnitError) as caught:
        parse_bytes(amount, 2**30)
    assert len(str(caught.value)) < 150


def test_the_largest_amount_is_taken():
    assert parse_bytes(MOST) == MOST


def test_a_weight_that_there_is_not_is_refused_with_near_ones():
    with closing(vdnn.Trainer(networks.chain())) as trainer, pytest.raises(KeyError, match=r"did you mean conv1\.w"):
        trainer.weights["conv11.w"]


def test_one_policy_and_one_budget_need_no_list():
    (found,) = vdnn.compare(NET, "vdnn_all", "1GiB")
    assert (found["policy"], found["budget_bytes"]) == ("vdnn_all", 2**30)


def test_a_plan_takes_a_budget_relative_to_the_step():
    kept = vdnn.plan(NET, "keep_all")
    assert vdnn.plan(NET, "keep_all", budget="keep_all").arena_bytes == kept.arena_bytes
    with pytest.raises(vdnn.BudgetError) as caught:
        vdnn.plan(NET, "keep_all", budget="floor")
    assert caught.value.budget_bytes == kept.floor_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "vgg16", "--batch", "1000000000"), "at most 16777216 samples; got 1000000000"),
        (("plan", "vgg16", "--hardware", "h100"), "did you mean h100-sxm or h100-pcie?"),
        (("plan", "vgg16", "--budget", "9" * 400 + "GiB"), "is no amount of memory that any machine has"),
        (("explian", "vgg16"), "explain"),
    ],
)
def test_the_command_line_refuses_it_too(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
