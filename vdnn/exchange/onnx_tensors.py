"""onnx_tensors: the constants of an ONNX file, whose sizes are checked before any of their data is copied."""

from __future__ import annotations

import os
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vdnn.exchange.errors import ModelError
from vdnn.exchange.stored import BFLOAT16, ITEM_BYTES, StoredTensor, from_bytes
from vdnn.layers.base import Array, Shape

LARGEST = 2**31 - 1  # a size of any dimension; more is a damaged file's
TYPES = {  # TensorProto.DataType
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: BFLOAT16,
}


def constant(onnx: Any, path: Path, tensor: Any) -> StoredTensor:
    """The tensor, whose data were counted before any of them is copied.  Raises ModelError."""
    where, dtype = f"{path}: constant {tensor.name or 'without a name'}", TYPES.get(tensor.data_type)
    shape = tuple(tensor.dims)
    if dtype is None or any(not 0 <= size <= LARGEST for size in shape):
        raise ModelError(f"{where} has shape {shape}, type number {tensor.data_type}; that cannot be read")
    needed = prod(shape) * ITEM_BYTES[dtype]
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return StoredTensor(shape, dtype, _external(path, where, tensor, shape, dtype, needed))
    if tensor.HasField("raw_data"):
        found, unit = len(tensor.raw_data), "bytes"
    else:
        found, needed, unit = _count(tensor, dtype), prod(shape), "numbers"
    if found != needed:
        raise ModelError(f"{where}: shape {shape} of {dtype} takes {needed:,} {unit}, it has {found:,}")
    return StoredTensor(shape, dtype, partial(_array, onnx, tensor))


def _count(tensor: Any, dtype: str) -> int:
    fields = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
    return len(getattr(tensor, fields.get(dtype, "int32_data")))


def _array(onnx: Any, tensor: Any) -> Array:
    found = onnx.numpy_helper.to_array(tensor)
    return found.astype(np.float32) if found.dtype.name == BFLOAT16 else found


def _external(path: Path, where: str, tensor: Any, shape: Shape, dtype: str, needed: int) -> partial[Array]:
    """What reads data from a file beside the model's.  Raises ModelError for a file that is elsewhere or too short."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
        is_inside = bool(location) and not os.path.isabs(location) and file.is_relative_to(folder)
    except (ValueError, OSError) as error:
        raise ModelError(f"{where}: its data cannot be found at {location[:80]!r}: {error}") from error
    if not is_inside:
        raise ModelError(
            f"{where}: its data are said to be in {location[:80]!r}, outside of the model's folder: refused"
        )
    if not file.is_file():
        raise ModelError(f"{where}: its data are said to be in {location[:80]!r}, which is no file")
    size = file.stat().st_size
    if length != needed or offset < 0 or offset + length > size:
        raise ModelError(
            f"{where}: shape {shape} of {dtype} takes {needed:,} bytes, it is said to have {length:,} at {offset:,} of "
            f"the {size:,} bytes of {location[:80]!r}"
        )
    return partial(_read_external, file, offset, length, shape, dtype)


def _read_external(file: Path, offset: int, length: int, shape: Shape, dtype: str) -> Array:
    with file.open("rb") as stream:
        stream.seek(offset)
        return from_bytes(stream.read(length), dtype).reshape(shape)
