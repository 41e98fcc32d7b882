"""All layers by name, and the test that every layer must pass."""

from vdnn.layers.activation import LeakyReLU, ReLU, ReLU6, Sigmoid, Tanh
from vdnn.layers.base import Algorithm, Array, Init, Layer, LayerError, Shape, ShapeError, Shapes, Spec
from vdnn.layers.check import check_layer
from vdnn.layers.conv import Conv2d, ConvTranspose2d
from vdnn.layers.dropout import Dropout
from vdnn.layers.join import Add, Concat
from vdnn.layers.linear import Linear
from vdnn.layers.loss import MeanSquaredError, SoftmaxCrossEntropy
from vdnn.layers.norm import BatchNorm2d, LocalResponseNorm
from vdnn.layers.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from vdnn.layers.reshape import ConstantPad2d, Flatten, Upsample

__all__ = [
    "Add",
    "Algorithm",
    "Array",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "ConstantPad2d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Init",
    "Layer",
    "LayerError",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "MeanSquaredError",
    "ReLU",
    "ReLU6",
    "Shape",
    "ShapeError",
    "Shapes",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Spec",
    "Tanh",
    "Upsample",
    "check_layer",
]
