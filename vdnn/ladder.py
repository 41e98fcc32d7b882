"""ladder: what of a network may grow until it no longer fits, rung by rung: its batch, its depth or its resolution."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vdnn import models
from vdnn.importing import imported
from vdnn.layers.base import ShapeError
from vdnn.models.resnet import STAGES
from vdnn.models.vgg import GROUPS
from vdnn.naming import hint
from vdnn.network import MOST_SAMPLES, Network
from vdnn.setting import Setting, make_setting

VARIED = ("batch", "depth", "resolution")
MULTIPLE = 32  # pixels: what the networks of the literature halve five times
MOST_PIXELS = 16384
FAMILIES = {
    "vgg": ("vdnn.models.vgg:vgg", (*GROUPS, *range(21, 2017, 5))),
    "resnet": ("vdnn.models.resnet:resnet", tuple(STAGES)),
}


class FitError(ValueError):
    """What was asked to vary cannot be varied."""


@dataclass(frozen=True)
class Ladder:
    """What is varied, rung by rung.

    what    "batch", "depth" or "resolution" (height and width in pixels)
    values  from small to large
    start   the rung to begin with; the first is 1
    make    the setting of a value
    """

    what: str
    values: Sequence[int]
    start: int
    make: Callable[[int], Setting]


def make_ladder(network: Network | str, vary: str, batch: int | None, **options: Any) -> Ladder:
    """The ladder of what is varied; `options` are those of make_setting.  Raises FitError."""
    if vary not in VARIED:
        raise FitError(f"vary {vary!r} is none of {', '.join(VARIED)}{hint(vary, VARIED)}")
    if vary == "batch":
        return _batches(network, batch, options)
    if not isinstance(network, str):
        raise FitError(f"to vary the {vary} takes the name of a network, not {network!r:.80}")
    return _depths(network, batch or 32, options) if vary == "depth" else _resolutions(network, batch or 32, options)


def _batches(network: Network | str, batch: int | None, options: dict[str, Any]) -> Ladder:
    if isinstance(network, str):
        network = models.get(network, batch=batch or 32, rules=options.get("rules", "ours"))
    setting = make_setting(network, batch, **options)
    make = lru_cache(64)(setting.with_batch)
    parts = setting.tape.micro_batches
    values = range(parts, MOST_SAMPLES + 1, parts)  # what comes in so many equal parts
    return Ladder("batch", values, min(setting.tape.batch // parts, len(values)), make)


def _depths(network: str, batch: int, options: dict[str, Any]) -> Ladder:
    found = re.fullmatch(r"([a-z]+)([0-9]+)", network)
    if not found or found[1] not in FAMILIES:
        raise FitError(f"{network} has no depth to vary; those of {' and '.join(FAMILIES)} by name have, such as vgg16")
    maker, depths = FAMILIES[found[1]]
    depth = int(found[2])
    if depth not in depths:
        raise FitError(f"there is no {found[1]} of depth {depth}; there are {', '.join(map(str, depths[:8]))}, ...")

    def make(depth: int) -> Setting:
        return make_setting(models.get(maker, batch=batch, rules=options.get("rules", "ours"), depth=depth), **options)

    return Ladder("depth", depths, depths.index(depth) + 1, lru_cache(64)(make))


def _resolutions(network: str, batch: int, options: dict[str, Any]) -> Ladder:
    rules = options.get("rules", "ours")
    if ":" in network:
        wanted = inspect.signature(imported(network, "a Network", FitError)).parameters.values()
        if not any(p.name == "image" or p.kind is p.VAR_KEYWORD for p in wanted):
            raise FitError(f"{network} takes no image=(C, H, W), so its resolution cannot be varied")
    _, channels, height, _ = models.get(network, batch=batch, rules=rules).input.shape

    def at(size: int) -> Network:
        return models.get(network, batch=batch, rules=rules, image=(channels, size, size))

    sizes = range(_smallest(at, max(MULTIPLE, height)), MOST_PIXELS + 1, MULTIPLE)
    start = min(max(1, (height - sizes[0]) // MULTIPLE + 1), len(sizes))
    return Ladder("resolution", sizes, start, lru_cache(64)(lambda size: make_setting(at(size), **options)))


def _smallest(at: Callable[[int], Network], enough: int) -> int:
    """The smallest multiple of 32 pixels at which the layers of the network have something left."""
    for size in range(MULTIPLE, enough + MULTIPLE, MULTIPLE):
        try:
            at(size)
        except ShapeError:
            continue
        return size
    raise FitError(f"the network takes no input of {MULTIPLE} to {enough + MULTIPLE - 1} pixels in multiples of 32")
