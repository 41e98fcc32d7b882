"""Convolution and its gradients by definition, in float64, and arrays stored channels-last."""

from __future__ import annotations

from typing import Any

import numpy as np


def stored(values: Any, dtype: str = "float64") -> Any:
    """A logical (N, C, H, W) array stored channels-last."""
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1), dtype=dtype).transpose(0, 3, 1, 2)


def poisoned(shape: tuple[int, ...], dtype: str = "float64") -> Any:
    """A channels-last array full of NaN, so that an element not written is noticed."""
    N, C, H, W = shape
    return np.full((N, H, W, C), np.nan, dtype).transpose(0, 3, 1, 2)


class Case:
    """Random x, w, b, dy of one convolution and, in float64, the y, dx, dw, db they must give."""

    def __init__(self, x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, seed=0):
        self.options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        random = np.random.default_rng(seed)
        self.x, self.w, self.b = (random.standard_normal(shape) for shape in (x, w, w[:1]))
        N, C, H, W = x
        K, inner, R, S = w
        OH, OW = (
            (length + 2 * p - d * (taps - 1) - 1) // s + 1
            for length, taps, s, p, d in zip((H, W), (R, S), stride, padding, dilation, strict=True)
        )
        self.dy = random.standard_normal((N, K, OH, OW))
        padded = np.pad(self.x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
        spread = np.zeros(padded.shape)
        w5 = self.w.reshape(groups, K // groups, inner, R, S)
        dy5 = self.dy.reshape(N, groups, K // groups, OH, OW)
        self.dw, y5 = np.zeros(w5.shape), np.zeros(dy5.shape)
        for r in range(R):
            for s in range(S):
                rows = slice(r * dilation[0], r * dilation[0] + stride[0] * (OH - 1) + 1, stride[0])
                columns = slice(s * dilation[1], s * dilation[1] + stride[1] * (OW - 1) + 1, stride[1])
                seen = padded[:, :, rows, columns].reshape(N, groups, inner, OH, OW)
                y5 += np.einsum("ngchw,gkc->ngkhw", seen, w5[..., r, s])
                self.dw[..., r, s] = np.einsum("ngchw,ngkhw->gkc", seen, dy5)
                spread[:, :, rows, columns] += np.einsum("ngkhw,gkc->ngchw", dy5, w5[..., r, s]).reshape(N, C, OH, OW)
        self.y = y5.reshape(self.dy.shape) + self.b[:, None, None]
        self.dw = self.dw.reshape(w)
        self.db = self.dy.sum((0, 2, 3))
        self.dx = spread[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W]

    def algorithms(self, kernels, phase, dtype="float64"):
        return kernels.conv2d_algorithms(phase, self.x.shape, self.w.shape, dtype=dtype, **self.options)

    def expected(self, phase):
        return {"forward": (self.y,), "backward_data": (self.dx,), "backward_weights": (self.dw, self.db)}[phase]

    def run(self, kernels, phase, algorithm, workspace, dtype="float64", store=stored, result=poisoned):
        """The pass's results, from arrays made by `store` into arrays made by `result`."""
        options = {**self.options, "algorithm": algorithm, "workspace": workspace}
        x, w, dy = (store(a, dtype) for a in (self.x, self.w, self.dy))
        if phase == "forward":
            y = result(self.y.shape, dtype)
            kernels.conv2d_forward(x, w, self.b.astype(dtype), y, **options)
            return (y,)
        if phase == "backward_data":
            dx = result(self.x.shape, dtype)
            kernels.conv2d_backward_data(w, dy, dx, **options)
            return (dx,)
        dw, db = result(self.w.shape, dtype), np.full(self.b.shape, np.nan, dtype)
        kernels.conv2d_backward_weights(x, dy, dw, db, **options)
        return dw, db


def worst(actual, expected):
    """Largest error relative to the largest expected element; the reference must not be all zero."""
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0 or expected.size == 0
    return np.abs(actual - expected).max() / np.abs(expected).max()
