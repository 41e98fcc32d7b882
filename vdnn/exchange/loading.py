"""loading: weights from outside into a trainer: all of them or, if so asked, those that suit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vdnn.exchange.errors import ModelError
from vdnn.exchange.names import as_of_now, is_left_out, names_of, why_other
from vdnn.exchange.stored import StoredTensor
from vdnn.exchange.weights_file import opened
from vdnn.layers.base import Array, Shape
from vdnn.naming import CLEARLY, among, hint
from vdnn.network import Network, Tensor

if TYPE_CHECKING:
    from vdnn.train import Trainer

SHOWN = 8  # names of each list in a message
WeightSource = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class LoadedWeights:
    """What became of the tensors of a file, or of a mapping.

    source      the file, or "a mapping"
    network     the network's name
    loaded      names in the network of what was replaced
    missing     names, in the file's way, of what the network has and the file has not: left as it was
    unexpected  names of what the file has and the network has not: skipped, each with what may have been meant
    mismatched  names, with both shapes, of what has another shape: skipped
    left_out    names of what is known to be of no use, such as num_batches_tracked or an optimizer's state
    converted   names of what was of another type than the network's
    """

    source: str
    network: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the file has what the network has, no more and no less."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """One line, and one for each list of what did not suit."""
        lines = [f"{self.network}: {len(self.loaded)} tensors from {self.source}"]
        if self.converted:
            counts = Counter(name.rpartition(" from ")[2] for name in self.converted)
            lines += [f"  {count} converted from {dtype}" for dtype, count in counts.items()]
        return "\n".join(lines + self.complaints())

    def complaints(self) -> list[str]:
        """A line for each list of what did not suit."""
        lists = {
            "missing": self.missing,
            f"not of {self.network}": self.unexpected,
            "of another shape": self.mismatched,
        }
        return [f"  {len(names)} {what}: {_some(names)}" for what, names in lists.items() if names]


def _some(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def load_weights(
    trainer: Trainer, source: WeightSource, *, names: Mapping[str, str] | None = None, strict: bool = True
) -> LoadedWeights:
    """Replace the trainer's weights and running statistics by those of `source`; see Trainer.load_weights."""
    with _tensors_of(source) as (where, tensors):
        given = _unwrapped(tensors)
        matched = _match(trainer.net, given, where, names)
        report = matched.report
        if strict and not report.is_complete:
            raise ModelError(_refusal(trainer.net, given, matched, "strict=False loads those that suit: "))
        if not report.loaded and not report.is_complete:
            raise ModelError(_refusal(trainer.net, given, matched, "nothing suits: "))
        wanted = _wanted(trainer.net)
        arrays = {name: _read(key, given[key], wanted[name], where) for name, key in matched.keys.items()}
    for group in (trainer.weights, trainer.statistics):  # nothing is replaced before all was read
        for name in group:
            if name in arrays:
                group[name] = arrays[name]
    return report


@contextmanager
def _tensors_of(source: WeightSource) -> Iterator[tuple[str, Mapping[str, StoredTensor]]]:
    """(what messages call the source, its tensors)."""
    if not isinstance(source, Mapping):
        with opened(source) as tensors:
            yield os.fspath(source), tensors
        return
    yield "a mapping", {name: _held(name, value) for name, value in source.items()}


def _held(name: Any, value: Any) -> StoredTensor:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one that wants a gradient
        raise ModelError(f"{name} cannot be made a NumPy array: {error}") from error
    if not isinstance(name, str) or array.dtype.kind not in "fiub":
        raise ModelError(f"{name!r}: {value!r:.60} is no array of numbers under a name")
    return StoredTensor(array.shape, array.dtype.name, lambda: array)


