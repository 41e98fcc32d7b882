"""ring: what a loader hands to its threads: an order, places for batches, and batches under way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Order(NamedTuple):
    """An epoch: indices (N,) in their order, and random words (N, WORDS), if any, by index."""

    epoch: int
    indices: NDArray[np.intp]
    words: NDArray[np.uint64] | None


@dataclass
class Slot:
    """A batch of the ring: images (batch, C, H, W), labels (batch,), and uint8 as gathered, where that is needed."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    gathered: NDArray[Any] | None


@dataclass
class Job:
    """A batch that threads fill: its epoch and number, where it goes, and what is under way for it."""

    position: tuple[int, int]
    slot: Slot
    samples: int
    stop: Event = field(default_factory=Event)
    pieces: list[Future[None]] = field(default_factory=list)


def pieces(samples: int, count: int) -> Iterator[slice]:
    """`samples` places in at most `count` runs of one length, but for the last."""
    length = -(-samples // count)
    for start in range(0, samples, length):
        yield slice(start, min(samples, start + length))
