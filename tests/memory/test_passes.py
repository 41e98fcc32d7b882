"""Each pass on nets of two to four layers, against the steps that it should give."""

from __future__ import annotations

import pytest
from stubs import Add, Conv, Loss, Norm, ReLU, Square, decided, network, short, squares, tape_of, text

from vdnn.layers.base import Algorithm, Layer, Shapes, Spec
from vdnn.memory.decisions import DROP, OFFLOAD, Decisions
from vdnn.memory.passes import allocate, copy_offloaded, make_plan, rerun_dropped
from vdnn.memory.verify import verify
from vdnn.network import Network, Role, Tensor
from vdnn.tape import Op, Tape

# ---- rerun_dropped


def reruns(tape, decisions):
    """The steps after rerun_dropped, from the first backward op on."""
    return short(rerun_dropped(tape, decided(tape, decisions)))[tape.turn :]


def test_without_dropped_tensors_the_steps_are_the_ops():
    tape = tape_of(squares(1))
    expected = """
        conv1.forward
        square1.forward
        loss1.forward
        loss1.backward
        square1.backward
        conv1.backward_weights
        conv1.w.update
    """
    assert short(rerun_dropped(tape, decided(tape))) == text(expected)


def test_a_dropped_tensor_is_made_again_before_the_op_that_reads_it():
    expected = """
        loss1.backward
        conv1.forward
        square1.backward
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape_of(squares(1)), {"conv1.y": DROP}) == text(expected)


def test_a_rerun_that_needs_another_dropped_tensor_makes_that_one_first_and_both_stay():
    expected = """
        loss1.backward
        conv1.forward
        square1.forward
        square2.forward
        square3.backward
        square2.backward
        square1.backward
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape_of(squares(3)), {"conv1.y": DROP, "square1.y": DROP, "square2.y": DROP}) == text(expected)


def test_a_kept_tensor_in_between_stops_the_rerun():
    expected = """
        loss1.backward
        square2.forward
        square3.backward
        square2.backward
        conv1.forward
        square1.backward
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape_of(squares(3)), {"conv1.y": DROP, "square2.y": DROP}) == text(expected)


def test_a_rerun_in_place_runs_norm_and_relu_together():
    tape = tape_of(network(Conv(), Norm(), ReLU(), Square()))
    assert tape.buffer_of["relu1.y"] == "bn1.y"
    expected = """
        loss1.backward
        bn1.forward
        relu1.forward
        square1.backward
        relu1.backward
        bn1.backward
        bn1.w.update
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape, {"bn1.y": DROP}) == text(expected)


def test_a_dropped_statistic_is_made_again_without_the_relu_behind_it():
    tape = tape_of(network(Conv(), Norm(), ReLU(), Square()))
    expected = """
        loss1.backward
        square1.backward
        relu1.backward
        bn1.forward
        bn1.backward
        bn1.w.update
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape, {"bn1.m": DROP}) == text(expected)


def test_a_rerun_in_place_runs_norm_add_and_relu_together_once_their_inputs_are_there():
    net = Network((2, 1, 8, 8))
    skip = net.add(Conv(), net.input)
    x = net.add(Norm(), net.add(Conv(), skip))
    net.add(Loss(), net.add(ReLU(), net.add(Add(), x, skip)))
    tape = tape_of(net)
    assert {tape.buffer_of[n] for n in ("bn1.y", "add1.y", "relu1.y")} == {"bn1.y"}
    expected = """
        loss1.backward
        conv1.forward
        conv2.forward
        bn1.forward
        add1.forward
        relu1.forward
        relu1.backward
        bn1.backward
        bn1.w.update
        conv2.backward_weights
        conv2.backward_data
        conv2.w.update
        conv1.y.sum1
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape, {"bn1.y": DROP, "conv2.y": DROP, "conv1.y": DROP, "bn1.m": DROP}) == text(expected)


def test_no_weight_is_read_by_a_rerun_after_its_update():
    """Add works in place on bn1.y, and reads conv1.y: running it again for bn1.m would need conv1 after its update."""
    net = Network((2, 1, 8, 8))
    x = net.add(Norm(), net.input)
    net.add(Loss(), net.add(Add(), x, net.add(Conv(), net.input)))
    tape = tape_of(net)
    assert tape.buffer_of["add1.y"] == "bn1.y"
    expected = """
        loss1.backward
        conv1.backward_weights
        conv1.w.update
        bn1.forward
        bn1.backward
        bn1.w.update
    """
    assert reruns(tape, {"bn1.m": DROP}) == text(expected)
    verify(make_plan(tape, decided(tape, {"bn1.m": DROP})))


