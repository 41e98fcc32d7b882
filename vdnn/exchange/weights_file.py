"""weights_file: the tensors in a file of weights, whatever wrote it: safetensors or PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError, safe_open

from vdnn.exchange.errors import ModelError
from vdnn.exchange.stored import BFLOAT16, StoredTensor, from_bytes
from vdnn.exchange.torch_file import ZIP, opened_torch, refuse_other_formats
from vdnn.layers.base import Array

TYPES = {  # safetensors' names of the types that are read
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": BFLOAT16,
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def opened(path: str | os.PathLike[str]) -> AbstractContextManager[Mapping[str, StoredTensor]]:
    """The tensors of a file by their names, to be read while the context lasts.  Raises ModelError."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{file} is no file")
    with file.open("rb") as stream:
        start = stream.read(512)
    if start.startswith(ZIP):
        return opened_torch(file)
    refuse_other_formats(file, start)
    return _opened_safetensors(file)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """{name: array} of all tensors in a .safetensors file or one of torch.save; float16 and the like stay as they are,
    and bfloat16, which NumPy does not have, becomes float32.  Nothing in the file is run.  Raises ModelError.
    """
    with opened(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Mapping[str, StoredTensor]]:
    try:
        with safe_open(path, framework="numpy") as file:
            found, halves = {}, _Halves(path)
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                view = file.get_slice(name)
                dtype = TYPES.get(view.get_dtype(), view.get_dtype())
                read = partial(halves, name) if dtype == BFLOAT16 else partial(file.get_tensor, name)
                if dtype not in TYPES.values():
                    read = partial(_refuse_type, path, name, dtype)
                found[name] = StoredTensor(tuple(view.get_shape()), dtype, read)
            yield found
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path} ({size:,} bytes) is neither a whole safetensors file nor one of torch.save: {error}"
        ) from error


class _Halves:
    """The bfloat16 tensors of a file as float32.  The library has no NumPy type for them, but gives all tensors as
    bytes: once, when the first is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _found(self) -> dict[str, Any]:
        every = safetensors.deserialize(self.path.read_bytes())  # type: ignore[no-untyped-call]
        return {name: found for name, found in every if TYPES.get(found["dtype"]) == BFLOAT16}

    def __call__(self, name: str) -> Array:
        found = self._found[name]
        return from_bytes(found["data"], BFLOAT16).reshape(found["shape"])


def _refuse_type(path: Path, name: str, dtype: str) -> Array:
    raise ModelError(f"{path}: {name} is of type {dtype}, which is none of {', '.join(TYPES.values())}")
