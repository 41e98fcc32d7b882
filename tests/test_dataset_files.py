"""Readers of IDX and CIFAR: what they read back, and that nothing damaged is ever taken for data."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdnn.data import ArraySet, DataError, Subset, cifar10, cifar100, mnist, read_idx

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def idx(array):
    """The bytes of an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def make_mnist(folder, train=6, test=3, pack=False):
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte" + (".gz" if pack else "")
            (folder / name).write_bytes(gzip.compress(idx(array)) if pack else idx(array))
        made[part] = images, labels
    return made


def cifar_files(classes, records, seed=0):
    """{file: bytes} of a set of six files, or of two where there are coarse labels."""
    rng = np.random.default_rng(seed)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {}
    for name in names if len(classes) == 1 else ("train.bin", "test.bin"):
        labels = [rng.integers(0, n, (records, 1), dtype=np.uint8) for n in classes]
        files[name] = np.hstack([*labels, rng.integers(0, 256, (records, 3072), dtype=np.uint8)]).tobytes()
    return files


def archive(files, folder="cifar-10-batches-bin", change=lambda member: None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            change(member)
            made.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(archive(cifar_files((10,), 2) | {"batches.meta.txt": "\n".join("abcdefghij").encode()}))
    return path


# ---- IDX


@pytest.mark.parametrize("pack", [False, True])
def test_mnist_comes_as_one_channel_of_bytes_with_its_labels(tmp_path, pack):
    made = make_mnist(tmp_path, pack=pack)
    train, test = mnist(tmp_path)
    for part, name in ((train, "train"), (test, "t10k")):
        images, labels = made[name]
        assert part.images.dtype == np.uint8
        assert np.array_equal(part.images, images[:, None])
        assert part.labels.tolist() == labels.tolist()
    assert (train.size, train.channels, len(train.classes)) == ((5, 4), 1, 10)


@FEW
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), pack=st.booleans())
def test_an_idx_file_reads_back_as_it_was_written(tmp_path, shape, pack):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array)) if pack else idx(array))
    assert np.array_equal(read_idx(path, len(shape)), array)


@pytest.mark.parametrize("pack", [False, True])
def test_every_truncation_of_an_idx_file_is_refused(tmp_path, pack):
    whole = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    whole = gzip.compress(whole, mtime=0) if pack else whole
    path = tmp_path / "file"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="file"):
            read_idx(path, 3)


@FEW
@given(place=st.integers(0, 15), flip=st.integers(1, 255))
def test_every_changed_byte_of_an_idx_header_is_refused(tmp_path, place, flip):
    whole = bytearray(idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))
    whole[place] ^= flip
    path = tmp_path / "file"
    path.write_bytes(whole)
    with pytest.raises(DataError, match="file"):
        read_idx(path, 3)


@FEW
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_packed_file_is_refused_or_changes_nothing(tmp_path, place, flip):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    whole = bytearray(gzip.compress(idx(array), mtime=0))
    whole[place % len(whole)] ^= flip
    path = tmp_path / "file"
    path.write_bytes(whole)
    try:
        read = read_idx(path, 3)
    except DataError:
        return
    assert np.array_equal(read, array)  # the file's time, for one, is in the header too


