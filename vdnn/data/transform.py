"""transform: how an image of a set becomes a network's input: cropped, flipped, normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdnn.data.decode import MODES, pillow
from vdnn.data.files import DataError
from vdnn.data.imagesets import ImageSet

CROPS = ("centre", "random", "resized")
WORDS = 5  # random words of 64 bits for each image
FLIP, TOP, LEFT, AREA, RATIO = range(WORDS)  # what each is for
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue from 0 to 1, as the ResNets of torchvision have it
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Words = NDArray[np.uint64]  # (WORDS,)
Target = NDArray[np.float32]  # (C, H, W)


@dataclass(frozen=True)
class Transform:
    """What happens to each image; chance depends on (seed, epoch, index of the image) alone.

    size       (H, W), or one number for both, of what comes out; None: of the images, which must have one size
    crop       "centre"; "random": anywhere, after `padding` pixels were added on each side; "resized": a part of
               random area and shape, resized to `size` by Pillow
    padding    for "random".  An image that is still smaller than `size` lies in the middle
    flip       mirror every other image, at random, left to right
    mean, deviation   of each channel, or one for all: out come (image - mean) / deviation, with uint8 from 0 to 1
    fill       the value of what is added around an image, on the scale of `mean`
    scale      least and largest area for "resized", as a share of the image's
    ratio      least and largest width over height for "resized".  Where that does not fit into the image, the part is
               made smaller, not drawn again
    """

    size: int | tuple[int, int] | None = None
    crop: str = "centre"
    padding: int = 0
    flip: bool = False
    mean: float | Sequence[float] = 0.0
    deviation: float | Sequence[float] = 1.0
    fill: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise DataError(f"crop={self.crop!r} is none of {', '.join(map(repr, CROPS))}")
        if self.padding < 0 or (self.padding and self.crop != "random"):
            raise DataError(f"padding={self.padding} is for crop='random', and at least 0; here crop={self.crop!r}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise DataError(f"scale={self.scale} must rise within (0, 1], ratio={self.ratio} above 0")
        values = [*np.atleast_1d(self.mean), *np.atleast_1d(self.deviation), self.fill]
        if not np.isfinite(values).all() or np.min(self.deviation) <= 0:
            raise DataError(
                f"mean={self.mean}, deviation={self.deviation}, fill={self.fill}: finite, deviation above 0"
            )
        if self.size is not None and min(np.atleast_1d(self.size)) < 1:
            raise DataError(f"size={self.size} must be positive")

    @property
    def is_random(self) -> bool:
        """Whether an image comes out differently from epoch to epoch."""
        return self.flip or self.crop != "centre"

    def plain(self) -> Transform:
        """The same without chance, to test with: the middle, not flipped."""
        return replace(self, crop="centre", padding=0, flip=False)

    def on(self, images: ImageSet) -> View:
        """This transform of that set's images.  Raises DataError if it does not suit them."""
        size = images.size if self.size is None else self.size
        if size is None:
            raise DataError(f"{images!r}: the sizes of its images differ; say which comes out, size=224")
        height, width = (size, size) if isinstance(size, int) else size
        channels = images.channels
        if self.crop == "resized" and channels not in MODES:
            raise DataError(f"crop='resized' is for 1 or 3 channels, not {channels}")
        per_channel = []
        for name, value in (("mean", self.mean), ("deviation", self.deviation)):
            values = np.atleast_1d(np.asarray(value, np.float64))
            if values.shape not in ((1,), (channels,)):
                raise DataError(f"{name} has {len(values)} values for images of {channels} channels")
            per_channel.append(np.broadcast_to(values, channels).reshape(channels, 1, 1))
        return View(self, (channels, height, width), *per_channel)


