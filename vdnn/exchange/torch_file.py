"""torch_file: the tensors in a file that torch.save wrote: a zip archive with a pickle, and a member for each storage.

Members are stored as they are, never packed, so that none can be larger than the file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.exchange.errors import ModelError
from vdnn.exchange.pickled import read_pickle
from vdnn.exchange.stored import ITEM_BYTES, StoredTensor, from_bytes
from vdnn.exchange.views import Storage, View
from vdnn.layers.base import Array

SHARED = 16  # tensors of so many times the bytes that are stored may share these: tied weights are twice
HOLDERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "weights")  # of a checkpoint's weights
ORDERS = {b"little": "<", b"big": ">"}
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that such files began with
TAR = (257, b"ustar")
CONVERT = (
    'convert it where it can be trusted: torch.save(torch.load("old.pth", weights_only=True), "new.pth"), with '
    "PyTorch 1.6 or newer"
)
# What zipfile raises for archives that are damaged, encrypted or of a kind that it does not know
ZIP_ERRORS = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, LookupError),
    *(struct.error, zlib.error),
)


def refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise ModelError for what torch.save wrote before there were archives, and for plain pickles.

    start: the first 512 bytes of the file, or all of it
    """
    if start.startswith(LEGACY):
        raise ModelError(f"{path} has PyTorch's format from before version 1.6, a row of pickles; {CONVERT}")
    if start[TAR[0] :].startswith(TAR[1]):
        raise ModelError(f"{path} is a tar archive, PyTorch's format from before version 0.1.10; {CONVERT}")
    if start.startswith(b"\x80"):
        raise ModelError(f"{path} is a plain pickle, which is never read: to read one is to run it; {CONVERT}")


class _Archive:
    """An open archive whose members were checked; the storage that was read last is kept."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        members = file.infolist()
        self.members = {member.filename: member for member in members}
        self.prefix = self._prefix()
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
        packed += [m.filename for m in members if m.file_size != m.compress_size]
        if packed:
            raise ModelError(f"{path}: member {packed[0]!r:.80} is packed, which torch.save never does")
        size, whole = sum(m.file_size for m in members), path.stat().st_size
        if size > whole or len(self.members) < len(members):
            raise ModelError(f"{path}: {len(members)} members of {size:,} bytes lie over each other in {whole:,} bytes")
        order = self.read("byteorder") if f"{self.prefix}byteorder" in self.members else b"little"
        if order not in ORDERS:
            raise ModelError(f"{path}: the byte order {order!r:.40} is neither little nor big")
        self.order = ORDERS[order]
        self._last: tuple[Storage, Array] | None = None

    def _prefix(self) -> str:
        found = [name.removesuffix("data.pkl") for name in self.members if name.count("/") == 1]
        found = [prefix for prefix in found if f"{prefix}data.pkl" in self.members]
        if not found:
            raise ModelError(f"{self.path} is a zip archive without NAME/data.pkl, so torch.save did not write it")
        prefix = found[0]
        if f"{prefix}constants.pkl" in self.members:
            raise ModelError(
                f"{self.path} is a TorchScript program; save its weights alone: torch.save(model.state_dict(), path)"
            )
        return prefix

    def read(self, name: str) -> bytes:
        """The member of that name.  Raises ModelError if there is none, or it is not what its checksum says."""
        member = self.members.get(self.prefix + name)
        if member is None:
            raise ModelError(f"{self.path} has no member {self.prefix + name!r:.80}")
        try:
            data = self.file.read(member)
        except ZIP_ERRORS as error:
            raise ModelError(f"{self.path}: member {member.filename!r:.80} cannot be read: {error}") from error
        return data

    def tensor(self, name: str, view: View) -> Array:
        """The tensor, in its own type.  Raises ModelError if its storage has not the bytes that it should have."""
        storage = view.storage
        if self._last is None or self._last[0] != storage:  # not by its key: the same may be said to be of other types
            data = self.read(f"data/{storage.key}")
            needed = storage.elements * ITEM_BYTES[storage.dtype]
            if len(data) != needed:
                raise ModelError(
                    f"{self.path}: the storage of {name} has {len(data):,} bytes, not {needed:,}: "
                    f"{storage.elements:,} of {storage.dtype}"
                )
            self._last = storage, from_bytes(data, storage.dtype, self.order)
        row = self._last[1][view.offset :]
        steps = tuple(step * row.itemsize for step in view.strides)
        return np.lib.stride_tricks.as_strided(row, view.shape, steps, writeable=False).copy()


@contextmanager
def opened_torch(path: Path) -> Iterator[Mapping[str, StoredTensor]]:
    """The tensors of the state dict at `path` by their names, to be read while the context lasts.

    Raises ModelError.
    """
    try:
        file = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise ModelError(f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}") from error
    with file:
        archive = _Archive(path, file)
        state = _state(path, read_pickle(archive.read("data.pkl"), f"{path}: its pickle"))
        _check_shared(path, state.values())
        yield {
            name: StoredTensor(view.shape, view.storage.dtype, partial(archive.tensor, name, view))
            for name, view in state.items()
        }


def _check_shared(path: Path, views: Collection[View]) -> None:
    """Raise ModelError if a small file would make many tensors of the same bytes."""
    size = sum(prod(view.shape) * ITEM_BYTES[view.storage.dtype] for view in views)
    stored = sum(storage.elements * ITEM_BYTES[storage.dtype] for storage in {view.storage for view in views})
    if size > SHARED * stored:
        raise ModelError(f"{path}: {len(views)} tensors of {size:,} bytes share {stored:,} that are stored")


def _state(path: Path, found: Any) -> dict[str, View]:
    """The tensors by name, of a state dict or of a checkpoint that holds one."""
    if not isinstance(found, dict):
        raise ModelError(
            f"{path} holds a {type(found).__name__}, not a state dict: torch.save(model.state_dict(), path)"
        )
    tensors = _tensors(found)
    for holder in HOLDERS:
        if not tensors and isinstance(found.get(holder), dict):
            tensors = _tensors(found[holder])
    if not tensors:
        keys = ", ".join(str(key)[:40] for key in list(found)[:8]) or "nothing"
        raise ModelError(f"{path} has no tensors by name, nor in one of {', '.join(HOLDERS)}; it holds {keys}")
    return tensors


def _tensors(found: dict[Any, Any]) -> dict[str, View]:
    return {name: view for name, view in found.items() if isinstance(name, str) and isinstance(view, View)}
