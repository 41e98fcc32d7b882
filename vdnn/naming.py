"""naming: what to say of a name that there is not: the nearest ones, and all there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

CUTOFF = 0.5  # of difflib's ratio: from which likeness on a name is worth suggesting
CLEARLY = 0.8  # where it must be nearly the same
LISTED = 40  # names that are listed; of more only the first, and how many others there are


def nearest(name: Any, known: Iterable[str], most: int = 2, cutoff: float | None = None) -> list[str]:
    """The known names most like this one, best first: those that begin with it, else those spelled like it.

    cutoff  of difflib's ratio: only those that are spelled so much like it

    >>> nearest("h100", ["v100", "h100-pcie", "h100-sxm"]), nearest("VDNN-dyn", ["vdnn_dyn", "vdnn_all"])
    (['h100-pcie', 'h100-sxm'], ['vdnn_dyn', 'vdnn_all'])
    """
    plain = {known_name: _plain(known_name) for known_name in known}
    wanted = _plain(str(name))
    begun = [n for n, text in plain.items() if wanted and text.startswith(wanted)] if cutoff is None else []
    if begun:
        return sorted(begun, key=len)[:most]
    spelled = difflib.get_close_matches(wanted, plain.values(), n=most, cutoff=cutoff or CUTOFF)
    return [next(n for n, text in plain.items() if text == found) for found in dict.fromkeys(spelled)]


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name.lower())


def hint(name: Any, known: Iterable[str], most: int = 2, cutoff: float | None = None) -> str:
    """The nearest names in brackets, " (did you mean a or b?)", or nothing."""
    found = nearest(name, known, most, cutoff)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def among(name: Any, known: Iterable[str], more: str = "") -> str:
    """The end of a message about a name that there is not: the nearest, then all there are, and what else may be."""
    names = [str(n) for n in known]
    listed = names if len(names) <= LISTED else [*names[:LISTED], f"{len(names) - LISTED} more"]
    rest = f", {more}" if more else ""
    return f"{hint(name, names)}; there are {', '.join(listed)}{rest}"


def check_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError naming the first option that the function has not, with the nearest and all there are."""
    names = list(known)
    for name in given:
        if name not in names:
            raise TypeError(f"{function}() has no option {name!r}{among(name, names)}")
