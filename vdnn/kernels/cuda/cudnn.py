"""Convolutions by cuDNN 9's imperative interface, which tells each algorithm's workspace and time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod
from typing import Any

import numpy

from vdnn.kernels.cuda.driver import ALIGNMENT, CudaError
from vdnn.kernels.cuda.finding import PHASES, Candidate, Findings, Problem, answers, maths
from vdnn.kernels.cuda.libraries import AlgoPerf, Cudnn
from vdnn.layers.base import Shape

TYPES = {"float32": 0, "float64": 1}
FORMATS = {"nchw": 0, "nhwc": 1}
CROSS_CORRELATION = 1
RULED_OUT = range(2000, 4000)  # statuses: bad parameters, not supported
LARGEST = 2**31 - 1  # sizes and strides are C ints
ABSURD = 1 << 40  # bytes: some algorithms answer with sizes beyond all memory where they cannot work
MARGIN = 256 << 20  # bytes of free memory that measuring leaves alone
PATTERN = 0x3C  # floats of these bytes are small ordinary numbers


class Descriptors:
    """cuDNN's descriptions of arrays and convolutions, each made once and destroyed by `close`."""

    def __init__(self, library: Cudnn) -> None:
        self.library = library
        self._made: dict[Any, tuple[str, ctypes.c_void_p]] = {}

    def tensor(self, shape: Shape, dtype: str, storage: str) -> ctypes.c_void_p:
        """An array of logical shape (N, C, H, W)."""
        _, C, H, W = shape
        strides = (C * H * W, H * W, W, 1) if storage == "nchw" else (H * W * C, 1, W * C, C)
        if max(strides) > LARGEST:
            raise ValueError(f"cuDNN takes images of up to {LARGEST} elements, not {shape[1:]}")
        set_it = ("cudnnSetTensor4dDescriptorEx", TYPES[dtype], *shape, *strides)
        return self._get("Tensor", ("tensor", shape, dtype, storage), [set_it])

    def operand(self, problem: Problem, role: str) -> ctypes.c_void_p:
        """The x, w or y of a problem; w is a filter: (K, C / groups, R, S)."""
        shape, dtype, storage = getattr(problem, role), problem.dtype, problem.storage
        if role != "w":
            return self.tensor(shape, dtype, storage)
        set_it = ("cudnnSetFilter4dDescriptor", TYPES[dtype], FORMATS[storage], *shape)
        return self._get("Filter", ("filter", shape, dtype, storage), [set_it])

    def convolution(self, problem: Problem, math: int) -> ctypes.c_void_p:
        """What is done to them.  Raises ValueError if cuDNN computes another output shape than the problem's."""
        p = problem
        options = (*p.padding, *p.stride, *p.dilation, CROSS_CORRELATION, TYPES[p.dtype])
        set_it: tuple[Any, ...] = ("cudnnSetConvolution2dDescriptor", *options)
        steps = [set_it, ("cudnnSetConvolutionMathType", math), ("cudnnSetConvolutionGroupCount", p.groups)]
        made = self._get("Convolution", ("convolution", options, math, p.groups), steps)
        found = [ctypes.c_int() for _ in range(4)]
        x, w = self.operand(p, "x"), self.operand(p, "w")
        self.library("cudnnGetConvolution2dForwardOutputDim", made, x, w, *map(ctypes.byref, found))
        shape = tuple(n.value for n in found)
        if shape != p.y:
            raise ValueError(f"x {p.x} and w {p.w} give y {shape}, not {p.y}")
        return made

    def close(self) -> None:
        """Destroy all."""
        while self._made:
            kind, made = self._made.popitem()[1]
            self.library(f"cudnnDestroy{kind}Descriptor", made)

    def _get(self, kind: str, key: Any, steps: list[tuple[Any, ...]]) -> ctypes.c_void_p:
        if key not in self._made:
            made = ctypes.c_void_p()
            self.library(f"cudnnCreate{kind}Descriptor", ctypes.byref(made))
            try:
                for name, *arguments in steps:
                    self.library(name, made, *arguments)
            except CudaError:
                self.library(f"cudnnDestroy{kind}Descriptor", made)
                raise
            self._made[key] = kind, made
        return self._made[key][1]


