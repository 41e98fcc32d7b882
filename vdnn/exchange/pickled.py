"""pickled: the pickle in a torch file, read as data.

Unpickling runs what the pickle asks for, so nothing is unpickled here.  The opcodes are read one by one with the
standard library's own parser; those that make containers, numbers and text do so; a global is looked up in a table of
names and never imported; and the only calls are to the two functions below that stand for PyTorch's.  Whatever else a
pickle asks for is refused by name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vdnn.exchange.errors import ModelError
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
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


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


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _parameter(data: Any, *_: Any) -> View:
    if not isinstance(data, View):
        raise ValueError(f"a parameter of {data!r:.60}, which is no tensor")
    return data


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """The tensor, whose elements must all be in its storage.  Raises ValueError, with the numbers."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor of {storage!r:.60}, which is no storage")
    for numbers in ((offset,), shape, strides):
        if not isinstance(numbers, tuple) or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"a tensor of offset {offset!r:.40}, shape {shape!r:.60}, strides {strides!r:.60}")
    if len(shape) != len(strides):
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


class _Machine:
    """The stack of a pickle, for the opcodes that state dicts are made of."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}  # by number, so that a large number takes no more than a small one

    def step(self, opcode: str, argument: Any) -> None:
        """Do what one opcode says.  Raises ValueError for one that is not known here."""
        if opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in NUMBERS or opcode in TEXTS:
            self.stack.append(argument)
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode in TUPLES:
            self.stack[-TUPLES[opcode] :] = [tuple(self._top(TUPLES[opcode]))]
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            act = getattr(self, f"_{opcode.lower()}", None)
            if act is None:
                raise ValueError(f"opcode {opcode}, which no state dict has")
            act(argument)

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("fewer values on its stack than it takes from it")
        return self.stack[-count:]

    def _pop(self) -> Any:
        self._top(1)
        return self.stack.pop()

    def _to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("no mark where it refers to one")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _binput(self, number: int) -> None:
        self.memo[number] = self._top(1)[0]

    _long_binput = _binput

    def _memoize(self, _: Any) -> None:
        self._binput(len(self.memo))

    def _binget(self, number: int) -> None:
        if number not in self.memo:
            raise ValueError(f"value {number} before there is one")
        self.stack.append(self.memo[number])

    _long_binget = _binget

    def _append(self, _: Any) -> None:
        value = self._pop()
        self._holder(list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._to_mark()
        self._holder(list).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._put([key, value])

    def _setitems(self, _: Any) -> None:
        self._put(self._to_mark())

    def _put(self, items: list[Any]) -> None:
        holder = self._holder(dict)
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError(f"the key {key!r:.60}, which is neither text nor a number")
            holder[key] = value

    def _holder(self, kind: type) -> Any:
        holder = self._top(1)[0]
        if not isinstance(holder, kind):
            raise ValueError(f"items of {type(holder).__name__}, which is no {kind.__name__}")
        return holder

    def _global(self, argument: str) -> None:
        self.stack.append(_known(".".join(argument.split(" ", 1))))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self.stack.append(_known(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.name not in CALLS or not isinstance(arguments, tuple):
            raise ValueError(f"a call of {function!r:.60}")
        self.stack.append(CALLS[function.name](*arguments))

    def _build(self, _: Any) -> None:
        self._pop()  # a state dict's attributes, such as the versions of its modules, say nothing of weights
        self._holder(dict)

    def _binpersid(self, _: Any) -> None:
        match self._pop():
            case ("storage", Global(name), str(key), str(), int(elements)) if name in STORAGES and elements >= 0:
                self.stack.append(Storage(key, STORAGES[name], elements))
            case other:
                raise ValueError(f"a reference to {other!r:.80}, which is no storage")


def _known(name: str) -> Global:
    """The global of that name, if state dicts refer to it.  Raises ModelError."""
    if name not in CALLS and name not in STORAGES:
        raise ModelError(
            f"it asks for {name[:80]!r}, which no state dict needs, so that it was refused and nothing was run; save "
            "the weights alone: torch.save(model.state_dict(), path)"
        )
    return Global(name)


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(data):
        yield opcode.name, argument


def read_pickle(data: bytes, where: str) -> Any:
    """What the pickle holds, with a View for each tensor.  `where` begins the message of a ModelError."""
    machine = _Machine()
    try:
        for opcode, argument in _opcodes(data):
            machine.step(opcode, argument)
        if len(machine.stack) != 1 or machine.marks:
            raise ValueError(f"{len(machine.stack)} values where it ends")
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ModelError(f"{where} is damaged or no state dict's: it has {error}") from error
    return machine.stack[0]
