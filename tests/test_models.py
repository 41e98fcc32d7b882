import inspect
from math import prod

import numpy as np
import pytest

from vdnn import models
from vdnn.building import build
from vdnn.kernels.numpy import NumpyKernels
from vdnn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    MeanSquaredError,
    ReLU,
    ReLU6,
    SoftmaxCrossEntropy,
)
from vdnn.layers.base import ShapeError
from vdnn.network import Network
from vdnn.optimizers import SGD
from vdnn.train import Trainer

MIB = 2**20
POOLS = (MaxPool2d, AvgPool2d, GlobalAvgPool2d)
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "googlenet": 6_998_552,
    "densenet121": 7_978_856,
    "inception_v3": 27_161_264 - 3_326_696,  # without the auxiliary classifier
    "inception_v4": 42_679_816,
    "mobilenet_v2": 3_504_872,
}
# What is not (3, 224, 224), 1000 scores in a row and an image of 64x64 that will do
IMAGES = {
    "overfeat": (3, 221, 221),
    "inception_v3": (3, 299, 299),
    "inception_v4": (3, 299, 299),
    "unet": (1, 512, 512),
    "digits_vgg": (1, 8, 8),
}
SCORES = {"unet": (2, 512, 512), "digits_vgg": (10,)}
SMALL = {"overfeat": 77, "inception_v3": 75, "inception_v4": 75, "digits_vgg": 16}


def parameters(net):
    return sum(prod(tensor.shape) for tensor, _ in net.parameters.values())


def inputs_mib(net, *kinds):
    """MiB of the inputs of all layers of these kinds, each tensor once."""
    return round(sum(t.nbytes for t in {n.inputs[0] for n in net.nodes if isinstance(n.layer, kinds)}) / MIB)


def small_image(name):
    return (2, SMALL.get(name, 64), SMALL.get(name, 64))


def data_of(net, seed=0):
    """Images, and labels such as the loss takes."""
    draw = np.random.default_rng(seed)
    images = draw.standard_normal(net.input.shape, np.float32)
    if net.labels.dtype == "int64":
        return images, np.arange(net.batch) % net.scores.shape[1]
    return images, draw.standard_normal(net.labels.shape, np.float32)


def count(net, kind):
    return sum(isinstance(n.layer, kind) for n in net.nodes)


def user_net(batch, width=4):
    net = Network((batch, 1, 8, 8))
    net.add(Conv2d(width, 3), net.input)
    return net


def not_a_net(batch):
    return batch


A_NUMBER = 3


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert parameters(models.get(name, batch=1)) == PARAMETERS[name]


def test_overfeat_has_the_parameters_of_its_table():
    filters = 49 * 3 * 96 + 49 * 96 * 256 + 9 * (256 * 512 + 512 * 512 + 512 * 1024 + 1024 * 1024)
    matrices = 5 * 5 * 1024 * 4096 + 4096 * 4096 + 4096 * 1000
    biases = 96 + 256 + 512 + 512 + 1024 + 1024 + 4096 + 4096 + 1000
    assert parameters(models.overfeat(batch=1)) == filters + matrices + biases == 144_656_488


def test_unet_has_the_parameters_of_its_figure():
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * (C * K + K * K) + 2 * K for C, K in zip([1, *widths], widths, strict=False))
    up = sum(4 * 2 * K * K + K + 9 * (2 * K * K + K * K) + 2 * K for K in widths[:-1])
    assert parameters(models.unet(batch=1)) == down + up + 64 * 2 + 2 == 31_030_658


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_ends_in_a_loss_on_its_scores(name):
    net = models.get(name, batch=2)
    assert net.name == name
    assert net.input.shape == (2, *IMAGES.get(name, (3, 224, 224)))
    assert net.scores.shape == (2, *SCORES.get(name, (1000,)))
    assert net.nodes[-1].name == "loss"
    assert net.labels is not None
    assert net.labels.shape == (net.scores.shape if name == "unet" else (2,))
    assert count(net, MeanSquaredError if name == "unet" else SoftmaxCrossEntropy) == 1


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_takes_the_common_options(name):
    image = small_image(name)
    saves = {} if name == "mobilenet_v2" else {"saves": "input"}
    net = models.get(name, batch=3, image=image, classes=7, dtype="float64", **saves)
    assert net.input.shape == (3, *image)
    assert net.scores.shape == (3, 7, *(image[1:] if name == "unet" else ()))
    assert net.scores.dtype == "float64"
    pools = [n.layer for n in net.nodes if isinstance(n.layer, MaxPool2d)]
    assert {pool.saves for pool in pools} == set(saves.values())
    assert models.get(name, image=image).batch == 32


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_gives_a_tape(name):
    net = models.get(name, batch=2, image=small_image(name))
    tape = build(net, NumpyKernels(1), SGD())
    updates = [op.target for op in tape.ops if op.phase == "update"]
    assert sorted(updates) == sorted(net.parameters)


