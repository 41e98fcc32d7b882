"""data: handwritten digits, synthetic images of any shape, and batches in an order that needs no memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]  # (N, C, H, W), or (N, ...) of any shape
Labels = NDArray[np.int64]  # (N,)

ORDER, SHIFT, PATTERN, LABEL, NOISE = range(5)  # what random numbers are for: each its own stream


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
    patterns = _generator(seed, PATTERN).standard_normal((classes, *coarse), np.float32)
    for axis, n in enumerate(shape[1:], start=2):
        patterns = patterns.take(np.arange(n) * patterns.shape[axis] // n, axis)
    labels = _generator(seed, LABEL).integers(classes, size=samples)
    images = _generator(seed, NOISE).standard_normal((samples, *shape), np.float32)
    images *= np.float32(noise)
    images += patterns[labels]
    return images, labels


class Batches:
    """Images and labels in batches, in an order that depends on (seed, epoch) and on nothing that happened before.

    So a position in training is two numbers, epoch and batch, and training resumed there sees the same bits:

    >>> batches = Batches(images, labels, 32, seed=0)
    >>> for x, y in batches.epoch(3, start=17): ...            # the rest of epoch 3

    shuffle    a new order in each epoch; otherwise the order given
    drop_last  leave out a last batch that is smaller than the others
    shift      move each image by up to so many pixels, up or down and left or right, anew in each epoch; what moves in
               is `background`
    """

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[Any],
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        shift: int = 0,
        background: float = 0.0,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if batch < 1 or seed < 0:
            raise ValueError(f"batch must be at least 1, seed at least 0; got batch {batch}, seed {seed}")
        if len(images) < (batch if drop_last else 1):
            raise ValueError(f"{len(images)} images make no batch of {batch}")
        if shift and (images.ndim != 4 or not 0 < shift < min(images.shape[2:])):
            raise ValueError(f"cannot shift images {images.shape} by {shift}: need (N, C, H, W), 0 < shift < H and W")
        self.images = images
        self.labels = labels
        self.batch = batch
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.shift = shift
        self.background = background

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.images), self.batch)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """The batches of an epoch from batch `start` on.  They are copies; the caller may change them."""
        if epoch < 0 or not 0 <= start <= len(self):
            raise ValueError(f"no batch {start} in epoch {epoch}: epochs count from 0 and have {len(self)} batches")
        order = self.order(epoch)
        moves = self._moves(epoch)
        return (self._take(order[i * self.batch : (i + 1) * self.batch], moves) for i in range(start, len(self)))

    def order(self, epoch: int) -> NDArray[np.intp]:
        """(N,): the indices of an epoch's images in the order in which they come."""
        if not self.shuffle:
            return np.arange(len(self.images))
        return np.argsort(self._raw(epoch, ORDER, len(self.images)), kind="stable")

    def _moves(self, epoch: int) -> NDArray[np.int64] | None:
        """(N, 2): by how many pixels each image of the set moves down and right in this epoch."""
        if not self.shift:
            return None
        raw = self._raw(epoch, SHIFT, 2 * len(self.images)) % np.uint64(2 * self.shift + 1)
        return raw.astype(np.int64).reshape(-1, 2) - self.shift

    def _raw(self, epoch: int, purpose: int, count: int) -> NDArray[np.uint64]:
        """Random bits that depend on (seed, epoch, purpose).  Raw bits are the same in every version of NumPy."""
        raw: NDArray[np.uint64] = _bits(self.seed, purpose, epoch).random_raw(count)
        return raw

    def _take(self, chosen: NDArray[np.intp], moves: NDArray[np.int64] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        images = self.images[chosen]
        if moves is not None:
            for i, (down, right) in enumerate(moves[chosen].tolist()):
                images[i] = shifted(images[i], down, right, self.background)
        return images, self.labels[chosen]


def shifted(image: NDArray[Any], down: int, right: int, background: float = 0.0) -> NDArray[Any]:
    """A copy of an image (C, H, W) moved by whole pixels; what moves in is `background`."""
    _, H, W = image.shape
    moved = np.full_like(image, background)
    source = image[:, max(0, -down) : H - max(0, down), max(0, -right) : W - max(0, right)]
    moved[:, max(0, down) : H - max(0, -down), max(0, right) : W - max(0, -right)] = source
    return moved


def _bits(seed: int, *key: int) -> np.random.Philox:
    """Random bits that depend on the seed and the key alone."""
    return np.random.Philox(np.random.SeedSequence((seed, *key)))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(_bits(seed, *key))
