"""What a step is given: images and labels are checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vdnn.data.batches import Source
from vdnn.layers.base import Array
from vdnn.network import Network


class InputError(ValueError):
    """Images or labels that a step cannot take; nothing was changed."""


def check_shape(images: Array | Source, net: Network) -> None:
    """Raise InputError unless `images` are floating-point numbers of the network's shape, and at least one."""
    wanted = net.input.shape
    if len(images.shape) != len(wanted) or images.shape[1:] != wanted[1:]:
        raise InputError(f"images have shape {images.shape}; {net.name} takes (1 to {wanted[0]}, {str(wanted[1:])[1:]}")
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"images are {images.dtype}; convert them to {net.input.dtype} and scale them first")
    if not images.shape[0]:
        raise InputError("there are no images")


def check_set(images: Array | Source, labels: Array, net: Network) -> None:
    """Raise InputError unless `images` have the network's shape and there is a label for each."""
    check_shape(images, net)
    if len(labels) != images.shape[0]:
        raise InputError(f"{images.shape[0]} images, but {len(labels)} labels")


def check_images(images: Array, net: Network) -> None:
    """Raise InputError unless `images`, (n, C, H, W), suit the network and are finite in its precision."""
    check_shape(images, net)
    bad: list[int] = []
    for first, part in _pieces(images):
        with np.errstate(over="ignore"):
            finite = np.isfinite(part.astype(net.input.dtype, copy=False))
        bad += (first + np.flatnonzero(~finite.all(axis=1))).tolist()
    if bad:
        raise InputError(f"{len(bad)} of {len(images)} images hold NaN or infinity, the first at index {bad[0]}")


def _pieces(images: Array, elements: int = 1 << 16) -> Iterator[tuple[int, Array]]:
    """(index of the first, so many images as rows): a few at a time, since a mask of all would be memory of size."""
    count = max(1, elements // max(1, images[0].size))
    for first in range(0, len(images), count):
        part = images[first : first + count]
        yield first, part.reshape(len(part), -1)


def check_labels(labels: Array, shape: tuple[int, ...], dtype: str, net: Network) -> None:
    """Raise InputError unless `labels` have this shape, and are classes of the network or, for a `dtype` that is no
    integer, finite.
    """
    if labels.shape != shape:
        raise InputError(f"labels have shape {labels.shape}; this batch takes {shape}")
    if not dtype.startswith("int"):
        with np.errstate(over="ignore"):
            finite = np.isfinite(labels.astype(dtype))
        if not finite.all():
            raise InputError(f"{int((~finite).sum())} labels are NaN or infinity")
        return
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are {labels.dtype}; they are classes, so integers")
    classes = net.scores.shape[1]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"{len(wrong)} of {len(labels)} labels are not in [0, {classes}): the first is {labels.flat[first]} "
            f"at index {first}"
        )