# Of the smallest image, but for mobilenet_v2: its deepest maps are 1x1 up to 32x32, and batch norm's two values per
# channel, where they are nearly equal, multiply the gradient at each of its many layers until it overflows.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 63),
        ("overfeat", 77),
        ("densenet121", 29),
        ("inception_v3", 75),
        ("inception_v4", 75),
        ("mobilenet_v2", 33),
        ("unet", 16),
    ],
)
def test_a_training_step_moves_every_weight_by_a_finite_gradient(name, size):
    net = models.get(name, batch=2, image=(3, size, size), classes=4)
    trainer = Trainer(net, policy="keep_all", algorithms="memory", optimizer=SGD(1.0), undo=False)
    before = {weight: values.copy() for weight, values in trainer.weights.items()}
    assert np.isfinite(float(trainer.step(*data_of(net))))
    gradients = {weight: before[weight] - after for weight, after in trainer.weights.items()}
    assert gradients.keys() == net.parameters.keys()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert [weight for weight, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.parametrize(
    ("name", "size"),
    [("alexnet", 63), ("overfeat", 77), ("densenet121", 29), ("inception_v3", 75), ("inception_v4", 75)],
)
def test_the_smallest_image_is_as_documented(name, size):
    assert f"{size}x{size}" in inspect.getdoc(models.BY_NAME[name])
    models.get(name, batch=2, image=(3, size, size))
    with pytest.raises(ShapeError):
        models.get(name, batch=2, image=(3, size - 1, size - 1))


def test_unet_says_which_images_it_takes():
    with pytest.raises(ShapeError, match=r"unet: image \(3, 64, 72\); .* multiples of 16"):
        models.unet(image=(3, 64, 72))


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("vgg16", "pool5", (2, 512, 7, 7)),
        ("vgg19", "conv5_4", (2, 512, 14, 14)),
        ("resnet18", "layer2_0_downsample_0", (2, 128, 28, 28)),
        ("resnet50", "maxpool", (2, 64, 56, 56)),
        ("resnet50", "layer3_0_conv1", (2, 256, 28, 28)),  # the 3x3 strides, not the 1x1
        ("resnet50", "layer3_0_conv2", (2, 256, 14, 14)),
        ("resnet50", "layer4_2_add", (2, 2048, 7, 7)),
        ("alexnet", "conv1", (2, 64, 55, 55)),
        ("alexnet", "conv2", (2, 192, 27, 27)),
        ("alexnet", "pool5", (2, 256, 6, 6)),
        ("overfeat", "conv1", (2, 96, 108, 108)),
        ("overfeat", "pool1", (2, 96, 36, 36)),
        ("overfeat", "conv2", (2, 256, 30, 30)),
        ("overfeat", "conv6", (2, 1024, 15, 15)),
        ("overfeat", "pool6", (2, 1024, 5, 5)),
        ("densenet121", "features_pool0", (2, 64, 56, 56)),
        ("densenet121", "features_denseblock1_denselayer6_concat", (2, 256, 56, 56)),
        ("densenet121", "features_transition3_pool", (2, 512, 7, 7)),
        ("densenet121", "features_norm5", (2, 1024, 7, 7)),
        ("inception_v3", "maxpool2", (2, 192, 35, 35)),
        ("inception_v3", "Mixed_5b_output", (2, 256, 35, 35)),
        ("inception_v3", "Mixed_6e_branch7x7dbl_4_conv", (2, 192, 17, 17)),
        ("inception_v3", "Mixed_7c_branch3x3dbl_3b_conv", (2, 384, 8, 8)),
        ("inception_v3", "Mixed_7c_output", (2, 2048, 8, 8)),
        ("inception_v4", "features_5_output", (2, 384, 35, 35)),
        ("inception_v4", "features_9_output", (2, 384, 35, 35)),
        ("inception_v4", "features_17_output", (2, 1024, 17, 17)),
        ("inception_v4", "features_21_branch1_1a_conv", (2, 256, 8, 8)),
        ("inception_v4", "features_21_output", (2, 1536, 8, 8)),
        ("mobilenet_v2", "features_1_conv_0_0", (2, 32, 112, 112)),
        ("mobilenet_v2", "features_2_conv_1_0", (2, 96, 56, 56)),
        ("mobilenet_v2", "features_17_conv_2", (2, 320, 7, 7)),
        ("mobilenet_v2", "features_18_0", (2, 1280, 7, 7)),
        ("unet", "pool4", (2, 512, 32, 32)),
        ("unet", "down5_conv2", (2, 1024, 32, 32)),
        ("unet", "up1_concat", (2, 128, 512, 512)),
        ("googlenet", "pool1_3x3_s2", (2, 64, 56, 56)),
        ("googlenet", "3a_output", (2, 256, 28, 28)),
        ("googlenet", "4e_output", (2, 832, 14, 14)),
        ("googlenet", "5b_output", (2, 1024, 7, 7)),
        ("digits_vgg", "pool2", (2, 64, 2, 2)),
    ],
)
def test_shapes_are_those_of_the_literature(name, layer, shape):
    assert models.get(name, batch=2)[layer].y.shape == shape


