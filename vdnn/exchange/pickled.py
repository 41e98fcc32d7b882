"""pickled: the pickle in a torch file, read as data.

Unpickling runs what the pickle asks for, so nothing is unpickled here.  The opcodes are read one by one with the
standard library's own parser; those that make containers, numbers and text do so; a global is looked up in a table of
names and never imported; and the only calls are to the functions of vdnn.exchange.views that stand for PyTorch's.
Whatever else a pickle asks for is refused by name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vdnn.exchange.errors import ModelError
from vdnn.exchange.views import CALLS, STORAGES, Global, Storage, key_of, shown

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
EMPTY: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
ACTS = (  # the other opcodes, each a method of the machine
    *("MARK", "TUPLE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
)


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
            if opcode not in ACTS:
                raise ValueError(f"opcode {opcode}, which no state dict has")
            getattr(self, f"_{opcode.lower()}")(argument)

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
            holder[key_of(key)] = value

    def _holder(self, kind: type) -> Any:
        holder = self._top(1)[0]
        if not isinstance(holder, kind):
            raise ValueError(f"items of {type(holder).__name__}, which is no {kind.__name__}")
        return holder

    def _global(self, argument: str) -> None:
        self.stack.append(_known(".".join(argument.split(" ", 1))))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global whose name is no text")
        self.stack.append(_known(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.name not in CALLS or not isinstance(arguments, tuple):
            raise ValueError(f"a call of {shown(function)}")
        self.stack.append(CALLS[function.name](*arguments))

    def _build(self, _: Any) -> None:
        self._pop()  # a state dict's attributes, such as the versions of its modules, say nothing of weights
        self._holder(dict)

    def _binpersid(self, _: Any) -> None:
        match self._pop():
            case ("storage", Global(name), str(key), str(), int(elements)) if name in STORAGES and elements >= 0:
                self.stack.append(Storage(key, STORAGES[name], elements))
            case other:
                raise ValueError(f"a reference to {shown(other)}, which is no storage")


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
