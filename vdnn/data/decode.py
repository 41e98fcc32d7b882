"""decode: a picture file to pixels, by Pillow: what is made of each kind of picture, and what is refused.

==================  ================================================================================================
EXIF orientation    applied: the image is as a viewer shows it.  EXIF that cannot be read is passed over
grey, palette       become red, green and blue; with `channels` 1 all become grey (ITU-R 601-2 luma)
alpha, transparent  laid over `background`, white by default
CMYK, YCbCr, HSV    converted by Pillow's formulas, without colour profiles
16 bits             the upper eight of each grey value; Pillow itself does so for colour
32-bit, float       refused: nobody knows which value is white
several frames      the first
large JPEG          decoded at 1/2, 1/4 or 1/8 where that still has `short` pixels, which takes much less time
cut off, damaged    refused.  Flipped bits inside a JPEG are not noticed: the format has no checksum
==================  ================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdnn.data.files import DataError, size_of

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PIXEL_LIMIT = 89_478_485  # what Pillow itself warns beyond
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
MODES = {1: "L", 3: "RGB"}  # Pillow's names


def pillow() -> Any:
    """The module PIL.Image; raises DataError, which says what to install, where Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("pictures are decoded by Pillow, which is missing: pip install 'vdnn[images]'") from error
    Image.init()  # once: which formats it can open depends on how it was built
    return Image


@dataclass(frozen=True)
class Decoding:
    """How pictures become pixels.

    short        pixels of the shorter side after resizing; None: as the file has it
    channels     3, or 1 for grey
    background   (red, green, blue) under what is transparent, from 0 to 255
    pixel_limit  most pixels of a file, and of what is made of it: one that claims more is refused before it is decoded
    """

    short: int | None = 256
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_limit: int = PIXEL_LIMIT

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise DataError(f"channels={self.channels}: pictures have 3, or 1 for grey")
        if (self.short is not None and self.short < 1) or not 1 <= self.pixel_limit <= PIXEL_LIMIT:
            raise DataError(
                f"short={self.short} must be positive, pixel_limit={self.pixel_limit} from 1 to {PIXEL_LIMIT}"
            )

    def read(self, path: Path) -> NDArray[np.uint8]:
        """(h, w, channels): the picture in that file.  Raises DataError, with the file's name."""
        Image = pillow()
        try:
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                return self._pixels(image, path)
        except (DataError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"{path}: {error}") from error
        except FileNotFoundError as error:
            raise DataError(f"{path} is not there any more") from error
        except Exception as error:  # a decoder that is given rubbish raises whatever comes to pass
            raise DataError(f"{path} ({size_of(path)} bytes) cannot be decoded: {error}") from error

    def _pixels(self, image: Image, path: Path) -> NDArray[np.uint8]:
        width, height = image.size
        target = self._target(width, height)
        for w, h, what in ((width, height, "has"), (*target, f"resized to a shorter side of {self.short} would have")):
            if w * h > self.pixel_limit:
                raise DataError(f"{path}: {w} x {h} pixels, which it {what}, are more than {self.pixel_limit}")
        turned = _orientation(image)
        if self.short is not None:
            image.draft(None, target)  # JPEG only: the smallest that is not below
        image = self._converted(image, path)
        if image.size != target:
            image = image.resize(target, pillow().Resampling.BILINEAR, reducing_gap=2.0)
        if turned is not None:
            image = image.transpose(turned)
        return np.asarray(image).reshape(image.height, image.width, self.channels)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if self.short is None:
            return width, height
        least = min(width, height)
        return tuple(max(1, (side * self.short + least // 2) // least) for side in (width, height))  # type: ignore

    def _converted(self, image: Image, path: Path) -> Image:
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            image = pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            kind = "32-bit integers" if image.mode == "I" else "floats"
            raise DataError(f"{path}: its pixels are {kind}, of which nobody knows which value is white")
        if image.has_transparency_data:
            behind = pillow().new("RGBA", image.size, (*self.background, 255))
            image = pillow().alpha_composite(behind, image.convert("RGBA"))
        wanted = MODES[self.channels]
        if image.mode not in ("L", "RGB") and wanted == "L":
            image = image.convert("RGB")
        return image if image.mode == wanted else image.convert(wanted)


def _orientation(image: Image) -> Any:
    """How the pixels must be turned to be as the camera's EXIF says; None: not at all."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        return None if turn is None else pillow().Transpose[turn]
    except Exception:  # whatever a damaged block of EXIF does to its parser, the picture is none the worse
        return None