@pytest.mark.parametrize(
    ("batch", "convolutions", "everything"), [(64, 2536, 4030), (128, 5072, 8060), (256, 10143, 16121)]
)
def test_vgg19_would_offload_as_many_bytes_as_the_papers_vgg(batch, convolutions, everything):
    net = models.vgg19(batch=batch)
    assert inputs_mib(net, Conv2d) == convolutions
    assert inputs_mib(net, Conv2d, MaxPool2d) == everything


@pytest.mark.parametrize(("depth", "everything"), [(116, 16960), (216, 31905), (316, 46850), (416, 61795)])
def test_deep_vggs_would_offload_as_many_bytes_as_the_papers(depth, everything):
    net = models.get(f"vgg{depth}")
    assert net.batch == 32
    assert inputs_mib(net, Conv2d, MaxPool2d) == everything
    assert count(net, Conv2d) == depth


@pytest.mark.parametrize(
    ("name", "convolutions", "everything"), [("alexnet", 165, 349), ("overfeat", 385, 1157), ("googlenet", 1367, 2341)]
)
def test_the_papers_networks_offload_as_many_bytes_as_there(name, convolutions, everything):
    net = models.get(name, batch=128, rules="paper")
    assert inputs_mib(net, Conv2d) == convolutions
    assert inputs_mib(net, Conv2d, *POOLS) == everything


@pytest.mark.parametrize(("name", "drawn"), [("alexnet", 231), ("overfeat", 559), ("googlenet", 39), ("vgg19", 559)])
def test_weights_are_as_many_bytes_as_the_paper_draws(name, drawn):
    resolution = 14  # MiB, of the paper's figure 4
    assert 4 * parameters(models.get(name, batch=1)) / MIB == pytest.approx(drawn, abs=resolution)


def test_vgg_depths_follow_the_paper():
    assert models.vgg(13, batch=1).name == "vgg13"
    names = [n.name for n in models.vgg(21, batch=1).nodes if isinstance(n.layer, Conv2d)]
    assert [sum(n.startswith(f"conv{g}_") for n in names) for g in range(1, 6)] == [3, 3, 5, 5, 5]
    for depth in (12, 17, 115):
        with pytest.raises(ValueError, match=f"no VGG of depth {depth}"):
            models.vgg(depth)


def test_dropout_and_normalisation_can_be_left_out():
    assert [n.name for n in models.vgg16(batch=1).nodes if isinstance(n.layer, Dropout)] == ["drop6", "drop7"]
    assert count(models.vgg16(batch=1, dropout=0.0), Dropout) == 0
    assert count(models.googlenet(batch=1), Dropout) == 1
    assert count(models.googlenet(batch=1, dropout=0.0), Dropout) == 0
    for name, dropouts in (("alexnet", 2), ("overfeat", 2), ("inception_v3", 1), ("inception_v4", 1), ("unet", 2)):
        assert count(models.get(name, batch=1), Dropout) == dropouts
        assert count(models.get(name, batch=1, dropout=0.0), Dropout) == 0
    assert count(models.googlenet(batch=1), LocalResponseNorm) == 2
    assert count(models.googlenet(batch=1, lrn=False), LocalResponseNorm) == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("vgg11", {}), ("alexnet", {}), ("overfeat", {}), ("googlenet", {}), ("digits_vgg", {"batch_norm": False})],
)
def test_a_relu_follows_every_convolution_without_batch_norm(name, options):
    net = models.get(name, batch=1, **options)
    relus = {n.inputs[0] for n in net.nodes if isinstance(n.layer, ReLU)}
    assert all(n.y in relus and n.layer.bias for n in net.nodes if isinstance(n.layer, Conv2d))


