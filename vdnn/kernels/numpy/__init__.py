"""CPU kernels in NumPy, partly compiled if Numba is there.

Storage is channels-last; shapes are logical, (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy

from vdnn.kernels.numpy.conv import ConvKernels
from vdnn.kernels.numpy.dropout import DropoutKernels
from vdnn.kernels.numpy.join import JoinKernels
from vdnn.kernels.numpy.linear import LinearKernels
from vdnn.kernels.numpy.loss import LossKernels
from vdnn.kernels.numpy.lrn import LrnKernels
from vdnn.kernels.numpy.norm import NormKernels
from vdnn.kernels.numpy.pool import PoolKernels
from vdnn.kernels.numpy.reshape import ReshapeKernels
from vdnn.kernels.numpy.threads import Workers
from vdnn.kernels.numpy.update import UpdateKernels

__all__ = ["NumpyKernels"]


class NumpyKernels(
    ConvKernels,
    LinearKernels,
    DropoutKernels,
    JoinKernels,
    LossKernels,
    LrnKernels,
    NormKernels,
    PoolKernels,
    ReshapeKernels,
    UpdateKernels,
    Workers,
):
    """The kernel set `numpy`.

    threads  None: as many as the process may use
    fast     whether kernels compiled by Numba run; None: if it is installed and VDNN_FAST is not 0.  A plan may run by
             either: algorithms and their workspaces are the same, not their rates.
             Raises ImportError if True and Numba is not installed.
    exact    convolve by plain products alone, without the faster algorithms that round more (vdnn.kernels.numpy.conv)
    """

    name = "numpy"
    storage = "nhwc"
    storages = ("nhwc", "nchw")  # that single kernels take as well
    xp: Any = numpy
    # what can do a ReLU in passing, if it is asked to `rectify`
    rectifying = ("batch_norm", "batch_norm_evaluate", "conv2d_forward")

    def __init__(self, threads: int | None = None, fast: bool | None = None, exact: bool = False) -> None:
        Workers.__init__(self, threads)
        self.exact, self.wants_fast = exact, fast
        if fast:
            _ = self.routines  # so that an error comes now

    @staticmethod
    def call(method: Callable[..., None], arguments: Mapping[str, Any]) -> None:
        """Call a layer's method with NumPy arrays."""
        method(**arguments)
