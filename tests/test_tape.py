"""The ops of small networks, written out: forward, backward in reverse, sums where gradients meet, updates at once."""

from __future__ import annotations

import pytest
from networks import NETWORKS
from networks import tape_of as real_tape
from stubs import Add, Conv, Kernels, Loss, Norm, Optimizer, ReLU, Square, network, squares, tape_of, text

from vdnn import layers
from vdnn.building import build
from vdnn.layers.base import Layer, LayerError, Shapes, Spec
from vdnn.network import Network, Role
from vdnn.tape import granules


def ops(tape):
    return [repr(op) for op in tape.ops]


def names(tensors):
    return [t.name for t in tensors]


# ---- ops


def test_a_chain_runs_forward_and_back_and_updates_each_weight_at_once():
    expected = """
        conv1.forward(input, conv1.w -> conv1.y)
        square1.forward(conv1.y -> square1.y)
        conv2.forward(square1.y, conv2.w -> conv2.y)
        loss1.forward(conv2.y, labels -> loss1.y, loss1.p)
        loss1.backward(loss1.p, labels -> loss1.dx)
        conv2.backward_weights(square1.y, loss1.dx -> conv2.dw)
        conv2.backward_data(conv2.w, loss1.dx -> conv2.dx)
        conv2.w.update(clock, conv2.w, conv2.dw, conv2.w.v -> conv2.w, conv2.w.v)
        square1.backward(conv1.y, conv2.dx -> square1.dx)
        conv1.backward_weights(input, square1.dx -> conv1.dw)
        conv1.w.update(clock, conv1.w, conv1.dw, conv1.w.v -> conv1.w, conv1.w.v)
    """
    tape = tape_of(network(Conv(), Square(), Conv()))
    assert ops(tape) == text(expected)
    assert tape.turn == 4
    assert tape.index["loss1.backward"] == 4
    assert tape.resident == ("conv1.w", "conv2.w", "conv1.w.v", "conv2.w.v")
    assert tape.results == ("loss1.y",)


def test_gradients_of_a_tensor_with_three_users_are_summed_by_ops_of_their_own():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), net.add(Square(), x), net.add(Square(), x), x))
    expected = """
        loss1.backward(loss1.p, labels -> loss1.dx)
        square2.backward(conv1.y, loss1.dx -> square2.dx)
        conv1.y.sum1(loss1.dx, square2.dx -> conv1.y.sum1)
        square1.backward(conv1.y, loss1.dx -> square1.dx)
        conv1.y.sum2(conv1.y.sum1, square1.dx -> conv1.y.sum2)
        conv1.backward_weights(input, conv1.y.sum2 -> conv1.dw)
        conv1.w.update(clock, conv1.w, conv1.dw, conv1.w.v -> conv1.w, conv1.w.v)
    """
    tape = tape_of(net)
    assert ops(tape)[tape.turn :] == text(expected)
    total = tape.ops[tape.index["conv1.y.sum1"]]
    assert (total.phase, total.target, total.flops) == ("sum", "conv1.y", 128)


def test_a_tensor_added_to_itself_gets_its_gradient_twice():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), x, x))
    total = next(op for op in tape_of(net).ops if op.phase == "sum")
    assert total.arguments == {"x0": "loss1.dx", "x1": "loss1.dx", "y": "conv1.y.sum1"}
    assert total.reads == ("loss1.dx",)


def test_statistics_move_in_an_op_of_their_own_right_after_forward():
    expected = """
        bn1.forward(input, bn1.w -> bn1.y, bn1.m)
        bn1.update_statistics(bn1.m, bn1.mean -> bn1.mean)
    """
    tape = tape_of(network(Norm()))
    assert ops(tape)[:2] == text(expected)
    assert tape.resident == ("bn1.w", "bn1.w.v", "bn1.mean")
    assert not tape.ops[1].is_forward  # it may not run again


def test_gradients_neither_update_nor_move_anything_and_send_the_gradients_to_the_host():
    tape = tape_of(network(Conv(), Norm()), "gradients")
    assert {op.phase for op in tape.ops} == {"forward", "backward", "backward_weights"}
    assert tape.results == ("loss1.y", "bn1.dw", "conv1.dw")
    assert tape.resident == tape_of(network(Conv(), Norm())).resident


