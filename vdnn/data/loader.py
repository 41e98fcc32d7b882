"""loader: batches of a set of images, read, decoded and changed by threads while the step before runs.

The caller's thread hands out work and waits; threads write into a ring of batches, each image into its own place, so
that the result does not depend on which thread does what, when, or on how many there are:

    ring     [ being used ][ ready ][ being filled ]        ahead + 1 batches, taken once
    work      batch b       b + 1    b + 2 in pieces, as many as threads
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdnn.data import keys
from vdnn.data.batches import Pairs, check_position, recipe_of, sizes_in
from vdnn.data.imagesets import ArraySet, ImageSet
from vdnn.data.ring import Job, Order, Slot, pieces
from vdnn.data.transform import WORDS, Transform, View

IN_CACHE = 1 << 18  # bytes of images that are made at once where they need not be made one by one


class Loader:
    """Batches of `images`, made in the background; a Source for Trainer.fit and Trainer.evaluate.

    >>> with Loader(train, 128, Transform(crop="random", padding=4, flip=True)) as loader:
    ...     trainer.fit(loader, epochs=10)

    Order and chance depend on (seed, epoch) and on (seed, epoch, index), whatever the number of threads, so that
    `epoch(3, start=17)` gives the same bits in any process.  What comes are (n, C, H, W) of float32 and (n,) of int64;
    **both are used again once the next batch is asked for**: copy what you keep, or say fresh=True.

    images     an ImageSet: ArraySet, ImageFolder, Subset or your own
    transform  what is done to each image; default: normalisation by nothing, so uint8 comes out from 0 to 1
    shuffle    a new order in each epoch; otherwise that of the set
    drop_last  leave out a last batch that is smaller than the others
    threads    that decode; Pillow and NumPy work without Python's lock for most of it
    ahead      batches that are made before they are asked for; at the end of an epoch those of the next
    fresh      give new arrays for each batch

    `nbytes` is what the loader holds.  Each thread has besides it the one image that it works on.  What goes wrong in
    a thread is raised where its batch is asked for; asked for again, it is tried again.  `close`, or the end of a with
    block, ends the threads; one loader gives one epoch at a time.
    """

    def __init__(
        self,
        images: ImageSet,
        batch: int,
        transform: Transform | None = None,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        threads: int = 1,
        ahead: int = 2,
        fresh: bool = False,
    ) -> None:
        if batch < 1 or seed < 0 or threads < 1 or ahead < 1:
            raise ValueError(
                f"batch, threads and ahead must be at least 1, seed at least 0; got batch={batch}, threads={threads}, "
                f"ahead={ahead}, seed={seed}"
            )
        if len(images) < (batch if drop_last else 1):
            raise ValueError(f"{len(images)} images make no batch of {batch}")
        self.images, self.batch, self.seed, self.shuffle, self.drop_last = images, batch, seed, shuffle, drop_last
        self.threads, self.ahead, self.fresh = threads, ahead, fresh
        self.transform = transform or Transform()
        self.view: View = self.transform.on(images)
        # images of the right size in one array need not be taken one by one
        self._whole = images if isinstance(images, ArraySet) and self.view.keeps(images.size) else None
        self._sizes = sizes_in(len(images), batch, drop_last)
        self._free = [self._slot() for _ in range(ahead + 1)]
        self._slots = tuple(self._free)
        self._used: Slot | None = None  # by the caller
        self._queue: deque[Job] = deque()
        self._next = (0, 0)  # the first position that is not in the queue
        self._orders: list[Order] = []
        self._pool: ThreadPoolExecutor | None = None
        self._turn = 0
        self._closed = False

    # ---- what it is

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,): of all images."""
        return self.images.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all images together as they come, (N, C, H, W)."""
        return (len(self.images), *self.view.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images as they come."""
        return np.dtype(np.float32)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the batches follow from, besides the images themselves."""
        return recipe_of(self) | self.view.recipe

    @property
    def nbytes(self) -> int:
        """Bytes of the ring, and of the order and the random words of two epochs."""
        arrays = [a for slot in self._slots for a in (slot.images, slot.labels, slot.gathered) if a is not None]
        words = WORDS if self.transform.is_random else 0
        return sum(a.nbytes for a in arrays) + 2 * 8 * (1 + words) * len(self.images)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._sizes)

    def order(self, epoch: int) -> NDArray[np.intp]:
        """(N,): the indices of an epoch's images in the order in which they come."""
        return keys.order(self.seed, epoch, len(self.images), self.shuffle)

    # ---- batches

    def epoch(self, epoch: int, start: int = 0) -> Pairs:
        """The batches of an epoch from batch `start` on.

        Raises DataError, when the batch is asked for, if one of its images cannot be read.
        """
        check_position(epoch, start, len(self))
        if self._closed:
            raise RuntimeError("this loader was closed")
        self._turn += 1
        return self._batches(epoch, start, self._turn)

    def _batches(self, epoch: int, start: int, turn: int) -> Pairs:
        for number in range(start, len(self)):
            self._check(turn)
            self._aim((epoch, number))
            job = self._queue[0]
            try:
                for piece in job.pieces:
                    piece.result()
            except BaseException:
                self._discard()
                raise
            self._used = self._queue.popleft().slot
            self._submit()
            images, labels = self._used.images[: job.samples], self._used.labels[: job.samples]
            yield (images.copy(), labels.copy()) if self.fresh else (images, labels)

    def _check(self, turn: int) -> None:
        """Raise RuntimeError if another epoch was begun, or the loader was closed."""
        if self._closed or turn != self._turn:
            raise RuntimeError("this loader was closed" if self._closed else "another epoch of this loader was begun")

    def _aim(self, position: tuple[int, int]) -> None:
        """Have the batch at that position, and those after it, under way; what was given before is free again."""
        if self._used is not None:
            self._free.append(self._used)
            self._used = None
        position = self._known(position)
        if not self._queue or self._queue[0].position != position:
            self._discard()
            self._next = position
        self._submit()

    def _known(self, position: tuple[int, int]) -> tuple[int, int]:
        """Where every epoch is the same, the first one stands for all."""
        return position if self.shuffle or self.transform.is_random else (0, position[1])

    def _submit(self) -> None:
        """Hand out batches as far ahead as there may be."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="vdnn-loader")
        while self._free and len(self._queue) < self.ahead:
            epoch, number = self._next
            order = self._order(epoch)
            job = Job((epoch, number), self._free.pop(), self._sizes[number])
            for piece in pieces(job.samples, self.threads):
                first = number * self.batch
                chosen = order.indices[first + piece.start : first + piece.stop]
                job.pieces.append(self._pool.submit(self._fill, job, piece, chosen, order.words))
            self._queue.append(job)
            self._next = self._known((epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0))

    def _fill(self, job: Job, piece: slice, chosen: NDArray[np.intp], words: NDArray[np.uint64] | None) -> None:
        """Write a piece of a batch; in a thread of the pool."""
        images, labels = job.slot.images[piece], job.slot.labels[piece]
        np.take(self.labels, chosen, out=labels, mode="clip")  # no index is out of range; "raise" would copy
        if self._whole is not None:
            self._fill_whole(job, piece, self._whole.images, chosen)
            return
        own = [None] * len(chosen) if words is None else words[chosen].tolist()
        for target, index, drawn in zip(images, chosen.tolist(), own, strict=True):
            if job.stop.is_set():
                return
            self.view.place(target, self.images.image(index), drawn)
            self.view.normalise(target)  # while it is in the cache

    def _fill_whole(self, job: Job, piece: slice, source: NDArray[Any], chosen: NDArray[np.intp]) -> None:
        """Write a piece of a batch of images that only need to be normalised."""
        images = job.slot.images[piece]
        gathered = images if job.slot.gathered is None else job.slot.gathered[piece]
        few = max(1, IN_CACHE // images[0].nbytes)
        for first in range(0, len(chosen), few):
            if job.stop.is_set():
                return
            part = slice(first, first + few)
            np.take(source, chosen[part], axis=0, out=gathered[part], mode="clip")
            if gathered is not images:
                np.copyto(images[part], gathered[part], casting="same_kind")
            self.view.normalise(images[part])

    def _order(self, epoch: int) -> Order:
        """The epoch's order; of two epochs they are kept, since batches of the next are made in the one before."""
        for order in self._orders:
            if order.epoch == epoch:
                return order
        words, count = None, len(self.images)
        if self.transform.is_random:
            words = keys.raw(self.seed, keys.VIEW, epoch, WORDS * count).reshape(count, WORDS)
        self._orders = [*self._orders[-1:], Order(epoch, self.order(epoch), words)]
        return self._orders[-1]

    def _slot(self) -> Slot:
        images = np.empty((self.batch, *self.view.shape), np.float32)
        source = self._whole.images if self._whole is not None else images
        gathered = np.empty(images.shape, source.dtype) if source.dtype != images.dtype else None
        return Slot(images, np.empty(self.batch, np.int64), gathered)

    # ---- the end

    def _discard(self) -> None:
        """Give up what is under way, once no thread writes to it any more."""
        for job in self._queue:
            job.stop.set()
            for piece in job.pieces:
                piece.cancel()
        wait([piece for job in self._queue for piece in job.pieces])
        self._free += [job.slot for job in self._queue]
        self._queue.clear()

    def close(self) -> None:
        """End the threads, after the image that each works on."""
        self._closed = True
        self._discard()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Loader({self.images!r}, batch {self.batch}, {self.threads} threads, {self.nbytes} bytes)"
