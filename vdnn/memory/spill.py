"""SpillFile: the file for what is offloaded beyond the budget of host memory.

It has no name, so nothing is left of it when its process ends, however that ends.  All its bytes are taken from the
disk when it is opened, so that a disk that is too small shows then.  Reads and writes go past the page cache where the
file system lets them (direct I/O): a file that the system keeps in memory would save none.
"""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vdnn.layers.base import Array
from vdnn.memory.device import DeviceError
from vdnn.memory.pages import slab
from vdnn.memory.plan import SECTOR
from vdnn.tape import GRANULE

PIECE = 8 << 20  # bytes of one read or write
STAGING = 4 << 20  # bytes for what is not aligned as direct I/O asks for, one each way
MOUNTS = Path("/proc/self/mountinfo")
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class _Job:
    """One read or write: of `size` bytes at `place`, which are `name`'s."""

    is_write: bool
    name: str
    place: int
    size: int

    def __str__(self) -> str:
        way = "to" if self.is_write else "from"
        return f"{self.name} cannot be copied {way} byte {self.place} of the spill file"


class SpillError(DeviceError):
    """The spill file could not be made, written or read; `errno` is the system's number for why, 0 if it has none."""

    errno = 0


class SpillWarning(UserWarning):
    """The spill file is where it saves nothing."""


def spill_folder(given: str | os.PathLike[str] | None = None) -> str:
    """The folder of spill files: what is given, else VDNN_SPILL, else the system's for temporary files."""
    return os.fspath(given or os.environ.get("VDNN_SPILL") or tempfile.gettempdir())


