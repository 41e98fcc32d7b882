from __future__ import annotations

import numpy as np
import pytest
from networks import NETWORKS, norm_dropout
from stubs import Add, Conv, Loss, Norm, ReLU, Square

from vdnn.layers import BatchNorm2d, Concat, Conv2d, Dropout, Flatten, Linear, SoftmaxCrossEntropy
from vdnn.layers.base import Init, Layer, LayerError, ShapeError, Shapes, Spec
from vdnn.network import Network, Role, Tensor


@pytest.fixture
def net():
    return Network((2, 1, 8, 8), name="net")


# ---- laying out


def test_shapes_follow_from_layer_to_layer():
    net = Network((2, 3, 8, 6))
    x = net.add(Conv2d(4, 3, stride=2, padding=1), net.input)
    assert x.shape == (2, 4, 4, 3)
    x = net.add(Flatten(), x)
    assert x.shape == (2, 48)
    assert net.add(Linear(5), x).shape == (2, 5)


def test_layers_are_numbered_by_kind_unless_they_are_named(net):
    x = net.add(Conv(), net.input)
    x = net.add(Conv(), x, name="middle")
    x = net.add(ReLU(), net.add(Conv(), x))
    assert [n.name for n in net.nodes] == ["conv1", "middle", "conv3", "relu1"]
    assert x.name == "relu1.y"


def test_a_number_that_is_taken_is_skipped(net):
    x = net.add(ReLU(), net.input, name="conv1")
    net.add(Conv(), x)
    assert net.nodes[1].name == "conv2"


def test_a_name_may_be_the_layers_own(net):
    layer = Conv2d(4, 1, name="first")
    assert net.add(layer, net.input).name == "first.y"
    unnamed = Conv2d(4, 1)
    net.add(unnamed, net.input)
    assert unnamed.name == "conv2"


def test_a_node_has_all_tensors_of_its_layer(net):
    y = net.add(Norm(), net.input)
    node = net["bn1"]
    assert node.x == {"x": net.input}
    assert node.y is y
    assert node.parameters == {"w": Tensor("bn1.w", (1,), "float32", Role.WEIGHT)}
    assert node.saved == {"m": Tensor("bn1.m", (1,), "float32", Role.FEATURE)}
    assert node.statistics == {"mean": Tensor("bn1.mean", (1,), "float32", Role.STATISTICS)}
    assert node.input_shapes == ((2, 1, 8, 8),)


def test_a_layer_of_several_inputs_has_them_by_number(net):
    x = net.add(Conv(), net.input)
    net.add(Add(), x, net.input)
    assert net["add1"].x == {"x0": x, "x1": net.input}


def test_parameters_and_statistics_are_found_by_their_full_names():
    net = Network((4, 3, 6, 6))
    net.add(BatchNorm2d(), net.add(Conv2d(6, 3, bias=False), net.input))
    assert list(net.parameters) == ["conv1.w", "bn1.w", "bn1.b"]
    assert list(net.statistics) == ["bn1.mean", "bn1.variance"]
    tensor, spec = net.statistics["bn1.variance"]
    assert tensor.shape == (6,)
    assert spec.init == Init("constant", 1.0)


def test_a_tensor_knows_its_bytes():
    assert Tensor("t", (2, 3), "float32", Role.WEIGHT).nbytes == 24
    assert Tensor("t", (2, 3), "float64", Role.WEIGHT).nbytes == 48
    assert Tensor("t", (2, 3), "uint8", Role.WEIGHT).nbytes == 6
    assert repr(Tensor("t", (2, 3), "uint8", Role.WEIGHT)) == "t uint8[2, 3]"


def test_the_dtype_is_the_networks_unless_an_array_has_its_own():
    net = Network((2, 1, 8, 8), "float64")
    net.add(Loss(), net.add(Conv(), net.input))
    assert net["conv1"].parameters["w"].dtype == "float64"
    assert net.labels.dtype == "int64"


