"""cuDNN 4 on a Titan X (Maxwell) as the vDNN paper measured it: a kernel set that plans and simulates, and cannot run.

What is known are Fig. 5 (workspace of the fastest algorithm, forward, VGG-E at batch 256) and Fig. 6 (latencies,
VGG-E at batch 64).  Convolutions of these shapes take the figures' values, in proportion to the batch; all others
follow the model of vdnn.kernels.cudnn4.model, whose constants come from the same two figures and from nothing else.
"""

from __future__ import annotations

from typing import Any

from vdnn.kernels.cudnn4.model import Convolution, backward_seconds, forward_seconds, linear_seconds, workspace
from vdnn.layers.base import Algorithm, Shape

__all__ = ["Cudnn4Kernels"]

# What a rate of 1 stands for: the Titan X's 7 TFLOPS, of which 70 % are attained (see hardware.json).  On other
# hardware the rates carry over, so that its convolutions are as much faster as its arithmetic is.
RATE_1 = 0.7 * 7e12
LEAST = "implicit_gemm"  # the paper's (m): no workspace
FASTEST = "fastest"  # its (p) where that has a workspace; the paper does not say which of cuDNN's algorithms it is


class Cudnn4Kernels:
    """The kernel set `cudnn4`: names, workspaces and rates of algorithms, and no kernel."""

    name = "cudnn4"
    storage = "nchw"
    storages = ("nchw",)
    threads = 1
    takes_any_strides = True  # tensor descriptors have strides: a part of a map's channels is a map
    has_relu_mask = True  # a kernel of one's own: cuDNN has none, and plans here count its bytes as of any other
    accumulates = True  # y = alpha f(x) + beta y: a gradient can be added to another

    def conv2d_algorithms(
        self,
        phase: str,
        x_shape: Shape,
        w_shape: Shape,
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        dtype: Any,
    ) -> tuple[Algorithm, ...]:
        """Implicit GEMM, and the fastest where that is another; workspaces in bytes, least first.

        The backward workspace is taken to be that of forward, since Fig. 5 shows no other.
        """
        layer = Convolution.of(x_shape, w_shape, stride, padding, dilation, groups)
        seconds = forward_seconds if phase == "forward" else backward_seconds
        flops = layer.flops
        found = [Algorithm(LEAST, 0, flops / (seconds(layer, False, phase) * RATE_1))]
        scratch = workspace(layer)
        if scratch:
            fastest = Algorithm(FASTEST, scratch, flops / (seconds(layer, True, phase) * RATE_1))
            if fastest.rate > found[0].rate:
                found.append(fastest)
        return tuple(found)

    def linear_algorithms(self, phase: str, N: int, IN: int, OUT: int) -> tuple[Algorithm, ...]:
        """cuBLAS as Fig. 6 has it for VGG's classifier; else a plain product."""
        seconds = linear_seconds(phase, N, IN, OUT)
        return (Algorithm("default", 0, 2 * N * IN * OUT / (seconds * RATE_1) if seconds else 1.0),)

    def update_workspace(self, name: str, shape: Shape, dtype: str) -> int:
        """None."""
        return 0