def test_an_idx_header_that_promises_too_much_takes_no_memory(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(bytes((0, 0, 8, 3)) + b"\x7f\xff\xff\xff" * 3)
    with pytest.raises(DataError, match="more than the 1073741824 that are read"):
        read_idx(path, 3)


def test_bytes_after_the_end_are_refused_with_their_offset(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(idx(np.zeros(3, np.uint8)) + b"\0")
    with pytest.raises(DataError, match="the end was expected at byte 11"):
        read_idx(path, 1)


def test_an_idx_file_of_floats_is_named_as_such(tmp_path):
    path = tmp_path / "floats"
    path.write_bytes(bytes((0, 0, 0x0D, 1, 0, 0, 0, 1)) + bytes(4))
    with pytest.raises(DataError, match=r"begins with the bytes 00 00 0d 01, expected 00 00 08 01: .* float32"):
        read_idx(path, 1)


def test_images_and_labels_of_different_counts_are_refused(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(DataError, match=r"has 6 images, but .* 5 labels"):
        mnist(tmp_path)


def test_a_label_out_of_range_is_named_with_its_byte(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([0, 1, 10], np.uint8)))
    with pytest.raises(DataError, match=r"label 10 at byte 10 is not in \[0, 10\)"):
        mnist(tmp_path)


def test_a_missing_file_is_named_with_what_there_is_and_what_to_download(tmp_path):
    make_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte or \.gz .* it holds t10k-labels.*yann\.lecun"):
        mnist(tmp_path)


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match="there is no"):
        mnist(tmp_path / "nowhere")


# ---- CIFAR


def test_cifar10_reads_the_same_from_its_archive_and_its_folder(tmp_path, packed):
    with tarfile.open(packed) as whole:
        whole.extractall(tmp_path / "out", filter="data")
    outer, inner = tmp_path / "out", tmp_path / "out" / "cifar-10-batches-bin"
    first, *others = (cifar10(path, records=2) for path in (packed, outer, inner))
    assert first.train.images.shape == (10, 3, 32, 32)
    assert first.test.images.shape == (2, 3, 32, 32)
    assert first.train.classes == tuple("abcdefghij")
    for other in others:
        assert np.array_equal(first.train.images, other.train.images)
        assert np.array_equal(first.train.labels, other.train.labels)
    record = np.frombuffer(cifar_files((10,), 2)["data_batch_1.bin"], np.uint8)
    assert first.train.labels[0] == record[0]
    assert np.array_equal(first.train.images[0, 1, 0], record[1 + 1024 : 1 + 1024 + 32])  # green, the first row


def test_cifar100_has_fine_labels_or_coarse_ones(tmp_path):
    path = tmp_path / "cifar-100-binary.tar.gz"
    files = cifar_files((20, 100), 3)
    path.write_bytes(archive(files, "cifar-100-binary"))
    fine, coarse = cifar100(path, records=(3, 3)), cifar100(path, coarse=True, records=(3, 3))
    records = np.frombuffer(files["train.bin"], np.uint8).reshape(3, -1)
    assert (coarse.train.labels.tolist(), len(coarse.train.classes)) == (records[:, 0].tolist(), 20)
    assert (fine.train.labels.tolist(), len(fine.train.classes)) == (records[:, 1].tolist(), 100)


def test_reading_an_archive_makes_no_file(tmp_path, packed):
    cifar10(packed, records=2)
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


@FEW
@given(cut=st.integers(1, 40000))
def test_every_truncation_of_an_archive_is_refused(packed, cut):
    whole = packed.read_bytes()
    packed.write_bytes(whole[: -min(cut, len(whole))])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        cifar10(packed, records=2)
    packed.write_bytes(whole)


@FEW
@given(place=st.integers(10, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_of_an_archive_is_refused(packed, place, flip):
    whole = packed.read_bytes()
    changed = bytearray(whole)
    changed[10 + place % (len(whole) - 10)] ^= flip  # behind gzip's own header
    packed.write_bytes(changed)
    try:
        with pytest.raises(DataError):
            cifar10(packed, records=2)
    finally:
        packed.write_bytes(whole)


@pytest.mark.parametrize("records", [1, 3])
def test_a_file_of_another_number_of_records_is_refused(packed, records):
    with pytest.raises(DataError, match=f"of {records} records of 3073 bytes"):
        cifar10(packed, records=records)


def test_cifar_labels_out_of_range_are_refused_with_their_byte(tmp_path):
    files = cifar_files((10,), 2)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    content = bytearray(files["data_batch_3.bin"])
    content[3073] = 11
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*: label 11 at byte 3073 is not in \[0, 10\)"):
        cifar10(tmp_path, records=2)


def test_members_outside_the_archives_folder_are_not_read(tmp_path):
    path = tmp_path / "evil.tar.gz"
    path.write_bytes(archive(cifar_files((10,), 2), "../../etc"))
    with pytest.raises(DataError, match=r"no data_batch_1\.bin"):
        cifar10(path, records=2)


def test_a_member_that_is_a_link_is_refused(tmp_path):
    def link(member):
        member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0

    path = tmp_path / "links.tar.gz"
    path.write_bytes(archive(cifar_files((10,), 2), change=link))
    with pytest.raises(DataError, match="is a link or a folder"):
        cifar10(path, records=2)


def test_a_header_that_would_unpack_to_much_takes_no_memory(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        member = tarfile.TarInfo("././@LongLink")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
        made.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(DataError, match="more than 1048576 bytes lie between two members"):
        cifar10(path)


def test_a_header_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "sparse.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.pax_headers = {"GNU.sparse.map": "x"}
        made.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=r"is no cifar-10-binary\.tar\.gz, or damaged"):
        cifar10(path)


def test_the_pickled_version_is_refused_by_name(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(archive({"data_batch_1": b"cos\nsystem\n"}, "cifar-10-batches-py"))
    with pytest.raises(DataError, match=r"pickled and could run any code; take cifar-10-binary\.tar\.gz"):
        cifar10(path)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(b"<html>" * 200)
    with pytest.raises(DataError, match=r"is no cifar-10-binary\.tar\.gz"):
        cifar10(path)


# ---- sets in memory


def test_statistics_are_those_of_all_pixels_from_0_to_1():
    images = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 3), dtype=np.uint8)
    for given_as, whole in ((images, images / 255), (images.astype(np.float32), images.astype(np.float64))):
        mean, deviation = ArraySet(given_as, np.zeros(7, np.int64)).statistics()
        assert mean == pytest.approx(whole.mean((0, 2, 3)), rel=1e-6)
        assert deviation == pytest.approx(whole.std((0, 2, 3)), rel=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), [0, 0], r"uint8\[2, 3, 3\]: need \(N, C, H, W\)"),
        (np.zeros((2, 1, 3, 3), np.int32), [0, 0], "int32"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0], "need 2 integers"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0, -1], "the first is -1 at index 1"),
    ],
)
def test_arrays_that_are_no_images_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        ArraySet(images, np.array(labels))


def test_a_subset_has_the_images_of_its_indices_in_their_order():
    whole = ArraySet(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), np.arange(4))
    part = Subset(whole, [3, 1])
    assert (len(part), part.labels.tolist(), int(part.image(0)[0, 0, 0])) == (2, [3, 1], 3)
    with pytest.raises(DataError, match=r"\[4\] of 1 are not in \[0, 4\)"):
        Subset(whole, [4])
