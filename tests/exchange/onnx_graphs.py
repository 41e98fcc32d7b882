"""ONNX graphs made by hand: an operator is a call that returns its output's name; arrays among inputs are constants."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


class Graph:
    def __init__(self, shape=("N", 3, 16, 16), opset=17, dtype=TensorProto.FLOAT):
        self.shape, self.opset, self.dtype = shape, opset, dtype
        self.nodes, self.constants, self.random = [], [], np.random.default_rng(5)

    def constant(self, value):
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, operator, *inputs, outputs=1, domain="", **attributes):
        inputs = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        names = [f"value{len(self.nodes)}" + "abc"[i] for i in range(outputs)]
        node = f"/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, names, node, domain=domain, **attributes))
        return names[0]

    def weight(self, *shape):
        """Values that keep maps of about the size of their inputs."""
        fan_in = int(np.prod(shape[1:]))
        return (self.random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    def vector(self, size, low=-0.5, high=0.5):
        return self.random.uniform(low, high, size).astype(np.float32)

    def conv(self, x, channels_in, channels, kernel=3, bias=True, groups=1, **attributes):
        pads = {} if "auto_pad" in attributes else {"pads": [kernel // 2] * 4}
        extra = (self.vector(channels),) if bias else ()
        w = self.weight(channels, channels_in // groups, kernel, kernel)
        return self("Conv", x, w, *extra, group=groups, **{**pads, **attributes})

    def conv_relu(self, x, channels_in, channels, kernel=3, **attributes):
        return self("Relu", self.conv(x, channels_in, channels, kernel, **attributes))

    def norm(self, x, channels, **attributes):
        scale, shift = self.vector(channels, 0.5, 1.5), self.vector(channels)
        mean, variance = self.vector(channels), self.vector(channels, 0.5, 2)
        return self("BatchNormalization", x, scale, shift, mean, variance, **attributes)

    def model(self, y, rank=2):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [value("x", self.dtype, self.shape)],
            [value(y, self.dtype, [None] * rank)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def save(self, folder, y, rank=2, name="model.onnx"):
        path = folder / name
        onnx.save(self.model(y, rank), path)
        return path


def vgg_like(graph):
    """Two groups of convolutions, and fully connected layers as PyTorch exports them."""
    x, channels = "x", 3
    for width in (8, 12):
        for _ in range(2):
            x, channels = graph.conv_relu(x, channels, width), width
        x = graph("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph("Flatten", x)
    x = graph("Relu", graph("Gemm", x, graph.weight(20, 12 * 16), graph.vector(20), transB=1))
    x = graph("Dropout", x)
    x = graph("Gemm", x, graph.weight(20, 10), graph.vector(10), alpha=0.5, beta=2.0)
    return graph("Softmax", x), 2


def resnet_like(graph):
    """Blocks with skips, one of them strided and projected, and a mean over the plane."""
    x = graph("Relu", graph.norm(graph.conv("x", 3, 8, bias=False), 8))
    x = graph("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels, width, stride in ((8, 8, 1), (8, 16, 2)):
        y = graph("Relu", graph.norm(graph.conv(x, channels, width, bias=False, strides=[stride, stride]), width))
        y = graph.norm(graph.conv(y, width, width, bias=False), width)
        if stride > 1:
            x = graph.norm(graph.conv(x, channels, width, 1, bias=False, strides=[stride, stride]), width)
        x = graph("Relu", graph("Add", y, x))
    x = graph("Flatten", graph("GlobalAveragePool", x))
    return graph("Gemm", x, graph.weight(10, 16), graph.vector(10), transB=1), 2


def googlenet_like(graph):
    """LRN, windows that hang over the edge, and branches joined in channels."""
    x = graph.conv_relu("x", 3, 8)
    x = graph("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    x = graph("LRN", x, size=5, alpha=0.2, beta=0.75, bias=2.0)
    branches = [
        graph.conv_relu(x, 8, 4, 1),
        graph.conv_relu(graph.conv_relu(x, 8, 4, 1), 4, 6, 3),
        graph.conv_relu(graph.conv_relu(x, 8, 2, 1), 2, 4, 5),
        graph.conv_relu(graph("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 8, 2, 1),
    ]
    x = graph("Concat", *branches, axis=1)
    x = graph("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    x = graph("Reshape", graph("ReduceMean", x, axes=[2, 3], keepdims=1), np.array([0, -1]))
    return graph("Add", graph("MatMul", x, graph.weight(16, 10)), graph.vector(10)), 2


def unet_like(graph):
    """Down and up again, by a transposed convolution and by repeating, with skips joined in channels."""
    first = graph.conv_relu("x", 3, 6)
    second = graph.conv_relu(graph("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 6, 8)
    third = graph.conv_relu(graph("MaxPool", second, kernel_shape=[2, 2], strides=[2, 2]), 8, 10)
    up = graph("ConvTranspose", third, graph.weight(10, 8, 2, 2), graph.vector(8), strides=[2, 2])
    x = graph.conv_relu(graph("Concat", second, up, axis=1), 16, 8)
    up = graph("Resize", x, "", np.array([1, 1, 2, 2], np.float32), mode="linear")
    x = graph.conv_relu(graph("Concat", first, up, axis=1), 14, 6)
    return graph.conv(x, 6, 2, 1), 4
