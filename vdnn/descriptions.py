"""Descriptions: what of a checkpoint is no array, as plain JSON: the network, the optimizer, and checks of both."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import vdnn.layers
from vdnn import optimizers, schedules
from vdnn.layers.base import Layer
from vdnn.network import Network
from vdnn.rewrites import STANDARD

FORMAT = "vdnn checkpoint 1"
COUNT_LIMIT = 2**53  # seeds and counts are below it, so that a clock of float64 holds them exactly

# Every field of the metadata, with the types that JSON may give it
Fields = Mapping[str, tuple[type, ...]]
FIELDS: Fields = {
    "format": (str,),
    "network": (dict,),
    "optimizer": (dict,),
    "seed": (int,),
    "steps_done": (int,),
    "epoch": (int,),
    "position": (int,),
    "recipe": (dict, type(None)),
    "options": (dict,),
}
OPTION_FIELDS: Fields = {
    "policy": (str, type(None)),
    "budget": (int,),
    "algorithms": (dict,),
    "threads": (int,),
    "undo": (bool,),
    "rewrites": (list,),
    "micro_batches": (int,),
    "allow_coupled": (bool,),
    "host_budget": (int, type(None)),
    "device": (dict,),
}
HOST = {"name": "host", "exact": False}
# What checkpoints of earlier versions do not say, in the metadata and in its options
EARLIER: dict[str, Any] = {"recipe": None}
EARLIER_OPTIONS: dict[str, Any] = {
    "device": HOST,
    "rewrites": list(STANDARD),
    "micro_batches": 1,
    "allow_coupled": False,
    "host_budget": None,
}
DEVICE_FIELDS: Mapping[str, Fields] = {
    "host": {"name": (str,), "exact": (bool,)},
    "cuda": {"name": (str,), "math": (str,), "storage": (str,), "deterministic": (bool,)},
}
NETWORK_FIELDS: Fields = {"name": (str,), "shape": (list,), "dtype": (str,), "layers": (list,)}
LAYER_FIELDS: Fields = {"name": (str,), "kind": (str, type(None)), "config": (dict,), "inputs": (list,)}


class CheckpointError(ValueError):
    """A file that is no checkpoint of this network, or cannot be written; nothing was changed."""


def check_metadata(path: Path, about: Any) -> None:
    """Raise CheckpointError unless `about` has just the fields that a checkpoint's metadata has, of their types."""
    if isinstance(about, dict):
        about.update(EARLIER | about)
        if isinstance(about.get("options"), dict):
            about["options"].update(EARLIER_OPTIONS | about["options"])
    _check_fields(f"{path}: its metadata", about, FIELDS)
    _check_fields(f"{path}: options", about["options"], OPTION_FIELDS)
    device = about["options"]["device"]
    if device.get("name") not in DEVICE_FIELDS:
        raise CheckpointError(
            f"{path}: no device is named {device.get('name')!r}; there are {', '.join(DEVICE_FIELDS)}"
        )
    if device["name"] == "host":
        device.setdefault("exact", False)
    _check_fields(f"{path}: device", device, DEVICE_FIELDS[device["name"]])
    _check_fields(f"{path}: network", about["network"], NETWORK_FIELDS)
    for i, layer in enumerate(about["network"]["layers"]):
        _check_fields(f"{path}: network, layer {i}", layer, LAYER_FIELDS)