def test_mobilenets_blocks_filter_channel_by_channel():
    net = models.mobilenet_v2(batch=1)
    depthwise = [n for n in net.nodes if isinstance(n.layer, Conv2d) and n.layer.groups > 1]
    assert len(depthwise) == 17
    assert all(n.layer.groups == n.layer.out_channels == n.inputs[0].shape[1] for n in depthwise)
    assert sum(n.name.endswith("add") for n in net.nodes) == 10
    assert count(net, ReLU6) == 1 + 1 + 16 * 2 + 1
    assert count(net, ReLU) == 0


def test_densenets_layers_read_all_that_came_before():
    net = models.densenet121(batch=1)
    assert [n.inputs[0].shape[1] for n in net.nodes if n.name.endswith("denselayer6_norm1")] == [224, 288, 416, 672]
    assert (count(net, Conv2d), count(net, Concat), count(net, AvgPool2d)) == (120, 58, 3)


def test_inceptions_join_their_branches_in_order():
    three = [t.name for t in models.inception_v3(batch=1)["Mixed_6a_output"].inputs]
    assert three == ["Mixed_6a_branch3x3_relu.y", "Mixed_6a_branch3x3dbl_3_relu.y", "Mixed_6a_branch_pool.y"]
    four = [t.name for t in models.inception_v4(batch=1)["features_19_output"].inputs]
    ends = ["branch0_relu", "branch1_1_output", "branch2_3_output", "branch3_1_relu"]
    assert four == [f"features_19_{end}.y" for end in ends]


@pytest.mark.parametrize(
    ("name", "convolutions", "counted"), [("inception_v3", 94, True), ("inception_v4", 149, False)]
)
def test_inceptions_normalise_every_convolution(name, convolutions, counted):
    net = models.get(name, batch=1)
    assert count(net, Conv2d) == count(net, BatchNorm2d) == count(net, ReLU) == convolutions
    assert {n.layer.eps for n in net.nodes if isinstance(n.layer, BatchNorm2d)} == {1e-3}
    assert {n.layer.count_include_pad for n in net.nodes if isinstance(n.layer, AvgPool2d)} == {counted}


def test_unet_joins_each_level_with_its_way_down():
    net = models.unet(batch=1)
    assert [t.name for t in net["up4_concat"].inputs] == ["down4_drop.y", "up4.y"]
    assert [t.name for t in net["up1_concat"].inputs] == ["down1_relu2.y", "up1.y"]
    assert (count(net, Conv2d), count(net, ConvTranspose2d)) == (19, 4)


def test_digits_vgg_has_equal_maps_before_its_first_pool():
    net = models.digits_vgg(batch=1, channels=16, counts=(6, 3))
    names = [n.name for n in net.nodes if isinstance(n.layer, Conv2d)]
    assert names == [*(f"conv1_{i}" for i in range(1, 7)), *(f"conv2_{i}" for i in range(1, 4))]
    assert {net[name].y.shape for name in names[:6]} == {(1, 16, 8, 8)}


def test_digits_vgg_has_its_parameters_where_batch_norm_puts_them():
    weights = 9 * (1 * 32 + 5 * 32 * 32 + 32 * 64 + 64 * 64) + 10 * 2 * 2 * 64
    channels = 6 * 32 + 2 * 64
    assert parameters(models.digits_vgg()) == weights + 2 * channels + 10 == 104_874
    assert parameters(models.digits_vgg(batch_norm=False)) == weights + channels + 10


def test_an_image_too_small_for_the_network_is_refused():
    with pytest.raises(ShapeError):
        models.vgg16(batch=1, image=(3, 16, 16))


def test_get_calls_a_function_of_ones_own():
    net = models.get(f"{__name__}:user_net", batch=5, width=6)
    assert net.scores.shape == (5, 6, 6, 6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg-16", r"no network is named 'vgg-16' \(did you mean vgg16\?\); there are alexnet, .*googlenet"),
        ("resnet5", "did you mean resnet50"),
        ("zzz", "no network is named 'zzz'; there are alexnet"),
        ("no_such_module:net", "no module 'no_such_module'"),
        ("vdnn.models:vgg17", "has no 'vgg17'"),
        (f"{__name__}:A_NUMBER", "is a int, not a function"),
    ],
)
def test_get_says_what_an_unknown_name_could_have_been(name, message):
    with pytest.raises(ValueError, match=message):
        models.get(name)