def test_a_dropped_array_of_an_op_in_place_needs_what_came_before_it_in_these_bytes_and_not_what_came_after():
    class Mask(Layer):
        inplace = {"y": "x", "dx": "dy"}

        def shapes(self, x):
            return Shapes(x, saved={"m": Spec(x, "uint8")})

        def forward(self, x, y, m): ...
        def backward(self, m, dy, dx): ...

    tape = tape_of(network(Conv(), Mask(), ReLU(), Square()))
    assert {tape.buffer_of[n] for n in ("mask1.y", "relu1.y")} == {"conv1.y"}
    expected = """
        loss1.backward
        square1.backward
        relu1.backward
        conv1.forward
        mask1.forward
        mask1.backward
        conv1.backward_weights
        conv1.w.update
    """
    assert reruns(tape, {"mask1.m": DROP}) == text(expected)


def test_bytes_that_a_rerun_leaves_half_made_are_made_again_for_who_reads_them():
    """f makes y and s, g changes y in place; bringing s back leaves y as f wrote it, and then b2 needs what g wrote."""
    plain = (Algorithm("plain", 0),)

    def op(name, phase, reads, writes):
        return Op(name, "", phase, {n: n for n in (*reads, *writes)}, tuple(reads), tuple(writes), plain, 0)

    ops = (
        op("f", "forward", ["x"], ["y", "s"]),
        op("g", "forward", ["y"], ["z"]),
        op("b1", "backward", ["s"], ["d1"]),
        op("b2", "backward", ["z"], ["d2"]),
    )
    roles = {"x": Role.INPUT, "d1": Role.GRADIENT, "d2": Role.GRADIENT}
    tensors = {n: Tensor(n, (128,), "float32", roles.get(n, Role.FEATURE)) for n in ("x", "y", "s", "z", "d1", "d2")}
    tape = Tape("hand", 1, "step", "", "stub", "nhwc", 1, tensors, {"z": "y"}, ops, (), ())
    assert short(rerun_dropped(tape, decided(tape, {"s": DROP}))) == ["f", "g", "f", "b1", "f", "g", "b2"]
    verify(make_plan(tape, decided(tape, {"s": DROP})))


def test_running_averages_are_not_moved_again():
    tape = tape_of(network(Conv(), Norm(), ReLU()))
    steps = short(rerun_dropped(tape, decided(tape, {"bn1.y": DROP, "bn1.m": DROP})))
    assert steps.count("bn1.forward") == 2
    assert steps.count("bn1.update_statistics") == 1


def test_a_network_of_three_thousand_layers_needs_no_recursion():
    tape = tape_of(squares(3000))
    fates = {f"square{i}.y": DROP for i in range(1, 3000)} | {"conv1.y": DROP}
    steps = rerun_dropped(tape, decided(tape, fates))
    assert len(steps) == len(tape.ops) + 3000  # conv1 and squares 1 to 2999 once more
    assert short(steps[3003:3006]) == ["conv1.forward", "square1.forward", "square2.forward"]


# ---- copy_offloaded


def copied(tape, decisions=None, *, undo=False):
    d = decided(tape, decisions)
    return short(copy_offloaded(rerun_dropped(tape, d), tape, d, undo))


def test_an_offload_starts_before_the_last_op_that_reads_and_a_prefetch_one_op_early():
    expected = """
        prefetch input
        conv1.forward
        offload conv1.y
        prefetch labels
        square1.forward
        loss1.forward
        offload loss1.y
        prefetch conv1.y
        loss1.backward
        square1.backward
        prefetch clock
        conv1.backward_weights
        conv1.w.update
    """
    assert copied(tape_of(squares(1)), {"conv1.y": OFFLOAD}) == text(expected)


def test_an_offload_follows_the_op_that_makes_what_forward_does_not_read():
    steps = copied(tape_of(squares(1)), {"loss1.p": OFFLOAD})
    assert steps[4:8] == ["loss1.forward", "offload loss1.p", "offload loss1.y", "prefetch loss1.p"]