def test_evaluation_is_forward_alone_with_the_layers_own_evaluate():
    expected = """
        conv1.evaluate(input, conv1.w -> conv1.y)
        bn1.evaluate(conv1.y, bn1.w, bn1.mean -> bn1.y)
        loss1.evaluate(bn1.y, labels -> loss1.y, loss1.p)
    """
    tape = tape_of(network(Conv(), Norm()), "evaluate")
    assert ops(tape) == text(expected)
    assert tape.results == ("bn1.y", "loss1.y")
    assert tape.turn == 3
    assert tape.saved == ()


def test_a_network_without_a_loss_can_be_evaluated():
    net = Network((2, 1, 8, 8))
    net.add(Conv(), net.input)
    assert tape_of(net, "evaluate").results == ("conv1.y",)


def test_nobody_wants_the_gradient_of_the_networks_input():
    net = Network((2, 1, 8, 8))
    net.add(Loss(), net.add(Norm(), net.add(Square(), net.input)))
    tape = tape_of(net)
    assert "square1.backward" not in tape.index  # it would write nothing
    tape = tape_of(network(Norm()))
    assert tape.ops[tape.index["bn1.backward"]].arguments["dx"] is None
    assert "conv1.backward_data" not in tape_of(network(Conv())).index


def test_an_op_carries_what_a_plan_needs():
    op = tape_of(network(Conv(scratch=3))).ops[0]
    assert (op.layer, op.phase, op.kind) == ("conv1", "forward", "conv")
    assert op.arguments == {"x": "input", "w": "conv1.w", "y": "conv1.y"}
    assert [(a.name, a.workspace) for a in op.algorithms] == [("plain", 0), ("roomy", 1536)]
    assert op.algorithm("roomy").workspace == 1536
    with pytest.raises(KeyError, match=r"conv1.forward has no algorithm 'fft'; it has plain, roomy"):
        op.algorithm("fft")


# ---- what shares bytes


def test_relu_works_in_place_where_no_backward_reads_its_input():
    tape = tape_of(network(Conv(), ReLU()))
    assert tape.alias == {"relu1.y": "conv1.y", "relu1.dx": "loss1.dx"}
    assert names(tape.buffers["conv1.y"].tensors) == ["conv1.y", "relu1.y"]
    assert tape.buffer_of["relu1.y"] == "conv1.y"


@pytest.mark.parametrize("before", [Norm, Square])
def test_relu_behind_a_layer_that_saves_its_own_input_alone_is_in_place(before):
    tape = tape_of(network(Conv(), before(), ReLU()))
    assert tape.alias["relu1.y"].split(".")[0] in ("bn1", "square1")
    assert "conv1.y" not in tape.alias.values()


def test_relu_is_not_in_place_where_backward_reads_its_input():
    class ReadsOutput(Layer):
        def forward(self, x, y): ...
        def backward(self, y, dy, dx): ...

    assert "relu1.y" not in tape_of(network(Conv(), ReadsOutput(), ReLU())).alias


def test_what_two_layers_read_is_not_overwritten():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), net.add(ReLU(), x), net.add(Conv(), x)))
    tape = tape_of(net)
    assert "conv1.y" not in tape.alias.values()
    assert tape.alias["conv1.y.sum1"] == "conv2.dx"


def test_what_an_op_reads_twice_is_not_overwritten():
    net = Network((2, 1, 8, 8))
    x, z = net.add(Conv(), net.input), net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), x, z, x))
    assert "add1.y" not in tape_of(net).alias


def test_a_gradient_is_overwritten_only_by_the_last_op_that_reads_it():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), net.add(ReLU(), x), net.add(ReLU(), x)))
    tape = tape_of(net)  # loss1.dx goes to relu2, then to relu1
    assert tape.alias.get("relu2.dx") is None
    assert tape.alias["relu1.dx"] == "loss1.dx"


def test_the_input_and_the_results_are_never_overwritten():
    tape = tape_of(network(ReLU(), Conv(), ReLU()), "evaluate")
    assert tape.alias == {"relu2.y": "conv1.y"}
    net = Network((2, 1, 8, 8))
    net.add(Loss(), net.add(Conv(), net.input))
    assert tape_of(net, "evaluate").alias == {}


# ---- buffers, features, makers


def test_saved_is_what_backward_reads_in_the_order_of_its_last_forward_use():
    tape = tape_of(network(Conv(), ReLU(), Square(), Conv()))
    assert names(tape.saved) == ["input", "conv1.y", "square1.y", "labels", "loss1.p"]
    assert names(tape.features) == ["input", "conv1.y", "square1.y", "conv2.y", "labels", "loss1.y", "loss1.p"]