def test_the_scores_are_what_the_loss_reads_or_the_last_output(net):
    x = net.add(Conv(), net.input)
    assert net.scores is x
    loss = net.add(Loss(), x)
    assert net.scores is x
    assert net.loss.y is loss
    assert net.labels == Tensor("labels", (2,), "int64", Role.INPUT)


@pytest.mark.parametrize("make", NETWORKS)
def test_another_batch_has_the_same_layers_and_weights(make):
    net = make(4)
    other = net.with_batch(3)
    assert other.batch == 3
    assert [n.name for n in other.nodes] == [n.name for n in net.nodes]
    assert all(a.layer is b.layer for a, b in zip(other.nodes, net.nodes, strict=True))
    assert other.parameters == net.parameters
    assert all(n.y.shape[0] == 3 for n in other.nodes if not n.layer.is_loss)
    assert [[t.name for t in n.inputs] for n in other.nodes] == [[t.name for t in n.inputs] for n in net.nodes]
    assert net.with_batch(4) is net


def test_a_network_is_represented_by_its_size():
    assert repr(norm_dropout()) == "Network(norm_dropout, input [4, 3, 6, 6], 12 layers, 2,081 parameters)"


# ---- what is refused


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, -1), (2, 3.0)])
def test_a_shape_that_is_no_batch_is_refused(shape):
    with pytest.raises(ShapeError, match=r"takes \(batch, \.\.\.\) of positive integers"):
        Network(shape)


def test_a_dtype_that_no_kernel_has_is_refused():
    with pytest.raises(ValueError, match="dtype 'float16' is not float32 or float64"):
        Network((2, 3), "float16")


def test_a_layers_class_is_refused_with_a_hint(net):
    with pytest.raises(TypeError, match=r"is not a vdnn.Layer; did you mean ReLU\(\)"):
        net.add(ReLU, net.input)


def test_a_layer_or_a_name_is_added_once(net):
    layer = ReLU()
    x = net.add(layer, net.input, name="a")
    with pytest.raises(LayerError, match="'a' is in the network already"):
        net.add(ReLU(), x, name="a")
    with pytest.raises(LayerError, match="the same layer object was added before"):
        net.add(layer, x)


def test_a_layer_with_a_name_of_its_own_takes_no_other(net):
    with pytest.raises(LayerError, match=r"Dropout\(p=0.5\) has two names, 'a' and 'b'"):
        net.add(Dropout(0.5, name="a"), net.input, name="b")
    assert net.nodes == []
    assert net.add(Dropout(0.5, name="a"), net.input, name="a").name == "a.y"


def test_a_layer_keeps_its_name_in_a_second_network(net):
    layer = Dropout(0.5)
    net.add(layer, net.input)
    with pytest.raises(LayerError, match="has two names, 'dropout1' and 'b'"):
        Network((2, 1, 8, 8)).add(layer, net.input, name="b")
    assert net.with_batch(3)["dropout1"].layer is layer


def test_sizes_may_be_numbers_of_numpy():
    net = Network((np.int64(2), np.int32(3)))
    assert net.input.shape == (2, 3)
    assert [type(n) for n in net.input.shape] == [int, int]
    assert net.with_batch(np.int64(5)).batch == 5


@pytest.mark.parametrize("name", ["a.b", "a b", "input", "labels", "clock", "a\n"])
def test_a_name_that_a_plan_could_not_print_is_refused(net, name):
    with pytest.raises(LayerError, match="cannot name a layer"):
        net.add(ReLU(), net.input, name=name)


def test_the_number_of_inputs_must_suit_the_layer(net):
    with pytest.raises(ShapeError, match=r"relu1: ReLU\(\) takes 1 inputs, got 2"):
        net.add(ReLU(), net.input, net.input)
    with pytest.raises(ShapeError, match=r"takes two or more inputs, got 1"):
        net.add(Concat(), net.input)


