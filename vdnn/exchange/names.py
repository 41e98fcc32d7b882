"""names: what other programs call the weights of the shipped architectures.

torchvision's names, for inception_v4 timm's, are known here as rules on the names of vdnn's layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import takewhile

from vdnn.layers import Flatten
from vdnn.network import Network

OWN = {"w": "weight", "b": "bias", "mean": "running_mean", "variance": "running_var"}
COUNTER = "num_batches_tracked"  # of batch norm, which takes no part in any result
Rule = Callable[[Network, str], str]


def _numbered(classifier: Mapping[str, str]) -> Rule:
    """Convolutions by their place among all layers before Flatten, as in torchvision's `features`."""

    def rule(net: Network, layer: str) -> str:
        if layer in classifier:
            return f"classifier.{classifier[layer]}"
        names = [node.name for node in takewhile(lambda node: not isinstance(node.layer, Flatten), net.nodes)]
        return f"features.{names.index(layer)}" if layer in names else layer

    return rule


def _substituted(*changes: tuple[str, str]) -> Rule:
    def rule(net: Network, layer: str) -> str:
        for pattern, replacement in changes:
            layer = re.sub(pattern, replacement, layer)
        return layer

    return rule


UNIT = (r"_(conv|bn)$", r".\1")  # of a convolution without bias and its batch norm
RULES: tuple[tuple[str, Rule], ...] = (
    (r"alexnet", _numbered({"fc6": "1", "fc7": "4", "fc8": "6"})),
    (r"vgg\d+", _numbered({"fc6": "0", "fc7": "3", "fc8": "6"})),
    (r"resnet\d+", _substituted((r"^layer(\d)_(\d+)_", r"layer\1.\2."), (r"downsample_", "downsample."))),
    (r"densenet121|mobilenet_v2", _substituted(("_", "."))),
    (r"inception_v3", _substituted(UNIT, (r"^(Mixed_\d\w)_", r"\1."))),
    (
        r"inception_v4",
        # the last three blocks have no rows of layers in their branches 1 and 2, but layers branch1_0, branch1_1a, ...
        _substituted(
            UNIT, (r"^features_(\d+)[_.]", r"features.\1."), (r"^(features\.(?!19|20|21).*branch\d|.*branch3)_", r"\1.")
        ),
    ),
)
# (architecture, keys in files, what they are): of parts that a network here does not have, or that compute nothing
LEFT_OUT = ((r"inception_v3", r"AuxLogits\..*", "the auxiliary classifier"),)
# (architecture, keys as older files have them, keys as of now)
RENAMED = ((r"densenet121", r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)
# (architecture, a key that tells another network of the same name, why it does not fit)
OTHERS = (
    (
        r"googlenet",
        r"inception3a\.branch1\.conv\.weight",
        "torchvision's GoogLeNet is another one: it has batch norm, and 3x3 convolutions where the paper has 5x5",
    ),
    (
        r"vgg\d+",
        r"features\.1\.running_mean",
        "this is torchvision's VGG with batch norm, vgg16_bn and the like; vdnn.models has those without",
    ),
)


def names_of(net: Network) -> dict[str, dict[str, str]]:
    """{whose names: {name in a file: name of the tensor in the network}}, the most usual first.

    "torchvision" (timm's for inception_v4) where there are such names; "layers", as PyTorch would name modules with
    the names of the layers, conv1.weight; "vdnn", conv1.w.
    """
    tensors = [*net.parameters, *net.statistics]
    found: dict[str, dict[str, str]] = {}
    for pattern, rule in RULES:
        if re.fullmatch(pattern, net.name):
            found["torchvision"] = {_named(tensor, rule(net, _layer(tensor))): tensor for tensor in tensors}
    found["layers"] = {_named(tensor, _layer(tensor)): tensor for tensor in tensors}
    found["vdnn"] = {tensor: tensor for tensor in tensors}
    return found


def _layer(tensor: str) -> str:
    return tensor.rsplit(".", 1)[0]


def _named(tensor: str, layer: str) -> str:
    own = tensor.rsplit(".", 1)[1]
    return f"{layer}.{OWN.get(own, own)}"


def as_of_now(net: Network, key: str) -> str:
    """The key as it is today, of one from an older file."""
    for architecture, pattern, replacement in RENAMED:
        if re.fullmatch(architecture, net.name):
            key = re.sub(pattern, replacement, key)
    return key


def is_left_out(net: Network, key: str) -> bool:
    """Whether a key is known to be of no use for this network."""
    known = (re.fullmatch(architecture, net.name) and re.fullmatch(keys, key) for architecture, keys, _ in LEFT_OUT)
    return key.endswith(f".{COUNTER}") or any(known)


def why_other(net: Network, keys: Mapping[str, object]) -> str:
    """What tells that these keys are of another network of the same name, or ""."""
    for architecture, pattern, why in OTHERS:
        if re.fullmatch(architecture, net.name) and any(re.fullmatch(pattern, key) for key in keys):
            return why
    return ""