def test_reads_and_writes_are_buffers_without_repeats():
    tape = tape_of(network(Conv(), ReLU()))
    i = tape.index["relu1.backward"]
    assert (tape.reads[i], tape.writes[i]) == (("conv1.y", "loss1.dx"), ("loss1.dx",))
    i = tape.index["relu1.forward"]
    assert (tape.reads[i], tape.writes[i]) == (("conv1.y",), ("conv1.y",))


def test_makers_are_all_forward_ops_that_write_a_buffer():
    tape = tape_of(network(Conv(), ReLU(), Norm()))
    assert tape.makers == {"conv1.y": (0, 1), "bn1.y": (2,), "bn1.m": (2,), "loss1.y": (4,), "loss1.p": (4,)}


def test_sizes_are_whole_granules():
    assert [granules(n) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    tape = tape_of(network(Conv(3)))
    assert tape.buffers["conv1.y"].nbytes == 3 * 512
    assert tape.buffers["conv1.w"].nbytes == 512
    assert tape.resident_bytes == 1024
    assert tape.buffers["conv1.y"].role is Role.FEATURE


def test_the_floor_is_the_neediest_op_with_the_gradients_that_wait_and_the_residents():
    # loss1.forward: square1.y, labels, loss1.y, loss1.p; residents: conv1.w, conv1.w.v
    assert tape_of(squares(1)).floor_bytes == 6 * 512
    # conv2.backward_weights: conv1.y (1), loss1.dx (8), conv2.dw (1); two weights with state (4): 14 and no workspace;
    # loss1.forward: conv2.y (8), labels (1), loss1.y (1), loss1.p (8), residents (4)
    assert tape_of(network(Conv(), Conv(8))).floor_bytes == 22 * 512


def test_a_gradient_that_waits_for_another_branch_counts_to_the_floor():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    wide = net.add(Conv(1), net.add(Conv(6), x))
    net.add(Loss(), net.add(Add(), net.add(Square(), x), wide))
    # square1 goes back first, and square1.dx (1) waits for conv2.dx; residents: three weights with state (6)
    # conv3.backward_weights: conv2.y (6), loss1.dx, conv3.dw, and square1.dx waits
    assert tape_of(net).floor_bytes == (6 + 6 + 1 + 1 + 1) * 512


@pytest.mark.parametrize("make", NETWORKS)
def test_every_argument_is_a_tensor_and_every_tensor_is_made_before_it_is_read(make):
    tape = real_tape(make())
    there = set(tape.resident) | {"input", "labels", "clock"}
    for op in tape.ops:
        assert set(op.reads) | set(op.writes) == {n for n in op.arguments.values() if n is not None}
        assert set(op.reads) <= there
        there |= set(op.writes)
    assert there == set(tape.tensors)
    assert set(tape.results) <= there
    assert len(tape.index) == len(tape.ops)


def test_an_unknown_tensor_is_said_with_those_that_look_like_it():
    tape = tape_of(squares(1))
    assert tape.tensor("conv1.y") is tape.tensors["conv1.y"]
    assert tape.tensor(tape.tensors["conv1.y"]).name == "conv1.y"
    with pytest.raises(KeyError, match=r"'square1.yy' is no tensor of net \(did you mean square1.y"):
        tape.tensor("square1.yy")


# ---- what cannot be trained


class Dead(Layer):
    def forward(self, x, y): ...


class NoDx(Layer):
    def forward(self, x, y): ...
    def backward(self, x, dy): ...


class NoDw(Layer):
    def shapes(self, x):
        return Shapes(x, {"w": Spec((1,))})

    def forward(self, x, w, y): ...
    def backward(self, dy, dx): ...


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Dead, "no gradient reaches conv1: no backward method of dead1 writes its dx"),
        (NoDx, "no gradient reaches conv1: no backward method of nodx1 writes its dx"),
        (NoDw, "nodw1: no backward method names dw, the gradient of nodw1.w"),
    ],
)
def test_a_layer_that_stops_the_gradient_is_named(layer, message):
    net = network(Conv(), layer())
    with pytest.raises(LayerError, match=message):
        tape_of(net)
    tape_of(net, "evaluate")


def test_an_output_that_nothing_uses_is_named():
    net = network(Conv())
    net.add(Square(), net["conv1"].y)
    with pytest.raises(LayerError, match="square1's output is used by no layer, so it cannot be trained"):
        tape_of(net)


def test_a_step_needs_a_loss_an_optimizer_and_a_purpose_that_exists():
    net = Network((2, 1, 8, 8), name="net")
    net.add(Conv(), net.input)
    with pytest.raises(LayerError, match="net has no loss layer"):
        tape_of(net)
    with pytest.raises(ValueError, match="a tape with updates needs an optimizer"):
        build(network(Conv()), Kernels())
    with pytest.raises(ValueError, match="purpose 'train' is none of step, gradients, evaluate"):
        build(network(Conv()), Kernels(), Optimizer(), "train")


