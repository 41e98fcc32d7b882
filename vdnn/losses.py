"""Loss: the number that a training step gives, waited for when it is looked at."""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np


def _with(function: Callable[..., Any], swapped: bool = False) -> Any:
    """A method that applies `function` to the number, and to another operand if there is one."""

    def method(self: Loss, *others: Any) -> Any:
        plain = tuple(float(other) if isinstance(other, Loss) else other for other in others)
        return function(*plain, float(self)) if swapped else function(float(self), *plain)

    return method


class Loss(Real):
    """A real number that may not be known yet: whatever is done with it waits for the step that gives it.

    Raises what failed in that step.  What takes nothing but a float, such as json, takes float(loss).
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.value: float | None = None
        self._wait: Callable[[], None] | None = wait

    def __float__(self) -> float:
        if self.value is None and self._wait is not None:
            self._wait()
        if self.value is None:
            raise RuntimeError("the step that was to give this loss failed")
        return self.value

    def set(self, value: float) -> None:
        """The number is known; nothing that it was waited for by is held any more."""
        self.value, self._wait = value, None

    def fail(self) -> None:
        """The number will never be known."""
        self._wait = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(float(self), dtype)

    __abs__ = _with(operator.abs)
    __add__ = _with(operator.add)
    __bool__ = _with(bool)
    __ceil__ = _with(lambda x: x.__ceil__())
    __eq__ = _with(operator.eq)
    __floor__ = _with(lambda x: x.__floor__())
    __floordiv__ = _with(operator.floordiv)
    __format__ = _with(format)
    __ge__ = _with(operator.ge)
    __gt__ = _with(operator.gt)
    __hash__ = _with(hash)
    __int__ = _with(int)
    __le__ = _with(operator.le)
    __lt__ = _with(operator.lt)
    __mod__ = _with(operator.mod)
    __mul__ = _with(operator.mul)
    __neg__ = _with(operator.neg)
    __pos__ = _with(operator.pos)
    __pow__ = _with(operator.pow)
    __radd__ = _with(operator.add, swapped=True)
    __repr__ = _with(repr)
    __rfloordiv__ = _with(operator.floordiv, swapped=True)
    __rmod__ = _with(operator.mod, swapped=True)
    __rmul__ = _with(operator.mul, swapped=True)
    __round__ = _with(round)
    __rpow__ = _with(operator.pow, swapped=True)
    __rsub__ = _with(operator.sub, swapped=True)
    __rtruediv__ = _with(operator.truediv, swapped=True)
    __sub__ = _with(operator.sub)
    __truediv__ = _with(operator.truediv)
    __trunc__ = _with(int)
