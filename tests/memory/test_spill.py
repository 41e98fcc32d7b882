"""The spill file by itself: what is written is read back, at any alignment; what goes wrong is said with numbers."""

from __future__ import annotations

import errno
import gc
import os

import numpy as np
import pytest

from vdnn.memory import spill
from vdnn.memory.pages import slab
from vdnn.memory.spill import SpillError, SpillFile, SpillWarning, spill_folder

SIZE = 64 << 10


@pytest.fixture
def file(tmp_path):
    made = SpillFile(SIZE, tmp_path)
    yield made
    made.close()


def numbers(count, at=0):
    """Bytes that differ, `at` bytes after the start of a page."""
    memory = slab(count + at)[at:]
    memory[:] = np.random.default_rng(count).integers(0, 256, count, np.uint8)
    return memory


def there_and_back(file, source, place):
    target = slab(source.nbytes + 512)[512:]
    file.write(source, place)
    file.read(target, place)
    np.testing.assert_array_equal(target, source)


# ---- the file


def test_it_has_no_name_and_all_its_bytes(file, tmp_path):
    assert os.listdir(tmp_path) == []
    assert os.fstat(file.number).st_size == file.nbytes == SIZE
    assert os.fstat(file.number).st_nlink == 0


def test_it_has_no_name_either_where_the_system_makes_none_without(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "O_TMPFILE", 0, raising=False)
    file = SpillFile(SIZE, tmp_path)
    assert os.listdir(tmp_path) == []
    there_and_back(file, numbers(4096), 0)
    file.close()


def test_it_is_closed_when_nobody_has_it(tmp_path):
    file = SpillFile(SIZE, tmp_path)
    number = file.number
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_its_folder_is_the_one_given_or_of_the_environment_or_the_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("VDNN_SPILL", str(tmp_path / "elsewhere"))
    assert spill_folder(tmp_path) == str(tmp_path)
    assert spill_folder() == str(tmp_path / "elsewhere")
    monkeypatch.delenv("VDNN_SPILL")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert spill_folder() == str(tmp_path)


def test_a_folder_in_memory_is_warned_of(tmp_path, monkeypatch):
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mounts"
    mounts.write_text(f"22 1 {os.major(device)}:{os.minor(device)} / {tmp_path} rw,nosuid shared:9 - tmpfs tmpfs rw\n")
    monkeypatch.setattr(spill, "MOUNTS", mounts)
    with pytest.warns(SpillWarning, match=f"{tmp_path}, is on a tmpfs, a RAM file system.*name another with spill="):
        SpillFile(SIZE, tmp_path)


@pytest.mark.parametrize("mounts", ["", "nonsense\n", "22 1 0:0 / / rw - ext4 /dev/sda rw\n"])
def test_a_folder_of_an_unknown_kind_is_not(tmp_path, monkeypatch, mounts):
    (tmp_path / "mounts").write_text(mounts)
    monkeypatch.setattr(spill, "MOUNTS", tmp_path / "mounts")
    SpillFile(SIZE, tmp_path).close()