def test_an_input_of_another_network_is_refused(net):
    with pytest.raises(ValueError, match=r"relu1: input float32\[2, 1, 8, 8\] is no tensor of this network"):
        net.add(ReLU(), Network((2, 1, 8, 8)).input)
    with pytest.raises(ValueError, match=r"'conv1.y' is no tensor of this network"):
        net.add(ReLU(), "conv1.y")


def test_a_loss_is_one_and_the_end(net):
    x = net.add(Conv(), net.input)
    loss = net.add(Loss(), x)
    with pytest.raises(LayerError, match="relu1: a loss feeds no layer"):
        net.add(ReLU(), loss)
    with pytest.raises(LayerError, match=r"loss2: the network has a loss already \(loss1\)"):
        net.add(Loss(), x)
    assert len(net.nodes) == 2


def test_what_is_missing_is_said(net):
    with pytest.raises(LayerError, match="net has no layers"):
        _ = net.scores
    with pytest.raises(LayerError, match="net has no loss layer; add SoftmaxCrossEntropy"):
        _ = net.loss
    net.add(Conv(), net.input)
    with pytest.raises(KeyError, match=r"'conv2' is no layer of net \(did you mean conv1\?\); its layers: conv1"):
        net["conv2"]


def test_a_layer_that_does_not_fit_leaves_network_and_layer_as_they_were():
    net = Network((2, 3, 4, 4))
    layer = Conv2d(4, 7)
    with pytest.raises(ShapeError, match="conv1"):
        net.add(layer, net.input)
    assert layer.name == ""
    assert net.nodes == []
    with pytest.raises(ShapeError):
        net.add(SoftmaxCrossEntropy(), net.input)
    assert net.labels is None


# ---- layers that are declared wrongly are refused when they are added


class Declared(Layer):
    """A layer of which the tests say what it declares."""

    def __init__(self, **shapes):
        self.declared = shapes

    def shapes(self, x):
        return Shapes(x, **self.declared)

    def forward(self, x, y): ...
    def backward(self, dy, dx): ...


class NoOutput(Layer):
    def forward(self, x): ...


class UnknownName(Layer):
    def forward(self, x, z, y): ...


class LossWithDy(Layer):
    is_loss = True

    def shapes(self, x):
        return Shapes((1,), labels=Spec((x[0],)))

    def forward(self, x, labels, y): ...
    def backward(self, dy, dx): ...


class LossWithoutLabels(Layer):
    is_loss = True

    def forward(self, x, y): ...


class Passing(Layer):
    passes_gradient = True

    def shapes(self, x):
        return Shapes(x, {"w": Spec((1,))})

    def forward(self, x, w, y): ...


ONE = Spec((1,))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Declared(parameters={"dx": ONE}), "dx may not be the name of a parameter"),
        (Declared(saved={"labels": ONE}), "labels may not be the name"),
        (Declared(statistics={"clock": ONE}), "clock may not be the name"),
        (Declared(parameters={"m": ONE}, saved={"m": ONE}), "need names of their own; got m, m"),
        (Declared(parameters={"w": ONE}, saved={"dw": ONE}), "need names of their own; got w, dw"),
        (NoOutput(), r"NoOutput\(\) has no forward method that names y"),
        (Layer(), r"Layer\(\) has no forward method that names y"),
        (UnknownName(), r"UnknownName\(\)\.forward names 'z', which is none of algorithm, clock"),
        (LossWithDy(), r"LossWithDy\(\)\.backward names 'dy'"),
        (LossWithoutLabels(), "a loss must declare its labels"),
        (Passing(), "passes its gradient on, so it cannot have parameters"),
    ],
)
def test_a_layer_that_is_declared_wrongly_is_refused(net, layer, message):
    with pytest.raises(LayerError, match=message):
        net.add(layer, net.input)
    assert net.nodes == []


def test_any_tensor_may_feed_several_layers(net):
    x = net.add(Conv(), net.input)
    net.add(Loss(), net.add(Add(), net.add(Square(), x), net.add(Square(), x), x))
    assert [len(n.inputs) for n in net.nodes] == [1, 1, 1, 3, 1]
