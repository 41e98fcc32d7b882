"""The tasks of a direct convolution (vdnn.kernels.numpy.direct), compiled."""

from __future__ import annotations

from vdnn.kernels.numpy.compiled.direct import gather, lay_columns, lay_rows
from vdnn.kernels.numpy.compiled.direct_weights import weigh
from vdnn.kernels.numpy.compiled.winograd import no_bias
from vdnn.kernels.numpy.direct import Pair, Sweep, Weighing
from vdnn.kernels.numpy.direct_plan import cuts_of
from vdnn.layers.base import Array


class DirectRoutines:
    """What NumPy has no form of: it packs matrices instead (vdnn.kernels.numpy.gemm)."""

    @staticmethod
    def gather(
        sweep: Sweep,
        part: Pair,
        block: Pair,
        arrays: tuple[Array, ...],
        filters: Array,
        piece: Array,
        rectify: bool,
    ) -> None:
        """A block of the result's channels for a part of the pixels; arrays: source, filter, bias and result, flat."""
        x, w, bias, y = arrays
        plan, (first, last), (inner, outer) = sweep.plan, block, sweep.steps
        count, start = last - first, sweep.start + first * outer
        initial = no_bias(plan.width, plan.dtype)
        if bias is not None:
            initial = initial.copy()
            initial[:count] = bias[sweep.bias + first : sweep.bias + last]
        if outer == 1:
            lay_columns(w, start, sweep.taps, sweep.source[4], inner, count, plan.width, filters)
        else:
            lay_rows(w, start, outer, outer, count, plan.width, filters)
        seen = x, sweep.source, sweep.window, part, cuts_of(plan.boxes), plan.copies
        target = (sweep.target[0] + first, *sweep.target[1:])
        gather(*seen, filters, count, plan.width, initial, y, target, piece, plan.pixels, rectify)

    @staticmethod
    def weigh(
        weighing: Weighing,
        part: Pair,
        dw: Array,
        block: Pair,
        arrays: tuple[Array, Array],
        sums: Array,
        piece: Array,
    ) -> None:
        """The gradients of a block of dy's channels over a part of the pixels; arrays: x and dy, flat."""
        plan, source, target, (x, dy), (first, last) = weighing.plan, weighing.source, weighing.target, arrays, block
        own, about = dw[first * weighing.size : last * weighing.size], (first, last - first)
        has = plan.copies, dy, target, *about, own, sums, plan.block > 0
        weigh(x, source, weighing.window, part, cuts_of(plan.boxes), *has, piece, plan.pixels)