def test_a_folder_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(SpillError, match=f"cannot be made in {tmp_path}/none: No such file or directory") as caught:
        SpillFile(SIZE, tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(SpillError, match=rf"no spill file of {1 << 60} bytes in {tmp_path}: .*; \d+ are free there"):
        SpillFile(1 << 60, tmp_path)
    assert os.listdir(tmp_path) == []


def test_it_grows_and_shrinks_and_stays_as_it_is_where_it_cannot(file):
    file.resize(2 * SIZE)
    there_and_back(file, numbers(SIZE), SIZE)
    with pytest.raises(SpillError, match="no spill file of"):
        file.resize(1 << 60)
    assert file.nbytes == os.fstat(file.number).st_size == 2 * SIZE
    there_and_back(file, numbers(SIZE), SIZE)
    file.resize(4096)
    assert os.fstat(file.number).st_size == 4096
    there_and_back(file, numbers(4096), 0)


def test_a_file_system_that_cannot_take_bytes_beforehand_will_do(tmp_path, monkeypatch):
    def refuses(number, start, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuses)
    file = SpillFile(SIZE, tmp_path)
    assert os.fstat(file.number).st_size == SIZE
    there_and_back(file, numbers(SIZE), 0)
    file.close()


# ---- reading and writing


@pytest.mark.parametrize("alignment", ["found", 4096, 0])
@pytest.mark.parametrize(
    ("count", "at"), [(512, 0), (4096, 0), (SIZE, 0), (3 * 512, 512), (5000, 7), (SIZE - 100, 1536)]
)
def test_what_is_written_is_read_back(tmp_path, monkeypatch, alignment, count, at):
    """Sizes and addresses that direct I/O takes as they are, and others, which go through staging, piece by piece."""
    monkeypatch.setattr(spill, "PIECE", 3 * 4096)
    monkeypatch.setattr(spill, "STAGING", 2 * 4096)
    if alignment == 0:
        monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    file = SpillFile(2 * SIZE, tmp_path)
    if alignment:
        file.alignment = 4096 if alignment == 4096 else file.alignment
    else:
        assert file.alignment == 0
    beside = numbers(4096)
    file.write(beside, 0)
    there_and_back(file, numbers(count, at), 4096)
    again = slab(4096)
    file.read(again, 0)
    np.testing.assert_array_equal(again, beside)
    file.close()


def test_only_as_much_is_read_as_there_is_room_for(file):
    source, target = numbers(8192), slab(8192)
    file.write(source, 0)
    file.read(target[:1000], 0)
    np.testing.assert_array_equal(target[:1000], source[:1000])
    assert not target[1000:].any()


def test_staging_is_planned_for_where_whole_sectors_are_asked_for(file):
    file.alignment = 4096
    assert file.staging_bytes == 2 * spill.STAGING
    file.alignment = 512
    assert file.staging_bytes == 0


def test_short_writes_and_reads_are_gone_on_with(file):
    write, read = file.write_some, file.read_some
    sizes = []

    def some(how):
        def part(memory, place):
            sizes.append(min(memory.nbytes, 4096))
            return how(memory[:4096], place)

        return part

    file.write_some, file.read_some = some(write), some(read)
    there_and_back(file, numbers(5 * 4096), 0)
    assert sizes == 10 * [4096]


# ---- what goes wrong


def failing(number):
    def fail(memory, place):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_names_what_how_much_and_where(file, monkeypatch, number):
    monkeypatch.setattr(spill, "PIECE", 4096)
    write, calls = file.write_some, []

    def third(memory, place):
        calls.append(place)
        return write(memory, place) if len(calls) < 3 else failing(number)(memory, place)

    file.write_some = third
    message = (
        rf"conv1\.y cannot be copied to byte 4096 of the spill file in {file.folder}: "
        rf"8192 of 16384 bytes were done: {os.strerror(number)}"
    )
    with pytest.raises(SpillError, match=message) as caught:
        file.write(numbers(16384), 4096, "conv1.y")
    assert caught.value.errno == number
    assert isinstance(caught.value.__cause__, OSError)
    file.write_some = write
    there_and_back(file, numbers(16384), 4096)


def test_a_failing_read_is_an_error(file):
    file.read_some = failing(errno.EIO)
    with pytest.raises(SpillError, match=r"copied from byte 0 .*: 0 of 512 bytes were done: Input/output error"):
        file.read(slab(512), 0)


def test_a_write_that_takes_nothing_is_an_error(file):
    file.write_some = lambda memory, place: 0
    with pytest.raises(SpillError, match="0 of 512 bytes were done: nothing more was taken"):
        file.write(numbers(512), 0)


def test_a_read_beyond_the_end_is_an_error(file):
    with pytest.raises(SpillError, match=f"from byte {SIZE} .*: 0 of 512 bytes were done: the file ends there"):
        file.read(slab(512), SIZE)


def test_a_flush_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)
    file = SpillFile(SIZE, tmp_path)

    def fails(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(SpillError, match="0 of 512 bytes were done: Input/output error"):
        file.write(numbers(512), 0)
    file.close()


@pytest.mark.parametrize("way", ["write", "read"])
def test_a_truncated_file_is_an_error_until_it_is_mended(file, way):
    source = numbers(4096)
    file.write(source, 0)
    os.ftruncate(file.number, 4096)
    with pytest.raises(SpillError, match=rf"was truncated and has 4096 bytes, .* not {SIZE}; what it held is lost"):
        getattr(file, way)(source, 0)
    file.mend()
    there_and_back(file, source, SIZE - 4096)


def test_a_file_that_was_truncated_and_grew_again_is_no_source_of_zeros(file):
    """Its size alone says nothing: the bytes that were lost would be read as zeros."""
    source = numbers(4096)
    file.write(source, 0)
    os.ftruncate(file.number, 0)
    os.ftruncate(file.number, SIZE)
    if not file.is_solid:
        pytest.skip("this file system does not say what of a file is on the disk")
    with pytest.raises(SpillError, match=f"was truncated and has {SIZE} bytes, 0 of them on the disk"):
        file.read(slab(4096), 0)
    file.mend()
    there_and_back(file, source, 0)


def test_a_file_truncated_while_it_is_read_is_an_error(file):
    read = file.read_some

    def truncating(memory, place):
        count = read(memory, place)
        os.ftruncate(file.number, 0)
        return count

    file.write(numbers(512), 0)
    file.read_some = truncating
    with pytest.raises(SpillError, match="was truncated"):
        file.read(slab(512), 0)
