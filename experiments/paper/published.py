"""What the vDNN paper published, read from data.json: its figures, its claims, and what in them does not agree.

Rhu, Gimelshein, Clemons, Zulfiqar, Keckler, MICRO-49, 2016, arXiv 1602.08124 v3.  Nothing here is a result of ours.

A network is a pair (name, batch): vdnn's name and the batch, so ("vgg19", 64) is the paper's "VGG-16 (64)".  Sizes are
in MiB = 2^20 bytes, which the figures call MB; the GB of the paper's text is 1000 MiB.  Shares are from 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Pair = tuple[str, int]

MIB = 2**20  # bytes
PAPER_GB = 1000 * MIB  # bytes


class NotPublishedError(LookupError):
    """The paper has no such value; the message says which there are."""


@dataclass(frozen=True)
class Machine:
    """What the paper computed with: sizes in MiB, rates in operations and bytes per second."""

    name: str
    memory_mib: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float  # measured average of cudaMemcpy
    link_peak_bandwidth: float
    host_memory_gb: int


@dataclass(frozen=True)
class Baseline:
    """Fig. 1: the baseline's size, and the largest share of it that one layer uses."""

    total_mib: float
    largest_share: float


@dataclass(frozen=True)
class Breakdown:
    """Fig. 4: what the baseline's memory holds."""

    weights_mib: float
    feature_maps_mib: float
    gradient_maps_mib: float
    workspace_mib: float
    feature_map_share: float

    @property
    def parts(self) -> tuple[float, float, float, float]:
        """MiB of weights, feature maps, gradient maps and workspace."""
        return self.weights_mib, self.feature_maps_mib, self.gradient_maps_mib, self.workspace_mib


@dataclass(frozen=True)
class LayerMemory:
    """Fig. 5: a layer's X + Y and workspace in the forward pass."""

    layer: str
    maps_mib: float
    workspace_mib: float


@dataclass(frozen=True)
class LayerTime:
    """Fig. 6: a layer's times, and from the end of its forward to the start of its backward."""

    layer: str
    forward_ms: float
    backward_ms: float
    reuse_ms: float


@dataclass(frozen=True)
class Bar:
    """Fig. 11 and 14: one policy on one network; `algorithms` is "m", "p", or "" where dyn chooses them itself.

    performance   of the feature extraction layers, over what `NORMALISED_TO` names
    untrainable   marked in the figures: needs more memory than the GPU has, so its time is modelled
    """

    policy: str
    algorithms: str
    average_mib: float
    maximum_mib: float
    average_saving: float
    maximum_saving: float
    performance: float
    untrainable: bool

    @property
    def label(self) -> str:
        """The bar's name: "all (m)", "dyn"."""
        return policy_label(self.policy, self.algorithms)


@dataclass(frozen=True)
class Offloaded:
    """Fig. 12: what an iteration offloads under vDNN_conv and vDNN_all."""

    conv_mib: float
    all_mib: float


@dataclass(frozen=True)
class Deep:
    """Fig. 15: a very deep network under vDNN_dyn, and its baseline."""

    gpu_mib: float
    cpu_mib: float
    base_mib: float
    base_untrainable: bool


@dataclass(frozen=True)
class Claim:
    """A number of the abstract or the text; `to` is the other end where it is a range."""

    name: str
    what: str
    value: float
    unit: str
    where: str
    to: float | None = None


@dataclass(frozen=True)
class Anomaly:
    """What the paper contradicts or leaves open, and where."""

    where: str
    what: str


def policy_label(policy: str, algorithms: str = "") -> str:
    """The figures' name of a policy: "base (p)", "dyn"."""
    return f"{policy} ({algorithms})" if algorithms else policy


_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("data.json").read_text(encoding="utf-8"))


def _as_pair(record: Mapping[str, Any]) -> Pair:
    name, batch = record["network"]
    return name, batch


def _by_network(block: str, kind: type) -> Mapping[Pair, Any]:
    """A block's records by network, in the figure's order."""
    found = {}
    for record in _DATA[block]["records"]:
        found[_as_pair(record)] = kind(**{key: value for key, value in record.items() if key != "network"})
    return MappingProxyType(found)