def _check_fields(where: str, value: Any, fields: Fields) -> None:
    """Raise CheckpointError unless `value` has just these fields, each of one of its types, and no count is below 0."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is {value!r:.80}, not an object")
    for name in [*fields, *value]:
        if name not in value:
            raise CheckpointError(f"{where} has no {name!r}")
        if name not in fields:
            raise CheckpointError(f"{where} has {name!r}, which this version does not know")
        found, types = value[name], fields[name]
        if type(found) not in types or (type(found) is int and not 0 <= found < COUNT_LIMIT):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise CheckpointError(f"{where} has {name}={found!r:.80}, which is no valid {names}")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what a foreign description may cause into CheckpointError, saying where in the file it is."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{where} names or lacks {error}") from error
    except (AttributeError, TypeError, ValueError) as error:  # LayerError and ShapeError are ValueErrors
        raise CheckpointError(f"{where} cannot be used: {error}") from error


def describe_network(net: Network) -> dict[str, Any]:
    """The network's layers, each with its arguments and inputs; a layer that is not vdnn's own has kind null."""
    layers = []
    for node in net.nodes:
        own = getattr(vdnn.layers, type(node.layer).__name__, None) is type(node.layer)
        config = {k: v for k, v in node.layer.config().items() if k != "name"}
        inputs = [t.name for t in node.inputs]
        kind = type(node.layer).__name__ if own else None
        layers.append({"name": node.name, "kind": kind, "config": config if own else {}, "inputs": inputs})
    return {"name": net.name, "shape": net.input.shape, "dtype": net.dtype, "layers": layers}


def network_of(about: Mapping[str, Any], path: str | os.PathLike[str]) -> Network:
    """The network that the checkpoint at `path` describes so.  Raises CheckpointError."""
    with _reading(f"{path}: network"):
        net = Network(tuple(about["shape"]), about["dtype"], about["name"])
    tensors = {"input": net.input}
    for layer in about["layers"]:
        kind = getattr(vdnn.layers, layer["kind"] or "", None)
        if not (isinstance(kind, type) and issubclass(kind, Layer)):
            raise CheckpointError(
                f"{path}: layer {layer['name']} is not one of vdnn's own; pass the network: load(path, net=...)"
            )
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in layer["config"].items()}
        with _reading(f"{path}: network, layer {layer['name']}"):
            y = net.add(kind(**config), *(tensors[n] for n in layer["inputs"]), name=layer["name"])
        tensors[y.name] = y
    return net


def plain(value: Any) -> Any:
    """What JSON does not know: a number of NumPy's as a plain one."""
    if isinstance(value, np.generic):
        return value.item()
    raise CheckpointError(f"{value!r} cannot be saved")


def describe_optimizer(optimizer: optimizers.Optimizer) -> dict[str, Any]:
    """{"kind": its class, field: value}; one's own has kind null, and must be passed again to go on."""
    if _is_of(optimizers, optimizer):
        return _describe_value(optimizer)  # type: ignore[no-any-return]
    return {"kind": None}


def _is_of(module: Any, value: Any) -> bool:
    """Whether the class of `value` is the module's, not another one of the same name."""
    return getattr(module, type(value).__name__, None) is type(value)


def _describe_value(value: Any) -> Any:
    """An optimizer or a schedule as {"kind": its class, field: value}."""
    if dataclasses.is_dataclass(value) and (_is_of(optimizers, value) or _is_of(schedules, value)):
        fields = {f.name: _describe_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if callable(value):
        raise CheckpointError(f"{value!r} cannot be saved; use one of vdnn.schedules")
    return value


def optimizer_of(about: Mapping[str, Any], path: str | os.PathLike[str]) -> optimizers.Optimizer:
    """The optimizer that the checkpoint at `path` describes so.  Raises CheckpointError."""
    with _reading(f"{path}: optimizer"):
        if about["kind"] is None:
            raise CheckpointError(
                f"{path} was trained with an optimizer of your own; pass it: load(path, optimizer=...)"
            )
        kind = getattr(optimizers, about["kind"], None)
        if not (isinstance(kind, type) and issubclass(kind, optimizers.Optimizer)):
            raise CheckpointError(
                f"{path}: optimizer {about['kind']!r} is not one of vdnn's own; pass it: load(path, optimizer=...)"
            )
        return kind(**{k: _schedule(v) for k, v in about.items() if k != "kind"})


def _schedule(value: Any) -> Any:
    if isinstance(value, Mapping):
        kind = getattr(schedules, value["kind"], None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise CheckpointError(f"{value['kind']!r} is no schedule of vdnn.schedules")
        return kind(**{k: _schedule(v) for k, v in value.items() if k != "kind"})
    return tuple(value) if isinstance(value, list) else value
