"""samples: images that need no download: handwritten digits, and synthetic images of any shape."""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdnn.data.keys import LABEL, NOISE, PATTERN, generator

Images = NDArray[np.float32]  # (N, C, H, W), or (N, ...) of any shape
Labels = NDArray[np.int64]  # (N,)


class Digits(NamedTuple):
    """Handwritten digits: images (N, 1, 8, 8) from 0 (paper) to 1 (ink), labels (N,) from 0 to 9."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def digits() -> Digits:
    """1438 handwritten digits to train on and 359 to test with, which are those whose index modulo 5 is 4.

    They are the test set of Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI Machine
    Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0; see vdnn/datasets/digits.txt.
    """
    path = resources.files("vdnn") / "datasets" / "digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = arrays["images"][:, None].astype(np.float32) / 16
        labels = arrays["labels"].astype(np.int64)
    test = np.arange(len(labels)) % 5 == 4
    return Digits(images[~test], labels[~test], images[test], labels[test])


def synthetic(
    shape: tuple[int, ...], classes: int, samples: int, seed: int = 0, noise: float = 1.0
) -> tuple[Images, Labels]:
    """`samples` images of any shape, such as (3, 224, 224), that a network can learn to tell apart, and their labels.

    An image is its class's pattern plus `noise` times normal noise.  Patterns are blocks of a coarse 4x4 grid, so they
    survive pooling.  The same seed gives the same classes and, for fewer samples, the first of the same images.
    """
    if not shape or min(*shape, classes, samples) < 1:
        raise ValueError(f"sizes must be positive: shape {shape}, classes {classes}, samples {samples}")
    coarse = tuple(min(n, 4) if axis else n for axis, n in enumerate(shape))
    patterns = generator(seed, PATTERN).standard_normal((classes, *coarse), np.float32)
    for axis, n in enumerate(shape[1:], start=2):
        patterns = patterns.take(np.arange(n) * patterns.shape[axis] // n, axis)
    labels = generator(seed, LABEL).integers(classes, size=samples)
    images = generator(seed, NOISE).standard_normal((samples, *shape), np.float32)
    images *= np.float32(noise)
    images += patterns[labels]
    return images, labels
