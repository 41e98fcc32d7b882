"""vdnn train --data: sets and folders of one's own, and what is wrong with them."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from test_dataset_files import archive, cifar_files, make_mnist

from vdnn.__main__ import main

NET = """
import vdnn

def net(batch, image=(1, 5, 4), classes=10):
    n = vdnn.Network((batch, *image), name="tiny")
    x = n.add(vdnn.layers.ReLU(), n.add(vdnn.layers.Conv2d(2, 3), n.input))
    n.add(vdnn.layers.SoftmaxCrossEntropy(), n.add(vdnn.layers.Linear(classes), n.add(vdnn.layers.Flatten(), x)))
    return n

def colour(batch):
    return net(batch, (3, 16, 16), 2)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with small networks and MNIST in it, which is the current one."""
    (tmp_path / "small.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "small", raising=False)
    make_mnist(tmp_path, 12, 4)
    return tmp_path


def train(*arguments):
    result = CliRunner().invoke(main, ["train", *map(str, arguments), "--threads", "1"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def figures(*arguments):
    result = train(*arguments, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def pictures(here):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for label in ("ant", "bee"):
        (here / "pictures" / label).mkdir(parents=True)
        for i in range(5):
            pixels = np.full((20, 30, 3), 20 * i, np.uint8)
            image.fromarray(pixels).save(here / "pictures" / label / f"{i}.png")
    return here / "pictures"


@pytest.mark.parametrize("options", [(), ("--augment",)])
def test_mnist_is_learnt_from_a_folder(options):
    found = figures("small:net", "--data", "mnist:.", "--batch", 4, *options)
    assert (found["data"], found["train_samples"], found["test_samples"], found["steps"]) == ("mnist", 12, 4, 3)


def test_a_folder_of_pictures_is_split_into_four_fifths_and_a_fifth(pictures):
    found = figures("small:colour", "--data", "images:pictures", "--batch", 4, "--augment", "--cache", "1MiB")
    assert (found["data"], found["train_samples"], found["test_samples"]) == ("images", 8, 2)


def test_folders_called_train_and_val_are_taken_as_such(pictures):
    (pictures / "bee").rename(pictures / "val")
    (pictures / "ant").rename(pictures / "train")
    for part in ("train", "val"):
        for i, name in enumerate(("x", "y")):
            (pictures / part / name).mkdir()
            (pictures / part / f"{i}.png").rename(pictures / part / name / "a.png")
    found = figures("small:colour", "--data", "images:pictures", "--batch", 2)
    assert (found["train_samples"], found["test_samples"]) == (2, 2)


def test_a_folder_called_train_alone_is_split(pictures):
    (pictures / "train").mkdir()
    for name in ("ant", "bee"):
        (pictures / name).rename(pictures / "train" / name)
    found = figures("small:colour", "--data", "images:pictures", "--batch", 4)
    assert (found["train_samples"], found["test_samples"]) == (8, 2)
    (pictures / "testing").mkdir()
    result = train("small:colour", "--data", "images:pictures")
    assert "has a folder train beside testing; pictures to test with are looked for in test, val" in result.stderr


def test_training_stopped_and_resumed_gives_the_weights_of_training_in_one_go(here):
    from safetensors.numpy import load_file

    options = ("small:net", "--data", "mnist:.", "--augment")
    train(*options, "--batch", 4, "--epochs", 2, "--save", "whole")
    train(*options, "--batch", 4, "--epochs", 1, "--save", "part")
    train(*options, "--epochs", 2, "--resume", "part", "--save", "part")
    whole, part = load_file("whole"), load_file("part")
    assert all(np.array_equal(whole[name], part[name]) for name in whole)


def test_a_network_of_vdnns_is_made_for_the_images_and_classes(here, monkeypatch):
    from vdnn.data import cifar10

    (here / "c.tar.gz").write_bytes(archive(cifar_files((10,), 2)))
    monkeypatch.setattr("vdnn.commands.datasets.READ", {"cifar10": lambda path: cifar10(path, records=2)})
    found = figures("digits_vgg", "--data", "cifar10:c.tar.gz", "--batch", 5)
    assert (found["train_samples"], found["test_samples"]) == (10, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnst:/a/long/way/to/mnist"], "no images 'mnst' (did you mean mnist:PATH?); there are digits"),
        (["--data", "mnist"], "did you mean mnist:PATH?"),
        (["--data", "mnist:nowhere"], "there is no nowhere"),
        (["--data", "cifar10:."], "no cifar-10-batches-bin in ."),
        (["--data", "images:nowhere"], "nowhere is no folder"),
        (["--data", "mnist:.", "--cache", "1GiB"], "--cache is for --data images:PATH"),
        (["--data", "mnist:.", "--samples", "8"], "--samples is for --data synthetic"),
        (["--augment"], "--augment is for --data mnist:PATH"),
        (["--data", "images:pictures", "--cache", "lots"], "lots"),
    ],
)
def test_a_wrong_command_is_refused_with_status_2(pictures, arguments, message):
    result = train("small:net", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_images_that_a_network_cannot_take_are_refused_with_both_shapes():
    result = train("small:colour", "--data", "mnist:.")
    assert result.exit_code == 2
    assert "images are 1x5x4, of 10 classes; small takes 3x16x16" in result.stderr.replace("tiny", "small")


def test_a_broken_picture_ends_training_with_its_name_and_status_1(pictures):
    (pictures / "ant" / "1.png").write_bytes(b"rubbish")
    result = train("small:colour", "--data", "images:pictures", "--batch", 4, "--epochs", 1)
    assert result.exit_code == 1
    assert "1.png (7 bytes) cannot be decoded" in result.stderr
