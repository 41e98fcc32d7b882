"""Checkpoints: one safetensors file; whatever is no array is JSON in its metadata.  Nothing is pickled."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vdnn import optimizers
from vdnn.descriptions import (
    DEVICE_FIELDS,
    FORMAT,
    CheckpointError,
    check_metadata,
    describe_network,
    describe_optimizer,
    network_of,
    optimizer_of,
    plain,
)
from vdnn.layers.base import Array
from vdnn.memory.decisions import DecisionError
from vdnn.memory.device import DeviceError
from vdnn.memory.policy import PolicyError
from vdnn.network import Network
from vdnn.rewrites import RewriteError, checked

if TYPE_CHECKING:
    from vdnn.memory.plan import Plan
    from vdnn.train import Trainer


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write `trainer` to `path`, whole or not at all: to a file beside it first, which then takes its name.

    Raises CheckpointError if it cannot be written, or if a failed step left the weights half updated.
    """
    target = Path(path)
    if trainer.device.torn:
        raise CheckpointError(f"{target} is not written: a step that failed left the weights half updated")
    arrays = {**trainer.weights, **trainer.state, **trainer.statistics}
    metadata = {"vdnn": json.dumps(_describe(trainer), default=plain)}
    write_whole(target, arrays, metadata)


def save_weights(trainer: Trainer, path: str | os.PathLike[str], names: str) -> None:
    """Write weights and running statistics alone, under those names (vdnn.exchange.names), whole or not at all."""
    from vdnn.exchange.loading import weights_named

    target = Path(path)
    if trainer.device.torn:
        raise CheckpointError(f"{target} is not written: a step that failed left the weights half updated")
    write_whole(target, weights_named(trainer, names), {"format": "pt"})  # by which others know whose shapes these are


def write_whole(target: Path, arrays: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a safetensors file to one beside it first, which then takes its name.

    Raises CheckpointError if it cannot be written; the file before it is untouched then.
    """
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
    about = {"format": "vdnn rescue 1", "steps_done": trainer.steps_done, "network": describe_network(trainer.net)}
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        with suppress(OSError, SafetensorError):
            save_file(arrays, folder / name, {"vdnn": json.dumps(about, default=plain)})
            count = len(plan.tape.resident)
            return (
                f"{folder / name} has {len(arrays)} of {count} weights, states and statistics, each as before this "
                f"step or the one before, or, where a copy was cut off, partly both"
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
        net = network_of(about["network"], path)
    else:
        _check_layers(path, about["network"]["layers"], net)
    saved = {"seed": about["seed"], **about["options"]}
    _settle_device(saved, options)
    _settle_rewrites(saved, options)
    if saved["policy"] is None and "policy" not in options:
        raise CheckpointError(f"{path} was trained with a policy of your own; pass it: load(path, policy=...)")
    if "optimizer" not in options:
        saved["optimizer"] = optimizer_of(about["optimizer"], path)
    settings = {**saved, **options}
    if settings["micro_batches"] != saved["micro_batches"] and "algorithms" not in options:
        settings.pop("algorithms", None)  # of ops that there are not any more
    _check_arrays(path, net, optimizers.get(settings["optimizer"]), arrays)
    try:
        trainer = kind(net, **settings)
    except DeviceError as error:
        if "device" in options:
            raise
        raise CheckpointError(
            f"{path} was saved on a GPU, and {error}; load(path, device='host') goes on here, by other kernels"
        ) from error
    except (DecisionError, PolicyError, RewriteError) as error:
        if options.keys() & {"policy", "algorithms", "rewrites"}:
            raise  # it may be the caller's
        raise CheckpointError(f"{path}: options cannot be used: {error}") from error
    for group in (trainer.weights, trainer.state, trainer.statistics):
        for name in group:
            group[name] = arrays[name]
    trainer.steps_done, trainer.epoch, trainer.position = (about[k] for k in ("steps_done", "epoch", "position"))
    trainer.recipe = about["recipe"]
    return trainer


def _settle_device(saved: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Make of the saved device options for the trainer, as far as `options` do not ask for another.

    Algorithms are those of one kernel set, so that they are left out for another.
    """
    was = saved.pop("device")
    traits = {k: v for k, v in was.items() if k != "name"}
    asked = options.get("device", was["name"])
    if isinstance(asked, str):
        same = asked == was["name"] and all(options.get(k, v) == v for k, v in traits.items())
    else:
        same = asked.name == was["name"] and all(getattr(asked.kernels, k) == v for k, v in traits.items())
    if asked == was["name"]:
        saved |= traits
    if asked != "host" or was["name"] != "host":
        del saved["threads"]
    if not same:
        del saved["algorithms"]
    saved["device"] = was["name"]


def _settle_rewrites(saved: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Leave out saved algorithms if `options` ask for a tape that is split otherwise: it has other ops."""
    asked = options.get("rewrites")
    if asked is not None and ("split" in checked(asked)) != ("split" in saved["rewrites"]):
        saved.pop("algorithms", None)


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
    check_metadata(path, about)
    return about, arrays


def _check_layers(path: str | os.PathLike[str], saved: list[dict[str, Any]], net: Network) -> None:
    """Raise CheckpointError with the first difference of the network's layers from those saved.

    Equal arrays are not enough: another stride or another activation trains on from the same weights, but wrongly.
    """
    given = json.loads(json.dumps(describe_network(net)["layers"], default=plain))
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
        "network": describe_network(trainer.net),
        "optimizer": describe_optimizer(trainer.optimizer),
        "seed": trainer.seed,
        "steps_done": trainer.steps_done,
        "epoch": trainer.epoch,
        "position": trainer.position,
        "recipe": trainer.recipe,
        "options": {
            "policy": policy,
            "budget": trainer.budget_bytes,
            "algorithms": dict(trainer.plan.decisions.algorithms),
            "threads": trainer.device.kernels.threads,
            "undo": trainer.undo,
            "rewrites": list(trainer.plan.tape.rewrites),
            "micro_batches": trainer.micro_batches,
            "allow_coupled": trainer.allow_coupled,
            "host_budget": trainer.host_budget,
            "device": {
                field: getattr(trainer.device.kernels, field) for field in DEVICE_FIELDS[name] if field != "name"
            }
            | {"name": name},
        },
    }
