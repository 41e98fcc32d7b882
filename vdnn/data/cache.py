"""cache: decoded pictures, kept in memory up to a number of bytes, or in a folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdnn.data.files import DataError

Pixels = NDArray[np.uint8]  # (h, w, C)


class MemoryCache:
    """Keeps what comes first until `limit` bytes are full.

    Every picture is asked for once an epoch, so that none is worth more than another, and to drop the oldest for the
    newest would drop each just before it is asked for.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._kept: dict[int, Pixels] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> Pixels | None:
        """The pixels that were put, or None."""
        return self._kept.get(index)

    def put(self, index: int, pixels: Pixels) -> None:
        """Keep the pixels if there is room."""
        with self._lock:
            if index not in self._kept and self.used + pixels.nbytes <= self.limit:
                self.used += pixels.nbytes
                self._kept[index] = pixels


class DiskCache:
    """Keeps pixels as .npy files in a folder, by a key of what they were made from; processes may share it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cache_folder {self.folder} cannot be made: {error.strerror}") from error

    def path(self, file: Path, made: str) -> Path:
        """Where the pixels of `file`, as it is now, are kept if they are made in that way.  Raises DataError."""
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error
        key = f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{made}"
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        return self.folder / name[:2] / f"{name[2:40]}.npy"

    def get(self, path: Path, channels: int) -> Pixels | None:
        """The pixels at that path; None if there are none, or no whole ones."""
        try:
            with open(path, "rb") as file:
                np.lib.format.read_magic(file)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                left = path.stat().st_size - file.tell()
                is_whole = len(shape) == 3 and shape[2] == channels and prod(shape) == left
                if not is_whole or dtype != np.uint8 or fortran:
                    return None
                return np.fromfile(file, np.uint8).reshape(shape)
        except Exception:  # whatever damage does to a parser: the picture is decoded again
            return None

    def put(self, path: Path, pixels: Pixels) -> None:
        """Keep the pixels at that path, whole or not at all.  Raises DataError if they cannot be written."""
        part = path.with_suffix(f".{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            with open(part, "wb") as file:
                np.save(file, pixels, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{pixels.nbytes} bytes cannot be kept in {path.parent}: {error.strerror}") from error
