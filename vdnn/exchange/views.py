"""views: what a pickle of PyTorch may refer to and call: storages, and functions that stand for its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vdnn.layers.base import Shape

STORAGES: Mapping[str, str] = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
MOST_DIMENSIONS = 64  # of a tensor in PyTorch and of an array in NumPy


@dataclass(frozen=True)
class Storage:
    """A row of elements in a member of the archive."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor: where in a storage its elements are.  offset and strides in elements."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to; only a name."""

    name: str


def shown(value: Any) -> str:
    """A value for a message: what holds others by its type alone, as it may hold them a billion times over."""
    return repr(value)[:60] if isinstance(value, str | int | float | Global) else f"a {type(value).__name__}"


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, tuple | list) or not all(isinstance(p, tuple | list) and len(p) == 2 for p in pairs):
        raise ValueError(f"an OrderedDict of {shown(pairs)}")
    return {key_of(key): value for key, value in pairs}


def key_of(key: Any) -> str | int:
    """The key of a dict, which must be text or a number.  Raises ValueError."""
    if not isinstance(key, str | int):
        raise ValueError(f"the key {shown(key)}, which is neither text nor a number")
    return key


def _parameter(data: Any, *_: Any) -> View:
    if not isinstance(data, View):
        raise ValueError(f"a parameter of {shown(data)}, which is no tensor")
    return data


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """The tensor, whose elements must all be in its storage.  Raises ValueError, with the numbers."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor of {shown(storage)}, which is no storage")
    for numbers in ((offset,), shape, strides):
        if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError("a tensor whose offset, sizes and strides are not numbers of 0 to 2**63 - 1")
    if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"a tensor with {len(shape)} sizes and {len(strides)} strides")
    count = 1
    for n in shape:
        count *= n
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if count > storage.elements or (count and end > storage.elements):
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} at {offset}, which does not lie in its storage of "
            f"{storage.elements} elements"
        )
    return View(storage, offset, shape, strides)


CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
}
