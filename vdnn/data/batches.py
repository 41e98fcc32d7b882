"""batches: images and labels in an order that needs no memory of its own, and what training asks of any such source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vdnn.data import keys

Recipe = dict[str, Any] | None
Pairs = Iterator[tuple[NDArray[Any], NDArray[Any]]]  # images (n, C, H, W), labels (n, ...)


class Source(Protocol):
    """What `Trainer.fit` and `Trainer.evaluate` take in place of arrays: Batches, a Loader, or a class of your own.

    batch, drop_last   samples of a batch, and whether a smaller last one is left out
    labels             (N, ...) of all images, in no order of an epoch
    recipe             where there is one, what order and chance follow from, {what: plain data or arrays}: a checkpoint
                       has it, and training does not go on within an epoch by another
    """

    batch: int
    drop_last: bool

    @property
    def labels(self) -> NDArray[Any]:
        """(N, ...): of all images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all images together, (N, C, H, W)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images as they come: a floating-point type."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Pairs:
        """The batches of an epoch from batch `start` on, the same whenever they are asked for.

        Each is good until the next one is asked for.
        """


class _Ordered(Protocol):
    batch: int
    seed: int
    shuffle: bool
    drop_last: bool

    @property
    def shape(self) -> tuple[int, ...]: ...


def recipe_of(source: _Ordered) -> dict[str, Any]:
    """What the order of all sources here follows from."""
    names = ("batch", "seed", "shuffle", "drop_last")
    return {"shape": list(source.shape), **{name: getattr(source, name) for name in names}}


def plain_recipe(source: Source) -> Recipe:
    """The source's recipe as JSON has it; None if it has none."""
    recipe = getattr(source, "recipe", None)
    return None if recipe is None else json.loads(json.dumps(recipe, default=lambda value: value.tolist()))


def other_recipe(before: Recipe, now: Recipe) -> str:
    """In words, how the batches of a source differ from those of one before; "" if they do not, or nobody knows."""
    if before is None or now is None:
        return ""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)


def sizes_in(samples: int, batch: int, drop_last: bool) -> list[int]:
    """The samples of each batch of an epoch: all have `batch`, the last one what is left."""
    full, rest = divmod(samples, batch)
    return [batch] * full + [rest] * (rest > 0 and not drop_last)


def check_position(epoch: int, start: int, count: int) -> None:
    """Raise ValueError unless there is a batch `start`, or the end, in an epoch of `count` batches."""
    if epoch < 0 or not 0 <= start <= count:
        raise ValueError(f"no batch {start} in epoch {epoch}: epochs count from 0 and have {count} batches")


class Batches:
    """Images and labels in batches, in an order that depends on (seed, epoch) and on nothing that happened before.

    So a position in training is two numbers, epoch and batch, and training resumed there sees the same bits:

    >>> batches = Batches(images, labels, 32, seed=0)
    >>> for x, y in batches.epoch(3, start=17): ...            # the rest of epoch 3

    shuffle    a new order in each epoch; otherwise the order given
    drop_last  leave out a last batch that is smaller than the others
    shift      move each image by up to so many pixels, up or down and left or right, anew in each epoch; what moves in
               is `background`
    """

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[Any],
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        shift: int = 0,
        background: float = 0.0,
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} labels")
        if batch < 1 or seed < 0:
            raise ValueError(f"batch must be at least 1, seed at least 0; got batch {batch}, seed {seed}")
        if len(images) < (batch if drop_last else 1):
            raise ValueError(f"{len(images)} images make no batch of {batch}")
        if shift and (images.ndim != 4 or not 0 < shift < min(images.shape[2:])):
            raise ValueError(f"cannot shift images {images.shape} by {shift}: need (N, C, H, W), 0 < shift < H and W")
        self.images = images
        self.labels = labels
        self.batch = batch
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.shift = shift
        self.background = background

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all images together, (N, C, H, W)."""
        return self.images.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images."""
        return self.images.dtype

    @property
    def recipe(self) -> dict[str, Any]:
        """What the batches follow from, besides the images themselves."""
        return recipe_of(self) | {"shift": self.shift, "background": self.background}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(sizes_in(len(self.images), self.batch, self.drop_last))

    def epoch(self, epoch: int, start: int = 0) -> Pairs:
        """The batches of an epoch from batch `start` on.  They are copies; the caller may change them."""
        check_position(epoch, start, len(self))
        order = self.order(epoch)
        moves = self._moves(epoch)
        return (self._take(order[i * self.batch : (i + 1) * self.batch], moves) for i in range(start, len(self)))

    def order(self, epoch: int) -> NDArray[np.intp]:
        """(N,): the indices of an epoch's images in the order in which they come."""
        return keys.order(self.seed, epoch, len(self.images), self.shuffle)

    def _moves(self, epoch: int) -> NDArray[np.int64] | None:
        """(N, 2): by how many pixels each image of the set moves down and right in this epoch."""
        if not self.shift:
            return None
        raw = keys.raw(self.seed, keys.SHIFT, epoch, 2 * len(self.images)) % np.uint64(2 * self.shift + 1)
        return raw.astype(np.int64).reshape(-1, 2) - self.shift

    def _take(self, chosen: NDArray[np.intp], moves: NDArray[np.int64] | None) -> tuple[NDArray[Any], NDArray[Any]]:
        images = self.images[chosen]
        if moves is not None:
            for i, (down, right) in enumerate(moves[chosen].tolist()):
                images[i] = shifted(images[i], down, right, self.background)
        return images, self.labels[chosen]


def shifted(image: NDArray[Any], down: int, right: int, background: float = 0.0) -> NDArray[Any]:
    """A copy of an image (C, H, W) moved by whole pixels; what moves in is `background`."""
    _, H, W = image.shape
    moved = np.full_like(image, background)
    source = image[:, max(0, -down) : H - max(0, down), max(0, -right) : W - max(0, right)]
    moved[:, max(0, down) : H - max(0, -down), max(0, right) : W - max(0, -right)] = source
    return moved
