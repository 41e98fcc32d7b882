"""The driver on CuPy, as far as it goes without a GPU: why there is none, arrays over fake addresses, calls as made."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vdnn.kernels.cuda import driver as drivers
from vdnn.kernels.cuda.driver import Block, CudaError, CupyDriver, missing

FIRST = 0x7F0000000000


class FakeRuntimeError(RuntimeError):
    pass


def fake_cupy(available=False, driver=12080, runtime=12090, count=0):
    """What `missing` asks of CuPy.  `count` may be an exception."""

    def devices():
        if isinstance(count, Exception):
            raise count
        return count

    functions = SimpleNamespace(
        CUDARuntimeError=FakeRuntimeError,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: runtime,
        getDeviceCount=devices,
    )
    return SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: available, runtime=functions))


# ---- why there is no GPU


def test_without_cupy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'vdnn[cuda12x]'" in missing()
    with pytest.raises(CudaError, match="CuPy is not installed"):
        CupyDriver()


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (fake_cupy(driver=0), "CuPy finds no NVIDIA driver"),
        (fake_cupy(driver=11040), "the NVIDIA driver is for CUDA 11.4; this CuPy needs CUDA 12.9"),
        (
            fake_cupy(count=FakeRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")),
            "cudaErrorNoDevice",
        ),
        (fake_cupy(count=2), "CuPy can use none of 2 CUDA devices (CUDA_VISIBLE_DEVICES=7)"),
        (fake_cupy(available=True), ""),
    ],
)
def test_the_reason_is_as_exact_as_it_can_be(monkeypatch, cupy, reason):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert reason in missing()
    assert bool(missing()) == bool(reason)


# ---- arrays


@pytest.fixture
def on_cupy():
    """A driver that has CuPy, and no device."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    made = object.__new__(CupyDriver)
    made.xp, made.runtime, made.number = cupy, cupy.cuda.runtime, 0
    made._kernels, made._modules, made.multiprocessors = {}, {}, 4
    return made


def test_an_array_lies_where_it_is_asked_for(on_cupy):
    block = Block(FIRST, 1 << 20, None)
    array = on_cupy.array(block, 512, (2, 3, 4, 5), "float32", (240, 4, 60, 12))
    assert type(array) is on_cupy.xp.ndarray
    assert on_cupy.address(array) == FIRST + 512
    assert (array.shape, array.dtype, array.strides) == ((2, 3, 4, 5), np.float32, (240, 4, 60, 12))
    assert array.transpose(0, 2, 3, 1).flags.c_contiguous
    assert on_cupy.address(np.zeros(3)) > 0


@pytest.mark.parametrize(("offset", "count"), [(-512, 1), (0, (1 << 18) + 1), (1 << 20, 1)])
def test_an_array_outside_its_block_is_refused(on_cupy, offset, count):
    with pytest.raises(CudaError, match=f"bytes {offset} to {offset + 4 * count} are not in a block of 1048576"):
        on_cupy.array(Block(FIRST, 1 << 20, None), offset, (count,), "float32")


def test_memory_that_is_refused_is_said_with_the_numbers(on_cupy, monkeypatch):
    monkeypatch.setattr(on_cupy, "memory_info", lambda: (1000, 5000))
    with pytest.raises(CudaError, match="4096 bytes of device memory were refused: 1000 of 5000 are free"):
        on_cupy.allocate(4096)
    with pytest.raises(CudaError, match="4096 bytes of page-locked host memory were refused"):
        on_cupy.allocate_pinned(4096)


def test_an_allocation_within_a_step_is_refused_with_what_to_do_instead():
    with pytest.raises(CudaError, match=r"asked for 4096 bytes.*declare scratch as a workspace"):
        drivers._refuse(4096)


# ---- calls


def test_copies_and_fills_are_asynchronous_on_their_stream(on_cupy):
    calls = []
    real = on_cupy.xp.cuda.runtime
    names = ("memcpyDeviceToHost", "memcpyHostToDevice", "memcpyDeviceToDevice")
    kinds = {name: getattr(real, name) for name in names}
    on_cupy.runtime = SimpleNamespace(
        memcpyAsync=lambda *a: calls.append(a), memsetAsync=lambda *a: calls.append(a), **kinds
    )
    stream = SimpleNamespace(ptr=77)
    for kind in ("offload", "prefetch", "device"):
        on_cupy.copy(1, 2, 3, kind, stream)
    on_cupy.fill(1, 0xFF, 3, stream)
    assert calls == [*((1, 2, 3, kinds[name], 77) for name in names), (1, 0xFF, 3, 77)]


def test_a_launch_compiles_once_for_each_type_and_passes_plain_numbers(on_cupy):
    made, launched = [], []

    class Stream:
        def __enter__(self):
            launched.append("on")

        def __exit__(self, *_):
            launched.append("off")

    def module(**options):
        made.append(options)
        return SimpleNamespace(get_function=lambda name: lambda *a: launched.append((name, *a)))

    on_cupy.xp = SimpleNamespace(RawModule=module)
    for dtype in ("float32", np.dtype("float32"), "float64", "float32"):
        on_cupy.launch("relu", dtype, (3,), 256, [FIRST, FIRST, 700], Stream())
    assert [m["options"][-1] for m in made] == ["-DREAL=float", "-DREAL=double"]
    assert all(m["backend"] == "nvrtc" and "KERNEL relu(" in m["code"] for m in made)
    assert launched == ["on", ("relu", (3,), (256,), (FIRST, FIRST, 700)), "off"] * 4
