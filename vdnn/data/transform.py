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
                f"mean={self.mean}, deviation={self.deviation}, fill={self.fill}: all must be finite, deviation above 0"
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
        unit = 255 if images.dtype == np.uint8 else 1
        return View(self, (channels, height, width), per_channel[0], per_channel[1], unit)


class View:
    """A transform for the images of a set: places each in a batch, then normalises the batch.

    shape   (C, H, W) of what comes out
    """

    def __init__(
        self, transform: Transform, shape: tuple[int, int, int], mean: NDArray[Any], deviation: NDArray[Any], unit: int
    ) -> None:
        self.transform, self.shape = transform, shape
        # image * factor + offset, where `unit` stands for 1
        self.offset = (-mean / deviation).astype(np.float32)
        self.factor = (1 / (unit * deviation)).astype(np.float32)
        self.fill = np.float32(transform.fill * unit)
        self.changes = bool((self.factor != 1).any() or self.offset.any())

    @property
    def recipe(self) -> dict[str, Any]:
        """All that a batch follows from besides images, their order and chance."""
        names = ("crop", "padding", "flip", "fill", "scale", "ratio")
        return {
            **{name: getattr(self.transform, name) for name in names},
            "factor": self.factor.ravel(),
            "offset": self.offset.ravel(),
        }

    def keeps(self, size: tuple[int, int] | None) -> bool:
        """Whether images of that size come out as they are, but for normalisation."""
        return not self.transform.is_random and size == self.shape[1:]

    def place(self, target: Target, image: NDArray[Any], words: Sequence[int] | None) -> None:
        """Write what comes of an image (C, h, w), but for normalisation, to `target`, (C, H, W).

        words   the image's WORDS random words in this epoch; None if the transform is not random
        """
        if words is not None:
            if self.transform.flip and words[FLIP] & 1:
                target = target[:, :, ::-1]  # written from right to left
            if self.transform.crop == "resized":
                image = self._resized(image, words)
        (_, h, w), (_, H, W) = image.shape, self.shape
        top, left = self._start(h, H, words, TOP), self._start(w, W, words, LEFT)
        rows, columns = _overlap(top, h, H), _overlap(left, w, W)
        if (rows.stop - rows.start, columns.stop - columns.start) != (H, W):
            target[...] = self.fill
        part = image[:, rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]
        for plane, pixels in zip(target[:, rows, columns], part, strict=True):  # all at once takes twice as long
            plane[...] = pixels

    def normalise(self, images: NDArray[np.float32]) -> None:
        """Make (image - mean) / deviation of placed images, (..., C, H, W)."""
        if self.changes:
            np.multiply(images, self.factor, out=images)
            np.add(images, self.offset, out=images)

    def _start(self, length: int, wanted: int, words: Sequence[int] | None, which: int) -> int:
        """Where the window begins in an image of that length: in the middle, or by chance; negative in the padding."""
        padding = int(self.transform.padding)  # 64-bit words are more than an int of NumPy takes
        spare = length + 2 * padding - wanted
        if words is None or self.transform.crop != "random" or spare < 0:
            return (length - wanted) // 2
        return words[which] % (spare + 1) - padding

    def _resized(self, image: NDArray[Any], words: Sequence[int]) -> NDArray[Any]:
        """A part of random place, area and shape, resized: (C, H, W)."""
        top, left, area, ratio = ((words[which] >> 11) * 2.0**-53 for which in (TOP, LEFT, AREA, RATIO))  # in [0, 1)
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