class SpillFile:
    """`nbytes` bytes in a file without a name in `folder`.

    alignment   bytes: of addresses, places and lengths of direct I/O, 512 or 4096; 0 where all goes through the page
                cache, which is then emptied of it
    Raises SpillError where there is no such folder or no room; warns if the folder is in memory.
    """

    def __init__(self, nbytes: int, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder, self.nbytes, self.is_solid = spill_folder(folder), 0, False
        try:
            self.number = _open(self.folder)
        except OSError as error:
            self._refuse(f"the spill file cannot be made in {self.folder}: {error.strerror}", error)
        self._close = weakref.finalize(self, os.close, self.number)
        kind = _file_system(self.number)
        if kind in IN_MEMORY:
            warnings.warn(
                f"the folder of the spill file, {self.folder}, is on a {kind}, a RAM file system, so that it saves no "
                "memory; name another with spill= or VDNN_SPILL",
                SpillWarning,
                stacklevel=2,
            )
        self.alignment = _direct(self.number)
        self._staging: dict[bool, Array] = {}  # {whether it is for writing: bytes}
        self.resize(nbytes)

    @property
    def staging_bytes(self) -> int:
        """Bytes of memory that may be taken for what is not aligned; what lies on granules mostly is."""
        return 2 * STAGING if self.alignment > GRANULE else 0

    def resize(self, nbytes: int) -> None:
        """Make the file `nbytes` large, all of them taken from the disk.  Raises SpillError; then it is as it was."""
        try:
            os.ftruncate(self.number, min(nbytes, self.nbytes))
            self._allocate(nbytes)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self.number, self.nbytes)
            free = os.statvfs(self.folder)
            room = f"{free.f_bavail * free.f_frsize} are free there"
            self._refuse(f"no spill file of {nbytes} bytes in {self.folder}: {error.strerror}; {room}", error)
        self.nbytes = nbytes
        self.is_solid = self._blocks() >= nbytes  # where blocks can be counted on

    def _allocate(self, nbytes: int) -> None:
        if nbytes:
            try:
                os.posix_fallocate(self.number, 0, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
                os.ftruncate(self.number, nbytes)  # not taken from the disk yet: a full one shows when it is written

    def mend(self) -> None:
        """Give the file back what it lost, if it was truncated; what it held there is gone.  Raises SpillError."""
        if not self._is_whole():
            self.resize(self.nbytes)

    def write(self, source: Array, place: int, name: str = "bytes") -> None:
        """Write bytes at `place`, a multiple of 4096; up to the next such multiple the file's bytes are spoilt.

        source   1-D, contiguous, of uint8
        name     whose bytes these are, for the message of an error
        Raises SpillError.
        """
        job = _Job(True, name, place, source.nbytes)
        self._transfer(source, job)
        if not self.alignment:
            self._flush(job)

    def read(self, target: Array, place: int, name: str = "bytes") -> None:
        """Read as many bytes from `place` as there are in `target`; else as `write`."""
        self._transfer(target, _Job(False, name, place, target.nbytes))
        if not self.alignment:
            os.posix_fadvise(self.number, place, target.nbytes, os.POSIX_FADV_DONTNEED)

    def write_some(self, source: Array, place: int) -> int:
        """Write at most all of `source`; how many bytes.  The only place that writes."""
        return os.pwritev(self.number, [source], place)

    def read_some(self, target: Array, place: int) -> int:
        """Read at most as much as there is room for; how many bytes.  The only place that reads."""
        return os.preadv(self.number, [target], place)

    def close(self) -> None:
        """Give the disk its bytes back."""
        self._close()

    # ---- pieces

    def _transfer(self, memory: Array, job: _Job) -> None:
        """Read or write all of `memory`, piece by piece; whatever is not aligned goes through staging."""
        self._check(job)
        unit = self.alignment or 1
        whole = job.size // unit * unit if memory.ctypes.data % unit == 0 else 0
        for start in range(0, whole, PIECE):
            self._piece(memory[start : min(start + PIECE, whole)], job, start)
        for start in range(whole, job.size, STAGING):
            self._staged(memory[start : start + STAGING], job, start)
        self._check(job)

    def _staged(self, memory: Array, job: _Job, start: int) -> None:
        """Read or write through memory that is aligned, in whole sectors."""
        if job.is_write not in self._staging:
            self._staging[job.is_write] = slab(STAGING)
        piece = self._staging[job.is_write][: -(-memory.nbytes // SECTOR) * SECTOR]
        if job.is_write:
            piece[: memory.nbytes] = memory
        self._piece(piece, job, start)
        if not job.is_write:
            memory[:] = piece[: memory.nbytes]

    def _piece(self, memory: Array, job: _Job, start: int) -> None:
        """Read or write all of it, in as many calls as that takes; `start` is its first byte in the job."""
        some, done = self.write_some if job.is_write else self.read_some, 0
        while done < memory.nbytes:
            try:
                count = some(memory[done:], job.place + start + done)
            except OSError as error:
                self._fail(job, start + done, error.strerror or str(error), error)
            if self.alignment and done + count < memory.nbytes:
                count -= count % self.alignment  # what comes next must be aligned again
            if count <= 0:
                self._fail(job, start + done, "nothing more was taken" if job.is_write else "the file ends there")
            done += count

    def _flush(self, job: _Job) -> None:
        """Bring what was written to the disk, and out of the page cache."""
        try:
            os.fdatasync(self.number)
        except OSError as error:
            self._fail(job, 0, error.strerror or str(error), error)
        os.posix_fadvise(self.number, job.place, job.size, os.POSIX_FADV_DONTNEED)

    # ---- what may go wrong

    def _blocks(self) -> int:
        """Bytes that the file takes on the disk."""
        return 512 * os.fstat(self.number).st_blocks

    def _is_whole(self) -> bool:
        """Whether the file has its size, and, where that can be seen, no holes: these would be read as zeros."""
        about = os.fstat(self.number)
        return about.st_size == self.nbytes and (not self.is_solid or 512 * about.st_blocks >= self.nbytes)

    def _check(self, job: _Job) -> None:
        if not self._is_whole():
            about = os.fstat(self.number)
            has = f"{about.st_size} bytes, {512 * about.st_blocks} of them on the disk"
            self._refuse(
                f"{job} in {self.folder}: it was truncated and has {has}, not {self.nbytes}; what it held is lost"
            )

    def _fail(self, job: _Job, done: int, why: str, cause: OSError | None = None) -> NoReturn:
        self._refuse(f"{job} in {self.folder}: {min(done, job.size)} of {job.size} bytes were done: {why}", cause)

    def _refuse(self, text: str, cause: OSError | None = None) -> NoReturn:
        error = SpillError(text)
        error.errno = (cause and cause.errno) or 0
        raise error from cause


def _open(folder: str) -> int:
    """The number of a new file without a name.  Raises OSError."""
    nameless = getattr(os, "O_TMPFILE", 0)
    if nameless:
        with suppress(OSError):  # not every file system has it
            return os.open(folder, nameless | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    number, path = tempfile.mkstemp(prefix="vdnn-spill-", dir=folder)
    os.unlink(path)
    return number


def _direct(number: int) -> int:
    """The alignment of direct I/O on this file, which is switched on; 0, and it is not, where there is none."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return 0
    import fcntl  # not every system has it

    flags, page = fcntl.fcntl(number, fcntl.F_GETFL), slab(2 * SECTOR)
    for alignment in (GRANULE, SECTOR):
        piece = page[alignment : 2 * alignment]
        with suppress(OSError):
            fcntl.fcntl(number, fcntl.F_SETFL, flags | flag)
            written, read = os.pwritev(number, [piece], alignment), os.preadv(number, [piece], alignment)
            if written == read == alignment:
                return alignment
    fcntl.fcntl(number, fcntl.F_SETFL, flags)
    return 0


def _file_system(number: int) -> str:
    """The name of the file system that a file is on; "" where the system does not say."""
    device = os.fstat(number).st_dev
    with suppress(OSError, ValueError, IndexError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            about, _, kind = line.partition(" - ")
            if about.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return kind.split()[0]
    return ""
