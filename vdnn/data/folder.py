"""folder: a folder of pictures, in which the name of a picture's folder is its class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.data.cache import DiskCache, MemoryCache, Pixels
from vdnn.data.decode import ENDINGS, PIXEL_LIMIT, Decoding, pillow
from vdnn.data.files import DataError
from vdnn.units import parse_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vdnn.data.imagesets import Image


class ImageFolder:
    """The pictures `root/CLASS/**/*.jpg`, .png and so on, decoded when they are asked for; needs Pillow.

    Classes are the folders of `root` in the order of their names, pictures come in the order of theirs.  Hidden files
    are passed over, files with other endings counted in `others`.  What is made of grey, palette, CMYK, 16-bit,
    transparent and turned pictures is told in vdnn.data.decode.

    short         pixels of the shorter side to which each picture is resized; None: not at all
    channels      3, or 1 for grey
    background    (red, green, blue) under what is transparent
    pixel_limit   pixels of a picture beyond which it is refused before it is decoded
    cache         bytes of memory, or "2GiB", in which decoded and resized pictures are kept; 0: none
    cache_folder  a folder in which they are kept as .npy files, also for the next run; None: nowhere
    classes       names of the classes, if more or others are allowed than `root` has folders, as for a set to test with

    Neither cache changes a bit.  A picture takes channels x short x its longer side bytes of it.

    Raises DataError if there is no picture, or a class without one.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        short: int | None = 256,
        *,
        channels: int = 3,
        background: tuple[int, int, int] = (255, 255, 255),
        pixel_limit: int = PIXEL_LIMIT,
        cache: int | str = 0,
        cache_folder: str | os.PathLike[str] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.decoding = Decoding(short, channels, background, pixel_limit)
        self._made = f"{self.decoding!r} Pillow {pillow().__version__}"  # another version may give other pixels
        self.root, self.channels = Path(root), channels
        self.size: tuple[int, int] | None = None  # as they come
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        found, self.others = _scan(self.root)
        self.classes = tuple(found) if classes is None else classes
        strange = [name for name in found if name not in self.classes]
        if strange:
            raise DataError(f"{self.root} has the classes {strange[:3]}, which are not of {list(self.classes)[:6]}")
        numbers = {name: number for number, name in enumerate(self.classes)}
        pairs = [(path, numbers[name]) for name, paths in found.items() for path in paths]
        self.paths = [path for path, _ in pairs]
        self.labels: NDArray[np.int64] = np.array([label for _, label in pairs], np.int64)
        self.memory = MemoryCache(parse_bytes(cache, least=0))
        self._disk = None if cache_folder is None else DiskCache(cache_folder)

    def __len__(self) -> int:
        """Images."""
        return len(self.paths)

    def image(self, index: int) -> Image:
        """(C, h, w) of uint8: the picture, from a cache if it is in one.  Raises DataError, with the file's name."""
        pixels = self.memory.get(index)
        if pixels is None:
            pixels = self._read(self.paths[index])
            self.memory.put(index, pixels)
        return pixels.transpose(2, 0, 1)

    def _read(self, path: Path) -> Pixels:
        if self._disk is None:
            return self.decoding.read(path)
        kept_at = self._disk.path(path, self._made)
        pixels = self._disk.get(kept_at, self.channels)
        if pixels is None:
            pixels = self.decoding.read(path)
            self._disk.put(kept_at, pixels)
        return pixels

    def __repr__(self) -> str:
        others = f", {self.others} files of other kinds" if self.others else ""
        return f"ImageFolder({str(self.root)!r}: {len(self)} pictures of {len(self.classes)} classes{others})"


def _scan(root: Path) -> tuple[dict[str, list[Path]], int]:
    """({class: its pictures}, files that are none), in the order of their names."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder; it should hold a folder of pictures for each class")
    found, others, loose = {}, 0, 0
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            loose += 1
            continue
        found[entry.name], strange = _pictures(Path(entry.path))
        others += strange
        if not found[entry.name]:
            raise DataError(f"{entry.path} has no picture: none of its {strange} files ends in {', '.join(ENDINGS)}")
    if not found:
        raise DataError(
            f"{root} has no folders, and {loose} files; pictures lie in a folder for each class: {root}/CLASS/*.jpg"
        )
    return found, others + loose


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def _pictures(folder: Path) -> tuple[list[Path], int]:
    """(pictures in the folder and below it, files that are none), in the order of their names."""
    paths: list[Path] = []
    others, seen = 0, set[str]()
    for where, below, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # links may lead in a circle
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            is_picture = os.path.splitext(name)[1].lower() in ENDINGS
            others += not is_picture
            paths += [Path(where, name)] * is_picture
    return paths, others
