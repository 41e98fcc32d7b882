"""models: the networks of the literature, and a small one for handwritten digits.

Each is a function that returns a Network with a loss last: SoftmaxCrossEntropy, for unet MeanSquaredError on its maps.
All take these keyword arguments:

==========  ===================================================================================================
`batch`     samples per step (32)
`image`     (C, H, W) of one input: (3, 224, 224), for overfeat (3, 221, 221), for the inceptions (3, 299, 299),
            for unet (1, 512, 512), for digits_vgg (1, 8, 8)
`classes`   number of scores: 1000, for digits_vgg 10, for unet 2 maps
`saves`     what max pooling keeps for backward: "indices" (1 byte per output) or "input" (x and y, as in the paper);
            not mobilenet_v2, which has none
`dtype`     "float32", or "float64" for checks
==========  ===================================================================================================

and some take more: `dropout` (all but the resnets, densenet121 and digits_vgg; 0 leaves the layers out), `lrn`
(googlenet), `channels`, `counts` and `batch_norm` (digits_vgg).

The paper measures alexnet, overfeat, googlenet, vgg19 (its "VGG-16") and vgg116 to vgg416; `get(name, rules="paper")`
is each of them as its memory was counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from vdnn.importing import imported
from vdnn.layers import AvgPool2d, GlobalAvgPool2d, Layer, MaxPool2d
from vdnn.models.alexnet import alexnet
from vdnn.models.densenet import densenet121
from vdnn.models.digits import digits_vgg
from vdnn.models.googlenet import googlenet
from vdnn.models.inception_v3 import inception_v3
from vdnn.models.inception_v4 import inception_v4
from vdnn.models.mobilenet import mobilenet_v2
from vdnn.models.overfeat import overfeat
from vdnn.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from vdnn.models.unet import unet
from vdnn.models.vgg import vgg, vgg11, vgg16, vgg19, vgg116, vgg216, vgg316, vgg416
from vdnn.naming import among, hint
from vdnn.network import Network

BY_NAME: Mapping[str, Callable[..., Network]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            alexnet,
            overfeat,
            googlenet,
            vgg11,
            vgg16,
            vgg19,
            vgg116,
            vgg216,
            vgg316,
            vgg416,
            resnet18,
            resnet34,
            resnet50,
            resnet101,
            resnet152,
            densenet121,
            inception_v3,
            inception_v4,
            mobilenet_v2,
            unet,
            digits_vgg,
        )
    }
)
NAMES = tuple(BY_NAME)

PAPER_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"googlenet": MappingProxyType({"lrn": False})})
POOLS = (MaxPool2d, AvgPool2d, GlobalAvgPool2d)
RULES = ("ours", "paper")

__all__ = ["BY_NAME", "NAMES", "PAPER_OPTIONS", "get", "paper", "vgg", *NAMES]


def get(name: str, batch: int = 32, *, rules: str = "ours", **options: Any) -> Network:
    """The network of that name, from `NAMES`, as "module:function": a function called with `batch` and `options`, or
    that of a file "NAME.onnx" (vdnn.from_onnx), which takes the option `image` alone.

    With rules="paper" it is the variant that the paper measures: with `PAPER_OPTIONS`, unless `options` say otherwise,
    and rebuilt by `paper`.

    Raises ValueError for a name that is neither and for unknown rules, TypeError if the function does not return a
    Network.
    """
    if rules not in RULES:
        raise ValueError(f"rules={rules!r} is none of {', '.join(RULES)}{hint(rules, RULES)}")
    if not isinstance(name, str):
        raise TypeError(f"a network's name is text, such as 'vgg16' or 'module:function', not {name!r:.80}")
    if name.endswith(".onnx"):
        make: Callable[..., Network] | None = partial(_of_file, name)
    else:
        make = imported(name, "a Network", ValueError) if ":" in name else BY_NAME.get(name)
    if make is None:
        raise ValueError(f"no network is named {name!r}{among(name, NAMES, 'module:function or FILE.onnx')}")
    if rules == "paper":
        options = {**PAPER_OPTIONS.get(name, {}), **options}
    net = make(batch=batch, **options)
    if not isinstance(net, Network):
        raise TypeError(f"{name} returned {type(net).__name__}, not a vdnn.Network")
    return paper(net) if rules == "paper" else net


def _of_file(path: str, *, batch: int, **options: Any) -> Network:
    from vdnn.exchange.onnx_model import network_of_onnx

    others = sorted(options.keys() - {"image"})
    if others:
        raise ValueError(f"{path}: {', '.join(others)}: a network of a file can be had for another image only")
    return network_of_onnx(path, batch, **options)


def paper(network: Network) -> Network:
    """`network` as the paper's rules have it: every pooling layer saves its input (section III-A), as cuDNN asks for.

    Names and weights are the same.  Layers that are not vdnn's own pooling layers, subclasses of these included, are
    the very same objects.
    """
    other = Network(network.input.shape, network.dtype, network.name)
    tensors = {"input": other.input}
    for node in network.nodes:
        inputs = (tensors[t.name] for t in node.inputs)
        tensors[node.y.name] = other.add(_saving_input(node.layer), *inputs, name=node.name)
    return other


def _saving_input(layer: Layer) -> Layer:
    return type(layer)(**{**layer.config(), "saves": "input"}) if type(layer) in POOLS else layer