class CudnnConvolutions:
    """Convolutions on one stream.  Arrays are given by their addresses; nothing is allocated except by `candidates`.

    found  where measured times are kept; None: on disk, for this device and these versions
    """

    def __init__(self, driver: Any, stream: Any, library: Cudnn | None = None, found: Findings | None = None) -> None:
        self._handle = ctypes.c_void_p()
        self.driver, self.stream, self.library = driver, stream, library or Cudnn()
        self.descriptors = Descriptors(self.library)
        self.findings = found or Findings(driver.name, self.library.version, driver.versions()["driver"])
        self._prepared: dict[Any, tuple[Any, ...]] = {}
        kinds = (("float32", ctypes.c_float), ("float64", ctypes.c_double))
        self._scales = {name: (ctypes.byref(kind(1)), ctypes.byref(kind(0))) for name, kind in kinds}
        self.library("cudnnCreate", ctypes.byref(self._handle))
        self.library("cudnnSetStream", self._handle, driver.handle(stream))

    def candidates(self, phase: str, problem: Problem, limit: int | None = None) -> list[Candidate]:
        """The algorithms that can solve the problem, fastest first.

        Measuring takes scratch for the three arrays and a workspace, within `limit` bytes (None: what is free now, less
        a margin), and leaves out algorithms that need more.  Where not even the arrays fit, cuDNN's own order is given,
        with 0 seconds.
        """
        needs = self._needs(phase, problem)
        shapes = [getattr(problem, role) for role in PHASES[phase].operands]
        sizes = [-(-prod(shape) * numpy.dtype(problem.dtype).itemsize // ALIGNMENT) * ALIGNMENT for shape in shapes]
        free = self.driver.memory_info()[0] - MARGIN
        room = (free if limit is None else min(free, limit)) - sum(sizes)
        if room < 0:
            return self._ranked(phase, problem, needs)
        fitting = {name: n for name, n in needs.items() if n <= room}
        workspace = max(fitting.values(), default=0)
        kept = self.findings.load(phase, problem)
        if kept and kept[1] and kept[0] >= workspace and all(needs.get(c.name) == c.workspace for c in kept[1]):
            return [c for c in kept[1] if c.name in fitting]
        try:
            scratch = self.driver.allocate(sum(sizes) + workspace)
        except CudaError:
            return self._ranked(phase, problem, needs)
        measured, is_whole = self._measured(phase, problem, fitting, sizes, scratch)
        if measured and is_whole:
            self.findings.save(phase, problem, workspace, measured)
        return measured or self._ranked(phase, problem, needs)

    def workspace(self, phase: str, problem: Problem, algorithm: str) -> int:
        """The exact bytes of workspace.  Raises ValueError for a name that the phase has not, CudaError if refused."""
        status, size = self._ask(phase, problem, algorithm)
        self.library.check(f"{algorithm} for {phase} of {problem}", status)
        return size

    def run(
        self,
        phase: str,
        problem: Problem,
        algorithm: str,
        first: int,
        second: int,
        out: int,
        workspace_address: int,
        workspace_bytes: int,
    ) -> None:
        """Start y from x and w, dx from w and dy, or dw from x and dy; arrays by their addresses, in that order."""
        a, b, convolution, c, number = self._prepare(phase, problem, algorithm)
        one, zero = self._scales[problem.dtype]
        function, scratch = f"cudnnConvolution{PHASES[phase].title}", (workspace_address or None, workspace_bytes)
        self.library(function, self._handle, one, a, first, b, second, convolution, number, *scratch, zero, c, out)

    def add_bias(self, y: int, shape: Shape, dtype: str, storage: str, b: int) -> None:
        """Start y[:, k] += b[k]."""
        one, _ = self._scales[dtype]
        bias, whole = self._bias(shape, dtype, storage)
        self.library("cudnnAddTensor", self._handle, one, bias, b, one, whole, y)

    def bias_gradient(self, dy: int, shape: Shape, dtype: str, storage: str, db: int) -> None:
        """Start db[k] = sum of dy[:, k]."""
        one, zero = self._scales[dtype]
        bias, whole = self._bias(shape, dtype, storage)
        self.library("cudnnConvolutionBackwardBias", self._handle, one, whole, dy, zero, bias, db)

    def close(self) -> None:
        """Give handle and descriptors back; the stream must be done with all convolutions."""
        handle, self._handle, self._prepared = self._handle, ctypes.c_void_p(), {}
        self.descriptors.close()
        if handle:
            self.library("cudnnDestroy", handle)

    def __del__(self) -> None:
        with suppress(CudaError, AttributeError):
            if not sys.is_finalizing():  # CUDA may be gone by then, and all is given back anyway
                self.close()

    def _bias(self, shape: Shape, dtype: str, storage: str) -> tuple[Any, Any]:
        tensor = self.descriptors.tensor
        return tensor((1, shape[1], 1, 1), dtype, storage), tensor(shape, dtype, storage)

    def _prepare(self, phase: str, problem: Problem, algorithm: str) -> tuple[Any, ...]:
        """Descriptors of the first array, the second, the convolution and the result; the algorithm's number."""
        key = phase, problem, algorithm
        if key not in self._prepared:
            names = PHASES[phase].algorithms
            endings = maths(problem).items()
            known = {name + ending: (i, math) for ending, math in endings for i, name in enumerate(names)}
            if algorithm not in known:
                raise ValueError(f"no algorithm {algorithm!r} for {phase}: {', '.join(known)}")
            number, math = known[algorithm]
            a, b, c = (self.descriptors.operand(problem, role) for role in PHASES[phase].operands)
            self._prepared[key] = a, b, self.descriptors.convolution(problem, math), c, number
        return self._prepared[key]

    def _ask(self, phase: str, problem: Problem, algorithm: str) -> tuple[int, int]:
        """(status, bytes of workspace)."""
        size = ctypes.c_size_t()
        function = f"cudnnGetConvolution{PHASES[phase].title}WorkspaceSize"
        prepared = self._prepare(phase, problem, algorithm)
        return self.library.plain(function, self._handle, *prepared, ctypes.byref(size)), size.value

    def _needs(self, phase: str, problem: Problem) -> dict[str, int]:
        """{name: exact bytes of workspace} of every algorithm that cuDNN does not rule out; it rules by status."""
        needs, status = {}, 0
        for algorithm in (name + ending for name in PHASES[phase].algorithms for ending in maths(problem)):
            status, size = self._ask(phase, problem, algorithm)
            if status == 0 and size < ABSURD:
                needs[algorithm] = size
        if not needs:
            self.library.check(f"every algorithm for {phase} of {problem}", status)
        return needs

    def _measured(
        self, phase: str, problem: Problem, needs: Mapping[str, int], sizes: Sequence[int], scratch: Any
    ) -> tuple[list[Candidate], bool]:
        """What cuDNN measures, in scratch for arrays of these sizes and a workspace behind them; and whether no
        algorithm failed for want of memory, say, which another time it may not.
        """
        pa, pb, pc, workspace = accumulate(sizes, initial=scratch.address)
        self.driver.fill(scratch.address, PATTERN, scratch.nbytes, self.stream)
        a, b, convolution, c, _ = self._prepare(phase, problem, PHASES[phase].algorithms[0])
        function, space = f"cudnnFindConvolution{PHASES[phase].title}AlgorithmEx", scratch.nbytes - sum(sizes)
        for _ in range(2):  # the first time loads kernels and wakes the device up
            records = self._records(phase, function, a, pa, b, pb, convolution, c, pc, behind=(workspace, space))
        self.driver.synchronize(self.stream)
        found = answers(PHASES[phase], problem, needs, records, measured=True)
        is_whole = all(record.status == 0 or record.status in RULED_OUT for record in records)
        return sorted(found, key=lambda candidate: candidate.seconds), is_whole

    def _ranked(self, phase: str, problem: Problem, needs: Mapping[str, int]) -> list[Candidate]:
        """What cuDNN supposes, without measuring."""
        function = f"cudnnGetConvolution{PHASES[phase].title}Algorithm_v7"
        arguments = self._prepare(phase, problem, PHASES[phase].algorithms[0])[:4]
        return list(answers(PHASES[phase], problem, needs, self._records(phase, function, *arguments), measured=False))

    def _records(self, phase: str, function: str, *arguments: Any, behind: Sequence[int] = ()) -> list[AlgoPerf]:
        """What a function says of each algorithm; nothing if it has none for the problem."""
        most, count = ctypes.c_int(), ctypes.c_int()
        counting = f"cudnnGetConvolution{PHASES[phase].title}AlgorithmMaxCount"
        self.library(counting, self._handle, ctypes.byref(most))
        records = (AlgoPerf * most.value)()
        answer = (most.value, ctypes.byref(count), records)
        status = self.library.plain(function, self._handle, *arguments, *answer, *behind)
        if status in RULED_OUT:
            return []
        self.library.check(function, status)
        return list(records[: count.value])
