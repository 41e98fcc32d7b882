"""CUDA kernels: convolutions by cuDNN 9, products by cuBLAS, everything else by vdnn's own source.

Same names and arguments as the NumPy kernels.  What cuDNN also offers is left to our own kernels where its needs are
not the layer's: its LRN and its pooling read y in backward, its batch norm moves running averages within forward (which
may run again here) and may not write dx over dy, its average pooling divides otherwise at edges, and its max pooling
breaks ties as it likes; after its softmax the loss would have to be read from p, where small ones are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vdnn.kernels.cuda.conv import ConvKernels
from vdnn.kernels.cuda.dropout import DropoutKernels
from vdnn.kernels.cuda.elementwise import ElementwiseKernels
from vdnn.kernels.cuda.join import JoinKernels
from vdnn.kernels.cuda.linear import LinearKernels
from vdnn.kernels.cuda.loss import LossKernels
from vdnn.kernels.cuda.lrn import LrnKernels
from vdnn.kernels.cuda.norm import NormKernels
from vdnn.kernels.cuda.pool import PoolKernels
from vdnn.kernels.cuda.reshape import ReshapeKernels
from vdnn.kernels.cuda.update import UpdateKernels
from vdnn.layers.base import Array

MATHS = {"fp32": "nchw", "tf32": "nhwc"}  # math mode: its storage unless another is asked for
STORAGES = ("nchw", "nhwc")

__all__ = ["CudaKernels"]


class CudaKernels(
    ConvKernels,
    LinearKernels,
    DropoutKernels,
    ElementwiseKernels,
    JoinKernels,
    LossKernels,
    LrnKernels,
    NormKernels,
    PoolKernels,
    ReshapeKernels,
    UpdateKernels,
):
    """The kernel set `cudnn9`: all work goes to one stream, in order, and nothing waits for it.

    math           "fp32": multiply and add in float32; "tf32": convolutions and products on tensor cores, with ten bits
                   of mantissa
    storage        "nchw" or "nhwc"; None: the one that suits the math mode
    deterministic  only algorithms that give equal bits from run to run
    convolutions, blas  what computes convolutions and products (vdnn.kernels.cuda.conv, linear)
    """

    threads = 1  # a plan for the CPU depends on them, one for a GPU does not

    def __init__(
        self,
        driver: Any,
        stream: Any,
        convolutions: Any,
        blas: Any,
        math: str = "fp32",
        storage: str | None = None,
        deterministic: bool = True,
    ) -> None:
        if math not in MATHS:
            raise ValueError(f"math={math!r} is none of {', '.join(MATHS)}")
        if storage not in (None, *STORAGES):
            raise ValueError(f"storage={storage!r} is none of {', '.join(STORAGES)}")
        super().__init__(driver, stream)
        self.convolutions, self.blas = convolutions, blas
        self.storages = (storage or MATHS[math],)  # cuDNN has other algorithms, and workspaces, for another
        self.math, self.storage, self.deterministic = math, storage or MATHS[math], deterministic

    @classmethod
    def on(
        cls, driver: Any, stream: Any, math: str = "fp32", storage: str | None = None, deterministic: bool = True
    ) -> CudaKernels:
        """The kernels with cuDNN and cuBLAS, on one stream.  Raises CudaError if one of them cannot be loaded."""
        from vdnn.kernels.cuda.cublas import CublasProducts
        from vdnn.kernels.cuda.cudnn import CudnnConvolutions

        convolutions, blas = CudnnConvolutions(driver, stream), CublasProducts(driver, stream, math)
        return cls(driver, stream, convolutions, blas, math, storage, deterministic)

    def close(self) -> None:
        """Give back the libraries' handles."""
        try:
            self.convolutions.close()
        finally:
            self.blas.close()

    @property
    def name(self) -> str:
        """cudnn9 with its math mode: other bits, other algorithms, so another kernel set."""
        return f"cudnn9.{self.math}"

    @property
    def xp(self) -> Any:
        """CuPy, for layers that call it themselves."""
        return self.driver.xp

    def call(self, method: Callable[..., None], arguments: Mapping[str, Any]) -> None:
        """Call a layer's method with NumPy arrays: they go to the device and come back (for tests of layers)."""
        arrays: dict[str, Array] = {k: a for k, a in arguments.items() if hasattr(a, "__array_interface__")}
        with self.driver.borrow(arrays, self.stream) as moved, self.driver.using(self.stream):
            method(**{**arguments, **moved})