def _unwrapped(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors without the "module." that PyTorch's DataParallel puts before every name."""
    prefix = "module." if tensors and all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _wanted(net: Network) -> dict[str, Tensor]:
    return {name: tensor for name, (tensor, _) in {**net.parameters, **net.statistics}.items()}


@dataclass(frozen=True)
class _Matched:
    """keys: {name in the network: key in the file} of all that suit; report: what became of all."""

    keys: Mapping[str, str]
    report: LoadedWeights


def _match(net: Network, given: Mapping[str, StoredTensor], where: str, names: Mapping[str, str] | None) -> _Matched:
    """Which tensor goes where, by the names that most of them have."""
    wanted, now = _wanted(net), {as_of_now(net, key): key for key in given}
    _check_names(net, names, wanted)
    named = dict(names or {})
    schemes = [
        {key: name for key, name in scheme.items() if name not in named.values()} | named
        for scheme in names_of(net).values()
    ]
    scheme = max(schemes, key=lambda scheme: sum(key in now for key in scheme))  # the first of equals
    keys, mismatched, missing = {}, [], []
    for key, name in scheme.items():
        tensor = given.get(now.get(key, ""))
        if tensor is None:
            missing.append(f"{key} {wanted[name].shape}")
        elif tensor.shape != wanted[name].shape:
            mismatched.append(f"{now[key]} is {tensor.shape}, {net.name} has {wanted[name].shape}")
        else:
            keys[name] = now[key]
    others = [key for new, key in now.items() if new not in scheme]
    left_out = tuple(key for key in others if is_left_out(net, as_of_now(net, key)) or _is_state(key, scheme))
    absent = {key: wanted[name].shape for key, name in scheme.items() if key not in now}
    unexpected = tuple(_unexpected(key, given[key].shape, absent) for key in others if key not in left_out)
    converted = tuple(
        f"{key} from {given[key].dtype}" for name, key in keys.items() if given[key].dtype != wanted[name].dtype
    )
    report = LoadedWeights(
        where, net.name, tuple(keys), tuple(missing), unexpected, tuple(mismatched), left_out, converted
    )
    return _Matched(keys, report)


def _is_state(key: str, scheme: Mapping[str, str]) -> bool:
    """Whether it is an optimizer's, of one of vdnn's own checkpoints."""
    return scheme.get(key.rpartition(".")[0], "") == key.rpartition(".")[0] != ""


def _check_names(net: Network, names: Mapping[str, str] | None, wanted: Mapping[str, Tensor]) -> None:
    for name, count in Counter((names or {}).values()).items():
        if count > 1:
            raise ModelError(f"names: {count} tensors are to be {name}; one can be")
    wrong = [name for name in (names or {}).values() if name not in wanted]
    if wrong:
        there = f"{hint(wrong[0], wanted, 1)}; there are {_some(tuple(wanted))}"
        raise ModelError(f"names: {wrong[0]!r} is no weight or statistic of {net.name}{there}")


def _unexpected(key: str, shape: Shape, absent: Mapping[str, Shape]) -> str:
    """The key with its shape, and the missing one that may have been meant: of its shape rather than of another."""
    alike = [name for name, wanted in absent.items() if wanted == shape]
    return f"{key} {shape}{hint(key, alike, 1) or hint(key, absent, 1, CLEARLY)}"


def _refusal(net: Network, given: Mapping[str, StoredTensor], matched: _Matched, end: str) -> str:
    report = matched.report
    why = why_other(net, given)
    lines = [f"{net.name} cannot take the weights of {report.source}{': ' + why if why else ''}", *report.complaints()]
    return "\n".join([*lines, f"  {end}{len(report.loaded)} of {len(_wanted(net))} tensors of {net.name}"])


def _read(key: str, tensor: StoredTensor, wanted: Tensor, where: str) -> Array:
    """The tensor in the network's type.  Raises ModelError for integers, and for values that are not finite."""
    if not tensor.is_float:
        raise ModelError(f"{where}: {key} is of type {tensor.dtype}, which no weight is of")
    with np.errstate(over="ignore"):
        array = np.asarray(tensor.read()).astype(wanted.dtype, copy=False)
    wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
    if wrong:
        raise ModelError(f"{where}: {wrong:,} of {array.size:,} values of {key} are not finite in {wanted.dtype}")
    return array


def weights_named(trainer: Trainer, names: str) -> dict[str, Array]:
    """The trainer's weights and statistics under those names: "torchvision", "layers" or "vdnn".  Raises ModelError."""
    known = names_of(trainer.net)
    if names not in known:
        raise ModelError(f"{trainer.net.name} has no names {names!r}{among(names, known)}")
    arrays = {**trainer.weights, **trainer.statistics}
    return {key: arrays[name] for key, name in known[names].items()}
