"""Poison on a GPU: freed bytes are overwritten with NaN, by kernels on the streams that used them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.memory.plan import Plan
from vdnn.memory.poison import NAN, users_of

if TYPE_CHECKING:
    from vdnn.memory.cuda import CudaDevice

BLOCKS = 32


class CudaPoison:
    """Overwrites each allocation's bytes after the last step that uses it.

    Which of several streams that is, is found on the device: each user takes one off a counter when it is done, and
    the one that takes the last one overwrites.  So no order is imposed that the plan does not have.
    """

    def __init__(self, plan: Plan, device: CudaDevice) -> None:
        self.device, self.driver = device, device.driver
        self.first = device.block.address + plan.tape.resident_bytes
        self.nbytes = device.arena_bytes - plan.tape.resident_bytes
        self.used_by: dict[int, list[tuple[int, int]]] = {}  # {step: (allocation, number of this use of it)}
        self.bytes: list[tuple[int, int]] = []  # of each allocation: address, size
        counts: list[int] = []
        uses = 0
        for offset, size, steps in users_of(plan):
            for step in steps:
                self.used_by.setdefault(step, []).append((len(counts), uses))
                uses += 1
            self.bytes.append((device.block.address + offset, size))
            counts.append(len(steps))
        self.counts = np.array(counts, np.int32)
        self.left = self.driver.allocate(4 * len(counts))
        self.flags = self.driver.allocate(4 * uses)

    def reset(self) -> None:
        """Before a step: everything but the resident bytes is poison."""
        stream = self.device.streams["compute"]
        self.driver.copy(self.left.address, self.counts.ctypes.data, self.counts.nbytes, "prefetch", stream)
        self.driver.fill(self.first, NAN, self.nbytes, stream)
        self.driver.synchronize(stream)

    def after(self, step: int, stream: Any) -> None:
        """Issue the overwriting of what nobody uses any more once `step` is done."""
        for allocation, use in self.used_by.get(step, ()):
            address, size = self.bytes[allocation]
            last = [self.left.address, allocation, self.flags.address, use]
            self.driver.launch("poison_last", "float32", (1,), 1, last, stream)
            fill = [self.flags.address, use, address, size]
            self.driver.launch("poison_fill", "float32", (BLOCKS,), 256, fill, stream)