# ---- views, sums in place, fused backward


class AnyStrides(Kernels):
    name, storage, takes_any_strides, accumulates = "any", "nchw", True, True


def branches(kernels, **options):
    """Two branches from one convolution, joined; then a linear layer."""
    net = Network((2, 1, 8, 8), name="branches")
    x = net.add(Conv(), net.input)
    joined = net.add(layers.Concat(), net.add(ReLU(), net.add(Conv(), x)), net.add(Conv(), x))
    net.add(Loss(), net.add(Square(), net.add(layers.Flatten(), joined)))
    return build(net, kernels(), Optimizer(), **options)


def test_kernels_of_any_strides_join_gradients_and_flatten_without_ops():
    plain, viewed = branches(Kernels), branches(AnyStrides)
    assert [op.name for op in plain.ops if op.layer in ("concat1", "flatten1")] == [
        "concat1.forward",
        "flatten1.forward",
        "flatten1.backward",
        "concat1.backward",
    ]
    assert [op.name for op in viewed.ops if op.layer in ("concat1", "flatten1")] == ["concat1.forward"]
    whole = viewed.buffer_of["square1.dx"]
    assert {viewed.buffer_of[name] for name in ("flatten1.dx", "concat1.dx0", "concat1.dx1", "relu1.dx")} == {whole}
    assert viewed.buffer_of["flatten1.y"] == viewed.buffer_of["concat1.y"]


def test_kernels_that_accumulate_add_to_a_gradient_in_place():
    tape = branches(AnyStrides)
    assert not [op for op in tape.ops if op.phase == "sum"]
    assert [op.phase for op in branches(Kernels).ops if op.phase == "sum"] == ["sum"]
    second = next(op for op in tape.ops if op.name == "conv2.backward_data")
    assert "conv3.dx" in second.reads
    assert tape.buffer_of["conv2.dx"] == "conv3.dx"


def test_a_gradient_that_others_read_is_not_added_to():
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    y = net.add(Conv(), x)
    net.add(Loss(), net.add(Add(), y, x))  # the gradient of the sum is that of x, and y still reads it
    tape = build(net, AnyStrides(), Optimizer())
    assert [op.name for op in tape.ops if op.phase == "sum"] == ["conv1.y.sum1"]


def test_what_a_view_shows_is_overwritten_only_when_nobody_reads_the_whole():
    net = Network((2, 1, 8, 8))
    x = net.add(Square(), net.add(Conv(), net.input))
    flat = net.add(layers.Flatten(), x)
    net.add(Loss(), net.add(ReLU(), flat))  # backward of square reads conv1.y, not square1.y
    tape = build(net, AnyStrides(), Optimizer())
    assert tape.buffer_of["relu1.y"] == tape.buffer_of["flatten1.y"] == "square1.y"
    net = Network((2, 1, 8, 8))
    x = net.add(Conv(), net.input)
    net.add(Square(), x)
    flat = net.add(layers.Flatten(), x)
    net.add(Loss(), net.add(Add(), net.add(ReLU(), flat), net.add(layers.Flatten(), net.nodes[1].y)))
    tape = build(net, AnyStrides(), Optimizer())
    assert tape.buffer_of["flatten1.y"] == "conv1.y" != tape.buffer_of["relu1.y"]  # square still reads conv1.y


def test_a_fused_backward_needs_what_both_need_and_takes_the_larger_workspace():
    tape = branches(Kernels, rewrites="paper")
    op = next(op for op in tape.ops if op.name == "conv2.backward")
    assert set(op.reads) == {"conv1.y", "conv2.w", "relu1.dx"} or set(op.reads) == {"conv1.y", "conv2.w", "concat1.dx0"}
    assert op.writes == ("conv2.dw", "conv2.dx")
    assert [(a.name, a.workspace) for a in op.algorithms] == [
        ("plain+plain", 0),
        ("plain+roomy", 512),
        ("roomy+plain", 512),
        ("roomy+roomy", 512),
    ]
    assert [op.phase for op in tape.ops if op.layer == "conv1"] == ["forward", "backward_weights"]  # no dx is wanted
    assert op.launches == 2
    split = branches(Kernels)
    assert op.flops == sum(o.flops for o in split.ops if o.layer == "conv2" and o.phase != "forward")
