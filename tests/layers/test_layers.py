"""Every layer, over drawn shapes and arguments, through check_layer."""

import inspect

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import vdnn.layers
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import (
    Add,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    ConstantPad2d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    LayerError,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    MeanSquaredError,
    ReLU,
    ReLU6,
    ShapeError,
    Sigmoid,
    SoftmaxCrossEntropy,
    Tanh,
    Upsample,
    check_layer,
)
from vdnn.network import Network
from vdnn.optimizers import SGD

few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
size = st.integers(1, 7)
images = st.tuples(st.integers(1, 3), st.integers(1, 5), size, size)
rows = st.tuples(st.integers(1, 5), st.integers(1, 9))
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def fits(layer, *shapes):
    try:
        layer.shapes(*shapes)
    except ShapeError:
        return False
    return True


@pytest.mark.parametrize(
    "layer",
    [ReLU(), ReLU("mask"), LeakyReLU(0.2), LeakyReLU(0), LeakyReLU(3), LeakyReLU(-0.5), ReLU6(), Sigmoid(), Tanh()],
    ids=str,
)
@few
@given(shape=st.one_of(images, rows))
def test_activations_pass_the_check(layer, shape):
    assume(shape != (1, 1) and shape != (1, 1, 1, 1))  # one element may be negative, and ReLU of it zero
    check_layer(layer, shape)


