"""Convolution: the choice of algorithms and the entry points.

Logical shapes: x (N, C, H, W), w (K, C / groups, R, S), b (K,), y (N, K, OH, OW); stored all contiguous, or all
channels-last.  The work is done by what the kernel set has as `convolutions`, CudnnConvolutions for one, which has

candidates(phase, problem, limit)   the ways to compute, as vdnn.kernels.cuda.finding's Candidate
workspace(phase, problem, algorithm)   the exact bytes that one needs
run(phase, problem, algorithm, first, second, out, workspace_address, workspace_bytes)   starts it
add_bias(y, shape, dtype, storage, b), bias_gradient(dy, shape, dtype, storage, db)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from vdnn.kernels.cuda.base import Launching, is_contiguous, storage_of
from vdnn.kernels.cuda.driver import CudaError
from vdnn.kernels.cuda.finding import Candidate, Problem
from vdnn.kernels.numpy.chunks import is_channels_last
from vdnn.kernels.numpy.geometry import Pair, geometry
from vdnn.layers.base import Algorithm, Array, Shape

GEMM_RATE = 0.8  # supposed of the algorithm that others are compared with
REFERENCES = ("implicit_gemm", "algo_1")  # that algorithm: a plain product in tiles, in every phase
RATES = {  # supposed where nothing was measured
    "implicit_gemm": 0.6,
    "implicit_precomp_gemm": 0.8,
    "gemm": 0.5,
    "direct": 0.3,
    "algo_0": 0.6,
    "algo_1": 0.8,
    "algo_3": 0.6,
    "fft": 0.7,
    "fft_tiling": 0.9,
    "winograd": 1.5,
    "winograd_nonfused": 1.3,
}


def rates(candidates: Sequence[Candidate]) -> list[float]:
    """Direct arithmetic per second over a plain GEMM's: from measured times, or supposed where one is not measured."""
    timed = [c for c in candidates if c.seconds > 0]
    if not timed or len(timed) < len(candidates):
        return [RATES.get(c.name.split(".")[0], RATES["direct"]) for c in candidates]
    plain = min((c for c in timed if c.name in REFERENCES), key=lambda c: c.seconds, default=None)
    reference = plain or max(timed, key=lambda c: c.seconds)
    return [max(0.001, round(GEMM_RATE * reference.seconds / c.seconds, 3)) for c in candidates]


