"""cifar: CIFAR-10 and CIFAR-100 in their binary version, so that nothing is unpickled.

A file is records of one length: a byte for the label, in CIFAR-100 one for the coarse label before it, and 3072 bytes
for the red, the green and the blue plane of 32 x 32 pixels, row by row (A. Krizhevsky, Learning Multiple Layers of
Features from Tiny Images, 2009; https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np

from vdnn.data.files import LIMIT, Bytes, DataError, check_end, missing, opened, read_exactly
from vdnn.data.imagesets import ArraySet, Sets

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
PAGE = "described at https://www.cs.toronto.edu/~kriz/cifar.html"
NAMES_LIMIT = 1 << 16  # bytes of a file of names
MEMBERS = 64  # most that an archive may hold
HEADERS = 1 << 20  # bytes of headers and padding between two of them


@dataclass(frozen=True)
class _Format:
    """A set: its archive, the folder in it, files and their records, the bytes before an image, and class names.

    label   which of those bytes is the label
    """

    name: str
    archive: str
    folder: str
    train: Mapping[str, int]  # {file: records}
    test: Mapping[str, int]
    header: tuple[int, ...]  # how many classes each byte before an image can say
    label: int
    names: str

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return len(self.header) + PIXELS


def cifar10(path: str | os.PathLike[str], records: int = 10000) -> Sets:
    """CIFAR-10 from cifar-10-binary.tar.gz, of which nothing is extracted to the disk, or from its extracted folder.

    Images are (50000, 3, 32, 32) and (10000, 3, 32, 32) of uint8.

    records   images of each of the six files, for a smaller set of the same form
    Raises DataError for what is missing, damaged, of another length, or has labels out of range.
    """
    train = {f"data_batch_{i}.bin": records for i in range(1, 6)}
    names = "batches.meta.txt"
    binary = ("CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin")
    return _read(Path(path), _Format(*binary, train, {"test_batch.bin": records}, (10,), 0, names))


def cifar100(path: str | os.PathLike[str], coarse: bool = False, records: tuple[int, int] = (50000, 10000)) -> Sets:
    """CIFAR-100 from cifar-100-binary.tar.gz or its extracted folder, else as `cifar10`.

    coarse    labels are the 20 superclasses
    records   images of train.bin and of test.bin
    """
    names = "coarse_label_names.txt" if coarse else "fine_label_names.txt"
    binary = ("CIFAR-100", "cifar-100-binary.tar.gz", "cifar-100-binary")
    train, test = {"train.bin": records[0]}, {"test.bin": records[1]}
    return _read(Path(path), _Format(*binary, train, test, (20, 100), 0 if coarse else 1, names))


def _read(path: Path, form: _Format) -> Sets:
    found = _from_archive(path, form) if path.is_file() else _from_folder(path, form)
    for name in (*form.train, *form.test):
        if name not in found:
            raise missing(form.name, path, name, f"{form.archive} (the binary version), {PAGE}")
    classes = form.header[form.label]
    names = _names(f"{path}: {form.names}", found.get(form.names), classes)
    return Sets(*(_set([found[name] for name in part], form, names) for part in (form.train, form.test)))


def _set(files: list[Bytes], form: _Format, names: tuple[str, ...]) -> ArraySet:
    records = (np.concatenate(files) if len(files) > 1 else files[0]).reshape(-1, form.record)
    images = np.ascontiguousarray(records[:, len(form.header) :]).reshape(-1, *IMAGE)
    return ArraySet(images, records[:, form.label], names)


# ---- where the files are


def _from_folder(path: Path, form: _Format) -> dict[str, Bytes]:
    folder = path if (path / next(iter(form.test))).is_file() else path / form.folder
    if not folder.is_dir():
        _refuse_pickled(path, form, os.listdir(path) if path.is_dir() else ())
        raise missing(form.name, path, form.folder, f"{form.archive} (the binary version), {PAGE}")
    _refuse_pickled(folder, form, os.listdir(folder))
    found = {}
    for name in (*form.train, *form.test, form.names):
        if (folder / name).is_file():
            with opened(folder / name) as file:
                found[name] = _content(file, str(folder / name), name, form)
    return found


def _from_archive(path: Path, form: _Format) -> dict[str, Bytes]:
    """The files of a .tar.gz, read to its end so that its checksum is compared; no member's name makes a file."""
    found: dict[str, Bytes] = {}
    with opened(path) as file:
        metered = _Metered(file, path)
        try:
            with tarfile.open(fileobj=metered, mode="r|") as archive:  # type: ignore[call-overload]
                for count, member in enumerate(archive, start=1):
                    _check_member(path, form, member, count)
                    metered.left = member.size + HEADERS
                    _take(path, form, archive, member, found)
        except DataError:
            raise
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise DataError(f"{path} is no {form.archive}, or damaged: {error}") from error
        left = LIMIT
        while part := file.read(1 << 20):
            left -= len(part)
            if left < 0:
                raise DataError(f"{path}: more than {LIMIT} bytes follow the archive")
    return found


