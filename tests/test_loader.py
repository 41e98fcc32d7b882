"""The loader: the same bits whatever the threads, from any position; errors, endings, and training with it."""

import gc
import threading
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vdnn
from vdnn.data import ArraySet, Batches, DataError, Loader, Transform, digits

CROP = Transform(crop="random", padding=2, flip=True, mean=0.5, deviation=0.25)


def numbered(count=23, size=6):
    """Images of uint8 whose pixels are all different from image to image, and their indices as labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return ArraySet(pixels, np.arange(count))


def bits(loader, *position):
    return [(x.tobytes(), y.tobytes()) for x, y in loader.epoch(*position)]


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vdnn-loader")]


class Stubborn:
    """A set whose images can be held back, or fail."""

    def __init__(self, count=12, fails=()):
        self.labels, self.classes, self.fails = np.arange(count), ("a",) * count, set(fails)
        self.channels, self.size, self.dtype = 1, (2, 2), np.dtype(np.uint8)
        self.asked, self.go = [], threading.Event()
        self.go.set()

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        self.go.wait()
        self.asked.append(index)
        if index in self.fails:
            raise DataError(f"image {index} is broken")
        return np.full((1, 2, 2), index, np.uint8)


# ---- the same bits


@pytest.mark.parametrize("transform", [Transform(), CROP, Transform((4, 5)), Transform(9)])
@pytest.mark.parametrize(("count", "ahead"), [(2, 1), (3, 5), (30, 2)])
def test_the_number_of_threads_and_of_batches_ahead_changes_no_bit(transform, count, ahead):
    with (
        Loader(numbered(), 5, transform, seed=7) as one,
        Loader(numbered(), 5, transform, seed=7, threads=count, ahead=ahead) as many,
    ):
        for epoch in (0, 1):
            assert bits(one, epoch) == bits(many, epoch)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), st.booleans(), st.data())
def test_an_epoch_resumed_anywhere_gives_the_same_bits(batch, epoch, drop_last, data):
    options = {"seed": 3, "drop_last": drop_last, "threads": 2}
    with Loader(numbered(), batch, CROP, **options) as whole, Loader(numbered(), batch, CROP, **options) as part:
        start = data.draw(st.integers(0, len(whole)))
        next(part.epoch(5), None)  # wherever it was before
        assert bits(part, epoch, start) == bits(whole, epoch)[start:]


def test_the_order_is_that_of_batches_of_the_same_seed():
    images = numbered()
    batches = Batches(images.images.astype(np.float32), images.labels, 5, seed=9)
    with Loader(images, 5, seed=9) as loader:
        for epoch in (0, 4):
            assert [y.tolist() for _, y in loader.epoch(epoch)] == [y.tolist() for _, y in batches.epoch(epoch)]


def test_chance_belongs_to_the_image_and_the_epoch_not_to_its_place():
    with Loader(numbered(), 5, CROP, fresh=True) as mixed, Loader(numbered(), 7, CROP, shuffle=False) as straight:
        of = {int(i): x.copy() for images, labels in mixed.epoch(2) for x, i in zip(images, labels, strict=True)}
        for images, labels in straight.epoch(2):
            assert all(np.array_equal(x, of[int(i)]) for x, i in zip(images, labels, strict=True))
        again = {int(i): x.copy() for images, labels in mixed.epoch(3) for x, i in zip(images, labels, strict=True)}
        assert not all(np.array_equal(of[i], again[i]) for i in of)


# ---- what is done to an image


def one(images, transform, words=None):
    """What comes of the first image, with these random words."""
    view = transform.on(images)
    out = np.full(view.shape, np.nan, np.float32)
    view.place(out, images.image(0), words)
    view.normalise(out)
    return out


def square(*rows):
    return ArraySet(np.array([[rows]], np.uint8), np.array([0]))


def test_bytes_come_from_0_to_1_less_the_mean_over_the_deviation():
    assert one(square([0, 255]), Transform()).tolist() == [[[0, 1]]]
    assert one(square([0, 255]), Transform(mean=0.5, deviation=0.25)).tolist() == [[[-2, 2]]]


def test_floats_come_as_they_are_but_for_normalisation():
    images = ArraySet(np.array([[[[3.0, 5.0]]]], np.float32), np.array([0]))
    assert one(images, Transform()).tolist() == [[[3, 5]]]
    assert one(images, Transform(mean=1, deviation=2)).tolist() == [[[1, 2]]]


def test_the_middle_is_cut_out_or_surrounded_by_the_fill():
    images = square([0, 0, 0, 0], [0, 255, 255, 0], [0, 255, 255, 0], [0, 0, 0, 0])
    assert one(images, Transform(2)).tolist() == [[[1, 1], [1, 1]]]
    framed = one(square([255]), Transform(3, fill=0.2))
    assert np.rint(framed[0] * 10).astype(int).tolist() == [[2, 2, 2], [2, 10, 2], [2, 2, 2]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([0, 1, 1, 0, 0], [[51, 102], [153, 204]]),  # in the middle of the padding of 1: as it was
        ([1, 1, 1, 0, 0], [[102, 51], [204, 153]]),  # mirrored
        ([0, 0, 1, 0, 0], [[0, 0], [51, 102]]),  # from above: moved down
        ([0, 2, 2, 0, 0], [[204, 0], [0, 0]]),  # up and to the left
    ],
)
def test_a_random_crop_is_a_window_of_the_padded_image(words, expected):
    made = one(square([51, 102], [153, 204]), Transform(crop="random", padding=1, flip=True), words)
    assert np.rint(made[0] * 255).astype(int).tolist() == expected


def test_flips_and_places_reach_everything_within_bounds():
    images = ArraySet(np.tile(np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4), (400, 1, 1, 1)), np.zeros(400, int))
    with Loader(images, 400, Transform(3, "random", flip=True)) as loader:
        ((x, _),) = loader.epoch(0)
    corners = {tuple(np.rint(image[0, 0, [0, 2]] * 255).astype(int)) for image in x}
    assert corners == {(0, 2), (1, 3), (4, 6), (5, 7), (2, 0), (3, 1), (6, 4), (7, 5)}


def test_a_resized_crop_of_a_plain_colour_is_plain():
    pytest.importorskip("PIL", reason="Pillow is not installed")
    images = ArraySet(np.full((8, 3, 20, 30), 102, np.uint8), np.zeros(8, int))
    with Loader(images, 8, Transform((7, 9), "resized", flip=True)) as loader:
        ((x, _),) = loader.epoch(0)
    assert x.shape == (8, 3, 7, 9)
    assert np.allclose(x, 0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "center"}, "crop='center' is none of 'centre', 'random', 'resized'"),
        ({"padding": 2}, "padding=2 is for crop='random'"),
        ({"deviation": 0}, "deviation above 0"),
        ({"mean": float("nan")}, "all must be finite"),
        ({"size": 0}, "size=0 must be positive"),
        ({"scale": (0.5, 0.1)}, "must rise"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for images of 3 channels"),
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        Transform(**options).on(numbered())


@pytest.mark.parametrize(
    ("options", "message"), [({"batch": 0}, "batch=0"), ({"threads": 0}, "threads=0"), ({"ahead": 0}, "ahead=0")]
)
def test_sizes_that_are_not_positive_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Loader(numbered(), **{"batch": 4, **options})


# ---- memory, order of events


def test_batches_come_from_a_ring_that_is_taken_once():
    with Loader(numbered(40), 4, CROP, ahead=2) as loader:
        places = {x.ctypes.data for epoch in range(3) for x, _ in loader.epoch(epoch)}
        assert len(places) == 3
        ring = 3 * 4 * (3 * 6 * 6 * 4 + 8)
        assert loader.nbytes == ring + 2 * 8 * 6 * 40


def test_fresh_batches_are_the_callers_own():
    with Loader(numbered(), 5, shuffle=False, fresh=True) as loader:
        kept = list(loader.epoch(0))
        assert np.concatenate([y for _, y in kept]).tolist() == list(range(23))
        assert all(np.array_equal(np.rint(x * 255), numbered().images[y]) for x, y in kept)


def test_no_more_is_made_than_there_is_room_for():
    images = Stubborn()
    with Loader(images, 2, shuffle=False, ahead=2) as loader:
        batches = loader.epoch(0)
        next(batches)
        for job in list(loader._queue):
            for piece in job.pieces:
                piece.result()
        assert sorted(images.asked) == [0, 1, 2, 3, 4, 5]


def test_at_the_end_of_an_epoch_the_next_one_is_made():
    images = Stubborn(4)
    with Loader(images, 2, shuffle=False, ahead=1) as loader:
        bits(loader, 0)
        assert [job.position for job in loader._queue] == [(0, 0)]  # every epoch is the same
    with Loader(images, 2, ahead=1) as loader:
        bits(loader, 0)
        assert [job.position for job in loader._queue] == [(1, 0)]


def test_an_error_is_raised_at_the_batch_that_needs_it():
    with Loader(Stubborn(fails=[5]), 2, shuffle=False, threads=2, ahead=4) as loader:
        batches = loader.epoch(0)
        assert [y.tolist() for _, y in islice(batches, 2)] == [[0, 1], [2, 3]]
        with pytest.raises(DataError, match="image 5 is broken"):
            next(batches)


def test_after_an_error_the_batch_can_be_asked_for_again():
    images = Stubborn(fails=[5])
    with Loader(images, 2, shuffle=False) as loader:
        with pytest.raises(DataError):
            bits(loader, 0)
        images.fails.clear()
        assert [y.tolist() for _, y in loader.epoch(0, 2)] == [[4, 5], [6, 7], [8, 9], [10, 11]]


def test_closing_ends_the_threads_and_what_they_had_before_them():
    images = Stubborn(100)
    loader = Loader(images, 10, ahead=9, threads=2)
    with loader:
        next(loader.epoch(0))
        assert threads()
        images.go.clear()
        timer = threading.Timer(0.05, images.go.set)
        timer.start()
    timer.join()
    assert threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        loader.epoch(0)


def test_a_loader_that_is_dropped_leaves_no_thread():
    loader = Loader(numbered(), 5)
    next(loader.epoch(0))
    running = [thread for thread in threading.enumerate() if thread.name.startswith("vdnn-loader")]
    assert running
    del loader
    gc.collect()
    for thread in running:
        thread.join(10)
    assert threads() == []


def test_ctrl_c_while_a_batch_is_waited_for_leaves_the_loader_usable(monkeypatch):
    with Loader(numbered(), 5, seed=1) as loader, Loader(numbered(), 5, seed=1) as whole:
        batches = loader.epoch(0)
        next(batches)

        class Interrupted:
            def result(self):
                raise KeyboardInterrupt

        monkeypatch.setattr(loader._queue[0], "pieces", [Interrupted(), *loader._queue[0].pieces])
        monkeypatch.setattr(loader, "_discard", lambda: monkeypatch.undo() or loader._discard())
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        assert bits(loader, 0, 1) == bits(whole, 0, 1)


def test_a_second_epoch_ends_the_first():
    with Loader(numbered(), 5) as loader:
        first = loader.epoch(0)
        next(first)
        next(loader.epoch(1))
        with pytest.raises(RuntimeError, match="another epoch of this loader was begun"):
            next(first)


# ---- training


def tiny():
    net = vdnn.Network((16, 1, 8, 8), name="tiny")
    x = net.add(vdnn.layers.ReLU(), net.add(vdnn.layers.Conv2d(4, 3), net.input))
    net.add(vdnn.layers.SoftmaxCrossEntropy(), net.add(vdnn.layers.Linear(10), net.add(vdnn.layers.Flatten(), x)))
    return vdnn.Trainer(net, threads=1)


def weights(run):
    return {name: array.tobytes() for group in (run.weights, run.state) for name, array in group.items()}


@pytest.fixture(scope="module")
def few():
    data = digits()
    return data.train_images[:70], data.train_labels[:70]


def test_fit_takes_a_loader_and_gives_the_bits_of_the_same_arrays(few):
    by_arrays, by_loader = tiny(), tiny()
    expected = by_arrays.fit(*few, 2, test=few)
    with Loader(ArraySet(*few), 16, threads=2) as loader, Loader(ArraySet(*few), 16, shuffle=False) as test:
        history = by_loader.fit(loader, epochs=2, test=test)
    assert weights(by_loader) == weights(by_arrays)
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in expected]
    assert [epoch.test.accuracy for epoch in history] == [epoch.test.accuracy for epoch in expected]


def test_training_goes_on_from_a_checkpoint_in_the_middle_of_an_epoch(few, tmp_path):
    def kill(run, loss):
        if run.steps_done == 7:
            run.save(str(tmp_path / "part"))
            raise KeyboardInterrupt

    images = ArraySet(few[0], few[1])
    moved = Transform(crop="random", padding=1)
    whole, part = tiny(), tiny()
    with Loader(images, 16, moved, seed=2) as loader:
        whole.fit(loader, epochs=2)
    with Loader(images, 16, moved, seed=2) as loader, pytest.raises(KeyboardInterrupt):
        part.fit(loader, epochs=2, progress=kill)
    rest = vdnn.Trainer.load(str(tmp_path / "part"))
    assert (rest.epoch, rest.position) == (1, 2)
    with Loader(images, 16, moved, seed=2, threads=3) as loader:
        rest.fit(loader, epochs=2)
    assert weights(rest) == weights(whole)


def test_an_epoch_does_not_go_on_with_other_batches(few, tmp_path):
    def stop(run, loss):
        if run.steps_done == 2:
            run.save(str(tmp_path / "part"))
            raise KeyboardInterrupt

    images, path = ArraySet(*few), str(tmp_path / "part")
    with Loader(images, 16, Transform(crop="random", padding=1)) as loader, pytest.raises(KeyboardInterrupt):
        tiny().fit(loader, epochs=1, progress=stop)
    rest = vdnn.Trainer.load(path)
    with Loader(images, 16, Transform(crop="random", padding=2), seed=3) as other:
        with pytest.raises(vdnn.TrainingError, match=r"^2 batches .* seed was 0, is 3, padding was 1, is 2; to begin"):
            rest.fit(other, epochs=1)
        assert rest.steps_done == 2
        rest.position = 0
        rest.fit(other, epochs=1)  # all of it
    assert rest.steps_done == 7


def test_what_batches_follow_from_may_be_numpys(few, tmp_path):
    shake = {"crop": "random", "padding": np.int64(1), "mean": few[0].mean((0, 2, 3)), "deviation": np.float32(0.5)}
    run = tiny()
    with Loader(ArraySet(*few), 16, Transform(**shake), seed=np.int64(3)) as loader:
        run.fit(loader, epochs=1)
    run.save(str(tmp_path / "saved"))
    assert vdnn.Trainer.load(str(tmp_path / "saved")).recipe == run.recipe
    assert run.recipe["seed"] == 3


def test_the_same_batches_may_be_said_in_another_way(few):
    run = tiny()
    with Loader(ArraySet(*few), 16, Transform(size=8)) as one, Loader(ArraySet(*few), 16, Transform((8, 8))) as other:
        run._take_recipe(one)
        run.position = 1
        run._take_recipe(other)


def test_the_next_epoch_may_have_other_batches(few, tmp_path):
    run = tiny()
    run.fit(*few, 1)
    run.save(str(tmp_path / "whole"))
    rest = vdnn.Trainer.load(str(tmp_path / "whole"))
    rest.fit(*few, 2, shift=1)
    assert rest.recipe["shift"] == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda few: (few[0],), TypeError, "ndarray without labels"),
        (lambda few: (Batches(*few, 32),), ValueError, "batches have 32 samples; tiny takes 1 to 16"),
        (lambda few: (Batches(few[0][:, :, 1:], few[1], 16),), ValueError, r"images have shape \(70, 1, 7, 8\)"),
        (lambda few: (Batches(few[0], few[1] + 5, 16),), ValueError, r"not in \[0, 10\)"),
    ],
)
def test_a_source_that_does_not_suit_is_refused_before_the_first_step(few, make, error, message):
    run = tiny()
    with pytest.raises(error, match=message):
        run.fit(*make(few), epochs=1)
    assert run.steps_done == 0


def test_fit_without_epochs_says_how_it_is_called(few):
    with pytest.raises(TypeError, match=r"fit\(loader, epochs=3\)"):
        tiny().fit(*few)
