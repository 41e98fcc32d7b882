"""What tests put in the place of CUDA's libraries, put together: kernels and devices that need no GPU."""

from __future__ import annotations

from emulated import EmulatedDriver
from emulated_libraries import EmulatedConvolutions, EmulatedProducts

from vdnn.kernels.cuda import CudaKernels
from vdnn.memory.cuda import CudaDevice


def _integers(values):
    """The integers of nested arguments, addresses among them."""
    for value in values:
        if isinstance(value, tuple):
            yield from _integers(value)
        elif type(value) is int:
            yield value


class Noted:
    """Tells the driver of each call that computes, if it keeps a record."""

    def _note(self, *arguments):
        note = getattr(self.driver, "library", None)
        if note:
            note(list(_integers(arguments)), self.stream)


class Convolutions(Noted, EmulatedConvolutions):
    def run(self, *arguments):
        self._note(*arguments)
        super().run(*arguments)

    def add_bias(self, *arguments):
        self._note(*arguments)
        super().add_bias(*arguments)

    def bias_gradient(self, *arguments):
        self._note(*arguments)
        super().bias_gradient(*arguments)

    def close(self):
        pass


class Products(Noted, EmulatedProducts):
    def __init__(self, driver, stream):
        super().__init__(driver, stream)
        self.driver, self.stream = driver, stream

    def multiply(self, *arguments):
        self._note(*arguments)
        super().multiply(*arguments)

    def close(self):
        pass


def emulated_kernels(driver, stream, math="fp32", storage=None, deterministic=True):
    """The CUDA kernel set over test doubles of cuDNN and cuBLAS."""
    return CudaKernels(
        driver, stream, Convolutions(driver, stream), Products(driver, stream), math, storage, deterministic
    )


def emulated_device(net, optimizer=None, *, driver=None, seed=0, **options):
    """A CudaDevice that computes on the CPU, its streams in an order that `seed` draws."""
    driver = driver or EmulatedDriver(seed)
    return CudaDevice(net, optimizer, driver=driver, kernels=emulated_kernels, **options)