def test_what_backward_does_not_read_or_makes_again_is_never_copied():
    tape = tape_of(squares(2))
    assert "square2.y" not in {t.name for t in tape.saved}
    assert copied(tape, {"square2.y": OFFLOAD}) == copied(tape)
    tape = tape_of(network(Conv(), Norm(), Square()))
    steps = copied(tape, {"bn1.y": DROP, "bn1.m": OFFLOAD})  # the rerun for bn1.y makes bn1.m as well
    assert [s for s in steps if "bn1.m" in s] == []


@pytest.mark.parametrize(("ahead", "before"), [(0, "square1.backward"), (1, "square2.backward"), (2, "loss1.backward")])
def test_ahead_counts_ops(ahead, before):
    steps = copied(tape_of(squares(2)), Decisions({"conv1.y": OFFLOAD}, ahead={"conv1.y": ahead}))
    assert steps[steps.index("prefetch conv1.y") + 1] == before


def test_no_prefetch_comes_before_the_last_forward_use():
    steps = copied(tape_of(squares(2)), Decisions({"conv1.y": OFFLOAD}, ahead=99))
    last = steps.index("square1.forward")
    assert steps[last - 1 : last + 2] == ["offload conv1.y", "square1.forward", "prefetch conv1.y"]


def test_an_offloaded_input_is_fetched_twice_and_never_copied_out():
    steps = copied(tape_of(squares(1)), {"input": OFFLOAD, "labels": OFFLOAD})
    assert [s for s in steps if s.endswith(("input", "labels"))] == [
        "prefetch input",
        "prefetch labels",
        "prefetch labels",
        "prefetch input",
    ]
    assert steps[steps.index("prefetch input", 1) + 1] == "square1.backward"  # one op before conv1.backward_weights


def test_a_tensor_may_leave_again_between_uses_that_are_apart():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    y = net.add(Square(), x)
    net.add(Loss(), net.add(Add(), net.add(Square(), y), net.add(Square(), x)))
    tape = tape_of(net)  # in backward conv1.y is read by square3, then, with square2 between, by square1
    steps = copied(tape, Decisions({"conv1.y": OFFLOAD}, returns="each", ahead=0))
    expected = """
        prefetch conv1.y
        square3.backward
        square2.backward
        prefetch conv1.y
        square1.backward
    """
    assert steps[steps.index("prefetch conv1.y") :][:5] == text(expected)
    assert copied(tape, Decisions({"conv1.y": OFFLOAD}, ahead=0)).count("prefetch conv1.y") == 1


def test_results_go_to_the_host_when_they_are_there():
    expected = """
        prefetch input
        conv1.forward
        prefetch labels
        conv2.forward
        loss1.forward
        offload loss1.y
        loss1.backward
        conv2.backward_weights
        offload conv2.dw
        conv2.backward_data
        conv1.backward_weights
        offload conv1.dw
    """
    assert copied(tape_of(network(Conv(), Conv()), "gradients")) == text(expected)


def test_a_result_that_is_made_again_is_copied_once():
    steps = copied(tape_of(squares(1)), {"loss1.p": DROP})
    assert steps.count("loss1.forward") == 2
    assert steps.count("offload loss1.y") == 1
    assert steps[steps.index("loss1.forward") + 1] == "offload loss1.y"


def test_undo_copies_what_is_overwritten_for_good_right_before_it_is():
    tape = tape_of(network(Conv(), Norm()))
    steps = copied(tape, undo=True)
    for op, overwritten in {
        "bn1.update_statistics": ["offload bn1.mean"],
        "bn1.w.update": ["offload bn1.w", "offload bn1.w.v"],
        "conv1.w.update": ["offload conv1.w", "offload conv1.w.v"],
    }.items():
        at = steps.index(op)
        assert steps[at - len(overwritten) : at] == overwritten
    assert not {"offload conv1.w", "offload bn1.mean"} & set(copied(tape))


# ---- allocate


def allocated(tape, decisions=None, **algorithms):
    d = decided(tape, decisions, **algorithms)
    return short(allocate(copy_offloaded(rerun_dropped(tape, d), tape, d, False), tape, d))


