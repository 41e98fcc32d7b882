"""The link between host and device: its bandwidth each way and both at once, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

SIZE = 64 << 20  # bytes of one copy
REPEATS = 5


@dataclass(frozen=True)
class Link:
    """Bytes per second: device to host, host to device, and each way while both run; seconds that a copy of next to
    nothing takes.
    """

    offload: float
    prefetch: float
    both: float
    latency: float


def link_of(driver: Any, streams: Mapping[str, Any], nbytes: int = SIZE) -> Link:
    """Measure the link with page-locked memory; the medians of a few copies.  Takes `nbytes` twice on either side."""
    devices = {kind: driver.allocate(nbytes) for kind in ("offload", "prefetch")}
    hosts = {kind: driver.allocate_pinned(nbytes) for kind in devices}

    def once(kinds: tuple[str, ...], size: int) -> float:
        """Seconds until all of these copies, begun together, are over."""
        begin, ends = driver.new_event(timing=True), [driver.new_event(timing=True) for _ in kinds]
        driver.record(begin, streams["compute"])
        for kind, end in zip(kinds, ends, strict=True):
            here, there = hosts[kind].ctypes.data, devices[kind].address
            target, source = (here, there) if kind == "offload" else (there, here)
            driver.wait(streams[kind], begin)
            driver.copy(target, source, size, kind, streams[kind])
            driver.record(end, streams[kind])
        for end in ends:
            driver.synchronize(end)
        return max(float(driver.elapsed_seconds(begin, end)) for end in ends)

    def typical(kinds: tuple[str, ...], size: int) -> float:
        once(kinds, size)
        return max(median(once(kinds, size) for _ in range(REPEATS)), 1e-9)

    latency = typical(("offload",), 4)
    offload, prefetch, both = (
        nbytes / typical(kinds, nbytes) for kinds in (("offload",), ("prefetch",), ("offload", "prefetch"))
    )
    return Link(offload, prefetch, both, latency)
