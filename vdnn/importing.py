"""importing: functions of one's own, named as "module:function"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def imported(name: str, wanted: str, error: type[ValueError]) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises `error` if there is none; `wanted` says in the message what the function should be.  What goes wrong inside
    the module is raised as it is.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as fault:
        if fault.name is None or not f"{module}.".startswith(f"{fault.name}."):
            raise  # the module is there, but something that it imports is not
        raise error(f"{name!r}: there is no module {fault.name!r} to import") from fault
    except AttributeError as fault:
        raise error(f"{name!r}: module {module!r} has no {function!r}") from fault
    if not callable(found):
        raise error(f"{name!r} is a {type(found).__name__}, not a function that returns {wanted}")
    return found  # type: ignore[no-any-return]
