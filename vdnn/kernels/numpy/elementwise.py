"""Elementwise kernels: ReLU's two fast ones, and a frame for any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vdnn.kernels.numpy.chunks import CHUNK, Pieces, Sharing, carve, carved_bytes, like, seconds

Array = Any
ROW = 2048
# maximum() with a scalar operand has no SIMD path in NumPy; with a row of zeros it is twice as fast
ZEROS = {np.dtype(kind): np.zeros(ROW, kind) for kind in ("float32", "float64")}
INTEGER = {4: np.dtype("int32"), 8: np.dtype("int64")}  # by the size of the float that is looked at


def _relu(x: Array, y: Array) -> None:
    """y = max(x, 0); abs() turns -0.0 into +0.0, and a negative NaN into a positive one."""
    zeros = ZEROS[x.dtype]
    if x.ndim == 1 and x.size >= ROW:
        whole = x.size - x.size % ROW
        np.maximum(x[:whole].reshape(-1, ROW), zeros, out=y[:whole].reshape(-1, ROW))
        np.maximum(x[whole:], zeros[: x.size - whole], out=y[whole:])
    else:
        np.maximum(x, zeros[0], out=y)
    np.abs(y, out=y)


class ElementwiseKernels(Sharing):
    """relu, relu_backward, elementwise, copy."""

    def relu(self, x: Array, y: Array) -> None:
        """y = max(x, 0), never -0.0.  y may be x."""
        pieces = Pieces((x, y))
        self.share(lambda i, _: _relu(*pieces[i]), len(pieces), seconds(x, y))

    def relu_backward_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that relu_backward needs."""
        return self.elementwise_workspace(dtype, shape)

    def relu_backward(self, y: Array, dy: Array, dx: Array, workspace: Array) -> None:
        """dx = dy where y > 0, +0.0 elsewhere (also where dy is inf or -0.0).  dx may be dy.

        The bits of y >= +0.0, seen as an integer i, are positive where y is: -i is negative there, and its sign,
        shifted to fill the word, is the mask.
        """
        integer = INTEGER[y.itemsize]
        sign = 8 * y.itemsize - 1

        def mask(xp: Any, t: Array, y: Array, dy: Array, dx: Array) -> None:
            t = t.view(integer)
            xp.negative(y.view(integer), out=t)
            xp.right_shift(t, sign, out=t)
            xp.bitwise_and(t, dy.view(integer), out=dx.view(integer))

        self.elementwise(mask, workspace, y, dy, dx)

    def elementwise_workspace(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Bytes of scratch that elementwise needs for arrays of this shape."""
        size = min(CHUNK, int(np.prod(shape)))
        return self.threads * carved_bytes((size, dtype))

    def elementwise(self, function: Callable[..., None], workspace: Array, *arrays: Array) -> None:
        """Call function(xp, t, *pieces) for every piece of `arrays`, with scratch `t` like a piece of the first.

        `function` is a few ufuncs with `out=`.  An output may be an input if `function` allows it.
        """
        pieces = Pieces(arrays)
        spec = (min(CHUNK, arrays[0].size), arrays[0].dtype)
        each = carved_bytes(spec)

        def work(index: int, worker: int) -> None:
            (t,) = carve(workspace[worker * each :], spec)
            parts = pieces[index]
            function(np, like(t, parts[0]), *parts)

        self.share(work, len(pieces), 2 * seconds(*arrays))

    def copy(self, x: Array, y: Array) -> None:
        """y = x, whatever the strides of both."""
        if x is y:
            return
        pieces = Pieces((x, y))

        def work(index: int, _: int) -> None:
            source, target = pieces[index]
            np.copyto(target, source)

        self.share(work, len(pieces), seconds(x, y))
