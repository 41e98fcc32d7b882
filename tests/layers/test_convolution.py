"""What Conv2d, ConvTranspose2d and Linear say: shapes, starts, operations and errors."""

import pytest

from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import Conv2d, ConvTranspose2d, Init, LayerError, Linear, ShapeError, check_layer


@pytest.mark.parametrize(
    ("layer", "x", "y", "w"),
    [
        (Conv2d(64, 11, 4, 2), (2, 3, 224, 224), (2, 64, 55, 55), (64, 3, 11, 11)),
        (Conv2d(8, (3, 1), (2, 1), (1, 0), groups=2), (1, 4, 7, 9), (1, 8, 4, 9), (8, 2, 3, 1)),
        (Conv2d(8, 3, dilation=(2, 3)), (1, 4, 9, 9), (1, 8, 5, 3), (8, 4, 3, 3)),
        (ConvTranspose2d(8, 3, 2, 1, output_padding=1), (1, 4, 5, 6), (1, 8, 10, 12), (4, 8, 3, 3)),
        (ConvTranspose2d(8, 2, 2, groups=4), (1, 4, 5, 6), (1, 8, 10, 12), (4, 2, 2, 2)),
        (Linear(10), (32, 50), (32, 10), (10, 50)),
    ],
    ids=str,
)
def test_shapes_follow_the_formulas(layer, x, y, w):
    shapes = layer.shapes(x)
    assert shapes.y == y
    assert shapes.parameters["w"].shape == w
    assert shapes.parameters["b"].shape == (y[1],)
    layer.check(shapes, 1)


def test_parameters_start_as_in_pytorch():
    expected = Init("uniform", 1 / 6)  # 1 / sqrt(4 * 3 * 3)
    for layer in (Conv2d(8, 3), ConvTranspose2d(4, 3)):  # PyTorch's fan-in of a transposed one is K R S
        specs = layer.shapes((1, 4, 9, 9)).parameters
        assert [specs[n].init.kind for n in "wb"] == ["uniform"] * 2
        assert [specs[n].init.scale for n in "wb"] == pytest.approx([expected.scale] * 2)
    assert Linear(3).shapes((1, 16)).parameters["b"].init == Init("uniform", 0.25)
    assert "b" not in Conv2d(8, 3, bias=False).shapes((1, 4, 9, 9)).parameters


def test_operations_are_counted_per_phase():
    assert Conv2d(8, 3, padding=1, groups=2).flops("forward", (2, 4, 5, 6)) == 2 * 2 * 8 * 5 * 6 * (4 // 2) * 9
    assert ConvTranspose2d(8, 3).flops("backward_data", (2, 4, 5, 6)) == 2 * 2 * 4 * 5 * 6 * 8 * 9
    assert Linear(7).flops("backward_weights", (2, 3)) == 2 * 2 * 3 * 7


@pytest.mark.parametrize("layer", [Conv2d(40, 3, padding=1), ConvTranspose2d(41, 3, padding=1)], ids=str)
def test_layers_deep_enough_for_winograd_pass_the_check(layer):
    kernels, x = NumpyKernels(2), (6, 40, 12, 12)
    for phase in ("forward", "evaluate", "backward_data", "backward_weights"):
        names = {a.name for a in layer.algorithms(kernels, phase, "float32", x)}
        assert names >= {"direct", "winograd2", "winograd4"}
    check_layer(layer, x, kernels=kernels)


@pytest.mark.parametrize(
    "layer", [Conv2d(6, 3, groups=3, dilation=2, padding=2), ConvTranspose2d(6, 3, 2, 1, 1, groups=3)], ids=str
)
def test_groups_and_dilation_pass_the_check(layer):
    check_layer(layer, (2, 9, 6, 7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(0, 3), "out_channels=0: at least 1"),
        (lambda: Conv2d(4, (3, 0)), r"kernel_size=\(3, 0\): at least 1"),
        (lambda: Conv2d(4, 3, stride=1.5), "stride=1.5 is neither an integer nor a pair"),
        (lambda: Conv2d(4, 3, padding=-1), "padding=-1: at least 0"),
        (lambda: Conv2d(64, 3, groups=3), "groups=3 does not divide out_channels=64; 1, 2, 4, 8"),
        (lambda: ConvTranspose2d(4, 3, 2, output_padding=2), "must be below stride=2"),
        (lambda: Linear("ten"), "out_features='ten' is not an integer"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(make, message):
    with pytest.raises(LayerError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (Conv2d(6, 3, groups=3, name="conv1"), (1, 64, 9, 9), "conv1: groups=3 does not divide C=64; 1, 2, 4, 8"),
        (Conv2d(6, 5), (1, 3, 3, 3), "Conv2d: kernel 5x5 dilation 1 .* input 3x3; padding of at least 1 would fit"),
        (Conv2d(6, 3), (1, 9), r"x \(1, 9\) has 2 dimensions; \(N, C, H, W\) would fit"),
        (ConvTranspose2d(6, 3, padding=2), (1, 3, 1, 1), "padding=2x2 leaves nothing .* at most 1 would fit"),
        (Linear(3, name="fc"), (1, 2, 3, 3), r"fc: .* 4 dimensions; \(N, IN\) would fit"),
    ],
)
def test_a_wrong_shape_is_answered_with_what_would_fit(layer, x, message):
    with pytest.raises(ShapeError, match=message):
        layer.shapes(x)


def test_kaiming_starts_normal_by_fan_out_with_zero_biases():
    specs = Conv2d(16, 3, init="kaiming").shapes((1, 8, 5, 5)).parameters
    assert specs["w"].init == Init("normal", (2 / (16 * 9)) ** 0.5)
    assert specs["b"].init == Init("constant", 0.0)
    with pytest.raises(LayerError, match=r"init='he' is none of uniform, kaiming"):
        Conv2d(16, 3, init="he")
