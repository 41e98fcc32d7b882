"""The tasks of a 1x1 convolution (vdnn.kernels.numpy.pointwise), compiled."""

from __future__ import annotations

from collections.abc import Sequence

from vdnn.kernels.numpy.compiled import pointwise
from vdnn.kernels.numpy.compiled.winograd import no_bias
from vdnn.kernels.numpy.direct_plan import lanes_of
from vdnn.kernels.numpy.pointwise import PointwisePlan
from vdnn.layers.base import Array

Pair = tuple[int, int]


class PointwiseRoutines:
    """What NumPy leaves to the BLAS."""

    @staticmethod
    def multiply_pixels(
        plan: PointwisePlan, part: Pair, block: Pair, arrays: tuple[Array, ...], steps: Pair, filters: Array
    ) -> None:
        """A block of the result's channels for a part of the pixels; arrays: source, filter, bias and result."""
        x, w, bias, y = arrays
        (first, last), (inner, outer) = block, steps
        L, M, count = x.shape[-1], y.shape[-1], last - first
        initial = no_bias(count + lanes_of(plan.dtype), plan.dtype)
        if bias is not None:
            initial = initial.copy()
            initial[:count] = bias[first:last]
        pointwise.lay_filters(w.reshape(-1), inner, outer, L, first, count, filters)
        where = first, count, M, initial, y.reshape(-1)
        pointwise.product(x.reshape(-1), L, *part, plan.pixels, filters, *where)

    @staticmethod
    def weigh_pixels(
        plan: PointwisePlan, part: Pair, block: Pair, arrays: tuple[Array, ...], panels: Sequence[Array]
    ) -> None:
        """A block of the filter's gradient, summed over a part of the pixels; arrays: x, dy and the sums."""
        x, dy, sums = arrays
        C, K = x.shape[-1], dy.shape[-1]
        rows, columns = ((0, K), block) if C > K else (block, (0, C))
        pointwise.weigh(
            x.reshape(-1), dy.reshape(-1), sums.reshape(-1), *part, plan.pixels, rows, columns, C, K, *panels
        )
