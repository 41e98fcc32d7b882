"""What `vdnn train --data` names: images that need no download, or those of a file or folder of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from vdnn import data as sets
from vdnn.data import Batches, ImageFolder, ImageSet, Loader, Source, Subset, Transform
from vdnn.naming import among
from vdnn.network import Network
from vdnn.units import parse_bytes

DIGITS = (1, 8, 8)
MADE = ("digits", "synthetic")
READ: dict[str, Callable[[str], Any]] = {
    "mnist": sets.mnist,
    "cifar10": sets.cifar10,
    "cifar100": sets.cifar100,
    "images": ImageFolder,
}
KINDS = (*MADE, *(f"{kind}:PATH" for kind in READ))
SHORT = 256  # pixels of a picture's shorter side for 224 of the network's
TESTS = ("test", "val", "valid", "validation")  # folders beside one that is called train


@dataclass(frozen=True)
class Data:
    """Batches of images to train on and to test with."""

    kind: str
    train: Source
    test: Source

    def __str__(self) -> str:
        shape = "x".join(map(str, self.train.shape[1:]))
        counts = f"{self.train.shape[0]} to train on, {self.test.shape[0]} to test with"
        return f"{self.kind} images {shape}, {counts}"


class Files(NamedTuple):
    """A data set from the disk, what a network of vdnn's must be made with to take it, and how to open a folder of
    pictures again: for so many channels and pixels of the shorter side.
    """

    kind: str
    train: ImageSet
    test: ImageSet
    network: dict[str, Any]
    again: Callable[[int, int], tuple[ImageSet, ImageSet]] | None = None


def opened(asked: str | None, cache: str | None) -> Files | None:
    """The data set that "mnist:FOLDER" and the like name; None for images that are made.  Raises DataError."""
    kind, _, path = (asked or "").partition(":")
    if kind not in READ or not path:
        _check_kind(asked, kind)
        _refuse("--cache", cache, "images:PATH")
        return None
    if kind == "images":
        again = partial(_folders, Path(path), cache or 0)
        train, test = again(3, SHORT)
        return Files(kind, train, test, {"classes": len(train.classes)}, again)
    _refuse("--cache", cache, "images:PATH")
    read = READ[kind](path)
    return Files(
        kind, read.train, read.test, {"image": read.train.images.shape[1:], "classes": len(read.train.classes)}
    )


def _check_kind(asked: str | None, kind: str) -> None:
    if asked in (None, *MADE):
        return
    raise click.UsageError(f"--data {asked}: there are no images {kind!r}{among(kind, KINDS)}")


def _refuse(option: str, value: object, where: str) -> None:
    if value:
        raise click.UsageError(f"{option} is for --data {where}")


def _folders(root: Path, cache: str | int, channels: int, short: int) -> tuple[ImageSet, ImageSet]:
    """root/train and root/test or root/val, or else four fifths and a fifth of the pictures in root or root/train."""
    tests = [name for name in TESTS if (root / name).is_dir()]
    if (root / "train").is_dir() and tests:
        share = parse_bytes(cache, least=0) // 5  # of the cache, for the test pictures: mostly there are fewer
        train = ImageFolder(root / "train", short, channels=channels, cache=4 * share)
        return train, ImageFolder(root / tests[0], short, channels=channels, cache=share, classes=train.classes)
    if (root / "train").is_dir():
        others = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name != "train" and p.name[0] != ".")
        if others:
            raise sets.DataError(
                f"{root} has a folder train beside {', '.join(others[:6])}; pictures to test with are looked for in "
                f"{', '.join(TESTS)}"
            )
        root = root / "train"
    whole = ImageFolder(root, short, channels=channels, cache=cache)
    test = np.arange(len(whole)) % 5 == 4
    if not test.any():
        raise sets.DataError(f"{root} has {len(whole)} pictures; of 5 and more, every fifth is to test with")
    return Subset(whole, np.flatnonzero(~test)), Subset(whole, np.flatnonzero(test))


# ---- batches for a network


def make_data(
    net: Network,
    asked: str | None,
    files: Files | None,
    samples: int | None,
    seed: int,
    augment: bool,
    stack: ExitStack,
) -> Data:
    """The data for a network, in its batches; loaders end with `stack`."""
    if net.labels is None or net.labels.shape != (net.batch,) or len(net.scores.shape) != 2:
        raise click.UsageError(f"{net.name} tells no classes apart; train it in Python, with vdnn.Trainer")
    if files is not None:
        if samples is not None:
            raise click.UsageError("--samples is for --data synthetic")
        return _loaders(net, files, seed, augment, stack)
    _refuse("--augment", augment, ", ".join(KINDS[2:]))
    return _made(net, asked, samples, seed)


def _made(net: Network, kind: str | None, samples: int | None, seed: int) -> Data:
    """Digits or synthetic images; a quarter as many of these as in training test it."""
    shape, classes = net.input.shape[1:], net.scores.shape[1]
    suits = shape == DIGITS and classes >= 10
    kind = kind or ("digits" if suits and samples is None else "synthetic")
    if kind == "digits":
        if samples is not None:
            raise click.UsageError("--samples is for --data synthetic; there are 1438 digits to train on")
        if not suits:
            takes = "x".join(map(str, shape))
            raise click.UsageError(
                f"--data digits: they are 1x8x8, of 10 classes; {net.name} takes {takes}, of {classes} classes"
            )
        train, train_labels, test, test_labels = sets.digits()
    else:
        count = samples or 4 * net.batch
        images, labels = sets.synthetic(shape, classes, count + -(-count // 4), seed)
        train, train_labels, test, test_labels = images[:count], labels[:count], images[count:], labels[count:]
    batches = Batches(train, train_labels, net.batch, seed)
    return Data(kind, batches, Batches(test, test_labels, net.batch, shuffle=False))


def _loaders(net: Network, files: Files, seed: int, augment: bool, stack: ExitStack) -> Data:
    channels, height, width = net.input.shape[1:]
    if files.again is not None and channels in (1, 3):
        short = -(-max(height, width) * SHORT // 224)  # the usual proportion
        train_set, test_set = files.again(channels, short)
        files = files._replace(train=train_set, test=test_set)
    takes, classes = "x".join(map(str, net.input.shape[1:])), net.scores.shape[1]
    small = files.train.size is not None and (files.train.size[0] > height or files.train.size[1] > width)
    if files.train.channels != channels or small or len(files.train.classes) > classes:
        has = "x".join(map(str, (files.train.channels, *(files.train.size or ()))))
        raise click.UsageError(
            f"--data {files.kind}: images are {has}, of {len(files.train.classes)} classes; "
            f"{net.name} takes {takes}, of {classes} classes"
        )
    plain = Transform((height, width), **_normalised(files))
    transform = _augmented(plain, files.kind) if augment else plain
    threads = max(1, (os.cpu_count() or 1) // 2)
    train = Loader(files.train, net.batch, transform, seed=seed, threads=threads)
    test = Loader(files.test, net.batch, plain, shuffle=False, threads=threads)
    return Data(files.kind, stack.enter_context(train), stack.enter_context(test))


def _normalised(files: Files) -> dict[str, Any]:
    """Mean and deviation: of the images to train on; of ImageNet for pictures, which are not all read for it."""
    if isinstance(files.train, sets.ArraySet):
        mean, deviation = files.train.statistics()
        return {"mean": mean, "deviation": tuple(value or 1.0 for value in deviation)}
    if files.train.channels == 1:
        return {"mean": sum(sets.IMAGENET_MEAN) / 3, "deviation": sum(sets.IMAGENET_DEVIATION) / 3}
    return {"mean": sets.IMAGENET_MEAN, "deviation": sets.IMAGENET_DEVIATION}


def _augmented(plain: Transform, kind: str) -> Transform:
    """What is usual: digits are moved a little, CIFAR's images moved and mirrored, pictures cut and mirrored."""
    if kind == "images":
        return replace(plain, crop="resized", flip=True)
    return replace(plain, crop="random", padding=2 if kind == "mnist" else 4, flip=kind != "mnist")
