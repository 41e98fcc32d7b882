from __future__ import annotations

import pytest
from stubs import Conv, ReLU, Square, network, squares, tape_of

from vdnn.memory.decisions import DROP, KEEP, OFFLOAD, DecisionError, Decisions, Fate, resolve
from vdnn.memory.plan import PlanError


@pytest.fixture
def tape():
    return tape_of(network(Conv(), ReLU(), Square()))


def test_what_backward_reads_and_inputs_are_kept_by_default_and_the_rest_dropped(tape):
    assert resolve({}, tape, {}).fates == {
        "input": KEEP,
        "conv1.y": KEEP,
        "square1.y": DROP,
        "labels": KEEP,
        "loss1.y": DROP,
        "loss1.p": KEEP,
    }


@pytest.mark.parametrize("key", ["conv1.y", "relu1.y"])
def test_a_fate_belongs_to_the_bytes_whichever_tensor_names_them(tape, key):
    assert resolve({key: OFFLOAD}, tape, {}).fates["conv1.y"] is OFFLOAD
    assert resolve({tape.tensors[key]: "offload"}, tape, {}).fates["conv1.y"] is OFFLOAD
    assert "relu1.y" not in resolve({key: OFFLOAD}, tape, {}).fates


def test_resolving_twice_changes_nothing(tape):
    given = Decisions({"relu1.y": OFFLOAD}, ahead={"relu1.y": 3}, slack=2)
    once = resolve(given, tape, {"conv1.forward": "roomy"})
    assert once == resolve(once, tape, {})
    assert once.ahead == {"conv1.y": 3}
    assert once.algorithms["conv1.forward"] == "roomy"


def test_an_op_gets_the_algorithm_decided_else_the_default_else_the_first(tape):
    found = resolve(Decisions(algorithms={"conv1.forward": "roomy"}), tape, {"conv1.forward": "plain"}).algorithms
    assert found["conv1.forward"] == "roomy"
    assert resolve({}, tape, {"conv1.backward_weights": "roomy"}).algorithms["conv1.backward_weights"] == "roomy"
    assert found["conv1.backward_weights"] == "plain"
    assert list(found) == [op.name for op in tape.ops]


def test_timing_is_one_number_or_one_per_tensor_with_a_default():
    decisions = Decisions(ahead={"a": 5}, slack={"a": 6})
    assert (decisions.ahead_of("a"), decisions.ahead_of("b"), Decisions(ahead=4).ahead_of("b")) == (5, 1, 4)
    assert (decisions.slack_of("a"), decisions.slack_of("b"), Decisions(slack=4).slack_of("b")) == (6, 0, 4)


def test_fates_print_as_the_words_that_name_them():
    assert [str(fate) for fate in Fate] == ["keep", "offload", "drop"]


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (None, "returns Decisions or a mapping {tensor: Fate}, not NoneType: None"),
        ({"conv1.z": KEEP}, r"'conv1\.z' is no tensor of net .did you mean conv1\.[wy]"),
        ({3: KEEP}, "keyed by tensors or their names, not 3"),
        ({"conv1.y": "swap"}, r"'swap' is no fate for conv1\.y; fates are keep, offload, drop"),
        ({"input": DROP}, "input cannot be dropped, since no op makes it; offload it"),
        ({"conv1.w": OFFLOAD}, r"the fate of conv1\.w cannot be offload: its role is weight"),
        ({"conv1.w.v": OFFLOAD}, r"the fate of conv1\.w\.v cannot be offload: its role is optimizer state"),
        ({"square1.dx": DROP}, r"the fate of square1\.dx cannot be drop: its role is gradient map"),
        ({"conv1.y": KEEP, "relu1.y": DROP}, r"conv1\.y, relu1\.y share bytes and cannot be both keep and drop"),
        (
            Decisions(algorithms={"conv1.forwrd": "plain"}),
            r"'conv1\.forwrd' is no op of net .did you mean conv1\.forward",
        ),
        (Decisions(algorithms={"conv1.forward": "fft"}), r"conv1\.forward has no algorithm 'fft'; it has plain, roomy"),
        (Decisions(ahead=-1), "ahead counts ops, so it is an integer of at least 0, not -1"),
        (Decisions(slack={"conv1.y": 1.5}), r"slack counts ops, so it is an integer of at least 0, not 1\.5"),
        (Decisions(slack=True), "not True"),
        (Decisions({}, ahead=1.5), r"ahead counts ops, .* not 1\.5"),
        (Decisions({}, slack=[1]), r"slack counts ops, .* not \[1\]"),
        (Decisions(["conv1.y"]), r"fates is a mapping, not \['conv1\.y'\]"),
        (Decisions(algorithms=[1]), r"algorithms is a mapping, not \[1\]"),
        (Decisions(ahead={"nothing": 1}), "'nothing' is no tensor of net"),
        (Decisions(lifetimes="static"), "lifetimes 'static' is neither 'sliding' nor 'network'"),
        (Decisions(returns="twice"), "'twice'"),
    ],
)
def test_decisions_that_do_not_fit_are_refused_naming_what(tape, decisions, message):
    with pytest.raises(DecisionError, match=message):
        resolve(decisions, tape, {})


def test_an_algorithm_that_no_default_names_is_refused():
    with pytest.raises(DecisionError, match=r"conv1.forward has no algorithm 'fft'"):
        resolve({}, tape_of(squares(1)), {"conv1.forward": "fft"})


def test_wrong_decisions_are_errors_of_a_plan():
    assert issubclass(DecisionError, PlanError)
