"""The names and shapes of torchvision's weights, written down from knowledge of it (torchvision is not needed here).

Every architecture takes a state dict of just these keys.  Names are written here as torchvision's modules are nested,
not as vdnn's layers are called.
"""

from __future__ import annotations

import pytest

from vdnn import models
from vdnn.exchange.loading import _match
from vdnn.exchange.names import names_of
from vdnn.exchange.stored import StoredTensor


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def kernel(name, *shape):
    return {f"{name}.weight": shape}


def norm(name, size):
    own = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (size,) for part in own} | {f"{name}.num_batches_tracked": ()}


def alexnet():
    found = {}
    for i, shape in {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}.items():
        found |= affine(f"features.{i}", *shape, shape[-1])
    for i, shape in {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}.items():
        found |= affine(f"classifier.{i}", *shape)
    return found


def vgg(places):
    """places: of the convolutions among `features`, group by group."""
    found, before = {}, 3
    for group, width in zip(places, (64, 128, 256, 512, 512), strict=True):
        for i in group:
            found |= affine(f"features.{i}", width, before, 3, 3)
            before = width
    for i, shape in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        found |= affine(f"classifier.{i}", *shape)
    return found


VGG11 = ((0,), (3,), (6, 8), (11, 13), (16, 18))
VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG19 = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28, 30, 32, 34))


def resnet(counts, is_bottleneck):
    found, before = kernel("conv1", 64, 3, 7, 7) | norm("bn1", 64), 64
    for stage, count in enumerate(counts, start=1):
        width = 32 * 2**stage
        out = 4 * width if is_bottleneck else width
        for i in range(count):
            name = f"layer{stage}.{i}"
            if is_bottleneck:
                shapes = ((width, before, 1, 1), (width, width, 3, 3), (out, width, 1, 1))
            else:
                shapes = ((width, before, 3, 3), (width, width, 3, 3))
            for j, shape in enumerate(shapes, start=1):
                found |= kernel(f"{name}.conv{j}", *shape) | norm(f"{name}.bn{j}", shape[0])
            if i == 0 and (stage > 1 or is_bottleneck):
                found |= kernel(f"{name}.downsample.0", out, before, 1, 1) | norm(f"{name}.downsample.1", out)
            before = out
    return found | affine("fc", 1000, before)


