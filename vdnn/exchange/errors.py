"""What goes wrong with a model from outside."""

from __future__ import annotations


class ModelError(ValueError):
    """A file of weights or a network that cannot be taken; nothing was changed, and nothing in it was run."""
