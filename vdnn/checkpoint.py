"""Checkpoints: one safetensors file; whatever is no array is JSON in its metadata.  Nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import vdnn.layers
from vdnn import optimizers, schedules
from vdnn.layers.base import Layer
from vdnn.memory.decisions import DecisionError
from vdnn.memory.device import DeviceError
from vdnn.memory.policy import PolicyError
from vdnn.network import Network

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.train import Trainer

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
    "options": (dict,),
}
OPTION_FIELDS: Fields = {
    "policy": (str, type(None)),
    "budget": (int,),
    "algorithms": (dict,),
    "threads": (int,),
    "undo": (bool,),
    "device": (dict,),
}
HOST = {"name": "host"}
DEVICE_FIELDS: Mapping[str, Fields] = {
    "host": {"name": (str,)},
    "cuda": {"name": (str,), "math": (str,), "storage": (str,), "deterministic": (bool,)},
}
NETWORK_FIELDS: Fields = {"name": (str,), "shape": (list,), "dtype": (str,), "layers": (list,)}
LAYER_FIELDS: Fields = {"name": (str,), "kind": (str, type(None)), "config": (dict,), "inputs": (list,)}


class CheckpointError(ValueError):
    """A file that is no checkpoint of this network, or cannot be written; nothing was changed."""


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write `trainer` to `path`, whole or not at all: to a file beside it first, which then takes its name.

    Raises CheckpointError if it cannot be written, or if a failed step left the weights half updated.
    """
    target = Path(path)
    if trainer.device.torn:
        raise CheckpointError(f"{target} is not written: a step that failed left the weights half updated")
    arrays = {**trainer.weights, **trainer.state, **trainer.statistics}
    metadata = {"vdnn": json.dumps(_describe(trainer), default=_plain)}
    needed = sum(a.nbytes for a in arrays.values())
    part = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
    try:
        part.touch(0o666, exist_ok=False)  # the system takes the umask off
        mode = part.stat().st_mode
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror}") from error
    try:
        save_file(arrays, part, metadata)
        part.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except (OSError, SafetensorError) as error:
        kept = "the checkpoint before it is untouched" if target.exists() else "nothing is left of it"
        raise CheckpointError(f"{target} ({needed:,} bytes) could not be written: {error}; {kept}") from error
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def rescue(trainer: Trainer, plan: Plan) -> str:
    """After a GPU was lost: write what the host has of the weights to a file; says what became of them."""
    arrays = trainer.device.rescued(plan)  # type: ignore[attr-defined]
    if not arrays:
        return "the host has no copy of the weights; start again from a checkpoint"
    name = f"vdnn-rescue-{os.getpid()}-{secrets.token_hex(4)}.safetensors"
    about = {"format": "vdnn rescue 1", "steps_done": trainer.steps_done, "network": _describe_network(trainer.net)}
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(OSError, SafetensorError):
            save_file(arrays, folder / name, {"vdnn": json.dumps(about, default=_plain)})
            count = len(plan.tape.resident)
            return (
                f"{folder / name} has {len(arrays)} of {count} weights, states and statistics, each as before this "
                f"step or as before the one before"
            )
    return "and what the host has of the weights could not be written to a file"


