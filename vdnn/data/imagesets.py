"""imagesets: sets of images with labels, one image at a time; the sets that fit into memory as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vdnn.data.files import DataError

Image = NDArray[Any]  # (C, H, W) of uint8, from 0 to 255, or of a floating-point type; not to be changed


class ImageSet(Protocol):
    """What a Loader takes: labels, and images by index from any thread.

    labels     (N,) integers
    classes    their names, from label 0
    channels   C of every image
    size       (H, W) of every image; None where they differ
    dtype      of every image
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        """Images."""

    def image(self, index: int) -> Image:
        """(C, H, W): the same bits whenever it is asked for, by whatever thread.  Raises DataError, with its name."""


class ArraySet:
    """Images in memory: (N, C, H, W) of uint8, which stay that, or of float32 or float64; labels (N,) of integers.

    classes   names of the labels, from 0; all labels must have one.  None: "0", "1", ... up to the largest
    """

    def __init__(self, images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str] | None = None) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4 or not images.size or images.dtype not in (np.uint8, np.float32, np.float64):
            raise DataError(f"images are {images.dtype}{list(images.shape)}: need (N, C, H, W) of uint8 or floats")
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"labels are {labels.dtype}{list(labels.shape)}: need {len(images)} integers")
        self.classes = tuple(map(str, range(int(labels.max()) + 1))) if classes is None else tuple(classes)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(labels)} labels are not in [0, {len(self.classes)}): "
                f"the first is {labels[wrong[0]]} at index {wrong[0]}"
            )
        self.images, self.labels = images, labels.astype(np.int64)
        self.channels, self.dtype = int(images.shape[1]), images.dtype
        self.size: tuple[int, int] | None = (int(images.shape[2]), int(images.shape[3]))

    def __len__(self) -> int:
        """Images."""
        return len(self.images)

    def image(self, index: int) -> Image:
        """(C, H, W): a view."""
        image: Image = self.images[index]
        return image

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, deviation) of each channel over all images, uint8 counted from 0 to 1: what Transform takes."""
        if self.images.dtype != np.uint8:
            axes = (0, 2, 3)
            mean, deviation = self.images.mean(axes, np.float64), self.images.std(axes, np.float64)
            return tuple(mean.tolist()), tuple(deviation.tolist())
        values = np.arange(256) / 255
        means, deviations = [], []
        for channel in range(self.channels):  # counts are exact, and need no copy of all images as floats
            counts = np.zeros(256, np.int64)
            for image in self.images:
                counts += np.bincount(image[channel].ravel(), minlength=256)
            mean = float(counts @ values / counts.sum())
            means.append(mean)
            deviations.append(float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum())))
        return tuple(means), tuple(deviations)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ArraySet({len(self)} images {shape} of {self.images.dtype}, {len(self.classes)} classes)"


class Sets(NamedTuple):
    """Images to train on, and images to test with."""

    train: ArraySet
    test: ArraySet


class Subset:
    """Some images of a set, by their indices, in that order."""

    def __init__(self, whole: ImageSet, indices: Sequence[int] | NDArray[np.intp]) -> None:
        self.whole, self.indices = whole, np.asarray(indices, np.intp)
        wrong = self.indices[(self.indices < 0) | (self.indices >= len(whole))]
        if not len(self.indices) or len(wrong):
            raise DataError(f"indices {wrong[:3].tolist()} of {len(self.indices)} are not in [0, {len(whole)})")
        self.labels, self.classes = whole.labels[self.indices], whole.classes
        self.channels, self.size, self.dtype = whole.channels, whole.size, whole.dtype

    def __len__(self) -> int:
        """Images."""
        return len(self.indices)

    def image(self, index: int) -> Image:
        """(C, H, W), see ImageSet."""
        return self.whole.image(int(self.indices[index]))

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.whole!r})"
