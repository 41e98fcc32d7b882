"""The CUDA source as NVIDIA's own compiler takes it, where that is installed; it needs no GPU."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import pytest

from vdnn.kernels.cuda.driver import COMPILE
from vdnn.kernels.cuda.sources import REALS, source

PLACES = ("nvidia/cuda_nvrtc/lib/libnvrtc.so.1[23]", "nvidia/cu13/lib/libnvrtc.so.13")


def nvrtc():
    found = [path for root in sys.path if root for place in PLACES for path in Path(root).glob(place)]
    if not found:
        pytest.skip("NVRTC is not installed (the nvidia-cuda-nvrtc wheel has it)")
    return ctypes.CDLL(str(found[0]))


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("dtype", REALS)
def test_nvrtc_compiles_it_with_the_options_that_are_used(dtype, architecture):
    library, program = nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source().encode(), b"vdnn.cu", 0, None, None) == 0
    options = [o.encode() for o in (*COMPILE, "-ftz=true", f"-DREAL={REALS[dtype]}", f"-arch={architecture}")]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    assert size.value > 10_000


def test_every_kernel_has_a_name_of_its_own_and_includes_nothing():
    names = re.findall(r"^KERNEL (\w+)", source(), re.MULTILINE)
    assert len(names) >= 40
    assert len(names) == len(set(names))
    assert "#include" not in source()
