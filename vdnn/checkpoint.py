"""Checkpoints: one safetensors file; whatever is no array is JSON in its metadata.  Nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import vdnn.layers
from vdnn import optimizers, schedules
from vdnn.layers.base import Layer
from vdnn.network import Network

if TYPE_CHECKING:
    from vdnn.train import Trainer

FORMAT = "vdnn checkpoint 1"


class CheckpointError(ValueError):
    """A file that is no checkpoint of this network, or cannot be written; nothing was changed."""


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write `trainer` to `path`, whole or not at all: to a file beside it first, which then takes its name."""
    target = Path(path)
    arrays = {**trainer.weights, **trainer.state, **trainer.statistics}
    metadata = {"vdnn": json.dumps(_describe(trainer))}
    needed = sum(a.nbytes for a in arrays.values())
    try:
        number, name = tempfile.mkstemp(dir=target.parent or ".", prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
    os.close(number)
    part = Path(name)
    try:
        save_file(arrays, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint before it is untouched" if target.exists() else "nothing is left of it"
        raise CheckpointError(f"{target} ({needed:,} bytes) could not be written: {error}; {kept}") from error
    finally:
        part.unlink(missing_ok=True)


def load(kind: type[Trainer], path: str | os.PathLike[str], net: Network | None, options: dict[str, Any]) -> Trainer:
    """The trainer saved at `path`.  Raises CheckpointError for a truncated, foreign or unsuitable file."""
    about, arrays = _read(Path(path))
    net = net if net is not None else _network(about["network"])
    saved: dict[str, Any] = {"optimizer": optimizer_of(about["optimizer"]), "seed": about["seed"], **about["options"]}
    if saved.get("policy") is None and "policy" not in options:
        raise CheckpointError(f"{path} was trained with a policy of your own; pass it: load(path, policy=...)")
    settings = {**saved, **options}
    _check_arrays(path, net, optimizers.get(settings["optimizer"]), arrays)
    trainer = kind(net, **settings)
    for group in (trainer.weights, trainer.state, trainer.statistics):
        for name in group:
            group[name] = arrays[name]
    trainer.steps_done, trainer.epoch, trainer.position = (about[k] for k in ("steps_done", "epoch", "position"))
    return trainer


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the checkpoint at `path` says of network, optimizer, seed, progress and options.  Raises CheckpointError."""
    return _read(Path(path), arrays_too=False)[0]


def _read(path: Path, arrays_too: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"{path} is no file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys() if arrays_too else ()
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size:,} bytes) is truncated or no safetensors file: {error}") from error
    try:
        about = json.loads(metadata["vdnn"])
        if about["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {about['format']!r}; this version reads {FORMAT!r}")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not one that vdnn wrote") from error
    return about, arrays


def _check_arrays(
    path: str | os.PathLike[str], net: Network, optimizer: optimizers.Optimizer, arrays: Mapping[str, Any]
) -> None:
    tensors = {name: tensor for name, (tensor, _) in {**net.parameters, **net.statistics}.items()}
    tensors |= {f"{name}.{state}": tensors[name] for name in net.parameters for state in optimizer.state}
    missing = sorted(tensors.keys() - arrays.keys())
    extra = sorted(arrays.keys() - tensors.keys())
    if missing or extra:
        raise CheckpointError(
            f"{path} does not suit {net.name}: {len(missing)} arrays are missing {missing[:3]}, "
            f"{len(extra)} are not of it {extra[:3]}"
        )
    for name, tensor in tensors.items():
        if arrays[name].shape != tensor.shape or arrays[name].dtype != np.dtype(tensor.dtype):
            raise CheckpointError(
                f"{path}: {name} is {arrays[name].dtype}{list(arrays[name].shape)}, "
                f"the network has {tensor.dtype}{list(tensor.shape)}"
            )


def _describe(trainer: Trainer) -> dict[str, Any]:
    policy = trainer.policy if isinstance(trainer.policy, str) else None
    return {
        "format": FORMAT,
        "network": _describe_network(trainer.net),
        "optimizer": _describe_value(trainer.optimizer),
        "seed": trainer.seed,
        "steps_done": trainer.steps_done,
        "epoch": trainer.epoch,
        "position": trainer.position,
        "options": {
            "policy": policy,
            "budget": trainer.budget_bytes,
            "algorithms": dict(trainer.plan.decisions.algorithms),
            "threads": trainer.device.kernels.threads,
            "undo": trainer.undo,
        },
    }


def _describe_network(net: Network) -> dict[str, Any]:
    layers = []
    for node in net.nodes:
        own = getattr(vdnn.layers, type(node.layer).__name__, None) is type(node.layer)
        config = {k: v for k, v in node.layer.config().items() if k != "name"}
        inputs = [t.name for t in node.inputs]
        kind = type(node.layer).__name__ if own else None
        layers.append({"name": node.name, "kind": kind, "config": config if own else {}, "inputs": inputs})
    return {"name": net.name, "shape": net.input.shape, "dtype": net.dtype, "layers": layers}


def _network(about: Mapping[str, Any]) -> Network:
    net = Network(tuple(about["shape"]), about["dtype"], about["name"])
    tensors = {"input": net.input}
    for layer in about["layers"]:
        kind = getattr(vdnn.layers, layer["kind"] or "", None)
        if not (isinstance(kind, type) and issubclass(kind, Layer)):
            raise CheckpointError(
                f"layer {layer['name']} is not one of vdnn's own; pass the network: load(path, net=...)"
            )
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in layer["config"].items()}
        y = net.add(kind(**config), *(tensors[n] for n in layer["inputs"]), name=layer["name"])
        tensors[y.name] = y
    return net


def _describe_value(value: Any) -> Any:
    """A dataclass (optimizer, schedule) as {"kind": its class, field: value}."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _describe_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if callable(value):
        raise CheckpointError(f"{value!r} cannot be saved; use one of vdnn.schedules")
    return value


def optimizer_of(about: Mapping[str, Any]) -> optimizers.Optimizer:
    """The optimizer that a checkpoint describes.  Raises CheckpointError."""
    fields = {k: _schedule(v) for k, v in about.items() if k != "kind"}
    kind = getattr(optimizers, about["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, optimizers.Optimizer)):
        raise CheckpointError(
            f"optimizer {about['kind']!r} is not one of vdnn's own; pass it: load(path, optimizer=...)"
        )
    return kind(**fields)


def _schedule(value: Any) -> Any:
    if isinstance(value, Mapping):
        kind = getattr(schedules, value["kind"], None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise CheckpointError(f"{value['kind']!r} is no schedule of vdnn.schedules")
        return kind(**{k: _schedule(v) for k, v in value.items() if k != "kind"})
    return tuple(value) if isinstance(value, list) else value
