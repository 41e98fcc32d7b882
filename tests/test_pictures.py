"""Folders of pictures: what is made of each kind of file, what is refused, and what caches keep."""

import io

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from vdnn.data import DataError, ImageFolder, Loader, Transform  # noqa: E402
from vdnn.data.decode import Decoding  # noqa: E402

RED, WHITE, GREY = [255, 0, 0], [255, 255, 255], [128, 128, 128]


def read(path, **options):
    return Decoding(**{"short": None, **options}).read(path)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Two classes of pictures of different sizes: the first of a class is (10 * class, 0, 0), then (.., 1, 0)."""
    for label, name in enumerate(("ant", "bee")):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", Image.new("RGB", (40 + 10 * i, 30), (10 * label, i, 0)))
    return tmp_path


def test_classes_are_the_folders_and_pictures_come_in_the_order_of_their_names(pictures):
    (pictures / "bee" / "notes.txt").write_text("no picture")
    (pictures / ".cache").mkdir()
    found = ImageFolder(pictures, 12)
    assert (found.classes, found.labels.tolist()) == (("ant", "bee"), [0, 0, 0, 1, 1, 1])
    assert [found.image(i)[:, 0, 0].tolist() for i in (0, 2, 4)] == [[0, 0, 0], [0, 2, 0], [10, 1, 0]]
    assert found.image(1).shape == (3, 12, 20)
    assert "1 files of other kinds" in repr(found)


def test_pictures_in_folders_below_a_class_are_of_it(pictures):
    save(pictures / "ant" / "z" / "deep.bmp", Image.new("RGB", (4, 4)))
    assert ImageFolder(pictures).labels.tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (255, 0, 0), RED),
        ("L", 128, GREY),
        ("1", 1, WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("LA", (128, 255), GREY),
        ("I;16", 0x80FF, GREY),
    ],
)
def test_png_of_any_kind_becomes_red_green_and_blue(tmp_path, mode, colour, expected):
    path = save(tmp_path / "a.png", Image.new(mode, (3, 2), colour))
    assert read(path).tolist() == [[expected] * 3] * 2


def test_a_palette_with_a_transparent_colour_lies_on_the_background(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", image, transparency=1)
    assert read(path, background=(1, 2, 3)).tolist() == [[RED, [1, 2, 3]]]


def test_cmyk_becomes_red_green_and_blue(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(read(path).astype(int) - RED).max() <= 3


def test_one_channel_is_luma_of_colours_and_grey_as_it_is(tmp_path):
    red = save(tmp_path / "red.png", Image.new("RGB", (1, 1), (255, 0, 0)))
    grey = save(tmp_path / "grey.png", Image.new("L", (1, 1), 77))
    assert [read(path, channels=1).tolist() for path in (red, grey)] == [[[[76]]], [[[77]]]]


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels), exif=exif, quality=100)
    turned = read(path)
    assert turned.shape == (32, 16, 3)
    assert turned[:14].min() > 240
    assert turned[18:].max() < 15


def test_exif_that_cannot_be_read_is_passed_over(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (255, 0, 0)), exif=b"Exif\0\0rubbish", quality=100)
    assert read(path).shape == (8, 8, 3)


def test_floats_are_refused_since_nobody_knows_which_is_white(tmp_path):
    path = save(tmp_path / "a.tiff", Image.new("F", (2, 2), 0.5))
    with pytest.raises(DataError, match=r"a\.tiff: its pixels are floats"):
        read(path)


def test_large_jpegs_are_decoded_small_and_have_the_size_asked_for(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (1000, 700), (255, 0, 0)), quality=100)
    pixels = read(path, short=64)
    assert pixels.shape == (64, 91, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 3


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "bmp"])
def test_every_truncation_of_a_picture_is_refused_or_changes_nothing(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, {"jpg": "jpeg"}.get(ending, ending))
    whole, path, refused = out.getvalue(), tmp_path / f"a.{ending}", 0
    path.write_bytes(whole)
    expected = read(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            assert np.array_equal(read(path), expected)  # what follows the last pixel may be missing
        except DataError:
            refused += 1
    assert refused > len(whole) // 7 - 4


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (50, 40)))
    with pytest.raises(DataError, match=r"50 x 40 pixels, which it has, are more than 1999"):
        read(path, pixel_limit=1999)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.bmp"
    out = io.BytesIO()
    Image.new("1", (8, 8)).save(out, "bmp")
    content = bytearray(out.getvalue())
    content[18:26] = (60000).to_bytes(4, "little") * 2  # width and height in the header
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.bmp"):
        read(path)


def test_a_strip_that_would_be_blown_up_beyond_the_limit_is_refused(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (10000, 1)))
    with pytest.raises(DataError, match="resized to a shorter side of 256 would have"):
        read(path, short=256)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "has no folders, and 0 files; pictures lie in a folder for each class"),
        (lambda root: (root / "ant").mkdir(), "ant has no picture"),
        (lambda root: (root / "a.jpg").write_bytes(b""), "has no folders, and 1 files"),
    ],
)
def test_a_folder_without_pictures_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        ImageFolder(tmp_path)


def test_links_to_folders_are_followed_but_not_in_a_circle(pictures, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "9.png", Image.new("RGB", (20, 20)))
    (pictures / "ant" / "more").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(pictures / "ant")
    found = ImageFolder(pictures)
    assert [path.name for path in found.paths] == ["0.png", "1.png", "2.png", "9.png", "0.png", "1.png", "2.png"]


def test_a_class_that_was_not_trained_is_refused(pictures):
    with pytest.raises(DataError, match=r"\['bee'\], which are not of \['ant'\]"):
        ImageFolder(pictures, classes=("ant",))


# ---- caches


@pytest.mark.parametrize("options", [{"cache": "1MiB"}, {"cache_folder": "kept"}, {"cache": 2000}])
def test_caches_change_no_bit(pictures, monkeypatch, options):
    monkeypatch.chdir(pictures.parent)
    plain, kept = ImageFolder(pictures, 12), ImageFolder(pictures, 12, **options)
    for _ in range(2):
        assert all(np.array_equal(plain.image(i), kept.image(i)) for i in range(6))


def test_a_memory_cache_stays_within_its_bytes(pictures):
    kept = ImageFolder(pictures, 12, cache=2000)
    for i in range(6):
        kept.image(i)
    assert kept.memory.used == 3 * 12 * (16 + 20 + 16)  # of pictures 0, 1 and 3; 24 pixels wide is too much


def test_a_picture_in_the_cache_folder_is_not_decoded_again_until_it_changes(pictures, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("kept")
    ImageFolder(pictures, 12, cache_folder=folder).image(0)
    decoded = []
    whole = Decoding.read
    monkeypatch.setattr(Decoding, "read", lambda self, path: decoded.append(path.name) or whole(self, path))
    again = ImageFolder(pictures, 12, cache_folder=folder)
    assert again.image(0)[:, 0, 0].tolist() == [0, 0, 0]
    assert decoded == []
    save(pictures / "ant" / "0.png", Image.new("RGB", (41, 30), (9, 9, 9)))
    assert again.image(0)[:, 0, 0].tolist() == [9, 9, 9]
    assert decoded == ["0.png"]


def test_a_damaged_file_in_the_cache_folder_is_made_again(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    expected = ImageFolder(pictures, 12, cache_folder=folder).image(0).copy()
    (kept,) = folder.rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(ImageFolder(pictures, 12, cache_folder=folder).image(0), expected)
    assert kept.stat().st_size > 500


@pytest.mark.parametrize("damage", ["a header that is none", "a huge shape", "an archive", "one byte less"])
def test_whatever_is_in_the_cache_folder_does_no_harm(pictures, tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("kept")
    expected = ImageFolder(pictures, 12, cache_folder=folder).image(0).copy()
    (kept,) = folder.rglob("*.npy")
    whole = kept.read_bytes()
    if damage == "a header that is none":
        kept.write_bytes(whole[:60] + bytes([whole[60] ^ 0x80]) + whole[61:])
    elif damage == "a huge shape":
        kept.write_bytes(whole.replace(b"(12, 16, 3), }    ", b"(99999, 99999, 3),}"))
        assert kept.read_bytes() != whole
    elif damage == "an archive":
        with kept.open("wb") as file:
            np.savez(file, a=np.ones(3))
    else:
        kept.write_bytes(whole[:-1])
    assert np.array_equal(ImageFolder(pictures, 12, cache_folder=folder).image(0), expected)


# ---- loaded


@pytest.mark.parametrize("crop", ["centre", "random", "resized"])
def test_pictures_of_different_sizes_come_as_one_batch(pictures, crop):
    with Loader(ImageFolder(pictures, 16), 6, Transform(12, crop, flip=crop != "centre"), shuffle=False) as loader:
        ((x, y),) = loader.epoch(0)
        assert x.shape == (6, 3, 12, 12)
        assert np.array_equal(x[:, 0, 5, 5], np.repeat(np.float32([0, 10 / 255]), 3))
        assert y.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_broken_picture_is_named_at_the_batch_that_needs_it_and_tried_again(pictures):
    broken = pictures / "bee" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with Loader(ImageFolder(pictures, 16), 2, Transform(12), shuffle=False, ahead=3) as loader:
        batches = loader.epoch(0)
        assert next(batches)[1].tolist() == [0, 0]
        with pytest.raises(DataError, match=r"0\.png \(40 bytes\) cannot be decoded"):
            next(batches)
        broken.write_bytes(whole)
        assert [y.tolist() for _, y in loader.epoch(0, start=1)] == [[0, 1], [1, 1]]
