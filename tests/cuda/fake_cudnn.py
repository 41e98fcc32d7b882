"""A stub of cuDNN that computes with NumPy, from nothing but what it is told."""

import ctypes
from functools import partial

import numpy as np
from emulated_libraries import Stub, put

from vdnn.kernels.cuda.finding import PHASES
from vdnn.kernels.cuda.libraries import AlgoPerf
from vdnn.kernels.numpy import NumpyKernels

KINDS = ("Tensor", "Filter", "Convolution")
TITLES = {phase.title: name for name, phase in PHASES.items()}
OPTIONS = ("padding", "stride", "dilation")


class FakeCudnn(Stub):
    """Keeps what descriptors are set to, and computes from that alone.

    needs    {(title of the phase, number of the algorithm): bytes of workspace}, else 0
    refused  {(title, number): status}
    measured {(title, number): status} that finding gives an algorithm, else 0
    maths    the math types that finding tries
    """

    def __init__(self, folder, number=92800):
        super().__init__("cudnn", folder, "libcudnn.so.9")
        self.number, self.needs, self.refused, self.maths = number, {}, {}, (3,)
        self.measured, self.things, self.kernels = {}, {}, NumpyKernels(1)
        for kind in KINDS:
            setattr(self, f"cudnnCreate{kind}Descriptor", partial(self.create, f"cudnn{kind}Descriptor_t"))
            setattr(self, f"cudnnDestroy{kind}Descriptor", self.destroy)
        for title in TITLES:
            setattr(self, f"cudnnGetConvolution{title}AlgorithmMaxCount", lambda h, n: put(ctypes.c_int, n, 9))
            setattr(self, f"cudnnGetConvolution{title}WorkspaceSize", partial(self.workspace, title))
            setattr(self, f"cudnnGetConvolution{title}Algorithm_v7", partial(self.rank, title))
            setattr(self, f"cudnnFindConvolution{title}AlgorithmEx", partial(self.find, title))
            setattr(self, f"cudnnConvolution{title}", partial(self.convolve, title))
        self.cudnnCreate = partial(self.create, "cudnnHandle_t")
        self.cudnnDestroy = self.destroy

    def answer(self, name, count, values):
        plain = name.decode()
        arguments = [v.bits for v in values[:count]]
        for kind, thing in zip(self.functions[plain][1], arguments, strict=True):
            if kind == "cudnnHandle_t" or kind.endswith("Descriptor_t"):
                assert self.things[thing]["kind"] == kind, plain
        if plain.startswith("cudnnSet"):
            self.things[arguments[0]][plain] = arguments[1:]
        return super().answer(name, count, values)

    def create(self, kind, address):
        thing = 0x7000_0000_0000 + 64 * len(self.calls)
        self.things[thing] = {"kind": kind}
        put(ctypes.c_void_p, address, thing)

    def destroy(self, thing):
        del self.things[thing]

    def cudnnGetVersion(self):  # noqa: N802
        return self.number

    def cudnnGetErrorString(self, status):  # noqa: N802
        return self.text(f"STUB_STATUS_{status}")

    def cudnnGetLastErrorString(self, address, size):  # noqa: N802
        assert size == 1024
        ctypes.memmove(address, b"so it is", 9)

    def cudnnGetConvolution2dForwardOutputDim(self, convolution, x, w, *out):  # noqa: N802
        x, w = self.things[x]["cudnnSetTensor4dDescriptorEx"], self.things[w]["cudnnSetFilter4dDescriptor"]
        c = self.things[convolution]["cudnnSetConvolution2dDescriptor"]
        lengths = [(x[3 + i] + 2 * c[i] - c[4 + i] * (w[4 + i] - 1) - 1) // c[2 + i] + 1 for i in range(2)]
        for address, value in zip(out, (x[1], w[2], *lengths), strict=True):
            put(ctypes.c_int, address, value)

    def workspace(self, title, handle, a, b, convolution, c, number, address):
        put(ctypes.c_size_t, address, self.needs.get((title, number), 0))
        return self.refused.get((title, number), 0)

    def rank(self, title, handle, a, b, convolution, c, most, count, records, space=1 << 62):
        wanted = [
            (number, math)
            for math in self.maths
            for number in range(len(PHASES[TITLES[title]].algorithms))
            if (title, number) not in self.refused and self.needs.get((title, number), 0) <= space
        ][:most]
        put(ctypes.c_int, count, len(wanted))
        for i, (number, math) in enumerate(wanted):
            ms = 10.0 + number + 100 * len(self.called(f"cudnnFindConvolution{title}AlgorithmEx")) - math / 4
            record = AlgoPerf(number, self.measured.get((title, number), 0), ms, 77, number != 0, math)
            ctypes.memmove(records + i * ctypes.sizeof(AlgoPerf), ctypes.byref(record), ctypes.sizeof(AlgoPerf))

    def find(self, title, handle, a, pa, b, pb, convolution, c, pc, most, count, records, workspace, size):
        ctypes.memset(workspace, 0x11, size)
        self.array(c, pc)[...] = 5  # it overwrites the result
        return self.rank(title, handle, a, b, convolution, c, most, count, records, size)

    def array(self, descriptor, address):
        """What lies at an address, by a descriptor's sizes and strides."""
        d = self.things[descriptor]
        if "cudnnSetTensor4dDescriptorEx" in d:
            kind, *numbers = d["cudnnSetTensor4dDescriptorEx"]
            shape, strides = numbers[:4], numbers[4:]
        else:
            kind, layout, *shape = d["cudnnSetFilter4dDescriptor"]
            _, C, R, S = shape
            strides = (C * R * S, 1, S * C, C) if layout else (C * R * S, R * S, S, 1)
        dtype = np.dtype(["f4", "f8"][kind])
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        raw = (ctypes.c_ubyte * (extent * dtype.itemsize)).from_address(address)
        flat = np.frombuffer(raw, np.uint8).view(dtype)
        return np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])

    def scale(self, address, array):
        """alpha or beta: a float for floats, a double for doubles."""
        return {"f": ctypes.c_float, "d": ctypes.c_double}[array.dtype.char].from_address(address).value

    def convolve(self, title, handle, alpha, a, pa, b, pb, conv, number, space, size, beta, c, pc):
        first, second, out = self.array(a, pa), self.array(b, pb), self.array(c, pc)
        assert (self.scale(alpha, out), self.scale(beta, out)) == (1, 0)
        need = self.needs.get((title, number), 0)
        assert size >= need
        ctypes.memset(space, number, need)
        numbers = self.things[conv]["cudnnSetConvolution2dDescriptor"]
        assert numbers[6:] == [1, "fd".index(out.dtype.char)]
        options = {n: tuple(numbers[2 * i : 2 * i + 2]) for i, n in enumerate(OPTIONS)}
        options["groups"] = self.things[conv]["cudnnSetConvolutionGroupCount"][0]
        result = np.full(out.shape, np.nan)
        first, second = first.astype("f8"), second.astype("f8")
        phase = TITLES[title]
        x, w = {"forward": (first, second), "backward_data": (result, first)}.get(phase, (first, result))
        algorithm = self.kernels.conv2d_algorithms(phase, x.shape, w.shape, dtype="f8", **options)[0]
        options |= {"algorithm": algorithm.name, "workspace": np.empty(algorithm.workspace, np.uint8)}
        arguments = {"forward": (None, result), "backward_data": (result,)}.get(phase, (result, None))  # no bias
        getattr(self.kernels, f"conv2d_{phase}")(first, second, *arguments, **options)
        out[...] = result * (1 + number * np.finfo("f8").eps)

    def cudnnAddTensor(self, handle, alpha, b, pb, beta, y, py):  # noqa: N802
        out = self.array(y, py)
        assert self.scale(alpha, out) == self.scale(beta, out) == 1
        out[...] += self.array(b, pb)

    def cudnnConvolutionBackwardBias(self, handle, alpha, dy, pdy, beta, db, pdb):  # noqa: N802
        out = self.array(db, pdb)
        assert (self.scale(alpha, out), self.scale(beta, out)) == (1, 0)
        out[...] = self.array(dy, pdy).sum((0, 2, 3), keepdims=True, dtype="f8")