@pytest.mark.parametrize("saves", ["indices", "input"])
@few
@given(images, pairs, pairs, pairs, st.booleans(), st.booleans())
def test_max_pooling_passes_the_check(saves, shape, kernel, stride, dilation, ceil_mode, pad):
    padding = tuple(k // 2 for k in kernel) if pad else 0
    layer = MaxPool2d(kernel, stride, padding, dilation, ceil_mode, saves)
    assume(fits(layer, shape) and (dilation == (1, 1) or not pad))
    check_layer(layer, shape)


@pytest.mark.parametrize("saves", ["nothing", "input"])
@few
@given(images, pairs, pairs, st.booleans(), st.booleans(), st.booleans())
def test_average_pooling_passes_the_check(saves, shape, kernel, stride, ceil_mode, include, pad):
    padding = tuple(k // 2 for k in kernel) if pad else 0
    layer = AvgPool2d(kernel, stride, padding, ceil_mode, include, saves)
    assume(fits(layer, shape))
    check_layer(layer, shape)


@pytest.mark.parametrize("saves", ["nothing", "input"])
@few
@given(images)
def test_global_average_pooling_passes_the_check(saves, shape):
    check_layer(GlobalAvgPool2d(saves), shape)


@few
@given(images)
def test_batch_normalisation_passes_the_check(shape):
    assume(shape[0] * shape[2] * shape[3] > 3)  # of two values the gradient nearly cancels
    check_layer(BatchNorm2d(), shape)


@few
@given(images, st.integers(1, 6), st.floats(0.01, 1), st.floats(0.3, 1))
def test_local_response_normalisation_passes_the_check(shape, size, alpha, beta):
    check_layer(LocalResponseNorm(size, alpha, beta, 1.5), shape)


@few
@given(st.one_of(images, rows), st.sampled_from([0, 0.1, 0.5]))
def test_dropout_passes_the_check(shape, p):
    assume(shape[0] * shape[1] > 4)
    check_layer(Dropout(p), shape)


@few
@given(st.one_of(images, rows))
def test_flatten_passes_the_check(shape):
    check_layer(Flatten(), shape)


@few
@given(images, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_concat_passes_the_check(shape, channels):
    check_layer(Concat(), shape, *((shape[0], c, *shape[2:]) for c in channels))


@few
@given(st.one_of(images, rows), st.integers(2, 4))
def test_add_passes_the_check(shape, count):
    check_layer(Add(), *[shape] * count)


@few
@given(images, st.tuples(*[st.integers(0, 3)] * 4))
def test_padding_passes_the_check(shape, padding):
    check_layer(ConstantPad2d(padding, 0.5), shape)


def test_padding_puts_columns_and_rows_where_pytorch_does():
    """(left, right, top, bottom), around a single 7."""
    x, y = np.full((1, 1, 1, 1), 7.0), np.zeros((1, 1, 2, 4))
    layer = ConstantPad2d((1, 2, 0, 1), float("-inf"))
    assert layer.shapes(x.shape).y == y.shape
    layer.forward(x, y)
    rest = float("-inf")
    np.testing.assert_array_equal(y[0, 0], [[rest, 7, rest, rest], [rest] * 4])


@few
@given(images, pairs, st.sampled_from([("nearest", False), ("bilinear", False), ("bilinear", True)]))
def test_upsampling_passes_the_check(shape, scale, mode):
    check_layer(Upsample(scale, *mode), shape)


@few
@given(st.integers(1, 5), st.integers(2, 9))
def test_softmax_cross_entropy_passes_the_check(N, K):
    check_layer(SoftmaxCrossEntropy(), (N, K))


@few
@given(st.one_of(images, rows))
def test_mean_squared_error_passes_the_check(shape):
    check_layer(MeanSquaredError(), shape)


grouped = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))  # groups, then channels in and out of each
margins = st.tuples(st.integers(0, 3), st.integers(0, 3))
planes = st.tuples(st.integers(1, 3), size, size)  # N, H, W


@settings(few, max_examples=20)
@given(planes, grouped, pairs, pairs, margins, pairs, st.booleans())
def test_convolution_passes_the_check(plane, channels, kernel, stride, padding, dilation, bias):
    groups, C, K = channels
    layer = Conv2d(groups * K, kernel, stride, padding, dilation, groups, bias)
    shape = (plane[0], groups * C, *plane[1:])
    assume(fits(layer, shape))
    check_layer(layer, shape)


@settings(few, max_examples=20)
@given(planes, grouped, pairs, pairs, margins, pairs, st.booleans())
def test_transposed_convolution_passes_the_check(plane, channels, kernel, stride, padding, dilation, bias):
    groups, C, K = channels
    layer = ConvTranspose2d(groups * K, kernel, stride, padding, 0, groups, bias, dilation)
    shape = (plane[0], groups * C, *plane[1:])
    assume(fits(layer, shape))
    check_layer(layer, shape)


@few
@given(rows, st.integers(1, 5), st.booleans())
def test_linear_passes_the_check(shape, features, bias):
    check_layer(Linear(features, bias), shape)


LAYERS = [v for v in vars(vdnn.layers).values() if inspect.isclass(v) and issubclass(v, Layer) and v is not Layer]
ARGUMENTS = {"Conv2d": (4, 3), "ConvTranspose2d": (4, 3), "Linear": (4,), "MaxPool2d": (3,), "AvgPool2d": (3,)}
ARGUMENTS |= {"ConstantPad2d": ((1, 2, 0, 3),)}


@pytest.mark.parametrize("kind", LAYERS, ids=lambda c: c.__name__)
def test_a_layer_can_be_made_again_from_its_config(kind):
    layer = kind(*ARGUMENTS.get(kind.__name__, (5,) if kind is LocalResponseNorm else ()), name="this")
    again = kind(**layer.config())
    assert again.name == "this"
    assert repr(again) == repr(layer)
    assert again.config() == layer.config()


@pytest.mark.parametrize("layer", [MaxPool2d(2, saves="input"), AvgPool2d(2, saves="input"), GlobalAvgPool2d("input")])
def test_what_a_pool_saves_is_in_its_config(layer):
    again = type(layer)(**layer.config())
    assert again.saves == "input"
    assert again.needs("backward") == layer.needs("backward")


@pytest.mark.parametrize("kind", LAYERS, ids=lambda c: c.__name__)
def test_name_is_the_last_argument_and_empty(kind):
    last = list(inspect.signature(kind.__init__).parameters.values())[-1]
    assert (last.name, last.default) == ("name", "")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MaxPool2d(0), "kernel_size=0"),
        (lambda: MaxPool2d(16), "more than 255 elements"),
        (lambda: MaxPool2d(2, saves="x"), "saves='x'"),
        (lambda: MaxPool2d(2, padding=2), "more than half"),
        (lambda: AvgPool2d(2, 0), "stride=0"),
        (lambda: AvgPool2d(2, saves="indices"), 'saves=\'indices\' is neither "nothing" nor "input"'),
        (lambda: GlobalAvgPool2d("avgpool"), 'saves=\'avgpool\' is neither "nothing" nor "input"'),
        (lambda: Dropout(1.5), "no probability"),
        (lambda: Dropout(float("nan")), "no probability"),
        (lambda: BatchNorm2d(momentum=2), "momentum=2"),
        (lambda: BatchNorm2d(eps=-1), "eps=-1"),
        (lambda: LocalResponseNorm(0), "size=0"),
        (lambda: LocalResponseNorm(3, k=0), "k > 0"),
        (lambda: Upsample(mode="cubic"), "neither"),
        (lambda: ConstantPad2d((1, 2)), "left, right, top, bottom"),
        (lambda: ConstantPad2d((1, 2, -1, 0)), "at least 0"),
        (lambda: Upsample(align_corners=True), "bilinear"),
        (lambda: Upsample(0), "scale_factor=0"),
    ],
)
def test_wrong_arguments_are_refused(make, match):
    with pytest.raises(LayerError, match=match):
        make()


