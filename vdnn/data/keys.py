"""keys: random numbers that depend on a seed and on what they are for, never on what was drawn before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ORDER, SHIFT, PATTERN, LABEL, NOISE, VIEW = range(6)  # what random numbers are for: each its own stream


def bits(seed: int, *key: int) -> np.random.Philox:
    """Random bits that depend on the seed and the key alone."""
    return np.random.Philox(np.random.SeedSequence((seed, *key)))


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the key alone."""
    return np.random.Generator(bits(seed, *key))


def raw(seed: int, purpose: int, epoch: int, count: int) -> NDArray[np.uint64]:
    """(count,): raw bits of (seed, purpose, epoch), which are the same in every version of NumPy."""
    drawn: NDArray[np.uint64] = bits(seed, purpose, epoch).random_raw(count)
    return drawn


def order(seed: int, epoch: int, count: int, shuffle: bool) -> NDArray[np.intp]:
    """(count,): the indices of an epoch's images in the order in which they come."""
    if not shuffle:
        return np.arange(count)
    return np.argsort(raw(seed, ORDER, epoch, count), kind="stable")
