"""Layers with random arguments and shapes, drawn from a seed: small ones, and one of each that fills a GPU.

And the kernels as most tests want them: with only such convolutions as add up products and nothing else.
"""

from __future__ import annotations

import random

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
)


def image(r, least=1):
    return r.randint(2, 5), r.randint(1, 9), r.randint(least, 12), r.randint(least, 12)


def row(r):
    return r.randint(2, 9), r.randint(2, 70)


def any_shape(r):
    return image(r) if r.random() < 0.7 else row(r)


def pair(r, most=3):
    return r.randint(1, most), r.randint(1, most)


def fitting(make, r):
    """The first that has an output."""
    while True:
        layer, shapes = make(r)
        try:
            layer.shapes(*shapes)
        except ShapeError:
            continue
        return layer, shapes


def max_pool(r):
    kernel = pair(r)
    padding, dilation = ((kernel[0] // 2, kernel[1] // 2), 1) if r.random() < 0.5 else (0, pair(r, 2))
    layer = MaxPool2d(kernel, pair(r), padding, dilation, r.random() < 0.5, r.choice(["indices", "input"]))
    return layer, [image(r)]


def average_pool(r):
    kernel = pair(r)
    padding = (kernel[0] // 2, kernel[1] // 2) if r.random() < 0.5 else 0
    return AvgPool2d(kernel, pair(r), padding, r.random() < 0.5, r.random() < 0.5), [image(r)]


def convolution(r):
    groups = r.choice([1, 1, 2])
    padding = r.randint(0, 2), r.randint(0, 2)
    layer = Conv2d(groups * r.randint(1, 6), pair(r), pair(r, 2), padding, pair(r, 2), groups, r.random() < 0.7)
    return layer, [(r.randint(1, 4), groups * r.randint(1, 5), r.randint(3, 12), r.randint(3, 12))]


def transposed(r):
    groups = r.choice([1, 1, 2])
    padding = r.randint(0, 1), r.randint(0, 1)
    layer = ConvTranspose2d(groups * r.randint(1, 6), pair(r), pair(r, 2), padding, 0, groups, r.random() < 0.7)
    return layer, [(r.randint(1, 4), groups * r.randint(1, 5), r.randint(3, 9), r.randint(3, 9))]


def norm(r):
    N, C, H, W = image(r, 3)
    return BatchNorm2d(), [(N, C, H, W)]


def concat(r):
    N, C, H, W = image(r)
    return Concat(), [(N, C, H, W), *((N, r.randint(1, 5), H, W) for _ in range(r.randint(1, 3)))]


def upsample(r):
    mode = r.choice([("nearest", False), ("bilinear", False), ("bilinear", True)])
    return Upsample(pair(r), *mode), [image(r)]


# {layer: a function of a random.Random -> (layer, the shapes of its inputs)}
DRAWS = {
    "ReLU": lambda r: (ReLU(r.choice(["output", "mask"])), [any_shape(r)]),
    "LeakyReLU": lambda r: (LeakyReLU(r.choice([0.2, 3, -0.5])), [any_shape(r)]),
    "ReLU6": lambda r: (ReLU6(), [any_shape(r)]),
    "Sigmoid": lambda r: (Sigmoid(), [any_shape(r)]),
    "Tanh": lambda r: (Tanh(), [any_shape(r)]),
    "MaxPool2d": max_pool,
    "AvgPool2d": average_pool,
    "GlobalAvgPool2d": lambda r: (GlobalAvgPool2d(), [image(r)]),
    "BatchNorm2d": norm,
    "LocalResponseNorm": lambda r: (LocalResponseNorm(r.randint(1, 6), 0.3, r.uniform(0.3, 1), 1.5), [image(r)]),
    "Dropout": lambda r: (Dropout(r.choice([0.1, 0.5])), [image(r)]),
    "Flatten": lambda r: (Flatten(), [image(r)]),
    "Concat": concat,
    "Add": lambda r: (Add(), [any_shape(r)] * r.randint(2, 4)),
    "ConstantPad2d": lambda r: (ConstantPad2d([r.randint(0, 3) for _ in range(4)], 0.5), [image(r)]),
    "Upsample": upsample,
    "SoftmaxCrossEntropy": lambda r: (SoftmaxCrossEntropy(), [row(r)]),
    "MeanSquaredError": lambda r: (MeanSquaredError(), [any_shape(r)]),
    "Conv2d": convolution,
    "ConvTranspose2d": transposed,
    "Linear": lambda r: (Linear(r.randint(1, 40), r.random() < 0.7), [row(r)]),
}
CONVOLUTIONS = ("Conv2d", "ConvTranspose2d")

BIG = (8, 64, 57, 55)  # no multiple of a block anywhere
LARGE = {
    "ReLU": (ReLU(), [BIG]),
    "LeakyReLU": (LeakyReLU(0.2), [BIG]),
    "ReLU6": (ReLU6(), [BIG]),
    "Sigmoid": (Sigmoid(), [BIG]),
    "Tanh": (Tanh(), [BIG]),
    "MaxPool2d": (MaxPool2d(3, 2, 1), [BIG]),
    "AvgPool2d": (AvgPool2d(3, 2, 1), [BIG]),
    "GlobalAvgPool2d": (GlobalAvgPool2d(), [BIG]),
    "BatchNorm2d": (BatchNorm2d(), [BIG]),
    "LocalResponseNorm": (LocalResponseNorm(5, 0.3), [BIG]),
    "Dropout": (Dropout(0.4), [BIG]),
    "Flatten": (Flatten(), [BIG]),
    "Concat": (Concat(), [BIG, (8, 33, 57, 55), (8, 1, 57, 55)]),
    "Add": (Add(), [BIG] * 3),
    "ConstantPad2d": (ConstantPad2d((1, 2, 0, 3)), [BIG]),
    "Upsample": (Upsample(2, "bilinear"), [(4, 33, 57, 55)]),
    "SoftmaxCrossEntropy": (SoftmaxCrossEntropy(), [(300, 1000)]),
    "MeanSquaredError": (MeanSquaredError(), [BIG]),
    "Conv2d": (Conv2d(48, 3, padding=1), [(8, 32, 57, 55)]),
    "ConvTranspose2d": (ConvTranspose2d(24, 3, 2, 1), [(4, 32, 29, 27)]),
    "Linear": (Linear(1000), [(64, 2049)]),
}


def drawn(name, count, seed=0):
    """`count` small cases of that layer: (layer, shapes of its inputs)."""
    r = random.Random(f"{name} {seed}")
    return [fitting(DRAWS[name], r) for _ in range(count)]


class Plain:
    """Kernels with plain convolutions only: by transforms cuDNN computes less exactly."""

    def __init__(self, kernels):
        self.kernels = kernels

    def __getattr__(self, name):
        return getattr(self.kernels, name)

    def conv2d_algorithms(self, *arguments, **options):
        found = self.kernels.conv2d_algorithms(*arguments, **options)
        return tuple(a for a in found if not a.name.startswith(("winograd", "fft"))) or found