def test_a_buffer_lives_from_its_making_to_its_last_use_and_residents_for_ever():
    expected = """
        alloc conv1.w
        alloc conv1.w.v
        alloc input
        prefetch input
        alloc conv1.y
        conv1.forward
        alloc labels
        prefetch labels
        alloc square1.y
        square1.forward
        alloc loss1.y
        alloc loss1.p
        loss1.forward
        free square1.y
        offload loss1.y
        free loss1.y
        alloc loss1.dx
        loss1.backward
        free labels
        free loss1.p
        alloc square1.dx
        square1.backward
        free conv1.y
        free loss1.dx
        alloc clock
        prefetch clock
        alloc conv1.dw
        conv1.backward_weights
        free input
        free square1.dx
        conv1.w.update
        free clock
        free conv1.dw
    """
    assert without_ties(allocated(tape_of(squares(1)))) == without_ties(text(expected))


def without_ties(steps):
    """Runs of frees sorted, since their order means nothing."""
    out = []
    for step in steps:
        out.append(step)
        if step.startswith("free"):
            first = len(out) - 1
            while first and out[first - 1].startswith("free"):
                first -= 1
            out[first:] = sorted(out[first:])
    return out


def life(steps, name):
    """What happens between the allocs and frees of one buffer."""
    lives, inside = [], None
    for step in steps:
        if step == f"alloc {name}":
            inside = []
            lives.append(inside)
        elif step == f"free {name}":
            inside = None
        elif inside is not None and not step.startswith(("alloc", "free")):
            inside.append(step)
    return lives


def test_an_offloaded_buffer_lives_twice():
    steps = allocated(tape_of(squares(1)), {"conv1.y": OFFLOAD})
    assert life(steps, "conv1.y") == [
        ["conv1.forward", "offload conv1.y", "prefetch labels", "square1.forward"],
        ["prefetch conv1.y", "loss1.backward", "square1.backward"],
    ]


def test_a_dropped_buffer_lives_twice():
    steps = allocated(tape_of(squares(2)), {"conv1.y": DROP})
    assert life(steps, "conv1.y") == [["conv1.forward", "square1.forward"], ["conv1.forward", "square1.backward"]]


@pytest.mark.parametrize(
    ("slack", "held"),
    [
        (1, ["square2.forward"]),
        (2, ["square2.forward", "prefetch labels", "square3.forward"]),
        (99, ["square2.forward", "prefetch labels", "square3.forward", "loss1.forward", "offload loss1.y"]),
    ],
)
def test_slack_keeps_the_source_of_an_offload_for_so_many_ops_more_until_it_comes_back(slack, held):
    decisions = Decisions({"conv1.y": OFFLOAD}, slack={"conv1.y": slack}, ahead={"conv1.y": 3})
    first, second = life(allocated(tape_of(squares(3)), decisions), "conv1.y")
    assert first == ["conv1.forward", "offload conv1.y", "square1.forward", *held]
    assert second[0] == "prefetch conv1.y"


def test_a_workspace_lives_for_its_op_alone():
    tape = tape_of(squares(1))
    steps = allocated(tape, **{"conv1.forward": "roomy"})
    at = steps.index("conv1.forward")
    assert steps[at - 1 : at + 2] == ["alloc conv1.forward.workspace", "conv1.forward", "free conv1.forward.workspace"]
    assert not any("backward_weights.workspace" in s for s in steps)


def test_network_wide_lifetimes_allocate_everything_but_gradient_maps_at_the_start():
    tape = tape_of(squares(1))
    steps = allocated(tape, Decisions(lifetimes="network"))
    first = next(i for i, s in enumerate(steps) if not s.startswith("alloc"))
    names = {
        "conv1.w",
        "conv1.w.v",
        "input",
        "labels",
        "clock",
        "conv1.y",
        "square1.y",
        "loss1.y",
        "loss1.p",
        "conv1.dw",
    }
    assert {s.removeprefix("alloc ") for s in steps[:first]} == names
    assert life(steps, "loss1.dx") == [["loss1.backward", "square1.backward"]]
    assert not any(s.startswith("free") for s in steps[: steps.index("conv1.w.update")] if not s.endswith("dx"))


# ---- all of them


def test_a_plan_names_its_policy_and_is_safe():
    tape = tape_of(squares(2))
    plan = make_plan(tape, decided(tape, {"conv1.y": OFFLOAD, "square1.y": DROP}), undo=True, policy="mine")
    verify(plan)
    assert plan.policy == "mine"
