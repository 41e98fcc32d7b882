"""What can be wrong with a study."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StudyError(ValueError):
    """A study that cannot be: an unknown key, a bad value, or results that are not its own; nothing was computed."""


class StudyStopped(RuntimeError):  # noqa: N818 (what was done is kept)
    """A study ended early; what was computed is kept, and the same study goes on from there."""


def near(word: str, there: Iterable[str]) -> str:
    """In words: what `word` may have meant, and what there is."""
    names = list(there)
    close = difflib.get_close_matches(word.lower().replace("-", "_"), names, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"{hint}; there are {', '.join(names)}"
