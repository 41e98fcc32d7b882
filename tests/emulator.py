"""CUDA kernels on a CPU: the same source, compiled by g++, every CUDA thread a fiber that stops at __syncthreads.

Blocks run one after the other, so shared memory is static memory.  Threads run in turns, from the first to the last or,
`backwards`, from the last to the first: a kernel that lacks a barrier gives other results then.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vdnn.kernels.cuda.sources import REALS, source

PRELUDE = r"""
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>
struct Dim { unsigned x, y, z; };
static Dim threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
using std::isnan; using std::isinf; using std::isfinite;
static inline int atomicSub(int* p, int v) { int o = *p; *p = o - v; return o; }
static inline int atomicAdd(int* p, int v) { int o = *p; *p = o + v; return o; }
static inline void __threadfence() {}
static inline void __threadfence_system() {}

// ---- fibers
static const size_t STACK = 64 << 10;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks, over;
static unsigned current;
static void (*body)();
static void __syncthreads() { swapcontext(&fibers[current], &scheduler); }
static void enter() { body(); over[current] = 1; swapcontext(&fibers[current], &scheduler); }
static void run_block(unsigned threads, int backwards) {
    if (stacks.size() < threads * STACK) stacks.resize(threads * STACK);
    fibers.resize(std::max<size_t>(fibers.size(), threads));
    over.assign(threads, 0);
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = &stacks[t * STACK];
        fibers[t].uc_stack.ss_size = STACK;
        fibers[t].uc_link = nullptr;
        makecontext(&fibers[t], enter, 0);
    }
    for (unsigned left = threads; left;) {
        unsigned ended = 0;
        for (unsigned k = 0; k < threads; k++) {
            current = backwards ? threads - 1 - k : k;
            if (over[current]) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current]);
            ended += over[current];
        }
        // a barrier that some threads never reach is undefined in CUDA
        if (ended && ended != left) { fprintf(stderr, "__syncthreads in divergent code\n"); abort(); }
        left -= ended;
    }
}
static void run_grid(unsigned gx, unsigned gy, unsigned threads, int backwards, int barriers, void (*kernel)()) {
    body = kernel;
    gridDim = {gx, gy, 1}; blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < gy; y++) for (unsigned x = 0; x < gx; x++) {
        blockIdx = {x, y, 0};
        if (barriers) { run_block(threads, backwards); continue; }
        for (unsigned k = 0; k < threads; k++) { threadIdx = {backwards ? threads - 1 - k : k, 0, 0}; kernel(); }
    }
}
"""
KERNEL = re.compile(r"^KERNEL\s+(\w+)\s*\(([^)]*)\)", re.MULTILINE)
TYPES = {"long long": ctypes.c_longlong, "double": ctypes.c_double}


def available():
    """Why kernels cannot be emulated here, or ""."""
    return "" if shutil.which("g++") else "g++, which compiles the kernels for the CPU, is not installed"


class Emulator:
    """The kernels for one type of numbers, compiled once and kept in the temporary folder."""

    def __init__(self, dtype="float32", text=None, flags=("-O1",)):
        text = source() if text is None else text
        pieces = KERNEL.split(text)
        self.parameters = {}
        wrappers = []
        for name, declared, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            parameters = [" ".join(p.split()) for p in declared.split(",")]
            kinds = [self._kind(name, p) for p in parameters]
            self.parameters[name] = kinds
            values = [f"{p.rsplit(' ', 1)[0] if '*' not in p else p[: p.rindex('*') + 1]}" for p in parameters]
            stores = "\n".join(f"static {t} {name}_{i};" for i, t in enumerate(values))
            takes = ", ".join(f"{t} a{i}" for i, t in enumerate(values))
            sets = " ".join(f"{name}_{i} = a{i};" for i in range(len(values)))
            passes = ", ".join(f"{name}_{i}" for i in range(len(values)))
            barriers = int("__syncthreads" in body or "block_" in body)
            wrappers.append(
                f'{stores}\nstatic void call_{name}() {{ {name}({passes}); }}\nextern "C" void emulate_{name}({takes}, '
                f"unsigned gx, unsigned gy, unsigned threads, int backwards) {{ {sets} "
                f"run_grid(gx, gy, threads, backwards, {barriers}, call_{name}); }}"
            )
        code = PRELUDE + text + "\n".join(wrappers)
        self.library = ctypes.CDLL(str(_compiled(code, (*flags, f"-DREAL={REALS[dtype]}"))))

    @staticmethod
    def _kind(name, parameter):
        if "*" in parameter:
            return ctypes.c_void_p
        kind = parameter.rsplit(" ", 1)[0].removeprefix("const ")
        assert kind in TYPES, f"{name}: {parameter} is no pointer, long long or double"
        return TYPES[kind]

    def launch(self, name, grid, block, arguments, backwards=False):
        """Run a kernel to its end.  Arguments are integers (addresses among them) and floats."""
        kinds = self.parameters[name]
        assert len(kinds) == len(arguments), f"{name} takes {len(kinds)} arguments, not {len(arguments)}"
        for kind, argument in zip(kinds, arguments, strict=True):
            wanted = float if kind is ctypes.c_double else int
            assert type(argument) is wanted, f"{name}: {argument!r} is no {wanted.__name__}"
        gx, gy = (*grid, 1)[:2]
        assert 1 <= gx < 2**31, grid
        assert 1 <= gy < 65536, grid
        values = [kind(a) for kind, a in zip(kinds, arguments, strict=True)]
        tail = [ctypes.c_uint(gx), ctypes.c_uint(gy), ctypes.c_uint(block), ctypes.c_int(backwards)]
        getattr(self.library, f"emulate_{name}")(*values, *tail)


def _compiled(code, flags):
    """The shared library of this code, made if it is not there yet."""
    digest = hashlib.sha256((code + " ".join(flags)).encode()).hexdigest()[:24]
    target = Path(tempfile.gettempdir()) / f"vdnn-emulated-{os.getuid()}-{digest}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.part")
        command = ["g++", "-std=c++17", "-w", "-shared", "-fPIC", "-ffp-contract=off", *flags, "-x", "c++", "-"]
        subprocess.run([*command, "-o", str(part)], input=code.encode(), check=True)
        part.replace(target)
    return target
