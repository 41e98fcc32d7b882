"""models: the networks of the literature, and a small one for handwritten digits.

Each is a function that returns a Network with SoftmaxCrossEntropy last.  All take these keyword arguments:

==========  ===================================================================================================
`batch`     samples per step (32)
`image`     (C, H, W) of one input: (3, 224, 224), for digits_vgg (1, 8, 8)
`classes`   number of scores: 1000, for digits_vgg 10
`saves`     what max pooling keeps for backward: "indices" (1 byte per output) or "input" (x and y, as in the paper)
`dtype`     "float32", or "float64" for checks
==========  ===================================================================================================

and some take more: `dropout` (VGG, GoogLeNet; 0 leaves the layers out), `lrn` (GoogLeNet),
`channels`, `counts` and `batch_norm` (digits_vgg).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vdnn.importing import imported
from vdnn.models.digits import digits_vgg
from vdnn.models.googlenet import googlenet
from vdnn.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from vdnn.models.vgg import vgg, vgg11, vgg16, vgg19, vgg116, vgg216, vgg316, vgg416
from vdnn.network import Network

BY_NAME: Mapping[str, Callable[..., Network]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
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
            googlenet,
            digits_vgg,
        )
    }
)
NAMES = tuple(BY_NAME)

__all__ = ["BY_NAME", "NAMES", "get", "vgg", *NAMES]


def get(name: str, batch: int = 32, **options: Any) -> Network:
    """The network of that name, from `NAMES` or as "module:function": a function called with `batch` and `options`.

    Raises ValueError for a name that is neither, TypeError if the function does not return a Network.
    """
    make = imported(name, "a Network", ValueError) if ":" in name else BY_NAME.get(name)
    if make is None:
        close = difflib.get_close_matches(name.lower().replace("-", ""), NAMES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"no network is named {name!r}{hint}; there are {', '.join(NAMES)}, or module:function")
    net = make(batch=batch, **options)
    if not isinstance(net, Network):
        raise TypeError(f"{name} returned {type(net).__name__}, not a vdnn.Network")
    return net
