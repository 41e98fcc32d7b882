"""Files as torch.save writes them, byte by byte, so that tests need no PyTorch and can write what it never would."""

from __future__ import annotations

import struct
import zipfile

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long", "uint16": "BFloat16"}
TWO = b"\x80\x02"


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def group(*values):
    return b"(" + b"".join(values) + b"t"


def storage(key, dtype, elements):
    kind = named("torch", f"{STORAGES[dtype]}Storage")
    return group(text("storage"), kind, text(key), text("cpu"), number(elements)) + b"Q"


def tensor(stored, shape, strides, offset=0):
    sizes = group(*map(number, shape)), group(*map(number, strides))
    hooks = named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + group(stored, number(offset), *sizes, b"\x89", hooks) + b"R"


def mapping(items):
    """An OrderedDict, as state dicts are."""
    body = b"".join(text(name) + value for name, value in items.items())
    return named("collections", "OrderedDict") + b")R(" + body + b"u"


def strides_of(array):
    return [step // array.itemsize for step in array.strides]


def write(path, data, storages, *, order=b"little", compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        if order is not None:
            file.writestr("archive/byteorder", order)
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)
        for name, content in extra:
            file.writestr(name, content)
        file.writestr("archive/version", b"3\n")
    return path


def save(path, arrays, wrap=None, **options):
    """A state dict of these arrays; uint16 stands for bfloat16.  wrap: under that key of a checkpoint."""
    items, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        storages[str(key)] = np.ascontiguousarray(array).tobytes()
        items[name] = tensor(storage(str(key), array.dtype.name, array.size), array.shape, strides_of(array))
    state = mapping(items)
    if wrap:
        state = b"}(" + text("epoch") + number(3) + text(wrap) + state + b"u"
    return write(path, TWO + state + b".", storages, **options)