class _Metered:
    """A file of which only `left` bytes more are read: what headers promise, a name of a gigabyte say, is not."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, HEADERS

    def read(self, size: int) -> bytes:
        part = self.file.read(size)
        self.left -= len(part)
        if self.left < 0:
            raise DataError(f"{self.path}: more than {HEADERS} bytes lie between two members of the archive")
        return part


def _check_member(path: Path, form: _Format, member: tarfile.TarInfo, count: int) -> None:
    _refuse_pickled(path, form, [PurePosixPath(member.name).name])
    if count > MEMBERS or member.offset_data + member.size > LIMIT:
        raise DataError(
            f"{path}: member {count}, {member.name!r} of {member.size} bytes, is beyond the {MEMBERS} members and "
            f"{LIMIT} bytes that are read; {form.archive} is smaller"
        )


def _take(
    path: Path, form: _Format, archive: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, Bytes]
) -> None:
    """Read the member if it is one of the set's files."""
    name = PurePosixPath(member.name).name
    wanted = (*form.train, *form.test, form.names)
    if name not in wanted or str(PurePosixPath(member.name)) not in (name, f"{form.folder}/{name}"):
        return
    what = f"{path}: {member.name}"
    if not member.isreg():
        raise DataError(f"{what} is a link or a folder, not a file")
    if name in found:
        raise DataError(f"{what} is there twice")
    found[name] = _content(cast("BinaryIO", archive.extractfile(member)), what, name, form)


def _refuse_pickled(path: Path, form: _Format, names: Iterable[str]) -> None:
    for name in names:
        if name in ("data_batch_1", "test_batch", "meta", "batches.meta"):
            raise DataError(
                f"{path} holds {name}, so it is the Python version, which is pickled and could run any code; "
                f"take {form.archive}, {PAGE}"
            )


# ---- what is in them


def _content(file: BinaryIO, what: str, name: str, form: _Format) -> Bytes:
    """All bytes of a file of names, or of a file of records, which are checked."""
    if name == form.names:
        text = file.read(NAMES_LIMIT + 1)
        if len(text) > NAMES_LIMIT:
            raise DataError(f"{what}: more than {NAMES_LIMIT} bytes are no list of names")
        return np.frombuffer(text, np.uint8)
    count = {**form.train, **form.test}[name]
    content = read_exactly(file, count * form.record, f"{what}, of {count} records of {form.record} bytes,", 0)
    check_end(file, f"{what}, of {count} records of {form.record} bytes", len(content))
    for place, classes in enumerate(form.header):
        labels = content[place :: form.record]
        if labels.max() >= classes:
            first = int((labels >= classes).argmax())
            offset = first * form.record + place
            raise DataError(f"{what}: label {labels[first]} at byte {offset} is not in [0, {classes})")
    return content


def _names(what: str, content: Bytes | None, classes: int) -> tuple[str, ...]:
    """The names of the classes, one a line; numbers where there is no such file."""
    if content is None:
        return tuple(map(str, range(classes)))
    try:
        names = tuple(line.strip() for line in content.tobytes().decode().splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is no text: {error}") from error
    if len(names) != classes:
        raise DataError(f"{what} has {len(names)} names, expected {classes}")
    return names