def _sync_folder(folder: Path) -> None:
    """Put the folder's entry on the disk, where the system can: until then a power cut may bring the old file back."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def load(kind: type[Trainer], path: str | os.PathLike[str], net: Network | None, options: dict[str, Any]) -> Trainer:
    """The trainer saved at `path`.  Raises CheckpointError for a truncated, foreign or unsuitable file."""
    about, arrays = _read(Path(path))
    if net is None:
        net = _network(about["network"], path)
    else:
        _check_layers(path, about["network"]["layers"], net)
    saved = {"seed": about["seed"], **about["options"]}
    _settle_device(path, saved, options, net)
    if saved["policy"] is None and "policy" not in options:
        raise CheckpointError(f"{path} was trained with a policy of your own; pass it: load(path, policy=...)")
    if "optimizer" not in options:
        saved["optimizer"] = optimizer_of(about["optimizer"], path)
    settings = {**saved, **options}
    _check_arrays(path, net, optimizers.get(settings["optimizer"]), arrays)
    try:
        trainer = kind(net, **settings)
    except (DecisionError, PolicyError) as error:
        if options.keys() & {"policy", "algorithms"}:
            raise  # it may be the caller's
        raise CheckpointError(f"{path}: options cannot be used: {error}") from error
    for group in (trainer.weights, trainer.state, trainer.statistics):
        for name in group:
            group[name] = arrays[name]
    trainer.steps_done, trainer.epoch, trainer.position = (about[k] for k in ("steps_done", "epoch", "position"))
    return trainer


def _settle_device(
    path: str | os.PathLike[str], saved: dict[str, Any], options: Mapping[str, Any], net: Network
) -> None:
    """The device that was saved, unless another is asked for, which has algorithms of its own."""
    was = saved.pop("device")
    name = was["name"]
    if "device" not in options:
        saved["device"] = "host"
        if name == "cuda":
            from vdnn.memory.cuda import CudaDevice

            try:
                saved["device"] = CudaDevice(net, **{k: v for k, v in was.items() if k != "name"})
            except DeviceError as error:
                raise CheckpointError(
                    f"{path} was saved on a GPU, and {error}; load(path, device='host') goes on here, by other kernels"
                ) from error
    asked = options.get("device", name)
    if getattr(asked, "name", asked) != name:
        del saved["algorithms"]
    if asked != "host":
        del saved["threads"]


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
    _check_metadata(path, about)
    return about, arrays


def _check_metadata(path: Path, about: Any) -> None:
    _check_fields(f"{path}: its metadata", about, FIELDS)
    if isinstance(about["options"], dict):
        about["options"].setdefault("device", HOST)  # before there were others, nothing was said
    _check_fields(f"{path}: options", about["options"], OPTION_FIELDS)
    device = about["options"]["device"]
    if device.get("name") not in DEVICE_FIELDS:
        raise CheckpointError(
            f"{path}: no device is named {device.get('name')!r}; there are {', '.join(DEVICE_FIELDS)}"
        )
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


def _check_layers(path: str | os.PathLike[str], saved: list[dict[str, Any]], net: Network) -> None:
    """Raise CheckpointError with the first difference of the network's layers from those saved.

    Equal arrays are not enough: another stride or another activation trains on from the same weights, but wrongly.
    """
    given = json.loads(json.dumps(_describe_network(net)["layers"], default=_plain))
    for i, (old, new) in enumerate(zip(saved, given, strict=False)):
        for field in ("name", "kind", "inputs"):
            if old[field] != new[field]:
                _differ(path, net, f"layer {i} ({old['name']})", field, old[field], new[field])
        for option in [*old["config"], *new["config"]]:
            values = old["config"].get(option), new["config"].get(option)
            if values[0] != values[1]:
                _differ(path, net, f"layer {i} ({old['name']})", option, *values)
    if len(saved) != len(given):
        _differ(path, net, "the network", "number of layers", len(saved), len(given))


def _differ(path: str | os.PathLike[str], net: Network, where: str, what: str, saved: Any, given: Any) -> None:
    raise CheckpointError(f"{path} does not suit {net.name}: {where} was saved with {what} {saved!r}, not {given!r}")


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
    policy, name = trainer.policy if isinstance(trainer.policy, str) else None, trainer.device.name
    return {
        "format": FORMAT,
        "network": _describe_network(trainer.net),
        "optimizer": _describe_optimizer(trainer.optimizer),
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
            "device": {
                field: getattr(trainer.device.kernels, field) for field in DEVICE_FIELDS[name] if field != "name"
            }
            | {"name": name},
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


def _network(about: Mapping[str, Any], path: str | os.PathLike[str]) -> Network:
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


def _plain(value: Any) -> Any:
    """What JSON does not know: a number of NumPy's as a plain one."""
    if isinstance(value, np.generic):
        return value.item()
    raise CheckpointError(f"{value!r} cannot be saved")


def _describe_optimizer(optimizer: optimizers.Optimizer) -> dict[str, Any]:
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
