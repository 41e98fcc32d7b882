"""What goes wrong with a model from outside."""

from __future__ import annotations

from vdnn.layers.base import ShapeError


class ModelError(ValueError):
    """A file of weights or a network that cannot be taken; nothing was changed, and nothing in it was run."""


class ModelShapeError(ModelError, ShapeError):
    """A network in a file that takes no images of this shape."""
