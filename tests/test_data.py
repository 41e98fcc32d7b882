import hashlib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdnn.data import Batches, digits, shifted, synthetic


def counted(samples, batch, **options):
    """Images whose every pixel is the image's index, and labels that are the index as well."""
    images = np.zeros((samples, 1, 4, 4), np.float32) + np.arange(samples, dtype=np.float32)[:, None, None, None]
    return Batches(images, np.arange(samples), batch, **options)


def labels_of(batches, epoch, start=0):
    return [y.tolist() for _, y in batches.epoch(epoch, start)]


def test_digits_are_split_by_index():
    d = digits()
    assert d.train_images.shape == (1438, 1, 8, 8)
    assert d.test_images.shape == (359, 1, 8, 8)
    assert d.train_labels.shape == (1438,)
    assert d.test_labels.shape == (359,)
    assert (d.train_labels[:5].tolist(), d.test_labels[:3].tolist()) == ([0, 1, 2, 3, 5], [4, 9, 4])


def test_digits_are_floats_from_paper_to_ink_and_integer_labels():
    d = digits()
    for images, labels in ((d.train_images, d.train_labels), (d.test_images, d.test_labels)):
        assert images.dtype == np.float32
        assert labels.dtype == np.int64
        assert (images.min(), images.max()) == (0.0, 1.0)
        assert np.array_equal(np.unique(labels), np.arange(10))
    assert np.array_equal(np.bincount(np.r_[d.train_labels, d.test_labels])[:5], [178, 182, 177, 183, 181])


def test_the_first_digit_is_a_zero_as_published():
    row = [0, 0, 5, 13, 9, 1, 0, 0]  # the first row of the first digit in optdigits.tes
    assert (digits().train_images[0, 0, 0] * 16).tolist() == row


def test_the_digits_are_the_file_that_its_text_describes():
    folder = resources.files("vdnn") / "datasets"
    text = (folder / "digits.txt").read_text(encoding="utf-8")
    assert hashlib.sha256((folder / "digits.npz").read_bytes()).hexdigest() in text
    for word in ("Alpaydin", "Kaynak", "UCI Machine Learning Repository", "CC BY 4.0"):
        assert word in text


def test_synthetic_gives_the_same_images_for_the_same_seed():
    x, y = synthetic((3, 8, 8), 10, 20, seed=1)
    again = synthetic((3, 8, 8), 10, 20, seed=1)
    other = synthetic((3, 8, 8), 10, 20, seed=2)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((20, 3, 8, 8), np.float32, (20,), np.int64)
    assert x.tobytes() == again[0].tobytes()
    assert y.tobytes() == again[1].tobytes()
    assert not np.array_equal(x, other[0])
    assert np.isfinite(x).all()


def test_synthetic_begins_with_the_same_images_whatever_the_number():
    many, few = synthetic((3, 9, 7), 5, 30), synthetic((3, 9, 7), 5, 11)
    assert many[0][:11].tobytes() == few[0].tobytes()
    assert many[1][:11].tobytes() == few[1].tobytes()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 2, 5), (40,), (2, 8, 8, 8)])
def test_synthetic_classes_can_be_told_apart_by_their_means(shape):
    x, y = synthetic(shape, 4, 400, seed=3)
    train, test = slice(0, 300), slice(300, 400)
    means = np.stack([x[train][y[train] == c].mean(axis=0) for c in range(4)])
    distance = ((x[test][:, None] - means) ** 2).reshape(100, 4, -1).sum(axis=2)
    assert (distance.argmin(axis=1) == y[test]).mean() > 0.9


def test_synthetic_refuses_sizes_that_are_not_positive():
    with pytest.raises(ValueError, match="classes 0"):
        synthetic((3, 8, 8), 0, 5)


def test_an_epoch_has_every_image_once_with_its_label():
    batches = counted(10, 4, seed=0)
    seen = list(batches.epoch(0))
    assert [len(y) for _, y in seen] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(np.concatenate([y for _, y in seen])) == list(range(10))
    for x, y in seen:
        assert np.array_equal(x[:, 0, 0, 0], y)


def test_the_order_is_that_of_the_seed_and_the_epoch():
    assert labels_of(counted(50, 8, seed=1), 2) == labels_of(counted(50, 8, seed=1), 2)
    assert labels_of(counted(50, 8, seed=1), 2) != labels_of(counted(50, 8, seed=1), 3)
    assert labels_of(counted(50, 8, seed=1), 2) != labels_of(counted(50, 8, seed=2), 2)