def _records(block: str, kind: type) -> tuple[Any, ...]:
    return tuple(kind(**record) for record in _DATA[block]["records"])


def _bars() -> Mapping[Pair, tuple[Bar, ...]]:
    columns, found = _DATA["figure_11_14"]["columns"], {}
    for record in _DATA["figure_11_14"]["records"]:
        rows = (dict(zip(columns, row, strict=True)) for row in record["bars"])
        found[_as_pair(record)] = tuple(Bar(**row) for row in rows)
    return MappingProxyType(found)


_BLOCKS = {name: block for name, block in _DATA.items() if isinstance(block, dict)}
SOURCES: Mapping[str, str] = MappingProxyType({name: block["source"] for name, block in _BLOCKS.items()})
RESOLUTION: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {name: MappingProxyType(block["resolution"]) for name, block in _BLOCKS.items()}
)  # of each block: "text" for people, and numbers where the paper's drawing has one (unit as the key)

LABELS: Mapping[Pair, str] = MappingProxyType(
    {_as_pair(record): record["label"] for record in _DATA["networks"]["records"]}
)  # the paper's name for each of its ten networks
MACHINE = Machine(**{key: _DATA["machine"][key] for key in Machine.__dataclass_fields__})

FIGURE_1: Mapping[Pair, Baseline] = _by_network("figure_1", Baseline)
FIGURE_4: Mapping[Pair, Breakdown] = _by_network("figure_4", Breakdown)
FIGURE_5: tuple[LayerMemory, ...] = _records("figure_5", LayerMemory)
FIGURE_5_NETWORK = _as_pair(_DATA["figure_5"])
FIGURE_5_CONVOLUTION_WEIGHTS_MIB: tuple[float, float] = tuple(_DATA["figure_5"]["convolution_weights_mib"].values())
FIGURE_5_CLASSIFIER_WEIGHTS_MIB: tuple[float, ...] = tuple(_DATA["figure_5"]["classifier_weights_mib"])
FIGURE_6: tuple[LayerTime, ...] = _records("figure_6", LayerTime)
FIGURE_6_NETWORK = _as_pair(_DATA["figure_6"])
FIGURE_11: Mapping[Pair, tuple[Bar, ...]] = _bars()
NORMALISED_TO: Mapping[Pair, str] = MappingProxyType(
    {_as_pair(record): record["normalised_to"] for record in _DATA["figure_11_14"]["records"]}
)  # what a performance of 1 is: "base (p)", or "oracle" where base (p) cannot train
FIGURE_12: Mapping[Pair, Offloaded] = _by_network("figure_12", Offloaded)
FIGURE_15: Mapping[Pair, Deep] = _by_network("figure_15", Deep)
CLAIMS: Mapping[str, Claim] = MappingProxyType({claim.name: claim for claim in _records("claims", Claim)})
ANOMALIES: tuple[Anomaly, ...] = _records("anomalies", Anomaly)


def label(network: str, batch: int) -> str:
    """The paper's name of a network, "VGG-16 (256)"; of any other its own name and batch."""
    return LABELS.get((network, batch), f"{network} ({batch})")


def bars(network: str, batch: int) -> tuple[Bar, ...]:
    """The seven bars of a network in Fig. 11 and 14, in the figures' order.  Raises NotPublishedError."""
    if (network, batch) not in FIGURE_11:
        there = ", ".join(f"{name} {size}" for name, size in FIGURE_11)
        raise NotPublishedError(f"Fig. 11 and 14 have no network {network} of batch {batch}; they have {there}")
    return FIGURE_11[network, batch]


def bar(network: str, batch: int, policy: str, algorithms: str = "") -> Bar:
    """The bar of one policy: `bar("vgg19", 256, "all", "m")`.  Raises NotPublishedError."""
    found = bars(network, batch)
    for each in found:
        if (each.policy, each.algorithms) == (policy, algorithms):
            return each
    there = ", ".join(each.label for each in found)
    raise NotPublishedError(f"Fig. 11 and 14 have no bar {policy_label(policy, algorithms)!r}; they have {there}")
