"""What the kernels do to one block of their work, by name: in NumPy, or compiled (the extra `fast`).

A kernel cuts its work up by shape and shares the blocks among workers; a routine does one block, on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

from vdnn.kernels.numpy import elementwise, norm_passes, pool_windows, update, winograd_tiles


class Routines:
    """NumPy's routines."""

    fast = False
    meet: Callable[..., None] | None = None  # see threads.Meeting

    transform_input = staticmethod(winograd_tiles.transform_input)
    transform_gradient = staticmethod(winograd_tiles.transform_gradient)
    transform_output = staticmethod(winograd_tiles.transform_output)
    transform_filter = staticmethod(winograd_tiles.transform_filter)
    transform_taps = staticmethod(winograd_tiles.transform_taps)

    relu = staticmethod(elementwise.relu)
    relu_backward = staticmethod(elementwise.relu_backward)
    relu_mask = staticmethod(elementwise.relu_mask)
    relu_mask_backward = staticmethod(elementwise.relu_mask_backward)
    add = staticmethod(elementwise.add)
    add_bias = staticmethod(elementwise.add_bias)

    centre = staticmethod(norm_passes.centre)
    sum_moments = staticmethod(norm_passes.sum_moments)
    sum_gradients = staticmethod(norm_passes.sum_gradients)
    settle_moments = staticmethod(norm_passes.settle_moments)
    settle_gradients = staticmethod(norm_passes.settle_gradients)
    normalise = staticmethod(norm_passes.normalise)
    differentiate = staticmethod(norm_passes.differentiate)

    max_pool = staticmethod(pool_windows.max_pool)
    max_pool_backward = staticmethod(pool_windows.max_pool_backward)

    # only compiled: vdnn.kernels.numpy.winograd, direct, pointwise and linear
    transform_panels: Callable[..., None]
    multiply_tiles: Callable[..., None]
    gather: Callable[..., None]
    weigh: Callable[..., None]
    multiply_pixels: Callable[..., None]
    linear_forward: Callable[..., None]
    linear_backward_data: Callable[..., None]
    linear_backward_weights: Callable[..., None]

    sgd = staticmethod(update.sgd)
    adam = staticmethod(update.adam)


def are_wanted(fast: bool | None = None) -> bool:
    """Whether `routines` would try to compile; without importing Numba, which takes longer than to plan a step."""
    if fast is not None:
        return fast
    try:
        return os.environ.get("VDNN_FAST", "1") != "0" and find_spec("numba") is not None
    except ImportError:  # from an importer that knows of none
        return False


def routines(fast: bool | None = None) -> Routines:
    """The compiled routines if `fast`, NumPy's if not; None: compiled if Numba can be imported and VDNN_FAST is not 0.

    Raises ImportError if fast is True and Numba cannot be imported.
    """
    if not are_wanted(fast):
        return Routines()
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if fast is None:
            return Routines()
        raise ImportError(
            f"fast=True needs Numba, which failed to import ({error}): pip install 'vdnn[fast]'"
        ) from error
    from vdnn.kernels.numpy.compiled import CompiledRoutines

    return CompiledRoutines()
