"""cuDNN and cuBLAS as test doubles: NumPy at the given addresses, when the stream comes to it; and stubs of both.

Of the doubles, each phase has an algorithm without a workspace, one that fills all of its workspace with garbage, and
one that is not deterministic and says so; their results differ in the last bits.  A stub is a C library with the true
signatures.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from itertools import count
from pathlib import Path

import emulator
import numpy as np

from vdnn.kernels.cuda.finding import PHASES, Candidate
from vdnn.kernels.numpy import NumpyKernels

WORKSPACE = 3000  # bytes and more, of the algorithm that has one
NAMES = {
    "forward": ("implicit_gemm", "implicit_precomp_gemm", "direct"),
    "backward_data": ("algo_1", "fft", "algo_0"),
    "backward_weights": ("algo_1", "fft", "algo_0"),
}


def view(address, shape, dtype, storage="nchw"):
    """The array that lies at an address."""
    dtype = np.dtype(dtype)
    raw = (ctypes.c_ubyte * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(raw, np.uint8).view(dtype)
    if storage == "nchw":
        return flat.reshape(shape)
    N, C, H, W = shape
    return flat.reshape(N, H, W, C).transpose(0, 3, 1, 2)


class EmulatedConvolutions:
    """Has the interface of CudnnConvolutions; `asked` and `ran` list what it was called for."""

    def __init__(self, driver, stream):
        self.driver, self.stream = driver, stream
        self.kernels = NumpyKernels(1)
        self.asked, self.ran = [], []
        self.calls = count(1)

    def candidates(self, phase, problem, limit=None):
        self.asked.append((phase, problem, limit))
        plain, roomy, racing = NAMES[phase]
        found = [
            Candidate(roomy, self.workspace(phase, problem, roomy), 1e-3, True),
            Candidate(racing, 0, 1.5e-3, False),
            Candidate(plain, 0, 2e-3, True),
        ]
        return [c for c in found if limit is None or c.workspace <= limit]

    def workspace(self, phase, problem, algorithm):
        if algorithm not in NAMES[phase]:
            raise ValueError(f"no algorithm {algorithm!r} for {phase}: {', '.join(NAMES[phase])}")
        return WORKSPACE + 8 * problem.y[2] if algorithm == NAMES[phase][1] else 0

    def run(self, phase, problem, algorithm, first, second, out, workspace_address, workspace_bytes):
        need = self.workspace(phase, problem, algorithm)
        assert workspace_bytes >= need, (algorithm, workspace_bytes, need)
        assert bool(workspace_address) >= bool(need)
        addresses = (first, second, out)

        def work():
            number = next(self.calls)
            self.ran.append((phase, problem, algorithm))
            if need:
                view(workspace_address, (need,), "uint8")[...] = np.arange(need) * number % 251 + 5
            self.compute(phase, problem, NAMES[phase].index(algorithm), addresses, number)

        self.driver.enqueue(self.stream, work)

    def compute(self, phase, problem, kind, addresses, number):
        roles = PHASES[phase].operands
        first, second, out = (
            view(a, getattr(problem, role), problem.dtype, problem.storage)
            for a, role in zip(addresses, roles, strict=True)
        )
        dtype = problem.dtype if kind == 1 else np.float64  # one rounds as it goes, the others at the end
        first, second = (np.array(a, dtype) for a in (first, second))
        result = np.full(out.shape, np.nan, dtype)
        options = {n: getattr(problem, n) for n in ("stride", "padding", "dilation", "groups")}
        shapes = problem.x, problem.w
        algorithm = self.kernels.conv2d_algorithms(phase, *shapes, dtype=dtype, **options)[0]
        options |= {"algorithm": algorithm.name, "workspace": np.empty(algorithm.workspace, np.uint8)}
        if phase == "forward":
            self.kernels.conv2d_forward(first, second, None, result, **options)
        elif phase == "backward_data":
            self.kernels.conv2d_backward_data(first, second, result, **options)
        else:
            self.kernels.conv2d_backward_weights(first, second, result, None, **options)
        if kind:
            result *= 1 + np.finfo(dtype).eps * (number % 3 if kind == 2 else 1)
        out[...] = result

    def add_bias(self, y, shape, dtype, storage, b):
        def work():
            view(y, shape, dtype, storage)[...] += view(b, shape[1:2], dtype)[:, None, None]

        self.driver.enqueue(self.stream, work)

    def bias_gradient(self, dy, shape, dtype, storage, db):
        def work():
            view(db, shape[1:2], dtype)[...] = view(dy, shape, dtype, storage).sum((0, 2, 3), dtype=np.float64)

        self.driver.enqueue(self.stream, work)


class EmulatedProducts:
    """Has the interface of CublasProducts."""

    workspace_bytes = 0

    def __init__(self, driver, stream):
        self.driver, self.stream = driver, stream

    def multiply(self, a, b, out, dtype, transpose_a=False, transpose_b=False):
        def work():
            first, second, result = (view(m.address, m.shape, dtype) for m in (a, b, out))
            np.matmul(first.T if transpose_a else first, second.T if transpose_b else second, out=result)

        self.driver.enqueue(self.stream, work)


PRELUDE = """
#include <cstddef>
struct Value { char kind; long long bits; };
static long long (*answer)(const char*, int, const Value*);
extern "C" void stub_answer(long long (*function)(const char*, int, const Value*)) { answer = function; }
static Value value(int v) { return {'i', v}; }
static Value value(size_t v) { return {'z', (long long)v}; }
static Value value(const void* v) { return {'p', (long long)v}; }
"""
PROTOTYPE = re.compile(r"^(\w[\w ]*?[ *]+)(\w+)\(([^)]*)\);", re.MULTILINE)


def prototypes(library):
    """{function: (type of its result, types of its arguments)}, from tests/cuda/<library>_prototypes.h."""
    text = (Path(__file__).parent / "cuda" / f"{library}_prototypes.h").read_text()
    found = PROTOTYPE.findall(text)
    return text, {n: (r.strip(), [" ".join(t.split()) for t in a.split(",") if t.strip()]) for r, n, a in found}


class Value(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_char), ("bits", ctypes.c_longlong)]


class Stub:
    """A library with the functions of a header, compiled with g++, and put into `folder`; it notes how it is called.

    calls    (function, arguments as C got them) in order, all numbers
    failing  {function: the status it gives}
    A subclass's method of a function's name does what the function does.
    """

    def __init__(self, library, folder, file):
        text, self.functions = prototypes(library)
        bodies = []
        for name, (result, types) in self.functions.items():
            takes = ", ".join(f"{t} a{i}" for i, t in enumerate(types))
            values = ", ".join(f"value(a{i})" for i in range(len(types)))
            call = f'Value v[] = {{{values or "{}"}}}; long long r = answer("{name}", {len(types)}, v);'
            bodies.append(f'extern "C" {result} {name}({takes}) {{ {call} return ({result})r; }}')
        typedefs = PROTOTYPE.sub("", text)
        compiled = emulator._compiled(PRELUDE + typedefs + "\n".join(bodies), ())
        self.path = shutil.copy(compiled, folder / file)  # a copy has variables of its own
        self.loaded = ctypes.CDLL(str(self.path))
        self.calls, self.failing, self.kept = [], {}, {}
        kind = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(Value))
        self.loaded.callback = kind(self.answer)  # as long as the library, which may be called while it is given up
        self.loaded.stub_answer(self.loaded.callback)

    def answer(self, name, count, values):
        name = name.decode()
        arguments = [v.bits for v in values[:count]]
        self.calls.append((name, arguments))
        if name in self.failing:
            return self.failing[name]
        return getattr(self, name, lambda *_: 0)(*arguments) or 0

    def text(self, words):
        """The address of a C string that stays."""
        self.kept[words] = ctypes.create_string_buffer(words.encode())
        return ctypes.addressof(self.kept[words])

    def called(self, name):
        """The arguments of all calls of a function."""
        return [arguments for n, arguments in self.calls if n == name]


def put(kind, address, value):
    """Write a C value to an address."""
    kind.from_address(address).value = value
