"""Arrays on the device by name, and how they start."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

import numpy as np

from vdnn.layers.base import Array, Spec
from vdnn.naming import among
from vdnn.network import Tensor

if TYPE_CHECKING:
    from vdnn.train import Trainer


class Arrays(MutableMapping[str, Array]):
    """Arrays on the device by name: reading gives a read-only copy in logical order, assigning replaces the array."""

    def __init__(self, trainer: Trainer, tensors: list[Tensor]) -> None:
        self._trainer = trainer
        self._tensors = {t.name: t for t in tensors}

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensor(name)
        self._trainer.settle()
        value = self._trainer.device.read(self._trainer.plan, tensor.name)
        value.setflags(write=False)  # writing to a copy would change nothing, silently
        return value

    def __setitem__(self, name: str, value: Array) -> None:
        tensor = self._tensor(name)
        array = np.asarray(value)
        if array.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tensor.shape}, not {array.shape}")
        self._trainer.settle()
        self._trainer.device.write(self._trainer.plan, name, array.astype(tensor.dtype, copy=False))

    def _tensor(self, name: str) -> Tensor:
        """The tensor of that name.  Raises KeyError with near matches."""
        if name not in self._tensors:
            raise KeyError(f"{name!r} is no array of {self._trainer.net.name}{among(name, self._tensors)}")
        return self._tensors[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError("an array of a network cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def initial(tensor: Tensor, spec: Spec, seed: int) -> Array:
    """The array's first value; it depends on the seed and its name alone, not on the other layers."""
    init = spec.init
    if init.kind == "constant":
        return np.full(tensor.shape, init.scale, tensor.dtype)
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    if init.kind == "normal":
        value = random.standard_normal(tensor.shape, np.float32)
        value *= np.float32(init.scale)
    else:
        value = random.random(tensor.shape, np.float32)
        value *= np.float32(2 * init.scale)
        value -= np.float32(init.scale)
    return value.astype(tensor.dtype, copy=False)
