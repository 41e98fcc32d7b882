"""The few things that vdnn asks of CUDA, by way of CuPy: memory, streams, events, copies, launches, graphs.

Addresses are plain integers, so that nothing above this file depends on CuPy; tests put another driver in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vdnn.kernels.cuda.sources import REALS, source
from vdnn.layers.base import Array

ALIGNMENT = 512  # bytes
CLOCK, BANDWIDTH = 1.5e9, 1e12  # hertz, bytes per second: a guess, of a device that tells neither
MARGIN = 512 << 20  # bytes: what CUDA and its libraries still take when they first run a kernel of theirs
# CuPy adds -ftz=true and lets nobody take it back: in float32 our kernels take numbers below 1.2e-38 for 0
COMPILE = ("--std=c++17", "--fmad=true", "--device-as-default-execution-space")


class CudaError(RuntimeError):
    """CUDA, cuDNN or cuBLAS refused a call, or is not there; the message says what was needed."""


class Block:
    """A piece of device memory: `address` and `nbytes`; it is given back when nothing refers to `owner`."""

    def __init__(self, address: int, nbytes: int, owner: Any) -> None:
        self.address, self.nbytes, self.owner = address, nbytes, owner


def missing() -> str:
    """Why there is no usable GPU here, or "" if there is one."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({error}); pip install 'vdnn[cuda12x]' or 'vdnn[cuda13x]'"
    if cupy.cuda.is_available():
        return ""
    runtime = cupy.cuda.runtime
    try:
        has, needs = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
        if has == 0:
            return "CuPy finds no NVIDIA driver"
        if has // 1000 < needs // 1000:
            return f"the NVIDIA driver is for CUDA {_version(has)}; this CuPy needs CUDA {_version(needs)}"
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device: {error}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CuPy can use none of {count} CUDA devices" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible else "")


