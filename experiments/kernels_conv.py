"""Speed of every convolution algorithm of the NumPy kernels on typical layers, in GFLOP/s of direct arithmetic.

Algorithms of one row run in turn (A B C A B C ...), and the median counts.  With PyTorch installed its time for the
same pass, channels-last, is one more column.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy

from vdnn.kernels.numpy import NumpyKernels

try:
    import torch
except ImportError:
    torch = None

PASSES = ("forward", "backward_weights", "backward_data")
LAYERS = {  # name: N, C, H = W, K, R = S, stride, padding
    "vgg1_1": (8, 3, 224, 64, 3, 1, 1),
    "vgg1_2": (4, 64, 224, 64, 3, 1, 1),
    "vgg3": (4, 256, 56, 256, 3, 1, 1),
    "vgg5": (16, 512, 14, 512, 3, 1, 1),
    "alex1": (16, 3, 224, 64, 11, 4, 2),
    "alex2": (16, 64, 27, 192, 5, 1, 2),
    "goog3a": (16, 192, 28, 64, 1, 1, 0),
    "goog3x3": (16, 96, 28, 128, 3, 1, 1),
    "res_dn": (16, 128, 28, 256, 3, 2, 1),
    "cifar16": (64, 16, 32, 16, 3, 1, 1),
    "cifar64": (64, 64, 8, 64, 3, 1, 1),
}


def stored(shape: tuple[int, ...]) -> Any:
    """Random values of a logical shape, stored channels-last."""
    N, C, H, W = shape
    return numpy.random.default_rng(0).standard_normal((N, H, W, C), numpy.float32).transpose(0, 3, 1, 2)


def calls(kernels: NumpyKernels, layer: tuple[int, ...], phase: str) -> tuple[dict[str, Callable[[], None]], float]:
    """{algorithm: a call of this pass, without a bias} and its floating-point operations."""
    N, C, H, K, R, stride, padding = layer
    OH = (H + 2 * padding - R) // stride + 1
    x, w, y = stored((N, C, H, H)), stored((K, C, R, R)), stored((N, K, OH, OH))
    options: dict[str, Any] = {
        "stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip
    found: dict[str, Callable[[], None]] = {}
    for algorithm in kernels.conv2d_algorithms(phase, x.shape, w.shape, dtype="float32", **options):
        space = numpy.zeros(algorithm.workspace, numpy.uint8) if algorithm.workspace else None
        more = {**options, "algorithm": algorithm.name, "workspace": space}
        label = f"{algorithm.name} {algorithm.workspace / 2**20:.1f}M"
        if phase == "forward":
            found[label] = lambda more=more: kernels.conv2d_forward(x, w, None, y, **more)
        elif phase == "backward_data":
            found[label] = lambda more=more: kernels.conv2d_backward_data(w, y, x, **more)
        else:
            found[label] = lambda more=more: kernels.conv2d_backward_weights(x, y, w, None, **more)
    if torch is not None:
        found["torch"] = torch_call(x, w, y, stride, padding, phase)
    return found, 2.0 * y.size * C * R * R


def torch_call(x: Any, w: Any, y: Any, stride: int, padding: int, phase: str) -> Callable[[], None]:
    """The same pass by PyTorch, on the same channels-last arrays."""
    tx, tw, ty = (torch.from_numpy(a) for a in (x, w, y))
    if phase == "forward":
        return lambda: torch.nn.functional.conv2d(tx, tw, None, stride, padding)
    mask = [phase == "backward_data", phase == "backward_weights", False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(ty, tx, tw, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask)


def measure(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@click.command()
@click.option("--quick", is_flag=True, help="Small batches, one round.")
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--layer", "names", multiple=True, help="Only these layers.")
def main(quick: bool, threads: int, rounds: int, names: tuple[str, ...]) -> None:
    """Print measured GFLOP/s per layer, pass and algorithm."""
    kernels = NumpyKernels(threads)
    if torch is not None:
        torch.set_num_threads(threads)
    for name in names or LAYERS:
        layer = (1, *LAYERS[name][1:]) if quick else LAYERS[name]
        for phase in PASSES:
            found, flops = calls(kernels, layer, phase)
            seconds: dict[str, list[float]] = {label: [] for label in found}
            for turn in range(2 if quick else rounds + 1):
                for label, call in found.items():
                    taken = measure(call)
                    if turn:  # the first round only warms up
                        seconds[label].append(taken)
            cells = [f"{label} {flops / statistics.median(s) / 1e9:.0f}" for label, s in seconds.items()]
            print(f"{name:8} {phase:16} T={threads}  {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