class ConvKernels(Launching):
    """Convolution and its gradients.

    find_limit  bytes that measuring algorithms may take at a time; None: the memory that is free
    """

    convolutions: Any
    math: str
    storage: str
    deterministic: bool
    find_limit: int | None = None

    def __init__(self, driver: Any, stream: Any) -> None:
        super().__init__(driver, stream)
        self._algorithms: dict[Any, tuple[Algorithm, ...]] = {}
        self._checked: dict[Any, tuple[Problem, int]] = {}  # a call's arguments: the problem, bytes of workspace

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
        """The algorithms for this phase with their exact workspace, least workspace first; measured once."""
        name = numpy.dtype(dtype).name
        options = (stride, padding, dilation, groups)
        problem = self._problem(tuple(x_shape), tuple(w_shape), *options, name, self.storage)
        key = phase, problem, self.find_limit, self.deterministic
        if key not in self._algorithms:
            self._algorithms[key] = self._choose(phase, problem)
        return self._algorithms[key]

    def _choose(self, phase: str, problem: Problem) -> tuple[Algorithm, ...]:
        hint = "; cuDNN has more with storage='nchw'" if problem.storage == "nhwc" else ""
        try:
            found = self.convolutions.candidates(phase, problem, self.find_limit)
        except CudaError as error:
            raise CudaError(f"{error}{hint}") from error
        listed = [
            Algorithm(c.name, c.workspace, rate, c.seconds)
            for c, rate in zip(found, rates(found), strict=True)
            if c.deterministic or not self.deterministic
        ]
        if not listed:
            kind = "deterministic algorithm" if self.deterministic else "algorithm"
            raise CudaError(f"there is no {kind} for {phase} of {problem}{hint}")
        return tuple(sorted(listed, key=lambda a: (a.workspace, a.seconds, -a.rate)))

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
    ) -> None:
        """Write y = x * w + b."""
        options = (stride, padding, dilation, groups)
        self._run("forward", x, w, y, options, algorithm, workspace, (x, w, y))
        if b is not None:
            self.add_bias(y, b)

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
        options = (stride, padding, dilation, groups)
        self._run("backward_data", dx, w, dy, options, algorithm, workspace, (w, dy, dx))

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
        options = (stride, padding, dilation, groups)
        self._run("backward_weights", x, dw, dy, options, algorithm, workspace, (x, dy, dw))
        if db is not None:
            self.bias_gradient(dy, db)

    def bias_gradient(self, dy: Array, db: Array) -> None:
        """db[k] = sum of dy: (N, K, OH, OW) over all pixels."""
        address = self.driver.address
        self.convolutions.bias_gradient(address(dy), dy.shape, dy.dtype.name, self._stored(dy), address(db))

    def add_bias(self, y: Array, b: Array) -> None:
        """y[:, k] += b[k]; channels-last by a kernel of our own, since others found cuDNN's far slower there."""
        stored, address = self._stored(y), self.driver.address
        if stored == self.storage == "nhwc":
            self.add_rows(y, b, y.size // y.shape[1], y.shape[1])
        else:
            self.convolutions.add_bias(address(y), y.shape, y.dtype.name, stored, address(b))

    def _run(
        self,
        phase: str,
        x: Array,
        w: Array,
        y: Array,
        options: tuple[Pair, Pair, Pair, int],
        algorithm: str,
        workspace: Array | None,
        operands: tuple[Array, Array, Array],
    ) -> None:
        """Start one of the three products, with x, w, y or their gradients, after a check of all that is given."""
        arrays = tuple((a.shape, a.strides, a.dtype) for a in (x, w, y))
        key = phase, arrays, options, algorithm
        if key not in self._checked:
            self._checked[key] = self._check(phase, x, w, y, options, algorithm)
        problem, needed = self._checked[key]
        given = 0 if workspace is None else workspace.nbytes
        if given < needed:
            raise ValueError(f"{algorithm} for {phase} needs {needed} bytes of workspace, got {given}")
        addresses = [self.driver.address(array) for array in operands]
        scratch = 0 if workspace is None else self.driver.address(workspace)
        self.convolutions.run(phase, problem, algorithm, *addresses, scratch, given)

    def _check(
        self, phase: str, x: Array, w: Array, y: Array, options: tuple[Pair, Pair, Pair, int], algorithm: str
    ) -> tuple[Problem, int]:
        """The problem and the bytes of workspace.  Raises ValueError if the arrays do not fit together."""
        problem = self._problem(x.shape, w.shape, *options, x.dtype.name, self._stored(x, w, y))
        if problem.y != y.shape or not x.dtype == w.dtype == y.dtype:
            raise ValueError(
                f"x {x.shape} of {x.dtype} and w {w.shape} of {w.dtype} give y {problem.y} of {x.dtype}, "
                f"not {y.shape} of {y.dtype}"
            )
        return problem, self.convolutions.workspace(phase, problem, algorithm)

    def _problem(
        self, x: Shape, w: Shape, stride: Pair, padding: Pair, dilation: Pair, groups: int, dtype: str, storage: str
    ) -> Problem:
        g = geometry(x, w, stride, padding, dilation, groups, dtype)
        y = (g.N, w[0], *g.outputs)
        return Problem(x, w, y, stride, padding, dilation, groups, dtype, storage, self.math)

    def _stored(self, *arrays: Array) -> str:
        """The arrays' common storage; the kernel set's own where they, for sizes of 1, have both."""
        order = is_contiguous if self.storage == "nchw" else is_channels_last
        return self.storage if all(order(a) for a in arrays) else storage_of(*arrays)
