import inspect
from math import prod

import pytest

from vdnn import models
from vdnn.layers import Conv2d, Dropout, GlobalAvgPool2d, LocalResponseNorm, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.layers.base import ShapeError
from vdnn.network import Network

MIB = 2**20
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "googlenet": 6_998_552,
}


def parameters(net):
    return sum(prod(tensor.shape) for tensor, _ in net.parameters.values())


def inputs_mib(net, *kinds):
    """MiB of the inputs of all layers of these kinds, each tensor once."""
    return round(sum(t.nbytes for t in {n.inputs[0] for n in net.nodes if isinstance(n.layer, kinds)}) / MIB)


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


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_ends_in_a_loss_on_its_scores(name):
    net = models.get(name, batch=2)
    assert net.name == name
    assert net.input.shape == ((2, 1, 8, 8) if name == "digits_vgg" else (2, 3, 224, 224))
    assert net.scores.shape == ((2, 10) if name == "digits_vgg" else (2, 1000))
    assert net.nodes[-1].name == "loss"
    assert net.labels is not None
    assert net.labels.shape == (2,)
    assert count(net, SoftmaxCrossEntropy) == 1


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_takes_the_common_options(name):
    image = (2, 16, 16) if name == "digits_vgg" else (2, 64, 64)
    net = models.get(name, batch=3, image=image, classes=7, saves="input", dtype="float64")
    assert net.input.shape == (3, *image)
    assert net.scores.shape == (3, 7)
    assert net.scores.dtype == "float64"
    pools = [n.layer for n in net.nodes if isinstance(n.layer, MaxPool2d)]
    assert {pool.saves for pool in pools} == {"input"}
    assert models.get(name, image=image).batch == 32


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


def test_googlenet_would_offload_as_many_bytes_as_the_papers():
    net = models.googlenet(batch=128, lrn=False)
    assert inputs_mib(net, Conv2d) == 1367
    assert inputs_mib(net, Conv2d, MaxPool2d, GlobalAvgPool2d) == 2341


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
    assert count(models.googlenet(batch=1), LocalResponseNorm) == 2
    assert count(models.googlenet(batch=1, lrn=False), LocalResponseNorm) == 0


@pytest.mark.parametrize(("name", "options"), [("vgg11", {}), ("googlenet", {}), ("digits_vgg", {"batch_norm": False})])
def test_a_relu_follows_every_convolution_without_batch_norm(name, options):
    net = models.get(name, batch=1, **options)
    relus = {n.inputs[0] for n in net.nodes if isinstance(n.layer, ReLU)}
    assert all(n.y in relus and n.layer.bias for n in net.nodes if isinstance(n.layer, Conv2d))


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
        ("vgg-16", r"no network is named 'vgg-16' \(did you mean vgg16\?\); there are vgg11, .*googlenet"),
        ("resnet5", "did you mean resnet50"),
        ("zzz", "no network is named 'zzz'; there are vgg11"),
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


def test_a_fault_inside_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        models.get("broken_net:net")


def test_every_name_is_documented():
    assert all(inspect.getdoc(models.BY_NAME[name]) for name in models.NAMES)
    assert set(models.NAMES) <= set(models.__all__)