def test_the_order_is_the_same_in_every_version():
    assert counted(8, 8, seed=7).order(3).tolist() == [3, 2, 4, 6, 5, 7, 1, 0]


def test_without_shuffle_the_order_is_as_given():
    assert labels_of(counted(5, 2, shuffle=False), 9) == [[0, 1], [2, 3], [4]]


def test_drop_last_leaves_out_the_smaller_batch():
    batches = counted(10, 4, drop_last=True)
    assert [len(y) for y in labels_of(batches, 0)] == [4, 4]
    assert len(batches) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 2**40), st.data())
def test_an_epoch_resumed_anywhere_gives_the_same_bits(samples, batch, shift, seed, data):
    batches = counted(samples, batch, seed=seed, shift=shift)
    whole = list(batches.epoch(5))
    start = data.draw(st.integers(0, len(batches)))
    rest = list(counted(samples, batch, seed=seed, shift=shift).epoch(5, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again_x, again_y) in zip(whole[start:], rest, strict=True):
        assert x.tobytes() == again_x.tobytes()
        assert y.tobytes() == again_y.tobytes()


def test_shifted_moves_down_and_right_and_fills_with_background():
    image = np.array([[[1, 2, 3], [4, 5, 6]]])
    assert shifted(image, 1, 0, background=9).tolist() == [[[9, 9, 9], [1, 2, 3]]]
    assert shifted(image, 0, -1).tolist() == [[[2, 3, 0], [5, 6, 0]]]
    assert shifted(image, -1, 2).tolist() == [[[0, 0, 4], [0, 0, 0]]]
    assert np.array_equal(shifted(image, 0, 0), image)


def test_a_shift_belongs_to_the_image_and_the_epoch_not_to_its_place():
    rng = np.random.default_rng(0)
    images, labels = rng.random((30, 1, 6, 6)), np.arange(30)
    shuffled, straight = (Batches(images, labels, 7, seed=4, shift=2, shuffle=s) for s in (True, False))
    by_label = {int(label): image for x, y in shuffled.epoch(1) for image, label in zip(x, y, strict=True)}
    for x, y in straight.epoch(1):
        for image, label in zip(x, y, strict=True):
            assert np.array_equal(image, by_label[int(label)])
    first, second = (np.concatenate([x for x, _ in straight.epoch(e)]) for e in (1, 2))
    assert not np.array_equal(first, second)


def test_shifts_reach_every_place_within_the_bound():
    image = np.zeros((400, 1, 5, 5), np.float32)
    image[:, :, 2, 2] = 1
    ((x, _),) = Batches(image, np.zeros(400, np.int64), 400, shift=1).epoch(0)
    assert (x.sum(axis=(1, 2, 3)) == 1).all()
    assert set(zip(*np.nonzero(x)[2:], strict=True)) == {(h, w) for h in (1, 2, 3) for w in (1, 2, 3)}


def test_batches_are_copies():
    batches = counted(4, 2, shuffle=False, shift=1)
    next(batches.epoch(0))[0][:] = -1
    assert batches.images.min() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(4)}, "5 images but 4 labels"),
        ({"batch": 0}, "got batch 0"),
        ({"seed": -1}, "seed -1"),
        ({"batch": 6, "drop_last": True}, "5 images make no batch of 6"),
        ({"shift": 8}, r"\(5, 1, 8, 8\) by 8"),
        ({"shift": -1}, "by -1"),
    ],
)
def test_batches_refuse_what_cannot_work_with_the_numbers(change, message):
    arguments = {"images": np.zeros((5, 1, 8, 8)), "labels": np.zeros(5, np.int64), "batch": 2} | change
    with pytest.raises(ValueError, match=message):
        Batches(**arguments)


def test_no_images_make_no_batch():
    with pytest.raises(ValueError, match="0 images"):
        Batches(np.zeros((0, 1, 8, 8)), np.zeros(0), 2)


def test_a_position_outside_the_epoch_is_refused_at_once():
    with pytest.raises(ValueError, match=r"no batch 4 in epoch 0: .* 3 batches"):
        counted(10, 4).epoch(0, start=4)
    assert list(counted(10, 4).epoch(0, start=3)) == []
