"""What the commands that need a GPU say of it: device and versions, and why there is none to be used.

Run by itself it says only the latter, and exits with status 2.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"


def why_no_gpu() -> str:
    """Why vdnn cannot use a GPU here, in one line, or "" if it can."""
    try:
        from vdnn.kernels.cuda.driver import CudaError, missing
    except ImportError as error:
        return f"{error.name} is not installed for {sys.executable}"
    reason = missing()
    if not reason:
        try:
            _described()
        except CudaError as error:
            reason = str(error)
    return " ".join(reason.split())


def refuse_without_gpu() -> None:
    """Say in one line why there is no usable GPU, CuPy, cuDNN or cuBLAS, and exit with status 2; else do nothing."""
    reason = why_no_gpu()
    if reason:
        print(f"no GPU can be used: {reason}", file=sys.stderr, flush=True)
        raise SystemExit(2)


def about() -> dict[str, Any]:
    """Device, versions, date (UTC) and commit: what belongs to every result.  Raises CudaError without a GPU."""
    import numpy as np

    return {
        **_described(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def _described() -> dict[str, Any]:
    """The GPU's figures, and the versions of all that vdnn runs on it."""
    from vdnn.kernels.cuda.cublas import CublasProducts
    from vdnn.kernels.cuda.cudnn import Cudnn
    from vdnn.kernels.cuda.driver import CupyDriver

    driver = CupyDriver()
    products = CublasProducts(driver, driver.new_stream())
    try:
        libraries = {"cudnn": Cudnn().version, "cublas": products.version}
    finally:
        products.close()
    versions = driver.versions()
    return {
        "device": driver.name,
        "device_figures": driver.describe(),
        "driver": nvidia_driver(),
        "driver_cuda": versions["driver"],
        "runtime": versions["runtime"],
        "cupy": versions["cupy"],
        **libraries,
    }


def nvidia_driver() -> str:
    """The version of NVIDIA's kernel driver, such as 580.82.07, or "unknown"."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _output(ask).split("\n")[0].strip() or "unknown"


def commit() -> str:
    """The commit of this copy of vdnn, with "+" where files differ from it, or "unknown"."""
    git = ["git", "-C", str(ROOT)]
    name = _output([*git, "rev-parse", "HEAD"]).strip()
    if not name:
        return "unknown"
    return name + ("+" if _output([*git, "status", "--porcelain", "--untracked-files=no"]).strip() else "")


def _output(command: list[str]) -> str:
    """What a command prints; "" if it is missing or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    return ""


if __name__ == "__main__":
    refuse_without_gpu()
