"""What the CPU benchmarks train, and how vdnn trains it there: networks, batches of noise, and trainers.

The learning rates are small, so that no network diverges on images of noise; dropout is left out, since random numbers
differ between vdnn and PyTorch, and then both must have equal losses.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import vdnn
from vdnn import models
from vdnn.layers import Add, BatchNorm2d, Conv2d, Flatten, GlobalAvgPool2d, Linear, MaxPool2d, ReLU, SoftmaxCrossEntropy
from vdnn.network import Network, Tensor

KERNELS = ("numpy", "fast")  # NumPy alone; with Numba
LAYOUTS = ("contiguous", "channels_last")  # of PyTorch's tensors
MOMENTUM = 0.9
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """A network to train; `options` are those of its model."""

    network: str
    batch: int
    image: tuple[int, int, int] = (3, 224, 224)
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1e-4

    def make(self, dtype: str = "float32") -> Network:
        """The network."""
        about = {"batch": self.batch, "image": self.image, "dtype": dtype, **self.options}
        own = BUILDERS.get(self.network)
        return own(**about) if own else models.get(self.network, **about)

    def smaller(self, batch: int, side: int = 0) -> Case:
        """The same with another batch and, unless `side` is 0, images of that many rows and columns."""
        image = (self.image[0], side, side) if side else self.image
        return replace(self, batch=batch, image=image)

    def at_rate(self, rate: float) -> Case:
        """The same with another learning rate."""
        return replace(self, rate=rate)

    def plain(self) -> dict[str, Any]:
        """The case as JSON has it."""
        about = {"network": self.network, "batch": self.batch, "image": list(self.image)}
        return {**about, "options": dict(self.options), "rate": self.rate}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Case:
        """The case that `plain` gave."""
        return cls(**{**plain, "image": tuple(plain["image"])})

    @property
    def shape(self) -> str:
        """Of one image, as tables have it: 3x224x224."""
        return "x".join(map(str, self.image))


def named(name: str, cases: Sequence[Case]) -> Case:
    """The case of that network.  Raises ValueError, naming those there are."""
    for case in cases:
        if case.network == name:
            return case
    raise ValueError(f"no case is named {name!r}; there are {', '.join(case.network for case in cases)}")


# ---- networks that vdnn.models does not have


def resnet20(
    *, batch: int = 128, image: tuple[int, int, int] = (3, 32, 32), classes: int = 10, dtype: str = "float32"
) -> Network:
    """ResNet-20 for CIFAR (He, Zhang, Ren and Sun, 2015, section 4.2): 16, 32 and 64 channels, three blocks of each.

    Where the shapes differ x is projected by a 1x1 convolution, their option B.
    """
    net = Network((batch, *image), dtype, "resnet20")
    x = _conv_bn(net, net.input, "stem", 16, 3, 1)
    x = net.add(ReLU(), x, name="stem_relu")
    for stage, channels in enumerate((16, 32, 64), start=1):
        for i in range(3):
            x = _block(net, x, f"stage{stage}_{i}", channels, 2 if stage > 1 and i == 0 else 1)
    x = net.add(GlobalAvgPool2d(), x, name="avgpool")
    x = net.add(Flatten(), x, name="flatten")
    x = net.add(Linear(classes), x, name="fc")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net


def _block(net: Network, x: Tensor, name: str, channels: int, stride: int) -> Tensor:
    y = _conv_bn(net, x, f"{name}_a", channels, 3, stride)
    y = net.add(ReLU(), y, name=f"{name}_a_relu")
    y = _conv_bn(net, y, f"{name}_b", channels, 3, 1)
    if x.shape != y.shape:
        x = _conv_bn(net, x, f"{name}_short", channels, 1, stride)
    y = net.add(Add(), y, x, name=f"{name}_add")
    return net.add(ReLU(), y, name=f"{name}_b_relu")


def _conv_bn(net: Network, x: Tensor, name: str, channels: int, kernel: int, stride: int) -> Tensor:
    convolution = Conv2d(channels, kernel, stride, padding=kernel // 2, bias=False, init="kaiming")
    x = net.add(convolution, x, name=f"{name}_conv")
    return net.add(BatchNorm2d(), x, name=f"{name}_bn")


def small_vgg(
    *, batch: int = 128, image: tuple[int, int, int] = (3, 32, 32), classes: int = 10, dtype: str = "float32"
) -> Network:
    """Two 3x3 convolutions of 64, of 128 and of 256 channels, a max pool after each two, and 512 hidden features."""
    net = Network((batch, *image), dtype, "small_vgg")
    x = net.input
    for group, channels in enumerate((64, 128, 256), start=1):
        for i in (1, 2):
            x = net.add(Conv2d(channels, 3, padding=1, init="kaiming"), x, name=f"conv{group}_{i}")
            x = net.add(ReLU(), x, name=f"relu{group}_{i}")
        x = net.add(MaxPool2d(2), x, name=f"pool{group}")
    x = net.add(Flatten(), x, name="flatten")
    x = net.add(ReLU(), net.add(Linear(512), x, name="fc1"), name="relu_fc1")
    x = net.add(Linear(classes), x, name="fc2")
    net.add(SoftmaxCrossEntropy(), x, name="loss")
    return net


BUILDERS = {"resnet20": resnet20, "small_vgg": small_vgg}
PLAIN = {"dropout": 0.0}
CASES = (
    Case("vgg11", 8, options=PLAIN),
    Case("vgg16", 8, options=PLAIN),
    Case("alexnet", 8, options=PLAIN),
    Case("googlenet", 8, options=PLAIN, rate=1e-7),  # without batch norm its first loss is large
    Case("resnet18", 8),
    Case("resnet50", 8),
    Case("resnet20", 128, (3, 32, 32)),
    Case("small_vgg", 128, (3, 32, 32)),
)


def batch_of(net: Network, seed: int = 1) -> tuple[Any, Any]:
    """Images of noise, and labels: the same ones each time."""
    random = np.random.default_rng(seed)
    images = random.standard_normal(net.input.shape, np.float32).astype(net.dtype, copy=False)
    return images, random.integers(0, net.scores.shape[1], net.batch)


# ---- vdnn


def kernels_here() -> tuple[str, ...]:
    """Of KERNELS those that can run: "fast" where Numba is installed."""
    return KERNELS if importlib.util.find_spec("numba") else KERNELS[:1]


@contextmanager
def kernels_chosen(kernels: str) -> Iterator[None]:
    """What trainers take that are made here: "numpy" or "fast".  Raises ValueError for what cannot run."""
    if kernels not in kernels_here():
        raise ValueError(f"kernels {kernels!r} cannot run here; there are {', '.join(kernels_here())}")
    before = os.environ.pop("VDNN_FAST", None)  # without it vdnn takes Numba where that is installed
    if kernels == "numpy":
        os.environ["VDNN_FAST"] = "0"
    try:
        yield
    finally:
        os.environ.pop("VDNN_FAST", None)
        if before is not None:
            os.environ["VDNN_FAST"] = before


def trainer_of(
    case: Case, threads: int, kernels: str = "numpy", policy: Any = "keep_all", net: Network | None = None, **how: Any
) -> vdnn.Trainer:
    """vdnn's side: the benchmarks' optimizer, no undo.  `how` are more of the Trainer's arguments."""
    net = net or case.make()
    optimizer = vdnn.SGD(case.rate, momentum=MOMENTUM)
    with kernels_chosen(kernels):
        return vdnn.Trainer(net, policy, optimizer=optimizer, threads=threads, undo=False, **how)
