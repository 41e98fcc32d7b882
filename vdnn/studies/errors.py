"""What can be wrong with a study."""

from __future__ import annotations


class StudyError(ValueError):
    """A study that cannot be: an unknown key, a bad value, or results that are not its own; nothing was computed."""


class StudyStopped(RuntimeError):  # noqa: N818 (what was done is kept)
    """A study ended early; what was computed is kept, and the same study goes on from there."""
