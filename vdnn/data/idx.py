"""idx: files in the IDX format, in which MNIST and its successors come.

A file is two zero bytes, a byte for the type of its elements, a byte for the number of dimensions, each dimension as
four bytes, the most significant first, and the elements.  So is it described beside MNIST (LeCun, Cortes and Burges).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from vdnn.data.files import Bytes, DataError, check_end, missing, opened, read_exactly
from vdnn.data.imagesets import ArraySet, Sets

UNSIGNED_BYTE = 0x08
OTHER_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
SOURCE = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz, "
    "packed or not; the format and the digits are described at http://yann.lecun.com/exdb/mnist/, Fashion-MNIST at "
    "https://github.com/zalandoresearch/fashion-mnist"
)


def mnist(folder: str | os.PathLike[str], classes: int = 10) -> Sets:
    """MNIST, Fashion-MNIST or another set of their form, from a folder of its four files, .gz or unpacked.

    Images are (N, 1, H, W) of uint8, in MNIST (60000, 1, 28, 28) and (10000, 1, 28, 28).

    Raises DataError for a file that is missing, cut off, too long, of another type or number of dimensions, for
    images and labels of different counts, images of different sizes, and labels that are not in [0, classes).
    """
    where = Path(folder)
    (train, test) = (_part(where, part, classes) for part in ("train", "t10k"))
    if train.size != test.size:
        raise DataError(f"{where}: images to train on are {train.size}, those to test with {test.size}")
    return Sets(train, test)


def read_idx(path: str | os.PathLike[str], dimensions: int) -> Bytes:
    """The array of unsigned bytes, of so many dimensions, that an IDX file holds, .gz or not.  Raises DataError."""
    path = Path(path)
    with opened(path) as file:
        magic = bytes(read_exactly(file, 4, str(path), 0))
        _check_magic(path, magic, dimensions)
        sizes = read_exactly(file, 4 * dimensions, str(path), 4).view(">u4").tolist()
        if 0 in sizes:
            raise DataError(f"{path}: an array of {_by(sizes)}, by bytes 4 to {3 + 4 * dimensions}, is empty")
        start = 4 + 4 * dimensions
        elements = read_exactly(file, math.prod(sizes), f"{path}, an array of {_by(sizes)},", start)
        check_end(file, f"{path}, an array of {_by(sizes)}", start + len(elements))
    return elements.reshape(sizes)


def _part(folder: Path, part: str, classes: int) -> ArraySet:
    images_at, labels_at = _find(folder, f"{part}-images", 3), _find(folder, f"{part}-labels", 1)
    images, labels = read_idx(images_at, 3), read_idx(labels_at, 1)
    if len(images) != len(labels):
        raise DataError(f"{images_at} has {len(images)} images, but {labels_at} {len(labels)} labels")
    if labels.max() >= classes:
        first = int((labels >= classes).argmax())
        raise DataError(f"{labels_at}: label {labels[first]} at byte {8 + first} is not in [0, {classes})")
    return ArraySet(images[:, None], labels, tuple(map(str, range(classes))))


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    """The file of that name, with a hyphen or, as some archives have it, a dot, and unpacked rather than not."""
    for ending in ("", ".gz"):
        for joint in ("-", "."):
            path = folder / f"{stem}{joint}idx{dimensions}-ubyte{ending}"
            if path.is_file():
                return path
    raise missing("MNIST", folder, f"{stem}-idx{dimensions}-ubyte or .gz", SOURCE)


def _check_magic(path: Path, magic: bytes, dimensions: int) -> None:
    wanted = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if magic == wanted:
        return
    if magic[:2] != b"\0\0":
        reason = "it is no IDX file"
    elif magic[2] != UNSIGNED_BYTE:
        reason = f"its elements are {OTHER_TYPES.get(magic[2], 'of no known type')}, not unsigned bytes"
    else:
        reason = f"it has {magic[3]} dimensions, not {dimensions}"
    raise DataError(f"{path} begins with the bytes {magic.hex(' ')}, expected {wanted.hex(' ')}: {reason}")


def _by(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))
