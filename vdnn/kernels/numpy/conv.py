"""Convolution: the choice of algorithms and the entry points.

Logical shapes: x (N, C, H, W), w (K, C / groups, R, S), b (K,), y (N, K, OH, OW); stored channels-last.

direct     tiled im2col and GEMM in at most 1 MiB of workspace a worker, or, compiled, without a matrix
           (vdnn.kernels.numpy.direct); a GEMM without workspace for 1x1, stride 1, no padding
pack       the same with tiles of about 3 MiB a worker, and backward_data with a rearranged copy of the filter; for 1x1
           forward and backward_data, what only the compiled kernels gain by (vdnn.kernels.numpy.pointwise)
winograd2  F(2x2, 3x3) for 3x3, stride 1: 2.25 times fewer multiplications, as exact as direct; F(2x2, 5x5) for 5x5,
           stride 1: 2.78 times fewer, off as winograd4 is
winograd4  F(4x4, 3x3) for 3x3, stride 1: 4 times fewer, about 1e-5 of the largest element off in float32

There is no Winograd where it is more than 1e-4 off by the shape (vdnn.kernels.numpy.winograd_error).

`exact` kernels have direct and pack alone: every product of the definition, added up in float32.

All results are independent of buffer addresses and of the number of threads, bit for bit: work is cut up by shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy

from vdnn.kernels.numpy import conv_gemm, conv_weights, direct, pointwise, winograd, winograd_plan
from vdnn.kernels.numpy.chunks import PIECE, Sharing
from vdnn.kernels.numpy.geometry import Geometry, Pair, geometry
from vdnn.kernels.numpy.layout import ceil_div, channels_last, channels_last_output, deliver
from vdnn.kernels.numpy.winograd_error import TOLERANCE, relative_error
from vdnn.layers.base import Algorithm, Array, Shape

WINOGRAD = {"winograd2": 2, "winograd4": 4}  # outputs per tile and axis
EXACT = ("direct", "pack")
# Channels at which the transforms take half of the time; compiled they take less
HALF_RATE = {"winograd2": 100, "winograd4": 170}
COMPILED_HALF_RATE = {"winograd2": (40, 90), "winograd4": (80, 150)}  # of the other passes, of backward_weights
WORTH = 0.75
# With so many tiles in all, compiled transforms of the filter take as long as the rest; with so many pixels, its copies
FEW_TILES = (35, 15)  # of the other passes, of backward_weights
FEW_PIXELS = 150
GEMM_WORKSPACE = {
    "forward": conv_gemm.forward_workspace,
    "backward_data": conv_gemm.data_workspace,
    "backward_weights": conv_weights.weights_workspace,
}


def algorithms_of(phase: str, g: Geometry, fast: bool = False) -> dict[str, float]:
    """The algorithms worth having for this phase and their rates: direct arithmetic per second over a plain GEMM's.

    The rates, other ones if `fast`, are fitted to measurements at one thread, 16 to 512 channels: shallow layers are
    bound by packing and transforms.  Winograd is left out where in NumPy it would be much slower than "direct", or too
    far off, "pack" where it is cut up like "direct".
    """
    if g.is_pointwise:
        return _pointwise(phase, g, fast)
    depth, channels = max(1.0, min(g.C * g.taps[0] * g.taps[1] / 9, g.K)), min(g.C, g.K)
    rates = {"direct": 0.8 * depth / (depth + 16), "pack": 0.9 * depth / (depth + 16)}
    for name, m in WINOGRAD.items():
        if not winograd_plan.applies(g, m):
            continue
        rate = winograd_plan.gain(g, m) * channels / (channels + HALF_RATE[name])
        if rate > WORTH * rates["direct"] and relative_error(phase, g, m) < TOLERANCE:
            rates[name] = rate
    if GEMM_WORKSPACE[phase](g, "direct", 1) == GEMM_WORKSPACE[phase](g, "pack", 1):
        del rates["pack"]
    return rates | _compiled(phase, g, depth, rates) if fast else rates


def _pointwise(phase: str, g: Geometry, fast: bool) -> dict[str, float]:
    """The algorithms of a plain product and their rates."""
    rates = {"direct": 0.95}
    if pointwise.applies(phase, g):
        rates["pack"] = 1.05 if fast else 0.9
    return rates


def _compiled(phase: str, g: Geometry, depth: float, names: Iterable[str]) -> dict[str, float]:
    """The rates of what is compiled."""
    rates, is_weights, pixels = {}, phase == "backward_weights", g.N * g.outputs[0] * g.outputs[1]
    if compiled_form(phase, g, "direct"):
        rates["direct"] = 1.1 * depth / (depth + 8) * pixels / (pixels + FEW_PIXELS)
        if "pack" in names:
            rates["pack"] = 0.8 * rates["direct"]
    for name, m in WINOGRAD.items():
        if name in names:
            tiles = g.N * ceil_div(g.outputs[0], m) * ceil_div(g.outputs[1], m)
            half, channels = COMPILED_HALF_RATE[name][is_weights], min(g.C, g.K)
            rate = winograd_plan.gain(g, m) * channels / (channels + half)
            rates[name] = rate * tiles / (tiles + FEW_TILES[is_weights])
    return rates


@lru_cache(maxsize=4096)
def compiled_form(phase: str, g: Geometry, algorithm: str) -> Any:
    """The module that has a compiled form of this; None if there is none."""
    if pointwise.applies(phase, g):
        return pointwise if (algorithm == "pack") == g.is_pointwise else None
    return direct if algorithm == "direct" and direct.applies(phase, g) else None


def workspace_of(phase: str, g: Geometry, algorithm: str, threads: int) -> int:
    """Bytes of workspace."""
    if algorithm in WINOGRAD:
        return winograd.workspace(phase, g, WINOGRAD[algorithm], threads)
    needed, form = GEMM_WORKSPACE[phase](g, algorithm, threads), compiled_form(phase, g, algorithm)
    return max(needed, form.workspace(phase, g, threads)) if form else needed


class ConvKernels(Sharing):
    """Convolution and its gradients.  exact: whether there are only the algorithms of EXACT."""

    exact = False

    def conv2d_algorithms(
        self,
        phase: str,
        x_shape: Shape,
        w_shape: Shape,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        dtype: Any,
    ) -> tuple[Algorithm, ...]:
        """The algorithms for this phase with their exact workspace, least workspace first."""
        g = geometry(tuple(x_shape), tuple(w_shape), stride, padding, dilation, groups, numpy.dtype(dtype).name)
        found = [
            Algorithm(name, workspace_of(phase, g, name, self.threads), round(rate, 3))
            for name, rate in self._rates(phase, g).items()
        ]
        return tuple(sorted(found, key=lambda algorithm: algorithm.workspace))

    def conv2d_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        y: Array,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        algorithm: str,
        workspace: Array | None,
        rectify: bool = False,
    ) -> None:
        """Write y = x * w + b.  rectify: max(y, 0) in place of y, as relu has it."""
        g = self._geometry("forward", x, w, stride, padding, dilation, groups, algorithm, workspace)
        source, filters, result = channels_last(x), channels_last(w), channels_last_output(y)
        if algorithm in WINOGRAD:
            winograd.forward(self, g, WINOGRAD[algorithm], source, filters, b, result, workspace, rectify)
        elif form := self._form("forward", g, algorithm):
            form.forward(self, g, source, filters, b, result, workspace, rectify)
        else:
            conv_gemm.forward(self, g, source, filters, b, result, algorithm, workspace, rectify)
        deliver(result, y)

    def conv2d_backward_data(
        self,
        w: Array,
        dy: Array,
        dx: Array,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        algorithm: str,
        workspace: Array | None,
    ) -> None:
        """dx[n, c, h, w] = sum over k, r, s of dy[n, k, (h + pad - r dil) / stride, ...] w[k, c, r, s]."""
        g = self._geometry("backward_data", dx, w, stride, padding, dilation, groups, algorithm, workspace)
        filters, gradient, result = channels_last(w), channels_last(dy), channels_last_output(dx)
        if algorithm in WINOGRAD:
            winograd.backward_data(self, g, WINOGRAD[algorithm], filters, gradient, result, workspace)
        elif form := self._form("backward_data", g, algorithm):
            form.backward_data(self, g, filters, gradient, result, workspace)
        else:
            conv_gemm.backward_data(self, g, filters, gradient, result, algorithm, workspace)
        deliver(result, dx)

    def conv2d_backward_weights(
        self,
        x: Array,
        dy: Array,
        dw: Array,
        db: Array | None,
        *,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        algorithm: str,
        workspace: Array | None,
    ) -> None:
        """dw[k, c, r, s] = sum over pixels of dy x; db[k] = sum over pixels of dy."""
        g = self._geometry("backward_weights", x, dw, stride, padding, dilation, groups, algorithm, workspace)
        source, gradient, result = channels_last(x), channels_last(dy), channels_last_output(dw)
        if algorithm in WINOGRAD:
            winograd.backward_weights(self, g, WINOGRAD[algorithm], source, gradient, result, workspace)
        elif form := self._form("backward_weights", g, algorithm):
            form.backward_weights(self, g, source, gradient, result, workspace)
        else:
            conv_weights.backward_weights(self, g, source, gradient, result, algorithm, workspace)
        deliver(result, dw)
        if db is not None:
            self.bias_gradient(dy, db)

    def bias_gradient(self, dy: Array, db: Array) -> None:
        """db[k] = sum of dy: (N, K, OH, OW) over all pixels."""
        conv_weights.sum_rows(self, channels_last(dy).reshape(-1, dy.shape[1]), db)

    def add_bias(self, y: Array, b: Array) -> None:
        """y[:, k] += b[k]."""
        images, K, routine = y.transpose(0, 2, 3, 1), b.size, self.routines.add_bias
        rows = images.reshape(-1, K) if images.flags.c_contiguous else None
        step = max(1, PIECE // K)

        def run(task: int, worker: int) -> None:
            if rows is None:
                numpy.add(images[task], b, out=images[task])
            else:
                routine(rows[task * step : (task + 1) * step], b)

        self.parallel(run, len(images) if rows is None else -(-len(rows) // step), self.estimate(1, y, y))

    def _form(self, phase: str, g: Geometry, algorithm: str) -> Any:
        """The module that does this compiled; None if NumPy does it."""
        return compiled_form(phase, g, algorithm) if self.fast else None

    def _rates(self, phase: str, g: Geometry) -> dict[str, float]:
        """The algorithms that these kernels have, and their rates."""
        return {n: rate for n, rate in algorithms_of(phase, g, self.fast).items() if n in EXACT or not self.exact}

    def _geometry(
        self,
        phase: str,
        x: Array,
        w: Array,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        algorithm: str,
        workspace: Array | None,
    ) -> Geometry:
        """The sizes of a call, after a check that it has the algorithm and room for it."""
        g = geometry(x.shape, w.shape, stride, padding, dilation, groups, x.dtype.name)
        needed, given = self._needed(phase, g, algorithm), 0 if workspace is None else workspace.nbytes
        if given < needed:
            raise ValueError(f"{algorithm} for {phase} needs {needed} bytes of workspace, got {given}")
        return g

    def _needed(self, phase: str, g: Geometry, algorithm: str) -> int:
        """Bytes of workspace.  Raises ValueError if there is no such algorithm."""
        needed = kept_workspace(phase, g, algorithm, self.threads)
        if needed is None or (self.exact and algorithm not in EXACT):
            names = ", ".join(self._rates(phase, g))
            raise ValueError(f"no algorithm {algorithm!r} for {phase} of {g}: {names}")
        return needed


@lru_cache(maxsize=4096)
def kept_workspace(phase: str, g: Geometry, algorithm: str, threads: int) -> int | None:
    """Bytes of workspace; None if there is no such algorithm.  Calls look here every time."""
    return workspace_of(phase, g, algorithm, threads) if algorithm in algorithms_of(phase, g) else None
