"""The tasks of a 1x1 convolution (vdnn.kernels.numpy.pointwise), compiled."""

from __future__ import annotations

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
        plan: PointwisePlan,
        part: Pair,
        block: Pair,
        arrays: tuple[Array, ...],
        steps: Pair,
        filters: Array,
        rectify: bool,
    ) -> None:
        """A block of the result's channels for a part of the pixels; arrays: source, filter, bias and result."""
        x, w, bias, y = arrays
        (first, last), (inner, outer) = block, steps
        L, count = x.shape[-1], last - first
        initial = no_bias(count + lanes_of(plan.dtype), plan.dtype)
        if bias is not None:
            initial = initial.copy()
            initial[:count] = bias[first:last]
        pointwise.lay_filters(w.reshape(-1), inner, outer, L, first, count, filters)
        seen, result = (x.reshape(-1), plan.source, L, plan.grid, *part, plan.pixels), (y.reshape(-1), plan.target)
        pointwise.product(*seen, filters, first, count, initial, *result, rectify)