def densenet121():
    found, channels = kernel("features.conv0", 64, 3, 7, 7) | norm("features.norm0", 64), 64
    for block, count in enumerate((6, 12, 24, 16), start=1):
        for i in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{i}"
            found |= norm(f"{name}.norm1", channels) | kernel(f"{name}.conv1", 128, channels, 1, 1)
            found |= norm(f"{name}.norm2", 128) | kernel(f"{name}.conv2", 32, 128, 3, 3)
            channels += 32
        if block < 4:
            name = f"features.transition{block}"
            found |= norm(f"{name}.norm", channels) | kernel(f"{name}.conv", channels // 2, channels, 1, 1)
            channels //= 2
    return found | norm("features.norm5", 1024) | affine("classifier", 1000, 1024)


def mobilenet_v2():
    found, before, block = kernel("features.0.0", 32, 3, 3, 3) | norm("features.0.1", 32), 32, 1
    for widening, out, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            wide, name, i = before * widening, f"features.{block}.conv", 0
            if widening > 1:
                found |= kernel(f"{name}.0.0", wide, before, 1, 1) | norm(f"{name}.0.1", wide)
                i = 1
            found |= kernel(f"{name}.{i}.0", wide, 1, 3, 3) | norm(f"{name}.{i}.1", wide)
            found |= kernel(f"{name}.{i + 1}", out, wide, 1, 1) | norm(f"{name}.{i + 2}", out)
            before, block = out, block + 1
    return (
        found
        | kernel("features.18.0", 1280, 320, 1, 1)
        | norm("features.18.1", 1280)
        | affine("classifier.1", 1000, 1280)
    )


def unit(name, out, before, *size):
    """A convolution and its batch norm, as the inceptions have them."""
    return kernel(f"{name}.conv", out, before, *size) | norm(f"{name}.bn", out)


def units(prefix, *rows):
    found = {}
    for name, *shape in rows:
        found |= unit(f"{prefix}{name}", *shape)
    return found


def inception_v3():
    found = units(
        "",
        ("Conv2d_1a_3x3", 32, 3, 3, 3),
        ("Conv2d_2a_3x3", 32, 32, 3, 3),
        ("Conv2d_2b_3x3", 64, 32, 3, 3),
        ("Conv2d_3b_1x1", 80, 64, 1, 1),
        ("Conv2d_4a_3x3", 192, 80, 3, 3),
    )
    for name, before, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        found |= units(
            f"Mixed_{name}.",
            ("branch1x1", 64, before, 1, 1),
            ("branch5x5_1", 48, before, 1, 1),
            ("branch5x5_2", 64, 48, 5, 5),
            ("branch3x3dbl_1", 64, before, 1, 1),
            ("branch3x3dbl_2", 96, 64, 3, 3),
            ("branch3x3dbl_3", 96, 96, 3, 3),
            ("branch_pool", pooled, before, 1, 1),
        )
    found |= units(
        "Mixed_6a.",
        ("branch3x3", 384, 288, 3, 3),
        ("branch3x3dbl_1", 64, 288, 1, 1),
        ("branch3x3dbl_2", 96, 64, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
    )
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        found |= units(
            f"Mixed_{name}.",
            ("branch1x1", 192, 768, 1, 1),
            ("branch7x7_1", width, 768, 1, 1),
            ("branch7x7_2", width, width, 1, 7),
            ("branch7x7_3", 192, width, 7, 1),
            ("branch7x7dbl_1", width, 768, 1, 1),
            ("branch7x7dbl_2", width, width, 7, 1),
            ("branch7x7dbl_3", width, width, 1, 7),
            ("branch7x7dbl_4", width, width, 7, 1),
            ("branch7x7dbl_5", 192, width, 1, 7),
            ("branch_pool", 192, 768, 1, 1),
        )
    found |= units(
        "Mixed_7a.",
        ("branch3x3_1", 192, 768, 1, 1),
        ("branch3x3_2", 320, 192, 3, 3),
        ("branch7x7x3_1", 192, 768, 1, 1),
        ("branch7x7x3_2", 192, 192, 1, 7),
        ("branch7x7x3_3", 192, 192, 7, 1),
        ("branch7x7x3_4", 192, 192, 3, 3),
    )
    for name, before in (("7b", 1280), ("7c", 2048)):
        found |= units(
            f"Mixed_{name}.",
            ("branch1x1", 320, before, 1, 1),
            ("branch3x3_1", 384, before, 1, 1),
            ("branch3x3_2a", 384, 384, 1, 3),
            ("branch3x3_2b", 384, 384, 3, 1),
            ("branch3x3dbl_1", 448, before, 1, 1),
            ("branch3x3dbl_2", 384, 448, 3, 3),
            ("branch3x3dbl_3a", 384, 384, 1, 3),
            ("branch3x3dbl_3b", 384, 384, 3, 1),
            ("branch_pool", 192, before, 1, 1),
        )
    auxiliary = units("AuxLogits.", ("conv0", 128, 768, 1, 1), ("conv1", 768, 128, 5, 5)) | affine(
        "AuxLogits.fc", 1000, 768
    )
    return found | auxiliary | affine("fc", 1000, 2048)


TORCHVISION = {
    "alexnet": alexnet(),
    "vgg11": vgg(VGG11),
    "vgg16": vgg(VGG16),
    "vgg19": vgg(VGG19),
    "resnet18": resnet((2, 2, 2, 2), False),
    "resnet34": resnet((3, 4, 6, 3), False),
    "resnet50": resnet((3, 4, 6, 3), True),
    "resnet101": resnet((3, 4, 23, 3), True),
    "resnet152": resnet((3, 8, 36, 3), True),
    "densenet121": densenet121(),
    "mobilenet_v2": mobilenet_v2(),
    "inception_v3": inception_v3(),
}
OTHERS = ("overfeat", "googlenet", "vgg116", "unet", "digits_vgg", "inception_v4")


def stored(shapes):
    return {name: StoredTensor(shape, "float32", lambda: None) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_an_architecture_takes_torchvisions_keys_and_no_others(name):
    net = models.get(name, batch=1)
    report = _match(net, stored(TORCHVISION[name]), "torchvision", None).report
    assert report.complaints() == []
    assert set(report.loaded) == {*net.parameters, *net.statistics}
    known = ("num_batches_tracked", "AuxLogits")
    assert all(key.endswith(known[0]) or key.startswith(known[1]) for key in report.left_out)


def test_no_architecture_is_forgotten():
    assert {*TORCHVISION, *OTHERS} >= set(models.NAMES) - {"vgg216", "vgg316", "vgg416"}


@pytest.mark.parametrize("name", OTHERS)
def test_every_network_takes_the_names_of_its_layers(name):
    net = models.get(name, batch=1)
    tensors = {n: t.shape for n, (t, _) in {**net.parameters, **net.statistics}.items()}
    report = _match(net, stored({k: tensors[n] for k, n in names_of(net)["layers"].items()}), "x", None).report
    assert report.complaints() == []


def test_inception_v4_has_timms_names():
    names = names_of(models.get("inception_v4", batch=1))["torchvision"]
    assert {
        "features.0.conv.weight",
        "features.3.conv.bn.running_mean",
        "features.4.branch1.3.conv.weight",
        "features.6.branch3.1.conv.weight",
        "features.10.branch0.conv.weight",
        "features.18.branch1.3.bn.bias",
        "features.19.branch0.conv.weight",
        "features.19.branch1_1a.conv.weight",
        "features.21.branch2_3b.conv.weight",
        "features.21.branch3.1.conv.weight",
        "last_linear.bias",
    } <= names.keys()


def test_densenets_older_keys_are_those_of_now():
    older = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): shape
        for key, shape in densenet121().items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.conv.2.weight" in older
    assert _match(models.get("densenet121", batch=1), stored(older), "x", None).report.complaints() == []


@pytest.mark.parametrize(
    ("name", "key", "why"),
    [
        ("googlenet", "inception3a.branch1.conv.weight", "it has batch norm"),
        ("vgg16", "features.1.running_mean", "VGG with batch norm"),
    ],
)
def test_another_network_of_the_same_name_is_told_from_its_keys(name, key, why):
    from vdnn.exchange.names import why_other

    assert why in why_other(models.get(name, batch=1), {key: None})
