"""State dicts that PyTorch saves give vdnn's networks PyTorch's scores.  Skipped where PyTorch is not installed."""

from __future__ import annotations

import numpy as np
import pytest

from vdnn import models
from vdnn.exchange.weights_file import read_weights
from vdnn.train import Trainer

torch = pytest.importorskip("torch", reason="PyTorch, to compare with, is not installed")
from torch import nn  # noqa: E402

AGREE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own


def conv_bn(channels_in, channels, kernel, stride=1, groups=1):
    return nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(
        channels
    )


class Block(nn.Module):
    """ResNet's block of two convolutions, with torchvision's names."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(before, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.downsample = nn.Sequential(*conv_bn(before, width, 1, stride)) if before != width else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, 7, 2)
        widths = (64, 64, 128, 256, 512)
        for i in range(1, 5):
            stride = 1 if i == 1 else 2
            pair = Block(widths[i - 1], widths[i], stride), Block(widths[i], widths[i], 1)
            setattr(self, f"layer{i}", nn.Sequential(*pair))
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


class Inverted(nn.Module):
    """MobileNetV2's block, with torchvision's names."""

    def __init__(self, before, out, stride, widening):
        super().__init__()
        wide = before * widening
        first = [nn.Sequential(*conv_bn(before, wide, 1), nn.ReLU6())] if widening > 1 else []
        filtered = nn.Sequential(*conv_bn(wide, wide, 3, stride, wide), nn.ReLU6())
        self.conv = nn.Sequential(*first, filtered, *conv_bn(wide, out, 1))
        self.is_residual = stride == 1 and before == out

    def forward(self, x):
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        rows = [nn.Sequential(*conv_bn(3, 32, 3, 2), nn.ReLU6())]
        before = 32
        stages = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for widening, out, count, stride in stages:
            for i in range(count):
                rows.append(Inverted(before, out, stride if i == 0 else 1, widening))
                before = out
        self.features = nn.Sequential(*rows, nn.Sequential(*conv_bn(320, 1280, 1), nn.ReLU6()))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class AlexNet(nn.Module):
    """Its classifier reads more than one element of each plane: the order of Flatten counts."""

    def __init__(self, classes, planes):
        super().__init__()
        rows, before = [], 3
        for width, kernel, stride, pad, pools in (
            *((64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False)),
            (256, 3, 1, 1, True),
        ):
            rows += [nn.Conv2d(before, width, kernel, stride, pad), nn.ReLU(), *([nn.MaxPool2d(3, 2)] * pools)]
            before = width
        self.features = nn.Sequential(*rows)
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * planes, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()),
            nn.Linear(4096, classes),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def settled(module):
    """In evaluation, with running statistics as after training."""
    generator = torch.Generator().manual_seed(3)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
    return module.eval()


CASES = {
    "resnet18": (lambda: ResNet18(10), (3, 64, 64)),
    "mobilenet_v2": (lambda: MobileNetV2(10), (3, 64, 64)),
    "alexnet": (lambda: AlexNet(10, 6), (3, 127, 95)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_state_dict_of_pytorch_gives_its_scores(tmp_path, name):
    make, image = CASES[name]
    torch.manual_seed(1)
    module = settled(make())
    torch.save(module.state_dict(), tmp_path / "model.pth")
    images = np.random.default_rng(0).standard_normal((2, *image), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    net = models.get(name, batch=2, image=image, classes=10)
    trainer = Trainer(net, policy="keep_all", threads=1)
    assert trainer.load_weights(tmp_path / "model.pth").is_complete
    found = trainer.predict(images)
    trainer.save_weights(tmp_path / "back.safetensors")
    trainer.close()
    assert np.abs(expected).max() > 1e-3
    assert np.abs(found - expected).max() <= AGREE * np.abs(expected).max()
    from safetensors.torch import load_file

    make().load_state_dict(load_file(tmp_path / "back.safetensors"))  # PyTorch takes back what was saved


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float32"])
def test_what_pytorch_saves_is_read_bit_for_bit(tmp_path, dtype):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 6, generator=generator).to(getattr(torch, dtype))
    state = {"plain": values, "turned": values.t(), "part": values[1:3, ::2], "parameter": nn.Parameter(values)}
    torch.save(state, tmp_path / "a.pth")
    found = read_weights(tmp_path / "a.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), value.detach().double().numpy())


def test_what_pytorch_wrote_before_1_6_is_refused_with_a_way_out(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before version 1\.6.*weights_only=True"):
        read_weights(tmp_path / "a.pth")


def test_a_whole_module_is_refused_by_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_weights(tmp_path / "a.pth")