def _version(number: int) -> str:
    """CUDA's version numbers as people write them: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CupyDriver:
    """CUDA through CuPy, on the current device.  Raises CudaError where there is none."""

    margin_bytes = MARGIN

    def __init__(self) -> None:
        reason = missing()
        if reason:
            raise CudaError(reason)
        import cupy

        self.xp: Any = cupy
        self.runtime: Any = cupy.cuda.runtime
        self.number = int(self.runtime.getDevice())
        self.properties: dict[str, Any] = self.runtime.getDeviceProperties(self.number)
        self.multiprocessors = int(self.properties["multiProcessorCount"])
        self._kernels: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}

    # ---- the device

    @property
    def name(self) -> str:
        """The device's name, such as NVIDIA H100 80GB HBM3."""
        return str(self.properties["name"].decode())

    def versions(self) -> dict[str, str]:
        """Versions of the driver, the runtime and CuPy."""
        numbers = {"driver": self.runtime.driverGetVersion(), "runtime": self.runtime.runtimeGetVersion()}
        return {k: _version(int(n)) for k, n in numbers.items()} | {"cupy": self.xp.__version__}

    def describe(self) -> dict[str, Any]:
        """The device's published figures: clocks in hertz, sizes in bytes, bandwidth in bytes per second."""
        runtime = self.runtime

        def attribute(name: str) -> int:
            return int(runtime.deviceGetAttribute(getattr(runtime, f"cudaDevAttr{name}"), self.number))

        # clocks are in kHz, memory moves data twice in each; CUDA may say 0 where it does not know
        clock, transfers = 1e3 * attribute("ClockRate"), 2e3 * attribute("MemoryClockRate")
        return {
            "name": self.name,
            "compute_capability": int(self.xp.cuda.Device(self.number).compute_capability),
            "multiprocessors": self.multiprocessors,
            "clock_hertz": clock or CLOCK,
            "memory_bytes_per_second": transfers * attribute("GlobalMemoryBusWidth") / 8 or BANDWIDTH,
            "memory_bytes": self.memory_info()[1],
        }

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of device memory; what other processes hold is not free."""
        free, total = self.runtime.memGetInfo()
        return int(free), int(total)

    # ---- memory

    def allocate(self, nbytes: int) -> Block:
        """Device memory straight from CUDA, no pool in between.  Raises CudaError."""
        try:
            with self.xp.cuda.Device(self.number):
                memory = self.xp.cuda.Memory(max(1, nbytes))
        except (self.runtime.CUDARuntimeError, MemoryError) as error:
            free, total = self.memory_info()
            raise CudaError(
                f"{nbytes} bytes of device memory were refused: {free} of {total} are free ({error})"
            ) from error
        return Block(int(memory.ptr), nbytes, memory)

    def allocate_pinned(self, nbytes: int) -> Array:
        """Page-locked host memory, all 0, as a NumPy array of bytes.  Raises CudaError."""
        try:
            memory = self.xp.cuda.PinnedMemory(max(1, nbytes), self.runtime.hostAllocPortable)
        except (self.runtime.CUDARuntimeError, MemoryError) as error:
            raise CudaError(f"{nbytes} bytes of page-locked host memory were refused ({error})") from error
        pointer = self.xp.cuda.PinnedMemoryPointer(memory, 0)
        array: Array = np.ndarray((nbytes,), np.uint8, buffer=pointer)
        array.fill(0)
        return array

    def array(
        self, block: Block, offset: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None
    ) -> Array:
        """A CuPy array over a part of `block`; CuPy checks nothing, so the bounds are checked here."""
        count = int(np.prod(shape))
        nbytes = count * np.dtype(dtype).itemsize
        if offset < 0 or offset + nbytes > block.nbytes:
            raise CudaError(f"bytes {offset} to {offset + nbytes} are not in a block of {block.nbytes}")
        memory = self.xp.cuda.UnownedMemory(block.address, max(1, block.nbytes), block.owner, self.number)
        pointer = self.xp.cuda.MemoryPointer(memory, offset)
        return self.xp.ndarray(shape, np.dtype(dtype), memptr=pointer, strides=strides)

    @staticmethod
    def address(array: Array) -> int:
        """Where a device array, or a NumPy array, begins."""
        return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)

    # ---- streams and events

    def new_stream(self) -> Any:
        """A stream that does not wait for the null stream."""
        return self.xp.cuda.Stream(non_blocking=True)

    @staticmethod
    def handle(stream: Any) -> int:
        """The stream as CUDA's libraries take it."""
        return int(stream.ptr)

    def new_event(self, timing: bool = False) -> Any:
        """An event; without `timing` it only orders."""
        return self.xp.cuda.Event(disable_timing=not timing)

    @staticmethod
    def record(event: Any, stream: Any) -> None:
        """The event happens when the stream has done what it was given so far."""
        event.record(stream)

    @staticmethod
    def wait(stream: Any, event: Any) -> None:
        """The stream goes on only after the event."""
        stream.wait_event(event)

    def synchronize(self, what: Any) -> None:
        """Return when an event, or all that a stream was given, is over.  Raises CudaError if something failed."""
        try:
            what.synchronize()
        except self.runtime.CUDARuntimeError as error:
            raise CudaError(str(error)) from error

    def elapsed_seconds(self, first: Any, last: Any) -> float:
        """Seconds between two events with timing, both over."""
        return float(self.xp.cuda.get_elapsed_time(first, last)) / 1e3

    # ---- work

    def copy(self, target: int, source: int, nbytes: int, kind: str, stream: Any) -> None:
        """Start copying; `kind` is offload (device to host), prefetch (host to device) or device."""
        kinds = {
            "offload": self.runtime.memcpyDeviceToHost,
            "prefetch": self.runtime.memcpyHostToDevice,
            "device": self.runtime.memcpyDeviceToDevice,
        }
        self.runtime.memcpyAsync(target, source, nbytes, kinds[kind], stream.ptr)

    def fill(self, target: int, byte: int, nbytes: int, stream: Any) -> None:
        """Start setting every byte of device memory."""
        self.runtime.memsetAsync(target, byte, nbytes, stream.ptr)

    def launch(
        self, name: str, dtype: Any, grid: tuple[int, ...], block: int, arguments: Sequence[int | float], stream: Any
    ) -> None:
        """Start a kernel of vdnn's own source, for arrays of `dtype`.  Addresses and counts are int, others float."""
        key = (name, np.dtype(dtype).name)
        kernel = self._kernels.get(key)
        if kernel is None:
            kernel = self._kernels[key] = self._module(key[1]).get_function(name)
        with stream:
            kernel(grid, (block,), tuple(arguments))

    def _module(self, dtype: str) -> Any:
        if dtype not in self._modules:
            options = (*COMPILE, f"-DREAL={REALS[dtype]}")
            self._modules[dtype] = self.xp.RawModule(code=source(), options=options, backend="nvrtc")
        return self._modules[dtype]

    @contextmanager
    def using(self, stream: Any) -> Iterator[None]:
        """Inside, array functions work on `stream`, and an attempt to allocate device memory is refused."""
        # the current device, like the stream and the allocator, is the thread's own
        with self.xp.cuda.Device(self.number), stream, self.xp.cuda.using_allocator(_refuse):
            yield

    @contextmanager
    def borrow(self, arrays: Mapping[str, Array], stream: Any) -> Iterator[dict[str, Array]]:
        """Inside, device arrays in the place of NumPy's; what they hold at the end is copied back.

        A whole base array goes along with each view of it, at the same distance, so that what lies beside the view is
        there as well.  Arrays of one base stay views of one base.
        """
        there: dict[int, tuple[Array, Array]] = {}
        moved: dict[str, Array] = {}
        for name, array in arrays.items():
            same = next((other for other, a in arrays.items() if a is array and other in moved), "")
            if same:
                moved[name] = moved[same]
                continue
            root = array
            while isinstance(root.base, np.ndarray):
                root = root.base
            before = array.ctypes.data - root.ctypes.data
            if id(root) not in there:
                shift = -before % ALIGNMENT
                device = self.xp.empty(root.nbytes + ALIGNMENT, np.uint8)[shift : shift + root.nbytes]
                device.set(root.reshape(-1).view(np.uint8))
                there[id(root)] = root, device
            device = there[id(root)][1]
            moved[name] = self.xp.ndarray(array.shape, array.dtype, memptr=device.data + before, strides=array.strides)
        self.xp.cuda.get_current_stream().synchronize()
        yield moved
        self.synchronize(stream)
        for root, device in there.values():
            root.reshape(-1).view(np.uint8)[...] = device.get()
        moved.clear()
        there.clear()
        self.xp.get_default_memory_pool().free_all_blocks()  # what the pool keeps would not count as free

    # ---- graphs

    @staticmethod
    def begin_capture(stream: Any) -> None:
        """From here on work is recorded instead of done."""
        stream.begin_capture()

    @staticmethod
    def end_capture(stream: Any) -> Any:
        """The graph of what was recorded."""
        return stream.end_capture()

    @staticmethod
    def launch_graph(graph: Any, stream: Any) -> None:
        """Do all of it once."""
        graph.launch(stream)

    # ---- profilers

    def range_push(self, name: str) -> None:
        """Begin a named range, for profilers; costs nothing without one."""
        self.xp.cuda.nvtx.RangePush(name)

    def range_pop(self) -> None:
        """End the range begun last."""
        self.xp.cuda.nvtx.RangePop()


def _refuse(nbytes: int) -> Any:
    raise CudaError(
        f"something in a training step asked for {nbytes} bytes of device memory; a layer may use only the arrays that "
        "it is handed: write with out=, and declare scratch as a workspace"
    )