class View:
    """A transform for images of one number of channels: writes what comes out where it is wanted.

    shape   (C, H, W) of what comes out
    """

    def __init__(
        self, transform: Transform, shape: tuple[int, int, int], mean: NDArray[Any], deviation: NDArray[Any]
    ) -> None:
        self.transform, self.shape = transform, shape
        # image * factor + offset, where uint8 255 stands for 1
        self.offset = (-mean / deviation).astype(np.float32)
        self.factors = {True: (1 / (255 * deviation)).astype(np.float32), False: (1 / deviation).astype(np.float32)}
        self.fill = ((transform.fill - mean) / deviation).astype(np.float32)
        self.changes = {scale: bool((f != 1).any() or self.offset.any()) for scale, f in self.factors.items()}

    def keeps(self, size: tuple[int, int] | None) -> bool:
        """Whether images of that size come out as they are, but for normalisation."""
        return not self.transform.is_random and size == self.shape[1:]

    def write(self, target: Target, image: NDArray[Any], words: Words | None) -> None:
        """Write what comes of an image (C, h, w) to `target`, (C, H, W).

        words   the image's random words in this epoch; None if the transform is not random
        """
        rules = self.transform
        if rules.flip and words is not None and words[FLIP] & np.uint64(1):
            target = target[:, :, ::-1]  # written from right to left
        if rules.crop == "resized" and words is not None:
            image = self._resized(image, words)
        top, left = (self._place(axis, image.shape[1 + axis], words) for axis in (0, 1))
        rows, columns = _overlap(top, image.shape[1], self.shape[1]), _overlap(left, image.shape[2], self.shape[2])
        window = target[:, rows, columns]
        if window.shape != target.shape:
            target[...] = self.fill
        part = image[:, rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
        self.normalise(part, window)

    def normalise(self, image: NDArray[Any], target: NDArray[np.float32]) -> None:
        """Write (image - mean) / deviation to `target`; both are (..., C, H, W)."""
        scaled = image.dtype == np.uint8
        if not self.changes[scaled]:
            np.copyto(target, image, casting="same_kind")
            return
        np.multiply(image, self.factors[scaled], out=target, casting="same_kind")
        np.add(target, self.offset, out=target)

    def _place(self, axis: int, length: int, words: Words | None) -> int:
        """Where the window begins in an image of that length: in the middle, or by chance; negative in the padding."""
        wanted, padding = self.shape[1 + axis], self.transform.padding
        spare = length + 2 * padding - wanted
        if self.transform.crop != "random" or words is None or spare < 0:
            return (length - wanted) // 2
        return int(words[TOP + axis] % np.uint64(spare + 1)) - padding

    def _resized(self, image: NDArray[Any], words: Words) -> NDArray[Any]:
        """A part of random place, area and shape, resized: (C, H, W)."""
        top, left, area, ratio = (words[TOP:] >> np.uint64(11)).astype(np.float64) * 2.0**-53  # from 0 to below 1
        (_, h, w), rules = image.shape, self.transform
        area = h * w * (rules.scale[0] + area * (rules.scale[1] - rules.scale[0]))
        low, high = map(math.log, rules.ratio)
        shape = math.exp(low + ratio * (high - low))
        width, height = math.sqrt(area * shape), math.sqrt(area / shape)
        smaller = min(1.0, w / width, h / height)
        width, height = width * smaller, height * smaller
        x, y = left * (w - width), top * (h - height)
        box = (x, y, min(w, x + width), min(h, y + height))
        return _resample(image, box, self.shape[1:])


def _overlap(start: int, length: int, wanted: int) -> slice:
    """Which of `wanted` places, from place `start` of something of that length on, are in it."""
    return slice(max(0, -start), max(0, -start, min(wanted, length - start)))


def _resample(image: NDArray[Any], box: tuple[float, ...], size: tuple[int, ...]) -> NDArray[Any]:
    """The part of an image (C, h, w) in `box`, (left, top, right, bottom), at another size (H, W)."""
    planes = image.transpose(1, 2, 0)
    height, width = size
    bilinear = pillow().Resampling.BILINEAR
    if image.dtype == np.uint8:
        pixels = np.ascontiguousarray(planes if len(image) == 3 else planes[:, :, 0])
        made = np.asarray(pillow().fromarray(pixels).resize((width, height), bilinear, box=box))
        return made.reshape(height, width, len(image)).transpose(2, 0, 1)
    parts = [pillow().fromarray(plane.astype(np.float32)).resize((width, height), bilinear, box=box) for plane in image]
    return np.stack([np.asarray(part) for part in parts])
