"""The CUDA source of vdnn's own kernels: every .cu file of the folder `source`, after their common header."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

REALS = {"float32": "float", "float64": "double"}  # what the source's `real` stands for


@cache
def source() -> str:
    """One translation unit with all kernels; -DREAL says for which type of numbers."""
    folder = files("vdnn.kernels.cuda").joinpath("source")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".cu"))
    parts = [folder.joinpath(name).read_text(encoding="utf-8") for name in ("common.cuh", *names)]
    return "\n".join(parts)