@pytest.mark.parametrize(
    ("layer", "shapes", "match"),
    [
        (
            MaxPool2d(3, name="pool7"),
            [(1, 1, 2, 5)],
            r"pool7: a window of 3x3 .* \(1, 1, 2, 5\); rows must be at least 3",
        ),
        (AvgPool2d(3), [(1, 1, 5, 2)], "AvgPool2d: .* columns must be at least 3"),
        (BatchNorm2d(), [(2, 4)], r"\(N, C, H, W\) would fit"),
        (GlobalAvgPool2d(), [(2, 4)], r"\(N, C, H, W\) would fit"),
        (Concat(), [(1, 2, 3, 3), (1, 2, 4, 3)], r"\(1, C, 3, 3\) with any C would fit"),
        (Concat(), [(1, 2), (2, 2)], "differ in more than channels"),
        (Add(), [(1, 2), (1, 3)], r"all of them \(1, 2\) would fit"),
        (SoftmaxCrossEntropy(), [(1, 2, 3, 3)], r"\(N, K\) would fit"),
        (Flatten(), [(3,)], "no features"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_what_would(layer, shapes, match):
    with pytest.raises(ShapeError, match=match):
        layer.shapes(*shapes)


def test_one_value_per_channel_is_refused_in_training_only():
    net = Network((1, 4, 1, 1))
    x = net.add(Flatten(), net.add(BatchNorm2d(), net.add(Conv2d(3, 1), net.input)))
    net.add(SoftmaxCrossEntropy(), net.add(Linear(2), x))
    kernels = NumpyKernels(1)
    for purpose, optimizer in (("step", SGD()), ("gradients", None)):
        with pytest.raises(ShapeError, match=r"bn1: x \(1, 3, 1, 1\) .* N \* H \* W must be at least 2"):
            build(net, kernels, optimizer, purpose)
    assert "bn1.evaluate" in build(net, kernels, purpose="evaluate").index
    assert "bn1.forward" in build(net.with_batch(2), kernels, purpose="gradients").index
    with pytest.raises(ShapeError, match="one value per channel"):
        check_layer(BatchNorm2d(), (1, 4, 1, 1))


def test_signatures_stand_for_all_inputs():
    assert Concat().needs("forward", 3) == {"kernels": True, "y": True, "x0": True, "x1": True, "x2": True}
    assert list(Concat().needs("backward", 2)) == ["kernels", "dy", "dx0", "dx1"]


def test_needs_follow_the_instance():
    assert list(MaxPool2d(2).needs("backward")) == ["kernels", "indices", "dy", "dx", "workspace"]
    assert list(MaxPool2d(2, saves="input").needs("backward")) == ["kernels", "x", "y", "dy", "dx", "workspace"]
    assert list(AvgPool2d(2).needs("backward")) == ["kernels", "dy", "dx", "workspace"]
    assert list(AvgPool2d(2, saves="input").needs("backward")) == ["kernels", "x", "y", "dy", "dx", "workspace"]
    assert list(GlobalAvgPool2d().needs("backward")) == ["kernels", "dy", "dx"]
    assert list(GlobalAvgPool2d("input").needs("backward")) == ["kernels", "x", "y", "dy", "dx"]
    assert "y" in LeakyReLU(0.1).needs("backward")
    assert "x" in LeakyReLU(-0.1).needs("backward")
    assert "y" not in LeakyReLU(-0.1).inplace
