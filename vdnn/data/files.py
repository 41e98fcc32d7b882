"""files: reading data sets from files that may be truncated, damaged, hostile or not there."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

GZIP = b"\x1f\x8b"
LIMIT = 2**30  # bytes of one file's content; the largest that is read here, CIFAR-10, has 184 MB


class DataError(ValueError):
    """A file of a data set that is missing, damaged or not of its format."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's content, unpacked if it begins as a gzip file does.

    Raises DataError for what goes wrong within the block, too: a file that cannot be read, or damaged compression.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            if not packed:
                yield file
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} ({size_of(path)} bytes): its gzip compression is damaged or cut off: {error}"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def size_of(path: Path) -> int:
    """Bytes of the file as it lies on the disk; 0 if it cannot be asked."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def read_exactly(file: BinaryIO, count: int, what: str, offset: int) -> Bytes:
    """The next `count` bytes of `file`, which begin at byte `offset` of it.

    what   whose they are, for errors
    Raises DataError if there are fewer, or more than LIMIT are asked for.
    """
    if count > LIMIT:
        raise DataError(f"{what}: {count} bytes from byte {offset} on are more than the {LIMIT} that are read")
    parts, left = [], count
    while left:  # as many as there are: a header that promises more takes no memory
        part = file.read(min(left, 1 << 22))
        if not part:
            raise DataError(f"{what} is cut off: {count} bytes expected from byte {offset} on, found {count - left}")
        parts.append(part)
        left -= len(part)
    return np.frombuffer(b"".join(parts), np.uint8)


def check_end(file: BinaryIO, what: str, offset: int) -> None:
    """Raise DataError unless the file ends here, at byte `offset`; the checksum of a gzip file is compared, too."""
    if file.read(1):
        raise DataError(f"{what}: the end was expected at byte {offset}, but there is more")


def missing(what: str, where: Path, wanted: str, source: str) -> DataError:
    """The error for files that are not there, with what is there, and where they are described."""
    if where.is_dir():
        names = sorted(os.listdir(where))
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        there = f"it holds {', '.join(names[:6])}{more}" if names else "it is empty"
    else:
        there = f"{where} is a file" if where.exists() else f"there is no {where}"
    return DataError(f"{what}: no {wanted} in {where}; {there}.  Download it yourself: {source}")
