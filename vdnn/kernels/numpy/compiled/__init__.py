"""The routines of `routines.py` compiled by Numba, which importing this needs.

Each equals NumPy's: bit for bit, but for sums, whose terms are added in another order, and signs of zeros.
"""

from __future__ import annotations

from vdnn.kernels.numpy.compiled.direct_routines import DirectRoutines
from vdnn.kernels.numpy.compiled.linear_routines import LinearRoutines
from vdnn.kernels.numpy.compiled.norm_routines import NormRoutines
from vdnn.kernels.numpy.compiled.pieces import PieceRoutines
from vdnn.kernels.numpy.compiled.pointwise_routines import PointwiseRoutines
from vdnn.kernels.numpy.compiled.pool import PoolRoutines
from vdnn.kernels.numpy.compiled.watch import meet
from vdnn.kernels.numpy.compiled.winograd import WinogradRoutines
from vdnn.kernels.numpy.routines import Routines

__all__ = ["CompiledRoutines"]


class CompiledRoutines(
    DirectRoutines,
    LinearRoutines,
    NormRoutines,
    PieceRoutines,
    PointwiseRoutines,
    PoolRoutines,
    WinogradRoutines,
    Routines,
):
    """Compiled where arrays are stored densely, as all of vdnn's are; NumPy's otherwise."""

    fast = True
    meet = staticmethod(meet)