def test_get_refuses_what_is_no_network():
    with pytest.raises(TypeError, match=r"returned int, not a vdnn\.Network"):
        models.get(f"{__name__}:not_a_net")


class OwnPool(AvgPool2d):
    """One that a user wrote: nobody but they know what it saves."""


def pooled_net(batch, **options):
    net = Network((batch, 2, 9, 9), "float32", "pooled")
    x = net.add(ReLU(), net.add(Conv2d(5, 3, padding=1), net.input))
    x = net.add(Concat(), net.add(MaxPool2d(3, 2, 1), x), net.add(AvgPool2d(3, 2, 1, count_include_pad=False), x))
    x = net.add(GlobalAvgPool2d(), net.add(OwnPool(2, ceil_mode=True), x), name="last")
    net.add(SoftmaxCrossEntropy(), net.add(Linear(3), net.add(Flatten(), x)))
    return net


def test_paper_makes_vdnns_own_pools_save_their_input():
    ours = pooled_net(2)
    net = models.paper(ours)
    assert {n.name: n.layer.saves for n in net.nodes if isinstance(n.layer, POOLS)} == {
        "maxpool1": "input",
        "avgpool1": "input",
        "ownpool1": "nothing",  # the subclass
        "last": "input",
    }
    assert net["maxpool1"].layer.window == ours["maxpool1"].layer.window
    assert net["avgpool1"].layer.count_include_pad is False


def test_paper_changes_nothing_else():
    ours = pooled_net(2)
    net = models.paper(ours)
    assert (net.name, net.input, net.scores) == (ours.name, ours.input, ours.scores)
    assert [(n.name, n.inputs) for n in net.nodes] == [(n.name, n.inputs) for n in ours.nodes]
    assert net.parameters == ours.parameters
    changed = [n.name for n in ours.nodes if net[n.name].layer is not n.layer]
    assert changed == ["maxpool1", "avgpool1", "last"]
    assert {n.layer.saves for n in ours.nodes if isinstance(n.layer, AvgPool2d | GlobalAvgPool2d)} == {"nothing"}


def test_a_net_by_the_papers_rules_keeps_more_for_backward_and_gives_the_same_bits():
    wanted = ("relu1.y", "maxpool1.y", "avgpool1.y", "ownpool1.y", "last.y")
    results, kept = [], []
    for rules in ("ours", "paper"):
        net = models.get(f"{__name__}:pooled_net", batch=2, rules=rules)
        trainer = Trainer(net, policy="keep_all", algorithms="memory")
        loss, gradients = trainer.gradients(*data_of(net))
        results.append((loss, {name: gradient.tobytes() for name, gradient in gradients.items()}))
        tape = trainer.plan.tape
        saved = {tape.buffer_of[t.name] for t in tape.saved}
        kept.append([name for name in wanted if tape.buffer_of[name] in saved])
    assert results[0] == results[1]
    assert any(any(gradient) for gradient in results[0][1].values())
    assert kept == [["relu1.y"], list(wanted)]


def test_a_net_by_the_papers_rules_survives_a_checkpoint(tmp_path):
    net = models.get("googlenet", batch=1, image=(3, 48, 48), classes=3, rules="paper")
    path = tmp_path / "run.safetensors"
    Trainer(net, policy="keep_all", algorithms="memory", undo=False).save(path)
    again = Trainer.load(path).net
    assert [n.layer.config() for n in again.nodes] == [n.layer.config() for n in net.nodes]


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "inception_v3", "densenet121", "unet"])
def test_rules_of_the_paper_are_chosen_by_name(name):
    net = models.get(name, batch=1, rules="paper")
    assert {n.layer.saves for n in net.nodes if isinstance(n.layer, POOLS)} == {"input"}
    assert count(net, LocalResponseNorm) == 0
    assert "input" not in {n.layer.saves for n in models.get(name, batch=1).nodes if isinstance(n.layer, POOLS)}


def test_an_option_wins_over_the_papers():
    assert count(models.get("googlenet", batch=1, rules="paper", lrn=True), LocalResponseNorm) == 2


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="rules='theirs' is none of ours, paper"):
        models.get("alexnet", rules="theirs")


def test_a_fault_inside_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        models.get("broken_net:net")


def test_every_name_is_documented():
    assert all(inspect.getdoc(models.BY_NAME[name]) for name in models.NAMES)
    assert set(models.NAMES) <= set(models.__all__)
