"""What all tests on a real GPU share: they are skipped, with the reason, where there is none."""

from __future__ import annotations

import gc

import conformance
import pytest

import vdnn.memory.cuda as cuda
from vdnn.kernels.cuda import CudaKernels
from vdnn.kernels.cuda.driver import CupyDriver

LINKS = {}


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """Skip where there is no GPU; measure the link between host and device once for all tests."""
    conformance.require("cuda")
    measure = cuda.link_of

    def link_of(driver, streams, nbytes):
        if driver.name not in LINKS:
            LINKS[driver.name] = measure(driver, streams, nbytes)
        return LINKS[driver.name]

    monkeypatch.setattr(cuda, "link_of", link_of)
    yield
    gc.collect()  # slabs are given back when nothing refers to them


@pytest.fixture(scope="session")
def kernels():
    """A function (storage, math, deterministic) -> the kernel set, made once."""
    conformance.require("cuda")
    made = {}

    def get(storage="nchw", math="fp32", deterministic=True):
        key = storage, math, deterministic
        if key not in made:
            made[key] = _make(math, storage, deterministic)
        return made[key]

    yield get
    for each in made.values():
        if each.blas is not None:
            each.close()


def _make(math, storage, deterministic):
    if conformance.GPU == "emulated":
        from cuda_doubles import emulated_kernels
        from emulated import EmulatedDriver

        driver = EmulatedDriver()
        return emulated_kernels(driver, driver.new_stream(), math, storage, deterministic)
    driver = CupyDriver()
    if conformance.GPU == "sanitized":
        driver.xp.cuda.set_allocator(None)  # no pool: what lies beside an array belongs to nobody
        return CudaKernels(driver, driver.new_stream(), None, None, math, storage, deterministic)
    return CudaKernels.on(driver, driver.new_stream(), math, storage, deterministic)
